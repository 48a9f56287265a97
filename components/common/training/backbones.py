"""ResNets with one input channel: construction, the maps after each stage, safe loading and export.

Weights lie in `backbone.safetensors` under torchvision's ResNet names, without a head, `conv1` with one input channel;
`backbone.json` beside it says what they are and holds their SHA-256.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.inputs import read_document
from components.common.runs.params import Arch
from components.common.runs.storage import write_json

STAGES = ("layer1", "layer2", "layer3", "layer4")
DESCRIPTION = "backbone.json"
WEIGHTS = "backbone.safetensors"


def build(arch: str, norm_layer: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> torchvision.models.ResNet:
    """A torchvision ResNet that takes (B, 1, H, W) and returns pooled features (B, C): no head."""
    resnet: torchvision.models.ResNet = getattr(torchvision.models, arch)(weights=None, norm_layer=norm_layer)
    resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.fc = nn.Identity()
    return resnet


def width(resnet: torchvision.models.ResNet) -> int:
    """Number of pooled features: 512 for ResNet-18, 2048 for ResNet-50."""
    return int(512 * resnet.layer4[-1].expansion)


def forward_stages(resnet: torchvision.models.ResNet, image_B1HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Pooled features and the post-ReLU map after each stage.

    Returns:
        (B, C), and by stage name (B, C_l, H_l, W_l) with H_l = H/4, H/8, H/16, H/32.
    """
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image_B1HW))))
    maps = {}
    for stage in STAGES:
        x = maps[stage] = getattr(resnet, stage)(x)
    return resnet.avgpool(x).flatten(1), maps


def export(resnet: torchvision.models.ResNet, folder: Path, description: dict[str, Any]) -> None:
    """Writes backbone.safetensors and backbone.json, which gets the digest of the former."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in resnet.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_json(folder / DESCRIPTION, {**description, "sha256": storage.digest_file(folder / WEIGHTS)})


def load(folder: str, arch: str) -> tuple[torchvision.models.ResNet, dict[str, Any], str]:
    """Reads a backbone that pretrain wrote.

    Args:
        folder: its output folder.
        arch: the architecture that is wanted.

    Returns:
        The network, the content of backbone.json and that file's SHA-256.

    Raises:
        UserError: not a backbone, another architecture, or weights that do not match backbone.json.
    """
    description, digest = read_document(folder, DESCRIPTION, "pretrain")
    if description["arch"] != arch:
        raise UserError(f"{folder}: the backbone is a {description['arch']}, the parameters ask for {arch}; set arch to match")
    content = storage.read(storage.join(folder, WEIGHTS))
    if storage.digest(content) != description["sha256"]:
        raise UserError(f"{storage.join(folder, WEIGHTS)}: does not match {DESCRIPTION}; run pretrain again")
    resnet = build(arch)
    load_state(resnet, content, storage.join(folder, WEIGHTS))
    return resnet, description, digest


def adapt(weights: Mapping[str, Tensor], arch: str, name: str) -> dict[str, Tensor]:
    """Weights of somebody else's ResNet for one of `build`.

    A conv1 with three input channels is summed over them, which is what it makes of a grey image put into all three; the head
    `fc` is left out.

    Args:
        weights: by torchvision's names.
        arch: the architecture that is wanted.
        name: of their file, for the messages.

    Raises:
        UserError: another architecture, or weights that are missing or too many.
    """
    found = {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")}
    if "conv1.weight" in found and found["conv1.weight"].shape == (64, 3, 7, 7):
        found["conv1.weight"] = found["conv1.weight"].sum(1, keepdim=True)
    if (difference := _difference(found, arch)) is None:
        return found
    for other in get_args(Arch):
        if _difference(found, other) is None:
            raise UserError(f"{name}: holds a {other}, the parameters ask for {arch}; set arch to match")
    raise UserError(f"{name}: does not fit a {arch} ({difference}); give other weights or set arch to match")


def _difference(weights: Mapping[str, Tensor], arch: str) -> str | None:
    """The first way in which weights are not those of an architecture; None if they are."""
    with torch.device("meta"):
        wanted = build(arch).state_dict()
    for key in wanted.keys() - weights.keys():
        if not key.endswith("num_batches_tracked"):  # older files lack it
            return f"{key} is missing"
    for key, tensor in weights.items():
        if key not in wanted:
            return f"it has no {key}"
        if tensor.shape != wanted[key].shape:
            return f"{key} is {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}"
    return None


def load_state(module: nn.Module, content: bytes, name: str) -> None:
    """Loads safetensors bytes into a module, strictly.

    Raises:
        UserError: not safetensors, or other names or shapes than the module's; `name` is the file's.
    """
    try:
        module.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{name}: does not fit this network ({str(error).splitlines()[0]})") from None
