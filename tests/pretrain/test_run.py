import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.common.errors import UserError
from components.common.runs import signals
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.storage import digest_file
from components.common.training import backbones
from components.params import Params
from components.pretrain import run as pretrain
from components.pretrain.training import Pretraining
from tests.conftest import MakeShards, write_shards
from tests.pretrain.commands import history


@pytest.fixture(scope="module")
def finished(tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of shards and of a run with the parameters `tiny`."""
    folder = tmp_path_factory.mktemp("finished")
    shards = write_shards(folder / "shards")
    pretrain.run(shards=[shards], out=str(folder / "out"), **tiny.arguments("pretrain"))
    return {"shards": Path(shards), "out": folder / "out"}


def test_writes_a_backbone_that_torchvision_takes(finished: dict[str, Path]) -> None:
    out = finished["out"]
    weights = load_file(out / "backbone.safetensors")
    from torchvision.models import resnet18

    expected = resnet18()
    expected.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    missing, unexpected = expected.load_state_dict(weights, strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []
    described = json.loads((out / "backbone.json").read_text())
    assert described["arch"] == "resnet18"
    assert described["images"] == 36  # three in five of 60 images, two per patient
    assert described["normalisation"] == {"mean": pytest.approx(0.4), "std": pytest.approx(0.2)}
    assert not out.with_name("out.partial").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "backbone.json",
        "backbone.safetensors",
        "figures",
        "history.csv",
        "metrics.json",
        "run.json",
    ]


def test_history_has_one_row_per_epoch(finished: dict[str, Path]) -> None:
    rows = history(finished["out"])
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        parts = row["loss_nce"] + row["loss_ifa_layer1"] + row["loss_ifa_layer4"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 < row["feature_std"] <= 1.1
        assert row["alignment"] == pytest.approx(2 - 2 * row["positive_similarity"], abs=1e-5)
    metrics = json.loads((finished["out"] / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(rows[-1]["loss"])


@pytest.mark.parametrize("stop_after", [2, 4, 6])
def test_a_stopped_run_continues_to_the_same_weights(
    finished: dict[str, Path], tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    shards, whole, steps = str(finished["shards"]), finished["out"], 0
    train_step = Pretraining.train_step

    def counted(self: Pretraining, *arguments: object) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == stop_after:
            signals._stop.set()
        return train_step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Pretraining, "train_step", counted)
    with pytest.raises(signals.Interrupted):
        pretrain.run(shards=[shards], out=str(tmp_path / "stopped"), **tiny.arguments("pretrain"))
    assert steps == stop_after
    assert not (tmp_path / "stopped").exists()
    signals._stop.clear()
    pretrain.run(shards=[shards], out=str(tmp_path / "stopped"), **tiny.arguments("pretrain"))

    assert steps == 8  # four steps per epoch, none repeated
    assert digest_file(tmp_path / "stopped" / "backbone.safetensors") == digest_file(whole / "backbone.safetensors")
    np.testing.assert_equal(history(tmp_path / "stopped"), history(whole))


def test_the_moco_preset_has_no_ifa(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    params = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"preset": "moco", "epochs": 1})})
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), **params.arguments("pretrain"))

    row = history(tmp_path / "out")[0]
    assert "loss_ifa_layer1" not in row
    assert row["loss"] == pytest.approx(row["loss_nce"])
    assert row["similarity_layer1"] <= 1  # still monitored


def test_too_few_images_are_named(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    params = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"batch_size": 64, "queue_size": 64})})
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 64, but the train split has 36 images"):
        pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), **params.arguments("pretrain"))


def with_pretrain(params: Params, **changes: object) -> Params:
    runtime = {name: value for name, value in changes.items() if name in Runtime.model_fields}
    section = {name: value for name, value in changes.items() if name not in runtime}
    sections = {"pretrain": {**params.pretrain.model_dump(), **section}, "runtime": {**params.runtime.model_dump(), **runtime}}
    return Params.model_validate(sections)


def test_accumulated_parts_equal_the_whole_batch(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Accumulation gives the same result up to rounding if batch norm does not depend on the batch."""
    shards, frozen = make_shards(), with_pretrain(tiny, batch_norm="frozen", epochs=1, preset="ifa")
    pretrain.run(shards=[shards], out=str(tmp_path / "whole"), **frozen.arguments("pretrain"))
    pretrain.run(shards=[shards], out=str(tmp_path / "parts"), **with_pretrain(frozen, accumulate=4).arguments("pretrain"))

    whole, parts = (history(tmp_path / name)[0] for name in ("whole", "parts"))
    assert parts == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in whole.items()}
    assert digest_file(tmp_path / "whole" / "backbone.safetensors") != digest_file(tmp_path / "parts" / "backbone.safetensors")


