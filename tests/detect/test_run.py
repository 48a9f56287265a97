import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torchvision.ops import box_iou

from components.common.errors import UserError
from components.common.formats.shards import decode, square
from components.common.runs import signals
from components.common.runs.storage import digest_file
from components.common.training import backbones
from components.detect import network
from components.detect import run as detect
from components.detect.training import Detection
from components.params import Params
from tests.conftest import FINDINGS
from tests.detect.conftest import SPOTS, box

DETECTORS = pytest.mark.parametrize("detector", ["retinanet", pytest.param("fasterrcnn", marks=pytest.mark.slow)])


def changed(params: Params, **update: object) -> Params:
    return params.model_copy(update={"detect": params.detect.model_copy(update=update)})


def corners(boxes: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[each["x"], each["y"], each["x"] + each["width"], each["y"] + each["height"]] for each in boxes]).reshape(-1, 4)


@pytest.mark.slow
@DETECTORS
def test_learns_visible_findings(make_boxed: Callable[..., str], small: Params, tmp_path: Path, detector: str) -> None:
    out = tmp_path / "out"
    # Faster R-CNN needs more steps, since its box head learns from good proposals only once there are some: after 7 epochs no spot had
    # a score above 0.3.
    epochs = {"retinanet": 7, "fasterrcnn": 14}[detector]
    detect.run(shards=[make_boxed(images=200)], out=str(out), **changed(small, epochs=epochs, detector=detector).arguments("detect"))

    table = pq.read_table(out / "predictions.parquet")
    assert table.column_names[:8] == ["image_id", "patient_id", "split", "task", "view", "sex", "age", "manufacturer"]
    rows = [row for row in table.to_pylist() if row["split"] == "test" and row["targets"] is not None]
    found = boxes = 0
    for row in rows:
        for target in row["targets"]:
            mine = [each for each in row["boxes"] if each["label"] == target["label"] and each["score"] > 0.3]
            boxes += 1
            found += bool((box_iou(corners(mine), corners([target])) > 0.5).any())
    alarms = sum(each["score"] > 0.3 for row in rows for each in row["boxes"]) - found
    assert boxes > 20
    assert found > 0.8 * boxes
    assert alarms < 0.4 * boxes


def test_predictions_agree_with_the_saved_model(make_boxed: Callable[..., str], small: Params, tmp_path: Path, pretrained: str) -> None:
    shards, out = make_boxed(images=30), tmp_path / "out"
    detect.run(shards=[shards], out=str(out), **changed(small, epochs=1).arguments("detect"), backbone=pretrained)

    described = json.loads((out / "model.json").read_text())
    assert described["task"] == "detect" and described["detector"] == "retinanet" and described["classes"] == ["Left", "Right"]
    assert described["normalisation"] == {"mean": 0.25, "std": 0.5}  # that of the backbone, not of the shards
    built = network.build(backbones.build("resnet18"), small.detect, 2, 32, 0.25, 0.5)
    built.model.load_state_dict(load_file(out / "model.safetensors"))
    built.eval()
    row = next(row for row in pq.read_table(f"{shards}/part-00000.parquet").to_pylist() if row["split"] == "test")
    predicted = next(each for each in pq.read_table(out / "predictions.parquet").to_pylist() if each["image_id"] == row["image_id"])
    image = torch.from_numpy(square(decode(row), 32).astype(np.float32) / 255)
    with torch.no_grad():
        expected = built(image[None, None])[0]
    # Boxes are in pixels of the image, which is 24 px wide and starts at x = 4 in the square.
    inside = (expected["boxes"] - torch.tensor([4.0, 0, 4, 0])).clip(torch.zeros(4), torch.tensor([24.0, 32, 24, 32]))
    torch.testing.assert_close(corners(predicted["boxes"]), inside, atol=1e-3, rtol=0)
    assert [each["score"] for each in predicted["boxes"]] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
    assert predicted["targets"] == row["boxes"]


def test_lineage_names_the_inputs(make_boxed: Callable[..., str], small: Params, tmp_path: Path, pretrained: str) -> None:
    detect.run(
        shards=[make_boxed(images=30)], out=str(tmp_path / "out"), **changed(small, epochs=1).arguments("detect"), backbone=pretrained
    )
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(record["inputs"]) == ["backbone", "shards"]
    assert record["upstream_mlflow_run_ids"] == {"shards": "upstream-run", "backbone": "pretrain-run"}


