"""Frozen backbones that measure similarity: the perceptual loss, feature distances, and the feature space of KID."""

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
    """The features of images, (B, 1, H, W) in [0, 1], in a frozen backbone; `name` describes it in the reports."""

    def __init__(self, name: str, resnet: torchvision.models.ResNet, mean_std: tuple[float, float], device: torch.device):
        self.name, self.mean_std = name, mean_std
        self.resnet = resnet.to(device).eval().requires_grad_(False)

    def maps(self, image_B1HW: Tensor) -> list[Tensor]:
        """Computes the post-ReLU map after each stage, (B, C, H', W'), normalised to unit length over the channels."""
        _, maps = backbones.forward_stages(self.resnet, self._normalise(image_B1HW))
        return [F.normalize(stage.float(), dim=1, eps=EPSILON) for stage in maps.values()]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes LPIPS with all weights 1 (Zhang et al. 2018, arXiv 1801.03924, equation 1), (B,)."""
        return maps_distance(self.maps(a), self.maps(b))

    @torch.no_grad()
    def pooled(self, image_B1HW: Tensor) -> Tensor:
        """Computes (B, C): features after global average pooling."""
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
    """Sums squared differences of normalised maps over channels and stages, averaged over positions, (B,)."""
    terms = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(terms).sum(0)


def pretrained_space(backbone: backbones.Loaded, device: torch.device) -> FeatureSpace:
    """Makes the feature space of a backbone of pretrain, which it leaves as it is."""
    resnet, description, _ = backbone
    name = f"{description['arch']}, pretrained by {description.get('method', 'an unknown method')} ({description['sha256'][:8]})"
    return FeatureSpace(name, copy.deepcopy(resnet), (description["normalisation"]["mean"], description["normalisation"]["std"]), device)


def random_space(params: Invert, seed: int, train: Reader, mean_std: tuple[float, float], device: torch.device) -> FeatureSpace:
    """Makes the feature space of a network with random weights, determined by the seed.

    Batch norm takes its statistics from the first images of the train split: otherwise the maps of a deep network with random
    weights hardly depend on the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resnet = backbones.build(params.arch)
    space = FeatureSpace(f"{params.arch}, random weights of seed {seed}", resnet, mean_std, device)
    batches = islice(train.in_order(CALIBRATION_BATCH), CALIBRATION_BATCHES)
    space.calibrate(torch.cat([to_images(batch.images, params.size, device) for batch in batches]))
    return space