def test_frozen_statistics_stay(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    pretrain.run(
        shards=[make_shards()], out=str(tmp_path / "out"), **with_pretrain(tiny, batch_norm="frozen", epochs=1).arguments("pretrain")
    )
    weights = load_file(tmp_path / "out" / "backbone.safetensors")
    assert (weights["bn1.running_mean"] == 0).all()
    assert (weights["bn1.running_var"] == 1).all()
    assert not (weights["bn1.weight"] == 1).all()


def test_half_precision_gives_similar_numbers(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    for precision in ("fp32", "bf16"):
        pretrain.run(
            shards=[shards], out=str(tmp_path / precision), **with_pretrain(tiny, precision=precision, epochs=1).arguments("pretrain")
        )
    full, half = (history(tmp_path / precision)[0]["loss_nce"] for precision in ("fp32", "bf16"))
    assert full != half
    assert full == pytest.approx(half, rel=0.1)


def test_a_probe_every_few_epochs_and_at_the_end(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    params = with_pretrain(tiny, epochs=3, probe_epochs=2)
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), **params.arguments("pretrain"))
    known = [row["knn_auroc_macro"] == row["knn_auroc_macro"] for row in history(tmp_path / "out")]
    assert known == [False, True, True]


def test_the_probe_at_the_start_is_that_of_the_weights_without_training(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    params = with_pretrain(tiny, epochs=2, probe_epochs=1)
    for preset in ("ifa", "scratch"):
        pretrain.run(shards=[shards], out=str(tmp_path / preset), **with_pretrain(params, preset=preset).arguments("pretrain"))
    control = json.loads((tmp_path / "scratch" / "metrics.json").read_text())
    at_start = {row["knn_auroc_macro_at_start"] for row in history(tmp_path / "ifa")}
    assert at_start == {control["knn_auroc_macro"]}
    assert history(tmp_path / "ifa")[-1]["knn_auroc_macro"] not in at_start


def test_a_checkpoint_of_a_version_without_the_probe_at_the_start_is_continued(make_shards: MakeShards, tiny: Params) -> None:
    task = Pretraining(with_pretrain(tiny, probe_epochs=1).pretrain, tiny.runtime, open_shards(make_shards()))
    state = task.state()
    del state["auroc_at_start"]
    task.restore(state)
    assert task.end_epoch(0).keys() == {"knn_auroc_macro"}


def test_a_collapse_stops_the_run_and_keeps_the_last_good_checkpoint(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    params = with_pretrain(tiny, epochs=3, collapse_std=2.0, collapse_epochs=2)  # no features can reach it
    with pytest.raises(UserError, match=r"collapsed to a point: feature_std is .* below runtime\.collapse_std for 2 epochs"):
        pretrain.run(shards=[shards], out=str(tmp_path / "out"), **params.arguments("pretrain"))
    assert not (tmp_path / "out").exists()
    # The threshold is not part of the fingerprint: the run resumes without it.
    pretrain.run(shards=[shards], out=str(tmp_path / "out"), **with_pretrain(params, collapse_std=0).arguments("pretrain"))
    assert len(history(tmp_path / "out")) == 3


def test_synchronised_statistics_train_on_a_cpu_too(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards, short = make_shards(), with_pretrain(tiny, epochs=1)
    for name, settings in {"sync": {"batch_norm": "sync"}, "group": {"shuffle_groups": 1}}.items():
        pretrain.run(shards=[shards], out=str(tmp_path / name), **with_pretrain(short, **settings).arguments("pretrain"))
    sync, group = (history(tmp_path / name)[0] for name in ("sync", "group"))
    assert sync["loss"] == pytest.approx(group["loss"], rel=1e-3)  # one process, one group: the same statistics


def test_groups_that_do_not_divide_among_processes_are_named(
    make_shards: MakeShards, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.common.training.processes.world_size", lambda: 4)
    with pytest.raises(UserError, match=r"pretrain\.shuffle_groups: 2 is not a multiple of 4 processes"):
        Pretraining(tiny.pretrain, tiny.runtime, open_shards(make_shards()))


@pytest.mark.slow
def test_compiled_encoders_give_the_same_result(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Compares a step, and the one after it, which depends on the gradients: later, rounding errors have grown."""
    shards, short = make_shards(), with_pretrain(tiny, batch_size=32, queue_size=32, epochs=2, lr=1e-4)
    pretrain.run(shards=[shards], out=str(tmp_path / "plain"), **short.arguments("pretrain"))
    pretrain.run(shards=[shards], out=str(tmp_path / "compiled"), **with_pretrain(short, compile=True).arguments("pretrain"))
    for plain, compiled in zip(history(tmp_path / "plain"), history(tmp_path / "compiled"), strict=True):
        for name in ("loss", "loss_nce", "similarity_layer1", "feature_std"):
            assert compiled[name] == pytest.approx(plain[name], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"batch_norm": "sync"}, {"accumulate": 2, "compile": True}])
def test_on_a_gpu(make_shards: MakeShards, tiny: Params, tmp_path: Path, changes: dict[str, object]) -> None:
    pretrain.run(shards=[make_shards()], out=str(tmp_path / "out"), **with_pretrain(tiny, device="cuda", **changes).arguments("pretrain"))
    assert len(history(tmp_path / "out")) == 2


@pytest.mark.parametrize("started", [False, True])
def test_scratch_exports_the_initial_weights(make_shards: MakeShards, tiny: Params, tmp_path: Path, started: bool) -> None:
    """A control of the study: the initial weights of a training with the same seed, whatever it could start from."""
    shards, start = make_shards(), str(tmp_path / "base") if started else None
    if start:
        pretrain.run(shards=[shards], out=start, **with_pretrain(tiny, epochs=1).arguments("pretrain"))
    params = with_pretrain(tiny, preset="scratch", seed=3)
    pretrain.run(shards=[shards], out=str(tmp_path / "out"), start=start, **params.arguments("pretrain"))
    weights = load_file(tmp_path / "out" / "backbone.safetensors")
    torch.manual_seed(3)
    expected = backbones.build("resnet18").state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "out" / "backbone.json").read_text())["epochs"] == 0
    assert (tmp_path / "out" / "history.csv").read_text() == "epoch\n"
    assert "start" not in json.loads((tmp_path / "out" / "run.json").read_text())["inputs"]


def test_base_exports_its_start(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """The other control: what the arms of a study continue."""
    shards, base, out = make_shards(), tmp_path / "base", tmp_path / "out"
    pretrain.run(shards=[shards], out=str(base), **with_pretrain(tiny, epochs=1).arguments("pretrain"))
    control = with_pretrain(tiny, preset="base").arguments("pretrain")
    pretrain.run(shards=[shards], out=str(out), start=str(base), **control)
    assert (out / "backbone.safetensors").read_bytes() == (base / "backbone.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"^pretrain.preset: base has the weights of --start, which is missing"):
        pretrain.run(shards=[shards], out=str(tmp_path / "none"), **control)
