import math
import re

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from components.pretrain import augment
from components.pretrain.augment import Tone, Warp
from components.pretrain.params import PRESETS, Pretrain, Views

FREQUENT = PRESETS["frequent"]


def image(size: int = 33, batch: int = 1) -> torch.Tensor:
    """Returns smooth images, which keep interpolation errors small."""
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 3, size), indexing="ij")
    return (0.5 + 0.25 * (x * 1.3).sin() * (y + 0.4).cos()).expand(batch, 1, size, size).clone()


def warp(shift: tuple[float, float] = (0, 0), scale: float = 1, angle: float = 0, distortion: float = 0) -> Warp:
    return Warp(torch.tensor([shift]), torch.tensor([scale]), torch.tensor([angle]), torch.tensor([distortion]))


def tone(brightness: float = 0, contrast: float = 0, blur: float = 0, gain: float = 1, noise: float = 0, key: int = 0) -> Tone:
    values = torch.tensor([[brightness], [contrast], [blur], [gain], [noise]], dtype=torch.float32)
    return Tone(*values, key=torch.tensor([key], dtype=torch.int32))


def view(x: torch.Tensor, index: int | list[int], seed: int = 1, epoch: int = 2, number: int = 0) -> torch.Tensor:
    drawn = augment.draw(FREQUENT, np.atleast_1d(index), seed, epoch, number)
    return augment.view(x, torch.from_numpy(drawn), FREQUENT).image


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


