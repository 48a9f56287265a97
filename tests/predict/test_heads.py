"""Prediction on an external cohort by a detector and an inversion; here it is the cohort that they were trained on."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.evaluate import run as evaluate
from components.predict import run as predict
from tests.heads import PARAMS, Heads

ERRORS = ["mse", "psnr", "ssim", "ms_ssim", "feature_distance", "mean_image_psnr"]


@pytest.fixture(scope="module")
def predicted(heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    other = PARAMS.model_copy(update={"preprocess": PARAMS.preprocess.model_copy(update={"size": 96})})  # differs from the models' size
    for task in ("detect", "invert"):
        predict.run(model=str(heads.model(task)), raw=str(heads.raw), out=str(folder / task), **other.arguments("predict"))
    evaluate.run(
        predictions=[str(folder / "detect"), str(folder / "invert")], out=str(folder / "evaluation"), **PARAMS.arguments("evaluate")
    )
    return folder


def test_every_file_is_scored_and_known_ones_as_in_training(heads: Heads, predicted: Path) -> None:
    for task in ("detect", "invert"):
        table = pd.read_parquet(predicted / task / "predictions.parquet").set_index("image_id")
        assert sorted(table.index) == sorted(heads.rows().index)
        assert set(table["split"]) == {"test"} and set(table["task"]) == {task}
        before = heads.predictions(task)
        again = table.loc[before.index]
        if task == "invert":
            np.testing.assert_allclose(again[ERRORS], before[ERRORS], atol=1e-4)
            continue
        for new, old in zip(again["boxes"], before["boxes"], strict=True):
            scores = [sorted(box["score"] for box in boxes) for boxes in (new, old)]
            np.testing.assert_allclose(*scores, atol=1e-5)
            assert {box["label"] for box in new} == {box["label"] for box in old}
        for new, old in zip(again["targets"], before["targets"], strict=True):
            assert (new is None) == (old is None)
            assert old is None or [dict(box) for box in new] == [dict(box) for box in old]


def test_the_predictions_can_be_evaluated(heads: Heads, predicted: Path) -> None:
    metrics = json.loads((predicted / "evaluation" / "metrics.json").read_text())
    counts = json.loads((predicted / "detect" / "metrics.json").read_text())
    boxes = [len(boxes) for boxes in pd.read_parquet(predicted / "detect" / "predictions.parquet")["targets"] if boxes is not None]
    assert metrics["detect_test_boxes"] == sum(boxes) == sum(value for name, value in counts.items() if name.startswith("boxes_"))
    assert metrics["detect_test_images_unknown"] == counts["images_unknown"]
    assert metrics["invert_test_images"] == len(heads.rows())
    assert metrics["invert_test_kid_samples"] is None  # KID samples from training would belong to other images
    assert "Kernel inception distance" in (predicted / "evaluation" / "report.html").read_text()


def test_images_without_reference_are_counted(heads: Heads, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "raw").mkdir()
    for path in sorted(heads.raw.rglob("*.dcm"))[:3]:
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes())
    predict.run(model=str(heads.detect), raw=str(tmp_path / "raw"), out=str(tmp_path / "out"), **PARAMS.arguments("predict"))
    assert re.search(r"3 images are scored, but not to be evaluated: which of the classes they show is not known", caplog.text)
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["targets"].isna().all()
