"""torchvision's RetinaNet and Faster R-CNN, version 2, on our backbones: a feature pyramid over one-channel images.

The blocks are those of `retinanet_resnet50_fpn_v2` (Zhang et al., CVPR 2020: GroupNorm in the heads, GIoU loss) and
`fasterrcnn_resnet50_fpn_v2` (Li et al., arXiv 2111.11429: a deeper region proposal head, convolutions with batch norm in
the box head). Images come in as large as they are stored and are not resized again.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from components.common.training import backbones
from components.detect.params import Detect

LEVELS = 5
FINEST = 0.04
"""Side of the smallest anchors over that of the image: torchvision's 32 pixels of 800."""
STRIDES_PER_ANCHOR = 1.5
"""Anchors are at least so many strides wide: between smaller ones an object could hide."""
STRIDES = dict(zip(backbones.STAGES, (4, 8, 16, 32), strict=True))
RATIOS = (0.5, 1.0, 2.0)
SETTINGS = ("arch", "detector", "channels", "batch_norm", "score_threshold", "max_detections")
"""Parameters that a detector is built by; model.json holds them."""


class Detector(nn.Module):
    """Either of the two, with classes that count from 0."""

    def __init__(self, model: nn.Module, first_class: int):
        super().__init__()
        self.model = model
        self._first_class = first_class

    def losses(self, image_B1SS: Tensor, boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        """The terms of the loss, named loss_*.

        Args:
            image_B1SS: in [0, 1].
            boxes: (G, 4) an image: left, top, right, bottom in pixels.
            labels: (G,) an image.
        """
        targets = [{"boxes": box, "labels": label + self._first_class} for box, label in zip(boxes, labels, strict=True)]
        return {f"loss_{name.removeprefix('loss_')}": term for name, term in self.model(list(image_B1SS), targets).items()}

    def forward(self, image_B1SS: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image, by falling score: boxes (D, 4), scores (D,) and labels (D,)."""
        found = self.model(list(image_B1SS))
        return [{**each, "labels": each["labels"] - self._first_class} for each in found]


def build(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, mean: float, std: float) -> Detector:
    """A detector over a backbone; the rest starts at random.

    Args:
        resnet: with one input channel.
        params: what to build.
        classes: how many, without background.
        size: side of the images in pixels.
        mean: of the pixels, as a fraction of their range.
        std: their standard deviation.
    """
    common = {"min_size": size, "max_size": size, "image_mean": [mean], "image_std": [std]}
    make = _retinanet if params.detector == "retinanet" else _faster_rcnn
    detector = make(resnet, params, classes, size, common)
    if params.batch_norm == "frozen":
        freeze_batch_norm(detector)
    return detector


def rebuild(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Detector:
    """A trained detector.

    Args:
        description: content of model.json.
        weights: of model.safetensors.

    Raises:
        KeyError: something is missing from the description.
        RuntimeError: the weights do not fit it.
    """
    params = Detect.model_validate({name: description[name] for name in SETTINGS})
    classes, used = len(description["classes"]), description["normalisation"]
    detector = build(backbones.build(params.arch), params, classes, description["size"], used["mean"], used["std"])
    detector.model.load_state_dict(weights)
    return detector.eval()


def train_mode(detector: Detector, params: Detect) -> None:
    """Training mode, in which frozen batch norm stays as it is."""
    detector.train()
    if params.batch_norm == "frozen":
        for norm in _batch_norms(detector):
            norm.eval()


def freeze_batch_norm(detector: Detector) -> None:
    """Keeps the scale and the offset of the backbone's batch norm; `train_mode` keeps its statistics."""
    for norm in _batch_norms(detector):
        norm.requires_grad_(False)


def anchor_sizes(size: int, stride: int) -> list[float]:
    """Sides of the anchors of each level, the finest first.

    Args:
        size: side of the image in pixels.
        stride: of the finest level.
    """
    finest = max(FINEST * size, STRIDES_PER_ANCHOR * stride)
    return [finest * 2**level for level in range(LEVELS)]


def _retinanet(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, common: dict[str, Any]) -> Detector:
    """The paper's pyramid begins at stride 8; small images need a finer one, and can afford it."""
    coarse = FINEST * size >= STRIDES_PER_ANCHOR * STRIDES["layer2"]
    stages = backbones.STAGES[1:] if coarse else backbones.STAGES
    extra = LastLevelP6P7(backbones.width(resnet), params.channels) if coarse else LastLevelMaxPool()
    pyramid = _pyramid(resnet, stages, params.channels, extra_blocks=extra)
    octave = (1, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = tuple(tuple(side * step for step in octave) for side in anchor_sizes(size, STRIDES[stages[0]]))
    anchors = AnchorGenerator(sizes, (RATIOS,) * LEVELS)
    head = RetinaNetHead(params.channels, len(octave) * len(RATIOS), classes, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    limits = {"score_thresh": params.score_threshold, "detections_per_img": params.max_detections}
    return Detector(RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **limits, **common), first_class=0)


def _faster_rcnn(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, common: dict[str, Any]) -> Detector:
    channels = params.channels
    pyramid = _pyramid(resnet, backbones.STAGES, channels, norm_layer=nn.BatchNorm2d)
    sizes = tuple((side,) for side in anchor_sizes(size, STRIDES["layer1"]))
    model = FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        rpn_head=RPNHead(channels, len(RATIOS), conv_depth=2),
        box_head=FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [4 * channels], norm_layer=nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(4 * channels, classes + 1),  # class 0 is the background
        box_score_thresh=params.score_threshold,
        box_detections_per_img=params.max_detections,
        **common,
    )
    return Detector(model, first_class=1)


def _pyramid(resnet: torchvision.models.ResNet, stages: tuple[str, ...], channels: int, **options: Any) -> BackboneWithFPN:
    last = backbones.width(resnet)
    widths = [last // 2 ** (len(backbones.STAGES) - 1 - backbones.STAGES.index(stage)) for stage in stages]
    # Faster R-CNN looks for maps of these names.
    return BackboneWithFPN(resnet, {stage: str(level) for level, stage in enumerate(stages)}, widths, channels, **options)


def _batch_norms(detector: Detector) -> list[nn.Module]:
    body: Any = detector.model.backbone
    return [module for module in body.body.modules() if isinstance(module, torch.nn.BatchNorm2d)]
