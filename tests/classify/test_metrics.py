"""Metrics at thresholds, calibration metrics and subgroup metrics against scikit-learn."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn

from components.classify.metrics import correct
from components.evaluate.run import run
from components.params import Params
from tests.evaluate.conftest import MakePredictions, Table

KEYS = {"Effusion": "Effusion", "Nodule <small>": "Nodule _small_-b2e4f93d"}


def attributes(columns: Table) -> None:
    """Adds three manufacturers, two sexes with one unknown, and ages from 5 to 89."""
    count = len(columns["split"])
    rng = np.random.default_rng(5)
    columns["sex"] = [None if index == 40 else "FM"[index % 2] for index in range(count)]
    columns["age"] = rng.integers(5, 90, count).astype(float).tolist()
    columns["manufacturer"] = [("A & B", "C", "D")[index % 3] for index in range(count)]


def evaluated(folder: str, out: Path, **params: object) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Evaluates a folder; returns metrics.json and the rows of the validation and test splits."""
    run(predictions=[folder], out=str(out), **Params.model_validate({"evaluate": {"resamples": 200, **params}}).arguments("evaluate"))
    table = pq.read_table(Path(folder, "predictions.parquet")).to_pandas()
    return json.loads((out / "metrics.json").read_text()), table.query("split == 'val'"), table.query("split == 'test'")


def test_sensitivity_specificity_and_brier_are_scikit_learns(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found, _, test = evaluated(make_predictions(skill=0.8), tmp_path / "out")
    for finding, key in KEYS.items():
        rows = test.dropna(subset=[f"target_{finding}"])
        target, score = rows[f"target_{finding}"], rows[f"score_{finding}"].astype(float)
        called = score >= found[f"classify_val_threshold_{key}"]
        expected = {
            "sensitivity": sklearn.recall_score(target, called),
            "specificity": sklearn.recall_score(target, called, pos_label=0),
            "accuracy": sklearn.accuracy_score(target, called),
            "brier": sklearn.brier_score_loss(target, score),
        }
        for metric, value in expected.items():
            low, estimate, high = (found[f"classify_test_{metric}_{key}{end}"] for end in ("_low", "", "_high"))
            assert estimate == pytest.approx(value) and low < estimate < high
    assert found["classify_test_sensitivity_macro"] == pytest.approx(
        np.mean([found[f"classify_test_sensitivity_{key}"] for key in KEYS.values()])
    )


@pytest.mark.parametrize("wanted", [0.6, 0.95])
def test_thresholds_reach_the_sensitivity_asked_for_on_val(wanted: float, make_predictions: MakePredictions, tmp_path: Path) -> None:
    found, val, _ = evaluated(make_predictions(skill=0.8), tmp_path / "out", threshold="sensitivity", target_sensitivity=wanted)
    for finding, key in KEYS.items():
        rows = val.dropna(subset=[f"target_{finding}"])
        scores = rows[f"score_{finding}"].astype(float)
        threshold = found[f"classify_val_threshold_{key}"]
        assert sklearn.recall_score(rows[f"target_{finding}"], scores >= threshold) >= wanted
        assert sklearn.recall_score(rows[f"target_{finding}"], scores > threshold) < wanted
    assert f"reaches a sensitivity of {100 * wanted:g} %" in (tmp_path / "out" / "report.html").read_text()


def test_subgroups_are_what_scikit_learn_finds_in_them(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found, _, test = evaluated(make_predictions(change=attributes), tmp_path / "out")
    with (tmp_path / "out" / "subgroups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["attribute"] for row in rows} == {"sex", "age", "manufacturer"}  # no view: it is the same for all images
    for attribute, value in (("sex", "F"), ("sex", "M"), ("manufacturer", "A & B")):
        aurocs = []
        for finding, key in KEYS.items():
            group = test[test[attribute] == value].dropna(subset=[f"target_{finding}"])
            target, score = group[f"target_{finding}"], group[f"score_{finding}"].astype(float)
            row = next(row for row in rows if (row["finding"], row["attribute"], row["group"]) == (finding, attribute, value))
            aurocs.append(sklearn.roc_auc_score(target, score))
            assert float(row["auroc"]) == pytest.approx(aurocs[-1], abs=1e-6)
            assert float(row["auroc_low"]) < float(row["auroc_high"])
            assert (int(row["positives"]), int(row["negatives"])) == (target.sum(), (1 - target).sum())
            called = score >= found[f"classify_val_threshold_{key}"]
            assert float(row["sensitivity"]) == pytest.approx(sklearn.recall_score(target, called), abs=1e-6)
            assert float(row["specificity"]) == pytest.approx(sklearn.recall_score(target, called, pos_label=0), abs=1e-6)
        if attribute == "manufacturer":
            assert found["classify_test_auroc_macro_manufacturer_A _ B-5afed983"] == pytest.approx(np.mean(aurocs))


def test_a_group_without_enough_positives_is_marked_and_warned_of(
    make_predictions: MakePredictions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, _, _ = evaluated(make_predictions(change=attributes), tmp_path / "out")
    assert "by sex, fewer than 5 positives or negatives in F: Rare and Absent; M: Rare and Absent; unknown: " in caplog.text
    assert found["classify_test_auroc_macro_sex_F"] is not None
    assert found["classify_test_auroc_macro_sex_unknown"] is None  # a single image does not prevent comparing the others
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Warnings" in html and re.search(r"By sex: F 0\.\d+, M 0\.\d+ \(macro AUROC of 2 findings\)", html)
    assert "A &amp; B" in html


def test_age_bands(make_predictions: MakePredictions, tmp_path: Path) -> None:
    def ages(columns: Table) -> None:
        columns["age"] = [(17.9, 18.0, 39.5, 60.0, 90.0, None)[index % 6] for index in range(len(columns["age"]))]

    evaluated(make_predictions(change=ages), tmp_path / "out")
    with (tmp_path / "out" / "subgroups.csv").open() as file:
        groups = list(dict.fromkeys(row["group"] for row in csv.DictReader(file)))
    assert groups == ["below 18", "18 to 39", "60 to 79", "80 and above", "unknown"]


def test_reliability_holds_every_image_once(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found, _, test = evaluated(make_predictions(), tmp_path / "out")
    with (tmp_path / "out" / "reliability.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["finding"] == "Effusion"]
    counts = np.array([int(row["images"]) for row in rows])
    assert counts.sum() == test["target_Effusion"].notna().sum()
    gaps = [abs(float(row["score"]) - float(row["share"])) for row in rows]
    assert found["classify_test_ece_Effusion"] == pytest.approx(np.average(gaps, weights=counts), abs=1e-5)


def test_correct_counts_the_threshold_itself_as_positive() -> None:
    targets, scores = np.array([[1, 0], [0, 1], [np.nan, 1.0]]), np.array([[0.5, 0.5], [0.4, 0.9], [0.9, 0.9]])
    np.testing.assert_array_equal(correct(targets, scores, np.array([0.5, np.nan])), [[1, np.nan], [1, np.nan], [np.nan, np.nan]])
