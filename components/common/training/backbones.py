"""ResNets with one input channel: construction, the maps after each stage, safe loading and export."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from components.common.errors import UserError
from components.common.formats.atomic import replaced
from components.common.formats.backbone import BACKBONE, BACKBONE_WEIGHTS, Backbone, Description, check_backbone
from components.common.runs import storage
from components.common.runs.inputs import read_document, upstream_run_ids
from components.common.runs.params import Arch
from components.common.runs.shards import Shards
from components.common.runs.storage import write_json
from components.common.training.checkpoints import copy_weights

STAGES = ("layer1", "layer2", "layer3", "layer4")
STRIDES = dict(zip(STAGES, (4, 8, 16, 32), strict=True))  # input pixels per position of the map after each stage


def build(arch: str, norm_layer: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> torchvision.models.ResNet:
    """Builds a torchvision ResNet without a head: (B, 1, H, W) to pooled features (B, C)."""
    resnet: torchvision.models.ResNet = getattr(torchvision.models, arch)(weights=None, norm_layer=norm_layer)
    resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.fc = nn.Identity()
    return resnet


def width(resnet: torchvision.models.ResNet, stage: str = "layer4") -> int:
    """Number of channels after a stage; after the last one 512 for ResNet-18, 2048 for ResNet-50."""
    return int(64 * resnet.layer4[-1].expansion) << STAGES.index(stage)


def forward_stages(resnet: torchvision.models.ResNet, image_B1HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes pooled features (B, C) and, by stage, the post-ReLU map (B, C_l, H_l, W_l) with H_l = H/4, H/8, H/16, H/32."""
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image_B1HW))))
    maps = {}
    for stage in STAGES:
        x = maps[stage] = getattr(resnet, stage)(x)
    return resnet.avgpool(x).flatten(1), maps


def export(resnet: torchvision.models.ResNet, folder: Path, description: Description) -> None:
    """Writes backbone.safetensors, and backbone.json with its digest."""
    with replaced(folder / BACKBONE_WEIGHTS) as scratch:
        save_file(copy_weights(resnet), scratch)
    document: Backbone = {**description, "sha256": storage.digest_file(folder / BACKBONE_WEIGHTS)}
    write_json(folder / BACKBONE, document)


Loaded = tuple[torchvision.models.ResNet, Backbone, str]
"""A backbone, and content and SHA-256 of backbone.json."""


def load(folder: str, arch: str | None = None) -> Loaded:
    """Loads a backbone of pretrain; raises UserError if it is damaged, or if `arch` is given and differs."""
    content, digest = read_document(folder, BACKBONE, "pretrain")
    description = check_backbone(content, storage.join(folder, BACKBONE))
    if arch and description["arch"] != arch:
        raise UserError(f"{folder}: the backbone is a {description['arch']}, the parameters ask for {arch}; set arch to match")
    path = storage.join(folder, BACKBONE_WEIGHTS)
    weights = storage.read(path)
    if storage.digest(weights) != description["sha256"]:
        raise UserError(f"{path}: does not match {BACKBONE}; run pretrain again")
    resnet = build(description["arch"])
    load_state(resnet, weights, path)
    return resnet, description, digest


class Start(NamedTuple):
    """The starting point of a head: a backbone and its normalisation."""

    resnet: torchvision.models.ResNet
    mean: float  # mean of the pixels, as the backbone expects them
    std: float  # their standard deviation
    inputs: dict[str, str]  # SHA-256 by name of input
    upstream: dict[str, str]  # MLflow run id by name of input, where known


def start(folder: str | None, arch: str, shards: Shards, load: Callable[[str, str], Loaded] = load) -> Start:
    """Loads the backbone in an output folder of pretrain, through `load`.

    Without one it builds a network that normalises by mean and standard deviation of the shards.
    """
    if folder is None:
        return Start(build(arch), *shards.mean_std, dict(shards.inputs), dict(shards.upstream))
    resnet, description, digest = load(folder, arch)
    mean, std = description["normalisation"]["mean"], description["normalisation"]["std"]
    return Start(resnet, mean, std, shards.inputs | {"backbone": digest}, shards.upstream | upstream_run_ids({"backbone": folder}))


def adapt(weights: Mapping[str, Tensor], arch: str, name: str) -> dict[str, Tensor]:
    """Adapts the weights of a torchvision-like ResNet to the networks of `build`; `name` is their file, for error messages.

    A conv1 with three input channels is summed over them, which gives the response to a grey image fed into all three; the head
    `fc` is dropped. Weights of any precision are taken as float32.
    """
    found = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in weights.items() if not key.startswith("fc.")}
    if "conv1.weight" in found and found["conv1.weight"].shape == (64, 3, 7, 7):
        found["conv1.weight"] = found["conv1.weight"].sum(1, keepdim=True)
    if (difference := _difference(found, arch)) is None:
        return found
    for other in get_args(Arch):
        if _difference(found, other) is None:
            raise UserError(f"{name}: holds a {other}, the parameters ask for {arch}; set arch to match")
    raise UserError(f"{name}: does not fit a {arch} ({difference}); give other weights or set arch to match")


def _difference(weights: Mapping[str, Tensor], arch: str) -> str | None:
    """Returns the first way in which weights differ from an architecture's; None if they fit."""
    with torch.device("meta"):
        expected = build(arch).state_dict()
    for key in expected.keys() - weights.keys():
        if not key.endswith("num_batches_tracked"):  # older files lack it
            return f"{key} is missing"
    for key, tensor in weights.items():
        if key not in expected:
            return f"{key} is unexpected"
        if tensor.shape != expected[key].shape:
            return f"{key} is {tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
        if expected[key].is_floating_point() and (reason := fault(tensor)):
            return f"{key} {reason}"
    return None


def fault(weights: Tensor) -> str | None:
    """Returns why a tensor cannot be the weights of a layer, such as "holds NaN"; None if it can."""
    if not weights.is_floating_point() or weights.is_meta or weights.layout != torch.strided:
        return f"holds no floating-point numbers ({weights.dtype}, {weights.device}, {weights.layout})"
    return None if weights.isfinite().all() else "holds NaN or infinity"


def load_state(module: nn.Module, content: bytes, name: str) -> None:
    """Loads safetensors bytes into a module, strictly; `name` is their file, for the UserError if they do not fit."""
    try:
        module.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{name}: does not fit this network ({str(error).splitlines()[0]})") from None
