"""Comparison with a baseline: differences, their intervals and p-values, and what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control

from components.common.errors import UserError
from components.common.statistics.ranking import paired_auroc_difference
from components.evaluate.run import run
from components.params import Params
from tests.evaluate.conftest import FINDINGS, MakePredictions, Table

PARAMS = Params.model_validate({"evaluate": {"resamples": 400}})


def compare(model: str, baseline: str, out: Path) -> dict[str, float]:
    run(predictions=[model], baseline=[baseline], out=str(out), **PARAMS.arguments("evaluate"))
    found: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return found


@pytest.fixture
def found(make_predictions: MakePredictions, tmp_path: Path) -> dict[str, float]:
    return compare(make_predictions("good", skill=1.5), make_predictions("poor", skill=0.7, seed=1), tmp_path / "out")


def test_difference_is_that_of_the_gate(found: dict[str, float], tmp_path: Path) -> None:
    """The registration gate computes the same difference from the two tables, whatever the order of their rows."""
    tables = [pq.read_table(tmp_path / name / "predictions.parquet").to_pandas().query("split == 'test'") for name in ("good", "poor")]
    good, poor = (table.sample(frac=1, random_state=0).sort_values("image_id") for table in tables)
    targets = good[[f"target_{name}" for name in FINDINGS]].to_numpy(float)
    scores = [table[[f"score_{name}" for name in FINDINGS]].to_numpy(float) for table in (good, poor)]
    expected = paired_auroc_difference(targets, *scores, good["patient_id"].to_numpy(), 400, 0)
    for value, end in zip(expected[:3], ("", "_low", "_high"), strict=True):
        assert found[f"classify_difference_auroc_macro{end}"] == pytest.approx(value, abs=1e-12)
    assert found["classify_difference_auroc_macro"] > 0


def test_p_values_agree_with_intervals_and_are_adjusted_over_findings(found: dict[str, float]) -> None:
    keys = ["Effusion", "Nodule _small_-b2e4f93d"]  # findings with enough positives
    for metric in ("auroc", "ap"):
        p = np.array([found[f"classify_difference_{metric}_{key}_p"] for key in keys])
        adjusted = [found[f"classify_difference_{metric}_{key}_p_holm"] for key in keys]
        assert max(adjusted) == pytest.approx(max(2 * p.min(), p.max()))  # Holm's adjustment of two p-values
        assert all(adjusted >= false_discovery_control(p) - 1e-12)  # the false discovery rate is the weaker criterion
        assert f"classify_difference_{metric}_Rare_p" not in found
        assert found[f"classify_difference_{metric}_macro_p"] == found[f"classify_difference_{metric}_macro_p_holm"]
        for key in keys:
            low, high = (found[f"classify_difference_{metric}_{key}_{end}"] for end in ("low", "high"))
            assert (low > 0 or high < 0) == (found[f"classify_difference_{metric}_{key}_p"] < 0.05)


def test_report_and_record_name_the_baseline(found: dict[str, float], tmp_path: Path) -> None:
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Comparison with the baseline" in html and f"{found['classify_difference_auroc_macro']:+.3f}" in html
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(record["inputs"]) == ["baseline", "baseline_model", "model", "predictions"]
    assert record["upstream_mlflow_run_ids"] == {"predictions": "run-of-classify", "baseline": "run-of-classify"}


def test_a_model_does_not_differ_from_itself(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = compare(make_predictions("one"), make_predictions("two"), tmp_path / "out")
    for name in ("auroc_macro", "auroc_Effusion", "ap_macro"):
        assert found[f"classify_difference_{name}"] == 0 and found[f"classify_difference_{name}_p"] == 1


def rename_image(columns: Table) -> None:
    columns["image_id"][-1] = "another"


def turn_a_label(columns: Table) -> None:
    row = [index for index, split in enumerate(columns["split"]) if split == "test"][3]
    columns["target_Rare"][row] = 1 - columns["target_Rare"][row]


@pytest.mark.parametrize(
    ("change", "message"), [(rename_image, r"\d+ and \d+ test images, \d+ in common"), (turn_a_label, "their test labels differ")]
)
def test_refuses_to_compare(change: Callable[[Table], object], message: str, make_predictions: MakePredictions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"one and .*two cannot be compared: {message}"):
        compare(make_predictions("one"), make_predictions("two", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_baseline_per_task(make_predictions: MakePredictions, tmp_path: Path) -> None:
    folders = [make_predictions(name) for name in ("one", "two", "three")]
    with pytest.raises(UserError, match=r"--baseline: .*two and .*three are both of the head classify; name one"):
        run(predictions=folders[:1], baseline=folders[1:], out=str(tmp_path / "out"), **PARAMS.arguments("evaluate"))
