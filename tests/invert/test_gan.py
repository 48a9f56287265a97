import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.common.training.seeds import torch_generator_for
from components.invert.discriminator import Discriminator
from components.invert.gan_training import gradient_penalty, mixed_latents, path_lengths, update_average
from components.invert.generator import Generator

CPU = torch.device("cpu")


def small_generator() -> Generator:
    torch.manual_seed(0)
    return Generator(16, latent_dim=4, mapping_layers=2, channel_base=64, channel_max=8)


def test_r1_is_the_squared_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8, channel_base=64, channel_max=4).double()
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    total = 0.0
    with torch.no_grad():
        for index in np.ndindex(*images.shape):
            up, down = images.clone(), images.clone()
            up[index] += 1e-5
            down[index] -= 1e-5
            total += float(((discriminator(up) - discriminator(down)).sum() / 2e-5) ** 2)
    assert float(gradient_penalty(discriminator, images).detach()) == pytest.approx(total / 2, rel=1e-4)


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(4.0).reshape(1, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * x).sum((1, 2, 3))

    linear = Linear()
    penalty = gradient_penalty(linear, torch.randn(3, 1, 2, 2))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0 + 1 + 4 + 9)
    torch.testing.assert_close(linear.weight.grad, 2 * linear.weight.detach())


def test_path_lengths_are_those_of_the_jacobian() -> None:
    """For a linear map from w to pixels, the Jacobian J is its matrix, so |J^T y| needs no autograd."""
    torch.manual_seed(0)
    matrix = torch.randn(16, 2 * 3)
    w = torch.randn(5, 2, 3, requires_grad=True)
    images = (w.flatten(1) @ matrix.T).reshape(5, 1, 4, 4)
    y = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3)) / 4
    per_layer = (y.flatten(1) @ matrix).reshape(5, 2, 3).square().sum(2)
    lengths = path_lengths(images, w, torch.Generator().manual_seed(3))
    torch.testing.assert_close(lengths, per_layer.mean(1).sqrt())


def test_average_follows_the_network() -> None:
    average, network = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * network.weight.detach()
    before = network.weight.detach().clone()
    update_average(average, network, 0.9)
    torch.testing.assert_close(average.weight.detach(), expected)
    assert torch.equal(network.weight, before)


def test_latents_are_mixed_from_some_layer_on() -> None:
    generator = small_generator()
    w = mixed_latents(generator, 400, torch_generator_for(CPU, 0, 0)).detach()
    assert w.shape == (400, 6, 4)
    changes = (w[:, 1:] != w[:, :-1]).any(2).sum(1)
    assert set(changes.tolist()) == {0, 1}
    assert float((changes == 1).float().mean()) == pytest.approx(0.9, abs=0.05)
    where = (w[:, 1:] != w[:, :-1]).any(2).int().argmax(1)[changes == 1]
    assert set(where.tolist()) == set(range(5))


def test_samples_do_not_depend_on_the_batches() -> None:
    generator = small_generator()
    whole, parts = (torch.cat(list(generator.samples(5, size, seed=1))) for size in (5, 2))
    assert whole.shape == (5, 1, 16, 16)
    torch.testing.assert_close(whole, parts)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert math.isclose(float(whole.mean()), float(torch.cat(list(generator.samples(5, 5, seed=1))).mean()))
