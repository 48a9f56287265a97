import copy
import hashlib
import json
import pickle
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from components.common.errors import UserError
from components.common.training import backbones
from components.params import Params
from components.pretrain import initial_weights
from components.pretrain.moco import MoCo
from components.pretrain.run import run
from tests import ROOT
from tests.conftest import MakeShards


@lru_cache
def resnet(channels: int = 3, seed: int = 0) -> nn.Module:
    """Returns the ResNet of torchvision, as trained on ImageNet."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(weights=None)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    for name, tensor in network.state_dict().items():  # non-trivial statistics, as after training
        if name.endswith("running_mean"):
            tensor.normal_()
    return network


def write_published(
    path: Path, channels: int = 1, queue: bool = True, hidden: int = 512, dim: int = 8, pointer: int = 0
) -> dict[str, torch.Tensor]:
    """Writes a checkpoint in the format of the authors' code."""
    encoders = []
    for seed in (1, 2):
        network = copy.deepcopy(resnet(channels, seed))
        network.fc = nn.Sequential(nn.Linear(512, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        encoders.append(network)
    state = {f"module.encoder_{which}.{k}": v for which, e in zip("qk", encoders, strict=True) for k, v in e.state_dict().items()}
    if queue:
        state["module.queue"] = nn.functional.normalize(torch.randn(dim, 6), dim=0)
        state["module.queue_ptr"] = torch.tensor([pointer])
    optimizer = torch.optim.SGD(encoders[0].parameters(), 0.03, momentum=0.9).state_dict()
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}, path)
    return state


@pytest.fixture
def model() -> MoCo:
    torch.manual_seed(5)
    return MoCo("resnet18", dim=8, queue_size=6, key_momentum=0.9)


def load_into(model: MoCo, path: Path) -> MoCo:
    initial_weights.load(model, initial_weights.read(str(path), "resnet18"))
    return model


@pytest.mark.parametrize("channels", [1, 3])
def test_a_moco_checkpoint_is_loaded_whole(model: MoCo, tmp_path: Path, channels: int) -> None:
    state = write_published(tmp_path / "moco.pth.tar", channels)
    load_into(model, tmp_path / "moco.pth.tar")
    for which, encoder in (("q", model.query), ("k", model.key)):
        for name, tensor in encoder.backbone.state_dict().items():
            theirs = state[f"module.encoder_{which}.{name}"]
            assert torch.equal(tensor, theirs.sum(1, keepdim=True) if name == "conv1.weight" else theirs), name
        for name, tensor in encoder.head.state_dict().items():
            assert torch.equal(tensor, state[f"module.encoder_{which}.fc.{name}"])
    assert torch.equal(model.queue, state["module.queue"])


def test_the_queue_continues_at_its_pointer(model: MoCo, tmp_path: Path) -> None:
    state = write_published(tmp_path / "moco.pth", pointer=4)
    load_into(model, tmp_path / "moco.pth")
    model.enqueue(torch.zeros(2, 8), step=0)  # replaces the two oldest keys, given by the pointer
    kept = {tuple(key.tolist()) for key in model.queue.T if key.abs().sum()}
    assert kept == {tuple(key.tolist()) for key in state["module.queue"].T[:4]}


@pytest.mark.parametrize("size", [4, 10])
def test_a_queue_of_another_length_gives_its_newest_keys(tmp_path: Path, size: int) -> None:
    state = write_published(tmp_path / "moco.pth", pointer=2)
    model = load_into(MoCo("resnet18", dim=8, queue_size=size, key_momentum=0.9), tmp_path / "moco.pth")
    newest_first = state["module.queue"].T[[1, 0, 5, 4, 3, 2]]
    assert torch.equal(model.queue.T.flip(0)[: min(size, 6)], newest_first[: min(size, 6)])


def test_without_a_queue_the_keys_stay(model: MoCo, tmp_path: Path) -> None:
    before = model.queue.clone()
    write_published(tmp_path / "moco.pth", queue=False)
    assert torch.equal(load_into(model, tmp_path / "moco.pth").queue, before)


