"""Images to latents in W+: Richardson et al. 2021, arXiv 2008.00951 (pixel2style2pixel), over one of our backbones."""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from components.common.training import backbones
from components.invert.layers import SLOPE

LEVELS = ("layer4", "layer3", "layer2")
"""Stages whose maps make the coarse, the medium and the fine latents."""
COARSE, MEDIUM = 3, 7
"""Latents before these are coarse, and medium (section 3): for images of 4 and 8 pixels, and of 16 and 32."""


class Encoder(nn.Module):
    """A backbone, a feature pyramid, and a small network for each latent ("map2style")."""

    mean_latent: Tensor

    def __init__(self, resnet: torchvision.models.ResNet, size: int, latents: int, mean_latent: Tensor):
        """Builds what is above the backbone. Every image starts at the mean latent.

        Args:
            resnet: without a head.
            size: side of the images in pixels.
            latents: N, how many there are.
            mean_latent: (latent_dim,).
        """
        super().__init__()
        dim = len(mean_latent)
        self.backbone = resnet
        self.lateral = nn.ModuleList([nn.Conv2d(_width(resnet, stage), dim, kernel_size=1) for stage in LEVELS])
        self.levels = [0 if latent < COARSE else 1 if latent < MEDIUM else 2 for latent in range(latents)]
        # A stage's maps have size / 32, / 16 and / 8 pixels a side, and one at least.
        halvings = [max(0, math.ceil(math.log2(size / stride))) for stride in (32, 16, 8)]
        self.to_latent = nn.ModuleList([ToLatent(dim, halvings[level]) for level in self.levels])
        self.register_buffer("mean_latent", mean_latent.clone())

    def forward(self, image_B1HW: Tensor) -> Tensor:
        """(B, N, latent_dim) of normalised images."""
        _, maps = backbones.forward_stages(self.backbone, image_B1HW)
        pyramid = [self.lateral[0](maps[LEVELS[0]])]
        for lateral, stage in zip(self.lateral[1:], LEVELS[1:], strict=True):
            below = maps[stage]
            pyramid.append(lateral(below) + F.interpolate(pyramid[-1], below.shape[2:], mode="bilinear", align_corners=False))
        moves = [head(pyramid[level]) for head, level in zip(self.to_latent, self.levels, strict=True)]
        return self.mean_latent + torch.stack(moves, dim=1).float()


class ToLatent(nn.Module):
    """Convolutions to half the size until one pixel is left, and a linear layer that starts at 0: (B, D, H, W) -> (B, D)."""

    def __init__(self, dim: int, halvings: int):
        super().__init__()
        self.convs = nn.Sequential()
        for _ in range(halvings):
            self.convs.extend([nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1), nn.LeakyReLU(SLOPE)])
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """How far the latent is from the mean."""
        move: Tensor = self.linear(self.convs(x).flatten(1))
        return move


def _width(resnet: torchvision.models.ResNet, stage: str) -> int:
    """Channels after a stage."""
    return backbones.width(resnet) >> (len(backbones.STAGES) - 1 - backbones.STAGES.index(stage))
