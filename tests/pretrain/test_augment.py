import math

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from components.pretrain import augment
from components.pretrain.augment import Tone, Warp


def image(size: int = 33, batch: int = 1) -> torch.Tensor:
    """Returns smooth images, which keep interpolation errors small."""
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 3, size), indexing="ij")
    return (0.5 + 0.25 * (x * 1.3).sin() * (y + 0.4).cos()).expand(batch, 1, size, size).clone()


def warp(shift: tuple[float, float] = (0, 0), scale: float = 1, angle: float = 0, distortion: float = 0) -> Warp:
    return Warp(torch.tensor([shift]), torch.tensor([scale]), torch.tensor([angle]), torch.tensor([distortion]))


def tone(brightness: float = 0, contrast: float = 0, blur: float = 0, noise: float = 0) -> Tone:
    values = torch.tensor([[brightness], [contrast], [blur]], dtype=torch.float32)
    return Tone(*values, noise=torch.full((1, 1, 33, 33), noise, dtype=torch.float32))


def test_nothing_drawn_changes_nothing() -> None:
    x = image()
    torch.testing.assert_close(augment.apply_tone(augment.apply_warp(x, warp()), tone()), x, atol=1e-5, rtol=0)


def test_shift_by_whole_pixels_is_exact() -> None:
    x = image()
    moved = augment.apply_warp(x, warp(shift=(2 / 33, -1 / 33)))
    torch.testing.assert_close(moved[..., :-1, 2:], x[..., 1:, :-2], atol=1e-5, rtol=0)
    assert moved[..., :, :2].abs().max() < 1e-5


@pytest.mark.parametrize(("scale", "degrees"), [(1.2, 0.0), (0.8, 0.0), (1.0, 10.0), (1.1, -7.0)])
def test_scale_and_rotation_agree_with_opencv(scale: float, degrees: float) -> None:
    x = image()
    # Positive angles rotate in the opposite direction in OpenCV.
    matrix = cv2.getRotationMatrix2D((16, 16), -degrees, scale)
    expected = cv2.warpAffine(x[0, 0].numpy(), matrix, (33, 33), flags=cv2.INTER_LINEAR)
    moved = augment.apply_warp(x, warp(scale=scale, angle=math.radians(degrees)))
    inner = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(moved[0, 0].numpy()[inner], expected[inner], atol=0.01)


def test_distortion_moves_borders_and_not_the_centre() -> None:
    grid = augment.sampling_grid(warp(distortion=0.05), 33, 33)[0]
    straight = augment.sampling_grid(warp(), 33, 33)[0]
    torch.testing.assert_close(grid[16, 16], straight[16, 16])
    edge = straight[16, 32, 0]
    torch.testing.assert_close(grid[16, 32, 0], edge * (1 + 0.05 * edge**2))


def test_tone_agrees_with_its_formula() -> None:
    x = image()
    mean = x.mean()
    torch.testing.assert_close(augment.apply_tone(x, tone(brightness=0.1)), (x + 0.1).clamp(0, 1))
    torch.testing.assert_close(augment.apply_tone(x, tone(contrast=0.2)), (mean + (x - mean) * 1.2).clamp(0, 1))
    noisy = image() + 0.2 * torch.rand(1, 1, 33, 33, generator=torch.Generator().manual_seed(0)) - 0.1
    rough = (noisy[..., 1:] - noisy[..., :-1]).abs().mean()
    for blur, compare in ((1.0, torch.lt), (-1.0, torch.gt)):
        changed = augment.apply_tone(noisy, tone(blur=blur))
        assert compare((changed[..., 1:] - changed[..., :-1]).abs().mean(), rough)


@pytest.mark.parametrize("size", [(33, 33), (5, 17)])
def test_blur_agrees_with_torchvision(size: tuple[int, int]) -> None:
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.blur(x), V.gaussian_blur(x, [5, 5], [1.1, 1.1]), atol=1e-6, rtol=0)


def test_a_view_depends_on_its_image_alone() -> None:
    x = image(batch=3)
    together = augment.view(x, np.array([4, 9, 2]), seed=1, epoch=2, number=0).image
    alone = augment.view(x[1:2], np.array([9]), seed=1, epoch=2, number=0).image
    torch.testing.assert_close(together[1:2], alone)
    for other in ({"seed": 2}, {"epoch": 3}, {"number": 1}):
        changed = augment.view(x[1:2], np.array([9]), **{"seed": 1, "epoch": 2, "number": 0, **other}).image
        assert (changed - alone).abs().mean() > 0.005


def test_parameters_stay_in_their_ranges_and_fill_them() -> None:
    moved, toned = augment.draw(np.arange(2000), 1, seed=0, epoch=0, number=0)
    for values, low, high in [
        (moved.shift, -0.0625, 0.0625),
        (moved.scale, 0.8, 1.2),
        (moved.angle, -math.radians(10), math.radians(10)),
        (moved.distortion, -0.05, 0.05),
        (toned.brightness, -0.2, 0.2),
        (toned.contrast, -0.2, 0.2),
        (toned.blur, -1.0, 1.0),
    ]:
        assert values.min() >= low - 1e-6
        assert values.max() <= high + 1e-6
        assert values.max() - values.min() > 0.98 * (high - low)
    for changed in (toned.brightness, toned.contrast, toned.blur, moved.distortion):
        assert 0.45 < (changed != 0).float().mean() < 0.55
