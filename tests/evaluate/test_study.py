import html
import json
import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from components.classify import evaluation as classification
from components.classify.evaluation import Classification
from components.common.errors import UserError
from components.evaluate.params import Study
from components.evaluate.predictions import read_predictions
from components.evaluate.run import study
from components.evaluate.study import Cell, find_cells
from components.evaluate.study_page import STYLES
from components.params import Params
from components.pretrain.params import CONTROLS, Arm
from tests import ROOT
from tests.evaluate.conftest import FINDINGS, MakePredictions, Table

ARMS = {"moco": 0.3, "ifa": 1.5, "scratch": 0.1, "base": 0.3, "aligned": 0.3, "mse": 0.3}
"""Skill of the scores by arm."""
SEEDS = (0, 1, 2)


@pytest.fixture
def params() -> Params:
    return Params.model_validate({"evaluate": {"resamples": 1000}, "study": {"arms": list(ARMS), "seeds": list(SEEDS)}})


@pytest.fixture
def cells(make_predictions: MakePredictions, tmp_path: Path) -> str:
    """Two conditions and three seeds of each arm. `aligned` equals the reference apart from noise."""
    for condition in ("1.0", "0.05"):
        for number, (arm, skill) in enumerate(ARMS.items()):
            for seed in SEEDS:
                make_predictions(f"cells/scarcity/{condition}/{arm}/{seed}", skill=skill, seed=10 * number + seed)
    return str(tmp_path / "cells")


def finish(cells: str, tmp_path: Path, params: Params) -> dict[str, Any]:
    study(cells=cells, out=str(tmp_path / "page"), **params.arguments("evaluate study"))
    found: dict[str, Any] = json.loads((tmp_path / "page" / "metrics.json").read_text())
    return found


def test_a_plain_sentence_for_each_verdict(cells: str, tmp_path: Path, params: Params, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        finish(cells, tmp_path, params)
    assert (
        "That ifa pretraining helps with few labels, compared with moco, holds on this cohort: better in 2 of 2 conditions." in caplog.text
    )
    assert "That aligned or mse pretraining helps with few labels, compared with moco, is not shown on this cohort" in caplog.text
    assert not [control for control in CONTROLS if f"{control} pretraining" in caplog.text]
    text = (tmp_path / "page" / "study.md").read_text()
    assert "- That ifa pretraining helps with few labels, compared with moco, holds on this cohort" in text
    assert text.count("| 0.05 | ") == text.count("| 1.0 | ") == len(ARMS)
    page = (tmp_path / "page" / "study.html").read_text()
    assert "holds on this cohort: better in 2 of 2 conditions" in page and "http" not in page


def test_numbers_are_means_over_seeds(cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    found = finish(cells, tmp_path, params)
    own, theirs = ([macro_auroc(Path(cells, "scarcity", "0.05", arm, str(seed))) for seed in SEEDS] for arm in ("ifa", "moco"))
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


def test_a_difference_has_the_chance_of_patients_and_of_seeds(cells: str, tmp_path: Path, params: Params) -> None:
    """The interval is wider than that of the patients, and p-values and smallest effects are in metrics.json."""
    found = finish(cells, tmp_path, params)
    paired = [evaluated(Path(cells, "scarcity", "0.05", "aligned", str(seed)), params) for seed in SEEDS]
    theirs = [evaluated(Path(cells, "scarcity", "0.05", "moco", str(seed)), params) for seed in SEEDS]
    samples = np.mean([own.compare(other)[0].samples for own, other in zip(paired, theirs, strict=True)], axis=0)
    low, high = np.quantile(samples, [0.025, 0.975])
    assert found["scarcity_0.05_aligned_difference_low"] < low < high < found["scarcity_0.05_aligned_difference_high"]
    assert 0 < found["scarcity_0.05_ifa_p_holm"] < 0.05 < found["scarcity_0.05_aligned_p_holm"]
    smallest = {name: value for name, value in found.items() if name.endswith("_smallest_effect")}
    assert len(smallest) == 2 * (len(ARMS) - 1)
    assert all(0.02 < value < 0.5 for value in smallest.values())
    values = [smallest[f"scarcity_{condition}_{arm}_smallest_effect"] for condition in ("0.05", "1.0") for arm in ("aligned", "mse")]
    shown = sorted({f"{value:.3f}" for value in (min(values), max(values))})
    expected = f"no difference beyond chance; the smallest effect that could be shown is {' to '.join(shown)}."
    assert expected in (tmp_path / "page" / "study.md").read_text()


def evaluated(folder: Path, params: Params) -> Classification:
    table, model = read_predictions(str(folder))
    return classification.read(table, model, params.evaluate)


@pytest.mark.parametrize(
    ("seeds", "resamples", "caveat"),
    [
        (1, 1000, "One seed: intervals and p-values have the chance of the test patients only"),
        (2, 1000, "2 seeds: fewer than 3 say little about how much trainings vary"),
        (3, 1000, None),
        (3, 100, "After Holm's correction of 3 comparisons no p-value can be below 0.05: set evaluate.resamples above 120"),
    ],
)
def test_the_page_says_what_the_study_cannot_show(
    make_predictions: MakePredictions, tmp_path: Path, params: Params, seeds: int, resamples: int, caveat: str | None
) -> None:
    for arm in ("moco", "ifa", "aligned", "scratch"):
        for seed in range(seeds):
            make_predictions(f"cells/probe/all/{arm}/{seed}", skill=ARMS[arm], seed=seed)
    finish(
        str(tmp_path / "cells"),
        tmp_path,
        params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"resamples": resamples})}),
    )
    for name in ("study.html", "study.md"):
        text = html.unescape((tmp_path / "page" / name).read_text())
        assert caveat in text if caveat else "fewer than" not in text and "no p-value" not in text


