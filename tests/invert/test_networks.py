import pytest
import torch

from components.common.training import backbones
from components.invert.discriminator import Discriminator, append_batch_deviation
from components.invert.encoder import Encoder
from components.invert.generator import Generator, channels, resolutions


def small_generator(size: int = 16) -> Generator:
    torch.manual_seed(0)
    return Generator(size, latent_dim=8, mapping_layers=2, channel_base=128, channel_max=16)


@pytest.mark.parametrize(("size", "latents"), [(16, 6), (32, 8), (64, 10), (1024, 18)])
def test_w_plus_has_as_many_latents_as_the_paper_says(size: int, latents: int) -> None:
    assert 2 * len(resolutions(size)) == latents
    if size <= 64:
        generator = small_generator(size)
        assert generator.latents == latents
        assert generator.synthesise(torch.randn(2, latents, 8)).shape == (2, 1, size, size)


def test_channels_follow_the_resolution() -> None:
    assert [channels(resolution, 16384, 512) for resolution in resolutions(256)] == [512, 512, 512, 512, 256, 128, 64]


def test_every_latent_moves_the_image_and_later_ones_move_finer_detail() -> None:
    generator = small_generator()
    w = torch.randn(1, generator.latents, 8)
    plain = generator.synthesise(w)
    for latent in range(generator.latents):
        other = w.clone()
        other[:, latent] += 1
        assert not torch.equal(generator.synthesise(other), plain), latent


def test_noise_comes_from_the_generator_that_is_given_and_from_none_else() -> None:
    generator = small_generator()
    for conv in generator.convs:
        torch.nn.init.ones_(conv.noise_strength)  # type: ignore[arg-type]
    w = torch.randn(2, generator.latents, 8)
    first, again, other = (generator.synthesise(w, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(generator.synthesise(w), generator.synthesise(w))


def test_mapping_ignores_the_length_of_z() -> None:
    generator, z = small_generator(), torch.randn(4, 8)
    torch.testing.assert_close(generator.mapping(z), generator.mapping(7 * z))


def test_mean_latent_is_the_mean_of_w() -> None:
    generator = small_generator()
    torch.manual_seed(9)
    mean = generator.mapping(torch.randn(50_000, 8)).mean(0)
    torch.testing.assert_close(generator.mean_latent(), mean.detach(), atol=0.05, rtol=0)
    assert torch.equal(generator.mean_latent(), generator.mean_latent())


def test_batch_deviation_is_that_of_each_group() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2, 2)
    channel = append_batch_deviation(x)[:, 3]
    for start in (0, 4):
        group = x[start : start + 4]
        deviation = ((group - group.mean(0)) ** 2).mean(0).add(1e-8).sqrt().mean()
        torch.testing.assert_close(channel[start : start + 4], deviation.expand(4, 2, 2))


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_the_discriminator_accepts_any_batch_size(batch: int) -> None:
    discriminator = Discriminator(16, channel_base=128, channel_max=16)
    assert discriminator(torch.randn(batch, 1, 16, 16)).shape == (batch,)


@pytest.mark.parametrize(("arch", "size"), [("resnet18", 16), ("resnet18", 64), ("resnet50", 32)])
def test_encoder_starts_at_the_mean_latent_and_can_leave_it_everywhere(arch: str, size: int) -> None:
    torch.manual_seed(0)
    mean = torch.randn(8)
    latents = 2 * len(resolutions(size))
    encoder = Encoder(backbones.build(arch), size, latents, mean)
    image = torch.randn(2, 1, size, size)
    w = encoder(image)
    assert torch.equal(w, mean.expand(2, latents, 8))
    w.square().sum().backward()
    assert all(head.linear.weight.grad.abs().sum() > 0 for head in encoder.to_latent)  # type: ignore[union-attr]
