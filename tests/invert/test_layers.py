import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.invert.layers import EqualConv, EqualLinear, activate, blur, downsample, modulated_conv, upsample

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def explicit_weights(weight_OIKK: Tensor, style_I: Tensor, demodulate: bool) -> Tensor:
    """Computes equations 1 and 3 of StyleGAN2 element by element."""
    outputs, inputs, kernel, _ = weight_OIKK.shape
    made = torch.zeros_like(weight_OIKK)
    for o in range(outputs):
        total = 0.0
        for i, y, x in itertools.product(range(inputs), range(kernel), range(kernel)):
            made[o, i, y, x] = style_I[i] * weight_OIKK[o, i, y, x]
            total += float(made[o, i, y, x]) ** 2
        if demodulate:
            made[o] /= (total + 1e-8) ** 0.5
    return made


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulation_agrees_with_per_sample_convolution(demodulate: bool, kernel: int) -> None:
    torch.manual_seed(0)
    x, weight, style = torch.randn(3, 4, 6, 5), torch.randn(2, 4, kernel, kernel), torch.randn(3, 4)
    expected = torch.cat([F.conv2d(x[b : b + 1], explicit_weights(weight, style[b], demodulate), padding=kernel // 2) for b in range(3)])
    torch.testing.assert_close(modulated_conv(x, weight, style, demodulate), expected)


def test_upsampling_convolution_filters_the_sparse_result() -> None:
    """Reference in NumPy, in the order of StyleGAN2: insert zeros between pixels, convolve, then filter."""
    torch.manual_seed(0)
    x, weight, style = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 3, 3), torch.randn(1, 2)
    weights = explicit_weights(weight, style[0], True)[0].numpy()
    sparse = np.zeros((2, 7, 7))
    sparse[:, ::2, ::2] = x[0].numpy()
    convolved = sum(convolve2d(sparse[i], weights[i], mode="full") for i in range(2))
    expected = convolve2d(convolved, 4 * TAPS, mode="full")[2:-2, 2:-2]
    made = modulated_conv(x, weight, style, up=True)
    assert made.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(made[0, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("filtered", [lambda x: blur(x, 1), lambda x: blur(x, 2, 4.0), upsample, downsample])
def test_derivatives_of_filters(filtered: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(filtered, x)
    assert torch.autograd.gradgradcheck(filtered, x)


def test_second_derivatives_do_not_compute_channels_one_by_one() -> None:
    def convolutions(channels: int) -> int:
        found = 0

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
                nonlocal found
                found += "convolution" in str(function)
                return function(*arguments, **(options or {}))

        x = torch.randn(1, channels, 8, 8, requires_grad=True)
        with Count():
            (gradient,) = torch.autograd.grad(blur(downsample(x), 2).square().sum(), x, create_graph=True)
            torch.autograd.backward(gradient.square().sum())
        return found

    assert convolutions(16) == convolutions(2)


def test_demodulation_brings_outputs_to_unit_variance() -> None:
    torch.manual_seed(0)
    style = 10 * torch.rand(4, 16) + 0.1
    made = modulated_conv(torch.randn(4, 16, 48, 48), 5 * torch.randn(8, 16, 3, 3), style)
    deviations = made[:, :, 2:-2, 2:-2].std((2, 3))
    assert deviations.flatten().tolist() == pytest.approx([1.0] * 32, rel=0.12)


def test_resampling_is_filtering() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 6)
    sparse = np.zeros((12, 12))
    sparse[::2, ::2] = x[0, 1].numpy()
    np.testing.assert_allclose(upsample(x)[0, 1].numpy(), convolve2d(sparse, 4 * TAPS, mode="full")[1:13, 1:13], atol=1e-6)
    whole = convolve2d(x[0, 1].numpy(), TAPS, mode="full")
    np.testing.assert_allclose(downsample(x)[0, 1].numpy(), whole[2:-1:2, 2:-1:2], atol=1e-6)
    np.testing.assert_allclose(blur(x, 3)[0, 1].numpy(), whole, atol=1e-6)


def test_resampling_keeps_a_flat_image_flat() -> None:
    flat = torch.full((1, 1, 8, 8), 0.7)
    assert upsample(flat)[0, 0, 2:-2, 2:-2] == pytest.approx(0.7)
    assert downsample(flat)[0, 0, 1:-1, 1:-1] == pytest.approx(0.7)


def test_equalised_layers_keep_the_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    assert float(EqualLinear(256, 256)(x).std()) == pytest.approx(1.0, rel=0.1)
    assert float(EqualLinear(256, 256, lr_multiplier=0.01)(x).std()) == pytest.approx(1.0, rel=0.1)
    assert float(EqualConv(32, 32, 3)(torch.randn(4, 32, 32, 32)).std()) == pytest.approx(1.0, rel=0.1)
    assert float(activate(torch.randn(10000)).square().mean()) == pytest.approx(1.04, rel=0.05)  # 2 * (1 + 0.2**2) / 2


def test_a_layer_with_a_smaller_multiplier_learns_slower() -> None:
    torch.manual_seed(0)
    x, moves = torch.randn(8, 16), []
    for multiplier in (1.0, 0.01):
        layer = EqualLinear(16, 4, lr_multiplier=multiplier)
        before = layer(x).detach()
        layer(x).sum().backward()
        torch.optim.Adam(layer.parameters(), lr=0.01).step()
        moves.append(float((layer(x) - before).abs().mean()))
    assert moves[0] / moves[1] == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_strided_convolution_halves_the_size(kernel: int) -> None:
    layer = EqualConv(2, 3, kernel, down=True)
    assert layer(torch.randn(1, 2, 8, 8)).shape == (1, 3, 4, 4)
