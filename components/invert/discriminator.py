"""The residual discriminator of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, figure 7c)."""

import math

import torch
from torch import Tensor, nn

from components.invert.generator import START, channels, resolutions
from components.invert.layers import EPSILON, EqualConv, EqualLinear, activate, downsample

GROUP = 4  # number of images over which the last layers see the standard deviation


class Discriminator(nn.Module):
    """Images to logits of being real; arguments as for the generator."""

    def __init__(self, size: int, channel_base: int, channel_max: int):
        super().__init__()
        widths = [channels(resolution, channel_base, channel_max) for resolution in reversed(resolutions(size))]
        self.from_gray = EqualConv(1, widths[0], 1)
        self.blocks = nn.Sequential(*map(ResidualBlock, widths[:-1], widths[1:]))
        last = widths[-1]
        self.conv = EqualConv(last + 1, last, 3)
        self.hidden = EqualLinear(last * START**2, last)
        self.logit = EqualLinear(last, 1)

    def forward(self, image_B1HW: Tensor) -> Tensor:
        """Maps (B, 1, size, size) to (B,)."""
        x = self.blocks(activate(self.from_gray(image_B1HW)))
        x = activate(self.conv(append_batch_deviation(x)))
        logit_B: Tensor = self.logit(activate(self.hidden(x.flatten(1))))[:, 0]
        return logit_B


class ResidualBlock(nn.Module):
    """Two convolutions to half the size, with a linear skip connection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = EqualConv(inputs, inputs, 3)
        self.second = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2); the sum keeps the variance of its terms."""
        y = activate(self.second(activate(self.first(x))))
        total: Tensor = y + self.skip(downsample(x))
        return total / math.sqrt(2)


def append_batch_deviation(x_BCHW: Tensor) -> Tensor:
    """Appends a channel with the mean standard deviation over groups of images (Karras et al. 2018, arXiv 1710.10196, section 3).

    Groups have GROUP consecutive images, or the largest divisor of GROUP that divides B.
    """
    members = math.gcd(len(x_BCHW), GROUP)
    x_GMCHW = x_BCHW.reshape(-1, members, *x_BCHW.shape[1:])
    deviation_G = (x_GMCHW.var(1, correction=0) + EPSILON).sqrt().mean((1, 2, 3))
    channel = deviation_G.repeat_interleave(members)[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])
    return torch.cat([x_BCHW, channel], dim=1)
