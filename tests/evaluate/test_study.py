import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from components.common.errors import UserError
from components.evaluate.run import study
from components.evaluate.study import Cell, find_cells
from components.params import Params
from tests.evaluate.conftest import FINDINGS, MakePredictions, Table

ARMS = {"moco": 1.0, "ifa": 3.0, "scratch": 0.1, "aligned": 1.0}
"""Skill of the scores by arm."""


@pytest.fixture
def params() -> Params:
    return Params.model_validate({"evaluate": {"resamples": 2000}, "study": {"arms": list(ARMS), "seeds": [0, 1]}})


@pytest.fixture
def cells(make_predictions: MakePredictions, tmp_path: Path) -> str:
    """Two conditions and two seeds of four arms. `aligned` equals the reference apart from noise."""
    for condition in ("1.0", "0.05"):
        for number, (arm, skill) in enumerate(ARMS.items()):
            for seed in (0, 1):
                make_predictions(f"cells/scarcity/{condition}/{arm}/{seed}", skill=skill, seed=10 * number + seed)
    return str(tmp_path / "cells")


def finish(cells: str, tmp_path: Path, params: Params) -> dict[str, Any]:
    study(cells=cells, out=str(tmp_path / "page"), **params.arguments("evaluate study"))
    found: dict[str, Any] = json.loads((tmp_path / "page" / "metrics.json").read_text())
    return found


def test_a_plain_sentence_for_each_arm(cells: str, tmp_path: Path, params: Params, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        finish(cells, tmp_path, params)
    assert (
        "That ifa pretraining helps with few labels, compared with moco, holds on this cohort: better in 2 of 2 conditions." in caplog.text
    )
    assert "That aligned pretraining helps with few labels, compared with moco, is not shown on this cohort" in caplog.text
    assert "scratch pretraining" not in caplog.text
    text = (tmp_path / "page" / "study.md").read_text()
    assert "- That ifa pretraining helps with few labels, compared with moco, holds on this cohort" in text
    assert text.count("| 0.05 | ") == text.count("| 1.0 | ") == len(ARMS)
    html = (tmp_path / "page" / "study.html").read_text()
    assert "holds on this cohort: better in 2 of 2 conditions" in html and "http" not in html


def test_numbers_are_means_over_seeds(cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    found = finish(cells, tmp_path, params)
    own = [macro_auroc(Path(cells, "scarcity", "0.05", "ifa", seed)) for seed in ("0", "1")]
    theirs = [macro_auroc(Path(cells, "scarcity", "0.05", "moco", seed)) for seed in ("0", "1")]
    assert found["scarcity_0.05_ifa"] == pytest.approx(np.mean(own), abs=1e-9)
    assert found["scarcity_0.05_ifa_difference"] == pytest.approx(np.mean(own) - np.mean(theirs), abs=1e-9)
    assert found["scarcity_0.05_ifa_difference_low"] > 0 > found["scarcity_0.05_scratch_difference_high"]
    assert "scarcity_0.05_moco_difference" not in found


def macro_auroc(folder: Path) -> float:
    """Returns the macro AUROC of the two findings with at least five positives and negatives."""
    rows = pq.read_table(folder / "predictions.parquet").to_pandas()
    rows = rows[rows["split"] == "test"]
    values = []
    for finding in FINDINGS[:2]:
        known = rows[rows[f"target_{finding}"].notna()]
        values.append(roc_auc_score(known[f"target_{finding}"], known[f"score_{finding}"]))
    return float(np.mean(values))


def test_the_metric_of_imbalance_is_that_of_the_rare_finding(make_predictions: MakePredictions, tmp_path: Path, params: Params) -> None:
    for arm in ("moco", "ifa"):
        folder = Path(make_predictions(f"cells/imbalance/0.1/{arm}/0", skill=ARMS[arm], seed=len(arm)))
        record = json.loads((folder / "run.json").read_text())
        record["params"]["positive_rate"] = {"Effusion": 0.1}
        (folder / "run.json").write_text(json.dumps(record))
    finish(str(tmp_path / "cells"), tmp_path, params)
    assert "AUROC, Effusion" in (tmp_path / "page" / "study.html").read_text()


def test_an_arm_without_its_reference_is_named(cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    make_predictions("cells/scarcity/0.05/ifa/2")
    with pytest.raises(UserError, match=r"condition 0\.05, arm ifa: seed 2"):
        finish(cells, tmp_path, params)


def test_models_of_other_test_images_are_refused(cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    def others(columns: Table) -> None:
        columns["image_id"] = [f"f{name[1:]}" for name in columns["image_id"]]

    for arm, change in (("moco", None), ("ifa", others)):
        make_predictions(f"cells/scarcity/0.25/{arm}/0", change)
    with pytest.raises(UserError, match="cannot be compared"):
        finish(cells, tmp_path, params)


def test_a_folder_without_cells_is_refused(tmp_path: Path, make_predictions: MakePredictions) -> None:
    make_predictions("cells/other/0.1/ifa/0")
    with pytest.raises(UserError, match="contains no cell of a study"):
        find_cells(str(tmp_path / "cells"))


def test_cells_are_found_by_their_folders(cells: str, tmp_path: Path) -> None:
    (tmp_path / "cells" / "scarcity" / "0.5" / "moco" / "0.partial").mkdir(parents=True)
    assert len(find_cells(cells)) == 16
    assert Cell("scarcity", "0.05", "ifa", "1") in find_cells(cells)
