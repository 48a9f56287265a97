import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.common import checkpoint, interrupt
from components.common.errors import UserError
from components.common.params import Params
from components.pretrain import run as pretrain
from tests.conftest import MakeShards


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "images_per_second"} for row in csv.DictReader(file)]


def test_writes_a_backbone_that_torchvision_takes(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "backbone"), params=tiny)

    weights = load_file(tmp_path / "backbone" / "backbone.safetensors")
    from torchvision.models import resnet18

    expected = resnet18()
    expected.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    missing, unexpected = expected.load_state_dict(weights, strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []
    described = json.loads((tmp_path / "backbone" / "backbone.json").read_text())
    assert described["arch"] == "resnet18"
    assert described["images"] == 36  # three of five patients, two images each, of 60
    assert described["normalisation"] == {"mean": pytest.approx(0.4), "std": pytest.approx(0.2)}
    assert not (tmp_path / "backbone.partial").exists()
    assert sorted(path.name for path in (tmp_path / "backbone").iterdir()) == [
        "backbone.json",
        "backbone.safetensors",
        "history.csv",
        "metrics.json",
        "run.json",
    ]


def test_history_holds_a_row_an_epoch(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), params=tiny)

    rows = history(tmp_path / "out")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        parts = float(row["loss_nce"]) + float(row["loss_ifa_layer1"]) + float(row["loss_ifa_layer4"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-5)
        assert 0 < float(row["feature_std"]) <= 1.1
        assert float(row["positive_similarity"]) > float(row["negative_similarity"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(float(rows[-1]["loss"]))


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_stopped_run_continues_to_the_same_weights(
    make_shards: MakeShards, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    shards = make_shards()
    pretrain.run(shards=[shards], out=str(tmp_path / "whole"), params=tiny)

    steps = 0
    train_step = pretrain.Pretraining.train_step

    def counted(self: pretrain.Pretraining, *arguments: object) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            interrupt._stop.set()
        return train_step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain.Pretraining, "train_step", counted)
    with pytest.raises(interrupt.Interrupted):
        pretrain.run(shards=[shards], out=str(tmp_path / "stopped"), params=tiny)
    assert steps == stop_after
    assert not (tmp_path / "stopped").exists()
    interrupt._stop.clear()
    pretrain.run(shards=[shards], out=str(tmp_path / "stopped"), params=tiny)

    assert steps == 8  # four steps an epoch, none of them twice
    whole = (tmp_path / "whole" / "backbone.safetensors").read_bytes()
    assert (tmp_path / "stopped" / "backbone.safetensors").read_bytes() == whole
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"step": 1})
    checkpoint.save(tmp_path, 2, {"step": 2})
    newest = tmp_path / "checkpoints" / "000000002.pt"
    newest.write_bytes(newest.read_bytes()[:100])

    assert checkpoint.load_latest(tmp_path) == {"step": 1}


def test_the_moco_preset_has_no_ifa(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    params = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"preset": "moco", "epochs": 1})})
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), params=params)

    row = history(tmp_path / "out")[0]
    assert "loss_ifa_layer1" not in row
    assert float(row["loss"]) == pytest.approx(float(row["loss_nce"]))
    assert float(row["similarity_layer1"]) <= 1  # watched all the same


def test_too_few_images_are_named(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    params = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"batch_size": 64, "queue_size": 64})})
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 64, but the train split has 36 images"):
        pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), params=params)
