"""torchvision's RetinaNet and Faster R-CNN, version 2, with a feature pyramid on our one-channel backbones.

The blocks are those of `retinanet_resnet50_fpn_v2` (Zhang et al., CVPR 2020: GroupNorm in the heads, GIoU loss) and
`fasterrcnn_resnet50_fpn_v2` (Li et al., arXiv 2111.11429: a deeper region proposal head, convolutions with batch norm in
the box head). Images are used at the size at which they are stored.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from components.common.training import backbones, processes
from components.detect.params import Detect

LEVELS = 5
FINEST = 0.04  # side of the smallest anchors relative to that of the image: torchvision's 32 pixels of 800
STRIDES_PER_ANCHOR = 1.5  # minimum side of the anchors in strides: objects could fall between smaller ones
RATIOS = (0.5, 1.0, 2.0)
SETTINGS = ("arch", "detector", "channels", "batch_norm", "score_threshold", "max_detections")
"""Parameters that determine a detector; model.json holds them."""


class Sampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """Chooses the boxes that Faster R-CNN learns from; the choice for an image depends on its seed and not on the rest of the batch."""

    seeds: list[int]  # of the images of the next call
    chosen: Tensor  # number of boxes that the last call has chosen

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the masks of chosen positives and negatives of each image, as in torchvision."""
        positive, negative = [], []
        for seed, each in zip(self.seeds, matched_idxs, strict=True):
            torch.manual_seed(seed)
            (one,), (other,) = super().__call__([each])
            positive.append(one)
            negative.append(other)
        self.chosen = torch.cat([*positive, *negative]).sum(dtype=torch.float32)
        return positive, negative


class Detector(nn.Module):
    """Either detector, with classes numbered from 0.

    `samplers` names those terms of the loss that are means over sampled boxes; others are means over images.
    """

    def __init__(self, model: nn.Module, first_class: int, samplers: Mapping[str, Sampler] | None = None):
        super().__init__()
        self.model = model
        self._first_class, self._samplers = first_class, samplers or {}

    def losses(
        self, image_B1SS: Tensor, boxes: list[Tensor], labels: list[Tensor], seeds: list[int], share: float = 1.0
    ) -> dict[str, Tensor]:
        """Computes the terms of the loss, loss_*, or with several processes this one's share of them.

        Images are in [0, 1], with boxes (G, 4), left, top, right, bottom, and labels (G,). Each has a seed; `share` is the fraction of the
        images of the batch that this process has.
        """
        targets = [{"boxes": box, "labels": label + self._first_class} for box, label in zip(boxes, labels, strict=True)]
        for sampler in self._samplers.values():
            sampler.seeds = seeds
        terms = {f"loss_{name.removeprefix('loss_')}": term for name, term in self.model(list(image_B1SS), targets).items()}
        shares = {name: each.chosen / processes.sum_over_ranks(each.chosen.clone()) for name, each in self._samplers.items()}
        return {name: term * shares.get(name, share) for name, term in terms.items()}

    def forward(self, image_B1SS: Tensor) -> list[dict[str, Tensor]]:
        """Detects in each image, by descending score: boxes (D, 4), scores (D,) and labels (D,)."""
        found = self.model(list(image_B1SS))
        return [{**each, "labels": each["labels"] - self._first_class} for each in found]


def build(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, mean: float, std: float) -> Detector:
    """Builds a detector of classes (without background) on a backbone; mean and std of the pixels are fractions of their range."""
    common = {"min_size": size, "max_size": size, "image_mean": [mean], "image_std": [std]}
    make = _retinanet if params.detector == "retinanet" else _faster_rcnn
    detector = make(resnet, params, classes, size, common)
    if params.batch_norm == "frozen":  # keeps scale and offset; `train_mode` keeps the statistics
        for norm in _batch_norms(detector):
            norm.requires_grad_(False)
    return detector


def rebuild(description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Detector:
    """Rebuilds a trained detector from model.json and its weights; a RuntimeError if they do not fit together."""
    params = Detect.model_validate({name: description[name] for name in SETTINGS})
    classes, normalisation = len(description["classes"]), description["normalisation"]
    detector = build(backbones.build(params.arch), params, classes, description["size"], **normalisation)
    detector.model.load_state_dict(weights)
    return detector.eval()


def train_mode(detector: Detector, params: Detect) -> None:
    """Sets training mode, in which frozen batch norm stays in evaluation mode."""
    detector.train()
    if params.batch_norm == "frozen":
        for norm in _batch_norms(detector):
            norm.eval()


def anchor_sizes(size: int, stride: int) -> list[float]:
    """Returns the sides of the anchors of each level in pixels, finest first, for an image side and the stride of the finest level."""
    finest = max(FINEST * size, STRIDES_PER_ANCHOR * stride)
    return [finest * 2**level for level in range(LEVELS)]


def _retinanet(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, common: dict[str, Any]) -> Detector:
    """Starts the pyramid at stride 8, as in the paper; small images need a finer one, and can afford it."""
    coarse = FINEST * size >= STRIDES_PER_ANCHOR * backbones.STRIDES["layer2"]
    stages = backbones.STAGES[1:] if coarse else backbones.STAGES
    extra = LastLevelP6P7(backbones.width(resnet), params.channels) if coarse else LastLevelMaxPool()
    pyramid = _pyramid(resnet, stages, params.channels, extra_blocks=extra)
    octave = (1, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = tuple(tuple(side * step for step in octave) for side in anchor_sizes(size, backbones.STRIDES[stages[0]]))
    anchors = AnchorGenerator(sizes, (RATIOS,) * LEVELS)
    head = RetinaNetHead(params.channels, len(octave) * len(RATIOS), classes, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    limits = {"score_thresh": params.score_threshold, "detections_per_img": params.max_detections}
    return Detector(RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **limits, **common), first_class=0)


def _faster_rcnn(resnet: torchvision.models.ResNet, params: Detect, classes: int, size: int, common: dict[str, Any]) -> Detector:
    channels = params.channels
    pyramid = _pyramid(resnet, backbones.STAGES, channels, norm_layer=nn.BatchNorm2d)
    sizes = tuple((side,) for side in anchor_sizes(size, backbones.STRIDES["layer1"]))
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
    rpn, roi = model.rpn, model.roi_heads
    for part in (rpn, roi):
        part.fg_bg_sampler = Sampler(part.fg_bg_sampler.batch_size_per_image, part.fg_bg_sampler.positive_fraction)
    terms = {"loss_objectness": rpn, "loss_rpn_box_reg": rpn, "loss_classifier": roi, "loss_box_reg": roi}
    return Detector(model, first_class=1, samplers={name: part.fg_bg_sampler for name, part in terms.items()})


def _pyramid(resnet: torchvision.models.ResNet, stages: tuple[str, ...], channels: int, **options: Any) -> BackboneWithFPN:
    widths = [backbones.width(resnet, stage) for stage in stages]
    # Faster R-CNN expects maps of these names.
    return BackboneWithFPN(resnet, {stage: str(level) for level, stage in enumerate(stages)}, widths, channels, **options)


def _batch_norms(detector: Detector) -> list[nn.Module]:
    body: Any = detector.model.backbone
    return [module for module in body.body.modules() if isinstance(module, torch.nn.BatchNorm2d)]