def test_with_another_head_the_head_and_the_keys_stay(model: MoCo, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    state = write_published(tmp_path / "moco.pth", hidden=64)
    after = load_into(model, tmp_path / "moco.pth").state_dict()
    for name in ("queue", "query.head.0.weight", "key.head.0.weight"):
        assert torch.equal(after[name], before[name])
    for which, encoder in (("q", "query"), ("k", "key")):
        assert torch.equal(after[f"{encoder}.backbone.layer4.0.conv1.weight"], state[f"module.encoder_{which}.layer4.0.conv1.weight"])


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors", "old"])
def test_an_imagenet_resnet_sees_grey_images_as_before(model: MoCo, tmp_path: Path, kind: str) -> None:
    theirs, path = copy.deepcopy(resnet()), tmp_path / "resnet18.pth"
    state = theirs.state_dict()
    if kind == "old":  # before torch 0.4.1
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    load_into(model, path)
    theirs.fc = nn.Identity()
    grey = torch.rand(2, 1, 64, 64)
    expected = theirs.eval()(grey.expand(-1, 3, -1, -1))
    for encoder in (model.query, model.key):
        torch.testing.assert_close(encoder.backbone.eval()(grey), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.query.head[0].weight, model.key.head[0].weight)


def torchxrayvision(arch: str) -> nn.Module:
    """Returns a ResNet as torchxrayvision 1.2 builds it: torchvision's with one input channel and 18 findings."""
    torch.manual_seed(3)
    network: nn.Module = getattr(torchvision.models, arch)(num_classes=18)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network(torch.rand(4, 1, 64, 64) * 2048 - 1024)  # moves the running statistics
    return network.eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_resnet_of_torchxrayvision(tmp_path: Path, wrapped: bool) -> None:
    """Its published file holds the ResNet; a saved model has the prefix `model.` and a buffer of its own."""
    theirs = torchxrayvision("resnet50").state_dict()
    saved = {f"model.{name}": tensor for name, tensor in theirs.items()} | {"op_threshs": torch.rand(18)} if wrapped else theirs
    torch.save(saved, tmp_path / "xrv.pt")
    found = initial_weights.read(str(tmp_path / "xrv.pt"), "resnet50").query
    assert {f"backbone.{name}" for name in theirs if not name.startswith("fc.")} == found.keys()
    assert all(torch.equal(tensor, theirs[name.removeprefix("backbone.")]) for name, tensor in found.items())


def test_the_documented_conversion_answers_as_torchxrayvision_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs, (mean, std) = torchxrayvision("resnet18"), (0.4, 0.2)
    torch.save(theirs.state_dict(), "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt")
    (tmp_path / "artifacts" / "shards").mkdir(parents=True)
    (tmp_path / "artifacts" / "shards" / "manifest.json").write_text(json.dumps({"train_pixels": {"mean": mean, "std": std}}))
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pretraining.md").read_text(), re.DOTALL)
    exec(script)
    model = load_into(MoCo("resnet18", dim=8, queue_size=6, key_momentum=0.9), tmp_path / "xrv.pth").eval()
    image = torch.rand(2, 1, 64, 64)
    ours, expected = (
        (net.bn1(net.conv1(view)))[..., 2:-2, 2:-2]
        for net, view in ((model.query.backbone, (image - mean) / std), (theirs, 2048 * image - 1024))
    )
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


def test_an_exported_backbone_can_be_loaded(model: MoCo, tmp_path: Path) -> None:
    torch.manual_seed(9)
    network = backbones.build("resnet18")
    backbones.export(network, tmp_path, {"arch": "resnet18", "normalisation": {"mean": 0.25, "std": 0.5}})
    (tmp_path / "run.json").write_text('{"stage": "pretrain", "mlflow_run_id": "made-by"}')
    found = initial_weights.read(str(tmp_path), "resnet18")
    initial_weights.load(model, found)
    assert found.upstream == {"start": "made-by"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.query.backbone.state_dict()[name], tensor)
        assert torch.equal(model.key.backbone.state_dict()[name], tensor)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    state = resnet().state_dict()
    torch.save(state, tmp_path / "18.pth")
    with pytest.raises(UserError, match=r"18\.pth: holds a resnet18, the parameters ask for resnet50; set arch to match"):
        initial_weights.read(str(tmp_path / "18.pth"), "resnet50")
    torch.save({**state, "layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "34.pth")
    with pytest.raises(UserError, match=r"34\.pth: does not fit a resnet18 \(layer1\.2\.conv1\.weight is unexpected\)"):
        initial_weights.read(str(tmp_path / "34.pth"), "resnet18")


WEIGHT = "layer2.0.bn1.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("conv1.weight", torch.zeros(64, 4, 7, 7), r"is \(64, 4, 7, 7\), not \(64, 1, 7, 7\)"),
        (WEIGHT, None, "is missing"),
        (WEIGHT, torch.full((128,), torch.nan), "holds NaN or infinity"),
        (WEIGHT, torch.zeros(128, dtype=torch.complex64), "holds no floating-point numbers"),
        (WEIGHT, torch.zeros(128, dtype=torch.int8), "holds no floating-point numbers"),
        (WEIGHT, torch.zeros(128, device="meta"), "holds no floating-point numbers"),
        (WEIGHT, torch.zeros(128).to_sparse(), "holds no floating-point numbers"),
    ],
)
def test_missing_and_unusable_weights_are_named(tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    state = {**resnet().state_dict(), name: tensor}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"odd\.pth: .*{re.escape(name)} {message}"):
        initial_weights.read(str(tmp_path / "odd.pth"), "resnet18")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("queue", torch.zeros(6), r"queue is \(6,\) with a queue_ptr \(1,\), not \(dim, K\) and \(1,\)"),
        ("queue", torch.full((8, 6), torch.inf), "queue holds NaN or infinity"),
        ("queue_ptr", torch.zeros(0), r"queue is \(8, 6\) with a queue_ptr \(0,\)"),
        ("encoder_q.fc.2.bias", torch.full((8,), torch.nan), r"head\.2\.bias holds NaN"),
    ],
)
def test_an_unusable_queue_or_head_is_named(tmp_path: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    state = write_published(tmp_path / "moco.pth.tar")
    torch.save({"state_dict": {**state, f"module.{name}": tensor}}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"odd\.pth: {message}"):
        initial_weights.read(str(tmp_path / "odd.pth"), "resnet18")


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32_before_they_are_summed(tmp_path: Path, precision: torch.dtype) -> None:
    state = {name: tensor.to(precision) if tensor.is_floating_point() else tensor for name, tensor in resnet().state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    found = initial_weights.read(str(tmp_path / "other.pth"), "resnet18").query
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(found["backbone.conv1.weight"], state["conv1.weight"].float().sum(1, keepdim=True), rtol=0, atol=0)


class Code:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "hook": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=2))
    for name in ("evil.pth", "plain.pkl"):
        with pytest.raises(UserError, match=rf"{name}: holds Python objects, which could run code"):
            initial_weights.read(str(tmp_path / name), "resnet18")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 torn", b"\x08\0\0\0\0\0\0\0{torn   "])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="is not a checkpoint"):
        initial_weights.read(str(tmp_path / "file"), "resnet18")


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    for tree in ({"epoch": 3}, [torch.zeros(3)]):
        torch.save(tree, tmp_path / "other.pth")
        with pytest.raises(UserError, match="holds no state_dict"):
            initial_weights.read(str(tmp_path / "other.pth"), "resnet18")
    with pytest.raises(UserError, match=r"nothing\.pth"):
        initial_weights.read(str(tmp_path / "nothing.pth"), "resnet18")


def test_a_run_goes_on_from_its_start_and_records_it(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    state = write_published(tmp_path / "moco.pth", dim=16)
    params = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"epochs": 1, "lr": 1e-9, "weight_decay": 0.0})})
    run(shards=[make_shards()], start=str(tmp_path / "moco.pth"), out=str(tmp_path / "out"), **params.arguments("pretrain"))
    weights = load_file(tmp_path / "out" / "backbone.safetensors")
    torch.testing.assert_close(weights["layer3.1.conv2.weight"], state["module.encoder_q.layer3.1.conv2.weight"])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["start"] == hashlib.sha256((tmp_path / "moco.pth").read_bytes()).hexdigest()