def test_a_finding_with_too_few_positives_cannot_be_judged(make_predictions: MakePredictions, tmp_path: Path, params: Params) -> None:
    for arm in ("moco", "ifa"):
        folder = Path(make_predictions(f"cells/imbalance/0.1/{arm}/0", seed=len(arm)))
        record = json.loads((folder / "run.json").read_text())
        record["params"]["positive_rate"] = {"Rare": 0.1}
        (folder / "run.json").write_text(json.dumps(record))
    finish(str(tmp_path / "cells"), tmp_path, params)
    assert "cannot be judged: too few positives in the test split" in (tmp_path / "page" / "study.md").read_text()


def test_every_arm_has_a_style() -> None:
    css = (ROOT / "components/common/html/templates/page.css").read_text()
    assert len(set(STYLES)) == len(STYLES) >= len(get_args(Arm))
    assert all(f"svg .{style} " in css and f".key.{style} " in css for style in STYLES if style != "first")


def test_the_metric_of_imbalance_is_that_of_the_rare_finding(make_predictions: MakePredictions, tmp_path: Path, params: Params) -> None:
    for arm in ("moco", "ifa"):
        folder = Path(make_predictions(f"cells/imbalance/0.1/{arm}/0", skill=ARMS[arm], seed=len(arm)))
        record = json.loads((folder / "run.json").read_text())
        record["params"]["positive_rate"] = {"Effusion": 0.1}
        (folder / "run.json").write_text(json.dumps(record))
    finish(str(tmp_path / "cells"), tmp_path, params)
    assert "AUROC, Effusion" in (tmp_path / "page" / "study.html").read_text()


def test_an_arm_without_its_reference_is_named(cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    make_predictions("cells/scarcity/0.05/ifa/3")
    with pytest.raises(UserError, match=r"condition 0\.05, arm ifa: seed 3"):
        finish(cells, tmp_path, params)


def test_a_cell_of_an_arm_outside_the_study_is_left_out(
    cells: str, tmp_path: Path, params: Params, make_predictions: MakePredictions, caplog: pytest.LogCaptureFixture
) -> None:
    expected = finish(cells, tmp_path, params)
    make_predictions("cells/scarcity/0.5/mine/0")
    assert finish(cells, tmp_path, params) == expected
    assert "the cells of mine are left out, since study.arms does not name them" in caplog.text


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("scarcity/0.1/mine/0", r"none of the cells is of an arm of study\.arms \(moco, ifa, "),
        ("imbalance/0.1/moco/0", r"the cell imbalance/0\.1/moco/0 has no AUROC, no finding; run it as a cell of imbalance again"),
        ("detection/all/moco/0", r"the cell detection/all/moco/0 has no mAP@50; run it as a cell of detection again"),
    ],
)
def test_a_cell_of_another_kind_is_named(
    cell: str, sentence: str, tmp_path: Path, params: Params, make_predictions: MakePredictions
) -> None:
    make_predictions(f"cells/{cell}")
    with pytest.raises(UserError, match=f"^study: {sentence}"):
        finish(str(tmp_path / "cells"), tmp_path, params)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seeds": []}, "at least 1 item"),
        ({"seeds": [0, 1, 0]}, "0 is there twice; name each value once"),
        ({"arms": ["moco", "moco"]}, "moco is there twice"),
        ({"fractions": [0.1, 0.10]}, "0.1 is there twice"),
    ],
)
def test_values_that_would_share_a_folder_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Study.model_validate(values)


def test_models_of_other_test_images_are_refused(tmp_path: Path, params: Params, make_predictions: MakePredictions) -> None:
    def others(columns: Table) -> None:
        columns["image_id"] = [f"f{name[1:]}" for name in columns["image_id"]]

    for arm, change in (("moco", None), ("ifa", others)):
        make_predictions(f"cells/scarcity/0.25/{arm}/0", change)
    with pytest.raises(UserError, match="cannot be compared"):
        finish(str(tmp_path / "cells"), tmp_path, params)


def test_a_folder_without_cells_is_refused(tmp_path: Path, make_predictions: MakePredictions) -> None:
    make_predictions("cells/other/0.1/ifa/0")
    with pytest.raises(UserError, match="contains no cell of a study"):
        find_cells(str(tmp_path / "cells"))


def test_cells_are_found_by_their_folders(cells: str, tmp_path: Path) -> None:
    (tmp_path / "cells" / "scarcity" / "0.5" / "moco" / "0.partial").mkdir(parents=True)
    assert len(find_cells(cells)) == 2 * len(ARMS) * len(SEEDS)
    assert Cell("scarcity", "0.05", "ifa", "1") in find_cells(cells)
