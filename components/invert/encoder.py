"""Images to latents in W+: Richardson et al. 2021, arXiv 2008.00951 (pixel2style2pixel), on one of our backbones."""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from components.common.training import backbones
from components.invert.layers import SLOPE

LEVELS = ("layer4", "layer3", "layer2")  # stages whose maps give the coarse, the medium and the fine latents
COARSE, MEDIUM = 3, 7
"""Latents before these are coarse and medium, respectively (section 3): for resolutions 4 and 8, and 16 and 32."""


class Encoder(nn.Module):
    """A backbone, a feature pyramid, and a small network for each latent ("map2style"); at first every image gives the mean latent."""

    mean_latent: Tensor

    def __init__(self, resnet: torchvision.models.ResNet, size: int, latents: int, mean_latent: Tensor):
        super().__init__()
        dim = len(mean_latent)
        self.backbone = resnet
        self.lateral = nn.ModuleList([nn.Conv2d(backbones.width(resnet, stage), dim, kernel_size=1) for stage in LEVELS])
        self.levels = [0 if latent < COARSE else 1 if latent < MEDIUM else 2 for latent in range(latents)]
        # The maps have size / stride pixels per side, at least one.
        halvings = [max(0, math.ceil(math.log2(size / backbones.STRIDES[stage]))) for stage in LEVELS]
        self.to_latent = nn.ModuleList([ToLatent(dim, halvings[level]) for level in self.levels])
        self.register_buffer("mean_latent", mean_latent.clone())

    def forward(self, image_B1HW: Tensor) -> Tensor:
        """Encodes normalised images as (B, N, latent_dim)."""
        _, maps = backbones.forward_stages(self.backbone, image_B1HW)
        pyramid = [self.lateral[0](maps[LEVELS[0]])]
        for lateral, stage in zip(self.lateral[1:], LEVELS[1:], strict=True):
            below = maps[stage]
            pyramid.append(lateral(below) + F.interpolate(pyramid[-1], below.shape[2:], mode="bilinear", align_corners=False))
        moves = [head(pyramid[level]) for head, level in zip(self.to_latent, self.levels, strict=True)]
        return self.mean_latent + torch.stack(moves, dim=1).float()


class ToLatent(nn.Module):
    """Convolutions that halve the size until one pixel is left, and a linear layer initialised to 0: (B, D, H, W) -> (B, D)."""

    def __init__(self, dim: int, halvings: int):
        super().__init__()
        self.convs = nn.Sequential()
        for _ in range(halvings):
            self.convs.extend([nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1), nn.LeakyReLU(SLOPE)])
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the offset from the mean latent."""
        move: Tensor = self.linear(self.convs(x).flatten(1))
        return move
