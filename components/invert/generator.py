"""The generator of StyleGAN2 with skip connections (Karras et al. 2020, arXiv 1912.04958, figures 2 and 7b), with one channel."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from components.invert.layers import EPSILON, EqualLinear, activate, modulated_conv, normal, upsample
from components.invert.params import Invert

START = 4  # side of the learned constant input in pixels
MAPPING_LR = 0.01  # factor of the mapping network's learning rate (Karras et al. 2019, arXiv 1812.04948, appendix C)
SHAPE = ("size", "latent_dim", "mapping_layers", "channel_base", "channel_max")
"""Parameters that determine a generator, in the order of its arguments."""


def channels(resolution: int, base: int, most: int) -> int:
    """Returns the number of channels at a resolution: base / resolution, at most `most`."""
    return min(base // resolution, most)


def resolutions(size: int) -> list[int]:
    """Returns the resolutions of the blocks: 4, 8, ... `size`."""
    return [2**power for power in range(int(math.log2(START)), int(math.log2(size)) + 1)]


class Generator(nn.Module):
    """Mapping network and synthesis network; `size`, the side of the images, is a power of two, and z and w are (latent_dim,)."""

    latents: int  # N, number of layers with a latent of their own: W+ is (N, latent_dim)

    def __init__(self, size: int, latent_dim: int, mapping_layers: int, channel_base: int, channel_max: int):
        super().__init__()
        self.latent_dim = latent_dim
        self.mapping = Mapping(latent_dim, mapping_layers)
        widths = [channels(resolution, channel_base, channel_max) for resolution in resolutions(size)]
        self.constant = nn.Parameter(torch.randn(widths[0], START, START))
        self.convs = nn.ModuleList([StyledConv(widths[0], widths[0], latent_dim)])
        for before, width in pairwise(widths):
            self.convs += [StyledConv(before, width, latent_dim, up=True), StyledConv(width, width, latent_dim)]
        self.to_gray = nn.ModuleList([ToGray(width, latent_dim) for width in widths])
        self.latents = 2 * len(widths)

    def synthesise(self, w_BND: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Generates (B, 1, size, size), about [-1, 1], from the latent of each layer; an output layer shares that of the next convolution.

        `noise` draws the noise that is added to the maps; without it an image depends only on w.
        """
        x = self.convs[0](self.constant.expand(len(w_BND), -1, -1, -1), w_BND[:, 0], noise)
        image: Tensor = self.to_gray[0](x, w_BND[:, 1])
        for level, to_gray in enumerate(self.to_gray[1:], start=1):
            for layer in (2 * level - 1, 2 * level):
                x = self.convs[layer](x, w_BND[:, layer], noise)
            image = upsample(image) + to_gray(x, w_BND[:, 2 * level + 1])
        return image

    @torch.no_grad()
    def mean_latent(self, samples: int = 4096) -> Tensor:
        """Returns the mean of w, (latent_dim,), over a fixed sample of z."""
        z = torch.randn(samples, self.latent_dim, generator=torch.Generator().manual_seed(0))
        w: Tensor = self.mapping(z.to(self.constant.device))
        return w.mean(0)

    @torch.no_grad()
    def samples(self, count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Generates `count` images without mixing and noise, in batches (B, 1, S, S) in [0, 1]."""
        z = torch.randn(count, self.latent_dim, generator=torch.Generator().manual_seed(seed))
        for part in torch.split(z.to(self.constant.device), batch_size):
            yield to_unit(self.synthesise(self.mapping(part)[:, None].expand(-1, self.latents, -1)))


def build_generator(params: Invert) -> Generator:
    """Builds a generator with random weights, of the shape that the parameters ask for."""
    return Generator(*(getattr(params, name) for name in SHAPE))


class Mapping(nn.Module):
    """f: Z -> W, (B, D) -> (B, D)."""

    def __init__(self, dim: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList([EqualLinear(dim, dim, lr_multiplier=MAPPING_LR) for _ in range(layers)])

    def forward(self, z_BD: Tensor) -> Tensor:
        """Maps z, scaled to unit mean square, to w."""
        x = z_BD * (z_BD.square().mean(1, keepdim=True) + EPSILON).rsqrt()
        for layer in self.layers:
            x = activate(layer(x))
        return x


class StyledConv(nn.Module):
    """A modulated convolution with noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, latent_dim: int, up: bool = False):
        super().__init__()
        self.style = EqualLinear(latent_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._up = up

    def forward(self, x: Tensor, w_BD: Tensor, noise: torch.Generator | None) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), or twice the size. Demodulation cancels any scale of the weights."""
        x = modulated_conv(x, self.weight, self.style(w_BD), up=self._up)
        if noise is not None:
            x = x + self.noise_strength * normal(noise, len(x), 1, *x.shape[2:])
        return activate(x + self.bias[:, None, None])


class ToGray(nn.Module):
    """Converts maps to one channel of intensities: modulated, not demodulated ("tRGB")."""

    def __init__(self, inputs: int, latent_dim: int):
        super().__init__()
        self.style = EqualLinear(latent_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(1, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1))
        self._scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w_BD: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 1, H, W)."""
        return modulated_conv(x, self.weight * self._scale, self.style(w_BD), demodulate=False) + self.bias


def to_unit(image: Tensor) -> Tensor:
    """Converts the generator's range, [-1, 1] and slightly beyond, to [0, 1]."""
    return ((image + 1) / 2).clamp(0, 1)
