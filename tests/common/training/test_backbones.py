import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18, resnet50

from components.common.errors import UserError
from components.common.training import backbones


@pytest.mark.parametrize(("arch", "peer", "width"), [("resnet18", resnet18, 512), ("resnet50", resnet50, 2048)])
def test_features_agree_with_torchvision(arch: str, peer: object, width: int) -> None:
    torch.manual_seed(0)
    ours = backbones.build(arch).eval()
    theirs = peer(weights=None).eval()  # type: ignore[operator]
    theirs.fc = torch.nn.Identity()
    state = ours.state_dict()
    state["conv1.weight"] = state["conv1.weight"].repeat(1, 3, 1, 1) / 3
    theirs.load_state_dict(state)
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        pooled, maps = backbones.forward_stages(ours, image)
        torch.testing.assert_close(pooled, theirs(image.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pooled, ours(image))
    assert pooled.shape == (2, width)
    assert list(maps) == ["layer1", "layer2", "layer3", "layer4"]


def exported(folder: Path) -> str:
    folder.mkdir()
    backbones.export(backbones.build("resnet18"), folder, {"arch": "resnet18", "normalisation": {"mean": 0.25, "std": 0.5}})
    (folder / "run.json").write_text("{}")
    return str(folder)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    folder = exported(tmp_path / "a")
    first, described, digest = backbones.load(folder, "resnet18")
    second, _, again = backbones.load(folder, "resnet18")
    assert described["arch"] == "resnet18"
    assert digest == again
    for one, two in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a resnet18, the parameters ask for resnet50"):
        backbones.load(exported(tmp_path / "a"), "resnet50")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "a")
    path = tmp_path / "a" / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"backbone\.safetensors: does not match backbone\.json"):
        backbones.load(folder, "resnet18")


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "a")
    (tmp_path / "a" / "run.json").unlink()
    with pytest.raises(UserError, match="pretrain has not finished"):
        backbones.load(folder, "resnet18")
    with pytest.raises(UserError, match=r"must be the output folder of pretrain"):
        backbones.load(str(tmp_path), "resnet18")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = exported(tmp_path / "a")
    described = json.loads((tmp_path / "a" / "backbone.json").read_text())
    (tmp_path / "a" / "backbone.json").write_text(json.dumps({**described, "arch": "resnet50"}))
    with pytest.raises(UserError, match=r"backbone\.safetensors: does not fit this network"):
        backbones.load(folder, "resnet50")