@DETECTORS
def test_a_stopped_run_continues_to_the_same_model(
    make_boxed: Callable[..., str], small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str
) -> None:
    shards, params = make_boxed(images=30), changed(small, detector=detector)
    detect.run(shards=[shards], out=str(tmp_path / "whole"), **params.arguments("detect"))
    steps = 0
    train_step = Detection.train_step

    def counted(self: Detection, *arguments: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 3:  # in the second epoch
            signals._stop.set()
        return train_step(self, *arguments)

    monkeypatch.setattr(Detection, "train_step", counted)
    with pytest.raises(signals.Interrupted):
        detect.run(shards=[shards], out=str(tmp_path / "stopped"), **params.arguments("detect"))
    signals._stop.clear()
    detect.run(shards=[shards], out=str(tmp_path / "stopped"), **params.arguments("detect"))

    for name in ("model.safetensors", "predictions.parquet"):
        assert digest_file(tmp_path / "stopped" / name) == digest_file(tmp_path / "whole" / name)


def test_test_boxes_do_not_influence_training_or_selection(make_boxed: Callable[..., str], small: Params, tmp_path: Path) -> None:
    """Poisoned test labels and boxes do not change the model, its threshold or any detection."""

    def poison(row: dict[str, Any]) -> None:
        if row["split"] == "test":
            row.update(labels=[1.0, 1.0], boxes=[box("Right", *SPOTS["Left"]), box("Left", 0, 0, 3, 3), box("New", 1, 1, 5, 5)])

    for name, shards in (("a", make_boxed("clean", images=30)), ("b", make_boxed("poisoned", poison, images=30))):
        detect.run(shards=[shards], out=str(tmp_path / name), **small.arguments("detect"))
    a, b = (pq.read_table(tmp_path / name / "predictions.parquet") for name in "ab")
    assert digest_file(tmp_path / "a" / "model.safetensors") == digest_file(tmp_path / "b" / "model.safetensors")
    thresholds = [json.loads((tmp_path / name / "model.json").read_text())["threshold"] for name in "ab"]
    assert thresholds[0] == thresholds[1]
    assert a["boxes"].equals(b["boxes"])
    assert not a["targets"].equals(b["targets"])


def test_images_that_are_not_known_are_neither_trained_on_nor_judged(make_boxed: Callable[..., str], small: Params, tmp_path: Path) -> None:
    shards, out = make_boxed(change=lambda row: row.update(boxes=row["boxes"][:1])), tmp_path / "out"
    detect.run(shards=[shards], out=str(out), **changed(small, epochs=1).arguments("detect"))
    rows = [row for path in Path(shards).glob("part-*") for row in pq.read_table(path).to_pylist()]
    half_boxed = {
        row["image_id"] for row in rows if sum(label == 1 for label in row["labels"]) == 2 or (row["labels"][0] != 0 and not row["boxes"])
    }
    unlabelled = {row["image_id"] for row in rows if np.isnan(row["labels"][0])}
    unknown = half_boxed | unlabelled
    trained = [row for row in rows if row["split"] == "train"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["train_images_unknown"] == sum(row["image_id"] in unknown for row in trained) > 0
    assert metrics["train_images"] == sum(row["image_id"] not in unknown for row in trained)
    predicted = pq.read_table(out / "predictions.parquet").to_pylist()
    assert {row["image_id"] for row in predicted if row["targets"] is None} == unknown & {row["image_id"] for row in predicted}


def test_without_boxes_in_val_the_last_epoch_is_taken(make_boxed: Callable[..., str], small: Params, tmp_path: Path) -> None:
    shards = make_boxed(images=30, change=lambda row: row.update(boxes=[], labels=[0.0, 0.0]) if row["split"] == "val" else None)
    detect.run(shards=[shards], out=str(tmp_path / "out"), **small.arguments("detect"))
    assert json.loads((tmp_path / "out" / "model.json").read_text())["best_epoch"] == 2
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["val_map_50"] is None


def test_a_split_without_patients_is_refused_before_training(make_boxed: Callable[..., str], small: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the test split is empty .* raise preprocess\.test_fraction"):
        detect.run(shards=[make_boxed(without="test")], out=str(tmp_path / "out"), **small.arguments("detect"))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"batch_norm": "frozen"}, r"detect\.batch_norm: frozen needs a pretrained --backbone"),
        ({"label_fraction": 1e-6}, r"detect\.label_fraction: 1e-06 leaves"),
        ({"classes": ("Nodule",)}, r"detect\.classes: no box of Nodule"),
    ],
)
def test_parameters_that_cannot_work_are_refused(
    make_boxed: Callable[..., str], small: Params, tmp_path: Path, update: dict[str, object], message: str
) -> None:
    # One image per patient is labelled, and each of those has a box of the only class, so that the smallest subset is a single image.
    def change(row: dict[str, Any]) -> None:
        row["boxes"] = [each for each in row["boxes"] if each["label"] == FINDINGS[0]]
        if int(row["image_id"].removeprefix("image")) % 2 or not row["boxes"]:
            row.update(boxes=[], labels=[float("nan"), 0.0])

    with pytest.raises(UserError, match=message):
        detect.run(shards=[make_boxed(change=change)], out=str(tmp_path / "out"), **changed(small, **update).arguments("detect"))


def test_label_fractions_are_nested(make_boxed: Callable[..., str], small: Params) -> None:
    shards = detect.open_shards([make_boxed(images=200)])
    chosen = [set(Detection(changed(small, label_fraction=share).detect, shards, None).rows) for share in (0.1, 0.25, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2]
