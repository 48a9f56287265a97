"""Layers of generator and discriminator: Karras et al. 2020, arXiv 1912.04958 (StyleGAN2).

Weights are drawn from N(0, 1) and scaled when used ("equalised learning rate", Karras et al. 2018,
arXiv 1710.10196, section 4.1), so that Adam moves all layers at the same pace.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.training import processes

EPSILON = 1e-8
SLOPE = 0.2  # slope of leaky ReLU below 0
TAPS = 4  # of the low-pass filter


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, scaled to preserve the variance of its input."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2)


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate, times `lr_multiplier`: (B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self._scale, self._bias_scale = lr_multiplier / math.sqrt(inputs), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Applies the scaled weights and bias."""
        return F.linear(x, self.weight * self._scale, self.bias * self._bias_scale)


class EqualConv(nn.Module):
    """A convolution with equalised learning rate, optionally to half the size: (B, inputs, H, W) -> (B, outputs, H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, down: bool = False, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self._scale, self._down = 1 / math.sqrt(inputs * kernel**2), down

    def forward(self, x: Tensor) -> Tensor:
        """Convolves; with `down` after a low-pass filter and with stride 2."""
        weight = self.weight * self._scale
        padding = weight.shape[-1] // 2
        if not self._down:
            return F.conv2d(x, weight, self.bias, padding=padding)
        # The padding makes up for the filter's four taps and for the kernel.
        return F.conv2d(blur(x, padding + 1), weight, self.bias, stride=2)


def modulated_conv(x_BIHW: Tensor, weight_OIKK: Tensor, style_BI: Tensor, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolves with weights scaled by each sample's style: (B, I, H, W) -> (B, O, H, W), equations 1 to 3 of StyleGAN2.

    w'_ijk = s_i w_ijk, and with demodulation, which restores the variance of the inputs, w''_ijk = w'_ijk / sqrt(sum over i, k of
    w'_ijk^2 + epsilon). Instead of the weights the maps are scaled, before and after: the same by linearity, and the whole batch
    shares one convolution. K is odd; `up` doubles the size and applies a low-pass filter.
    """
    x = x_BIHW * style_BI[:, :, None, None]
    if up:
        x = blur(F.conv_transpose2d(x, weight_OIKK.transpose(0, 1), stride=2), 1, gain=4.0)
    else:
        x = F.conv2d(x, weight_OIKK, padding=weight_OIKK.shape[-1] // 2)
    if not demodulate:
        return x
    variance_BO = style_BI.square() @ weight_OIKK.square().sum((2, 3)).T
    return x * (variance_BO + EPSILON).rsqrt()[:, :, None, None]


def normal(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """Draws from N(0, 1) for the `count` images of this process, (count, *shape), what one process would draw for them."""
    total = count * processes.world_size()
    return torch.randn(total, *shape, generator=generator, device=generator.device)[processes.share(total)]


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Low-pass filter [1, 3, 3, 1] in both directions: (B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3)."""
    return _filtered(x, gain, 1, padding, False)


def upsample(x: Tensor) -> Tensor:
    """Doubles the size, with the filter: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    return _filtered(x, 4.0, 2, 1, True)


def downsample(x: Tensor) -> Tensor:
    """Halves the size, with the filter: (B, C, H, W) -> (B, C, H / 2, W / 2)."""
    return _filtered(x, 1.0, 2, 1, False)


def _filtered(x: Tensor, gain: float, stride: int, padding: int, transposed: bool) -> Tensor:
    result: Tensor = _Filter.apply(x, gain, stride, padding, transposed)
    return result


class _Filter(torch.autograd.Function):
    """Filters each channel, or with `transposed` spreads each value by the filter.

    The penalties differentiate twice. Torch's second derivative of a convolution with a group per channel computes that of the kernel
    as well, one channel at a time; here each derivative is one more filter.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, gain: float, stride: int, padding: int, transposed: bool) -> Tensor:
        # The filter is symmetric, so that without a stride its adjoint is the filter itself, which is faster than a transposed one.
        context.adjoint = (gain, 1, TAPS - 1 - padding, False) if stride == 1 else (gain, stride, padding, not transposed)
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(x, _kernel(x, gain), stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _filtered(gradient, *context.adjoint), None, None, None, None


def _kernel(x: Tensor, gain: float) -> Tensor:
    """Returns (C, 1, 4, 4), where each channel sums to `gain`."""
    return _filter(gain, x.device, x.dtype).expand(x.shape[1], 1, 4, 4)


@cache
def _filter(gain: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype) / 8
    return gain * torch.outer(taps, taps)