def test_reflected_borders_agree_with_opencv() -> None:
    x = image()
    matrix = np.array([[1.0, 0, 5], [0, 1, -4]])
    expected = cv2.warpAffine(x[0, 0].numpy(), matrix, (33, 33), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    moved = augment.apply_warp(x, warp(shift=(5 / 33, -4 / 33)), "reflect")
    np.testing.assert_allclose(moved[0, 0].numpy(), expected, atol=1e-4)


def test_a_view_depends_on_its_image_alone() -> None:
    x = image(batch=3)
    together = view(x, [4, 9, 2])
    alone = view(x[1:2], 9)
    torch.testing.assert_close(together[1:2], alone)
    for other in ({"seed": 2}, {"epoch": 3}, {"number": 1}):
        assert (view(x[1:2], 9, **other) - alone).abs().mean() > 0.005


def test_noise_has_the_moments_of_a_normal_distribution_and_no_correlation() -> None:
    keys = torch.tensor([0, 1, 2, -(2**31), 2**31 - 1, 12345], dtype=torch.int32)
    noise = augment.noise(keys, 96, 128).flatten(1).double()
    assert noise.shape == (6, 96 * 128)
    torch.testing.assert_close(noise.mean(1), torch.zeros(6, dtype=torch.double), atol=0.04, rtol=0)
    torch.testing.assert_close(noise.std(1), torch.ones(6, dtype=torch.double), atol=0.03, rtol=0)
    # A sum of n uniform numbers has an excess kurtosis of -1.2 / n.
    torch.testing.assert_close(noise.pow(4).mean(1), torch.full((6,), 3 - 1.2 / 4, dtype=torch.double), atol=0.15, rtol=0)
    views = torch.corrcoef(noise) - torch.eye(6)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean(1)
    assert max(views.abs().max(), neighbours.abs().max()) < 0.05


def test_noise_is_the_hash_written_out() -> None:
    def mix(bits: int) -> int:
        bits ^= bits >> 16
        bits = bits * 0x7FEB352D % 2**32
        bits ^= bits >> 15
        bits = bits * 0x846CA68B % 2**32
        return bits ^ bits >> 16

    for key in (0, 77, 2**31 + 5, 2**32 - 1):
        expected = [(sum(mix(mix(pixel) ^ key).to_bytes(4, "little")) - 510) / (4 * (256**2 - 1) / 12) ** 0.5 for pixel in range(12)]
        noise = augment.noise(torch.tensor([key]).to(torch.int32), 3, 4)
        np.testing.assert_allclose(noise.flatten(), expected, rtol=1e-6)


def drawn(views: Views, count: int = 4000) -> tuple[Warp, Tone]:
    return augment.unpack(torch.from_numpy(augment.draw(views, np.arange(count), seed=0, epoch=0, number=0)))


RANGES = {
    "authors": {
        "shift": (-0.0625, 0.0625), "scale": (0.8, 1.2), "angle": (-math.radians(10), math.radians(10)), "distortion": (-0.05, 0.05),
        "brightness": (-0.1, 0.1), "contrast": (-0.2, 0.1), "blur": (-1, 1), "gain": (0.9, 1.1), "noise": (0, 0),
    },
    "frequent": {
        "shift": (-0.0625, 0.0625), "scale": (0.8, 1.2), "angle": (-math.radians(10), math.radians(10)), "distortion": (-0.05, 0.05),
        "brightness": (-0.2, 0.2), "contrast": (-0.2, 0.2), "blur": (-1, 1), "gain": (1, 1), "noise": (0, 0.04),
    },
}  # fmt: skip
CHANGED = {
    "authors": {"shift": 0.2, "scale": 0.2, "angle": 0.2, "distortion": 0.2, "brightness": 0.6, "contrast": 0.6, "blur": 0.2, "gain": 0.1},
    "frequent": {"shift": 1, "scale": 1, "angle": 1, "distortion": 0.5, "brightness": 0.5, "contrast": 0.5, "blur": 0.5, "noise": 0.5},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_changes_stay_in_their_ranges_and_fill_them(preset: str) -> None:
    moved, toned = drawn(PRESETS[preset])
    for name, (low, high) in RANGES[preset].items():
        values = getattr(moved, name, None) if hasattr(moved, name) else getattr(toned, name)
        neutral = 1.0 if name in ("scale", "gain") else 0.0
        assert values.min() >= low - 1e-6
        assert values.max() <= high + 1e-6
        assert values.max() - values.min() >= 0.97 * (high - low)
        changed = values != neutral
        assert changed.float().mean() == pytest.approx(CHANGED[preset].get(name, 0), abs=0.025)


def test_the_authors_views_leave_two_fifths_of_the_pairs_unmoved() -> None:
    indices = np.arange(6000)
    moved = [augment.draw(PRESETS["authors"], indices, 0, 0, number)[:, :5] != [0, 0, 1, 0, 0] for number in (0, 1)]
    unmoved = ~(moved[0].any(1) | moved[1].any(1))
    assert unmoved.mean() == pytest.approx(0.8**4, abs=0.02)
    first = moved[0]
    assert (first[:, :4].all(1) == first[:, :4].any(1)).all()  # shift, scale and rotation come together
    _, toned = drawn(PRESETS["authors"])
    assert ((toned.brightness != 0) == (toned.contrast != 0)).all()
    assert ((toned.blur > 0).sum() / (toned.blur != 0).sum()).item() == pytest.approx(0.6, abs=0.06)


def test_changes_replace_values_of_the_preset() -> None:
    changed = Pretrain(views="authors", view_changes={"rotation": 45, "geometry_probability": 1}).distribution
    moved, _ = drawn(changed)
    assert moved.angle.abs().max() > math.radians(40)
    assert (moved.angle != 0).all()
    assert changed.model_copy(update={"rotation": 10.0, "geometry_probability": 0.2}) == PRESETS["authors"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rotatoin": 5}, "rotatoin: "),
        ({"scale": 2}, "scale: Input should be less than 1"),
        ({"gain": [1.1, 0.9]}, "gain: 1.1 is above 0.9; give the smaller number first"),
        ({"gain": [-5, 1]}, "gain: 0: Input should be greater than 0"),  # would invert images
        ({"contrast": [-9, 0]}, "contrast: 0: Input should be greater than -1"),
        ({"brightness": [0, 2]}, "brightness: 1: Input should be less than or equal to 1"),
    ],
)
def test_a_change_that_no_view_can_have_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"Value error, view_changes: {re.escape(sentence)}"):
        Pretrain(view_changes=change)
