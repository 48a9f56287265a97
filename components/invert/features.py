"""Frozen backbones as measures of likeness: the perceptual loss, and the feature space of distances and KID."""

import copy
from itertools import islice

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from components.common.training import backbones
from components.common.training.reader import Reader
from components.invert.params import Invert
from components.invert.pixels import to_images

EPSILON = 1e-10
CALIBRATION_BATCH, CALIBRATION_BATCHES = 64, 2


class FeatureSpace:
    """What a frozen backbone sees in images, which are (B, 1, H, W) in [0, 1]."""

    def __init__(self, name: str, resnet: torchvision.models.ResNet, mean_std: tuple[float, float], device: torch.device):
        """Freezes the network.

        Args:
            name: says which network it is, for the reports.
            resnet: without a head.
            mean_std: of the pixels it is used to.
            device: where it computes.
        """
        self.name, self.mean_std = name, mean_std
        self.resnet = resnet.to(device).eval().requires_grad_(False)

    def maps(self, image_B1HW: Tensor) -> list[Tensor]:
        """The post-ReLU map after each stage, (B, C, H', W'), with unit length over the channels."""
        _, maps = backbones.forward_stages(self.resnet, self._normalise(image_B1HW))
        return [_unit(stage if stage.dtype == torch.float64 else stage.float()) for stage in maps.values()]

    def double(self) -> "FeatureSpace":
        """A copy in float64."""
        return FeatureSpace(self.name, copy.deepcopy(self.resnet).double(), self.mean_std, next(self.resnet.parameters()).device)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,): squared differences of the normalised maps, summed over channels and stages, averaged over positions.

        LPIPS (Zhang et al. 2018, arXiv 1801.03924, equation 1) with all weights 1.
        """
        return maps_distance(self.maps(a), self.maps(b))

    @torch.no_grad()
    def pooled(self, image_B1HW: Tensor) -> Tensor:
        """(B, C): features after global average pooling."""
        features, _ = backbones.forward_stages(self.resnet, self._normalise(image_B1HW))
        return features.float()

    @torch.no_grad()
    def calibrate(self, image_B1HW: Tensor) -> None:
        """Sets the statistics of batch norm to those of these images."""
        norms = [module for module in self.resnet.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        self.resnet.train()(self._normalise(image_B1HW))
        self.resnet.eval()

    def _normalise(self, image: Tensor) -> Tensor:
        mean, std = self.mean_std
        return (image - mean) / std


def maps_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,): the distance of images whose maps are known."""
    terms = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(terms).sum(0)


def pretrained(folder: str, arch: str, device: torch.device) -> FeatureSpace:
    """The feature space of a backbone that pretrain wrote.

    Raises:
        UserError: not a backbone, or of another architecture.
    """
    resnet, description, _ = backbones.load(folder, arch)
    name = f"{arch}, pretrained by {description.get('method', 'an unknown method')} ({description['sha256'][:8]})"
    return FeatureSpace(name, resnet, (description["normalisation"]["mean"], description["normalisation"]["std"]), device)


def random(params: Invert, seed: int, train: Reader, mean_std: tuple[float, float], device: torch.device) -> FeatureSpace:
    """The feature space of a network with random weights, always the same for a seed.

    Batch norm takes its statistics from the first images of the train split: without them the maps of a deep network with
    random weights hardly depend on the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resnet = backbones.build(params.arch)
    space = FeatureSpace(f"{params.arch}, random weights of seed {seed}", resnet, mean_std, device)
    batches = islice(train.in_order(CALIBRATION_BATCH), CALIBRATION_BATCHES)
    space.calibrate(torch.cat([to_images(batch.images, params.size, device) for batch in batches]))
    return space


def _unit(maps_BCHW: Tensor) -> Tensor:
    return F.normalize(maps_BCHW, dim=1, eps=EPSILON)
