import math

import pytest
import torch
from torch import nn

from components.common.training import backbones
from components.pretrain.align import STRIDES, Geometry, align, key_positions, resample, to_view
from components.pretrain.augment import Warp, apply_warp, draw, to_image, unpack
from components.pretrain.losses import similarity_map
from components.pretrain.params import PRESETS


def warp(shift: tuple[float, float] = (0, 0), scale: float = 1, degrees: float = 0, distortion: float = 0) -> Warp:
    values = (torch.tensor([value], dtype=torch.float32) for value in (scale, math.radians(degrees), distortion))
    return Warp(torch.tensor([shift], dtype=torch.float32), *values)


def indices(height: int, width: int) -> torch.Tensor:
    """Returns x and y of each position: (1, H, W, 2)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1)[None].float()


def noise(channels: int, side: int) -> torch.Tensor:
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stage", STRIDES)
def test_identical_warps_move_nothing(stage: str) -> None:
    moved = warp((0.05, -0.03), 0.8, 10, -0.05)
    side = 256 // STRIDES[stage]
    key_map = noise(3, side)
    aligned, inside = align(key_map, Geometry(moved, moved, (256, 256)), stage)
    torch.testing.assert_close(aligned, key_map, atol=2e-4, rtol=0)
    assert inside.all()


def test_a_shift_by_whole_positions_is_exact() -> None:
    key_map = noise(3, 16)
    # The key view is 3 positions to the right of the query view and 1 above it; a position is 4 px.
    geometry = Geometry(warp((0.0, 2 / 16)), warp((3 / 16, 1 / 16)), (64, 64))
    aligned, inside = align(key_map, geometry, "layer1")
    torch.testing.assert_close(aligned[..., 1:, :13], key_map[..., :15, 3:], atol=1e-5, rtol=0)
    assert inside[0, 1:, :13].all()
    assert int(inside.sum()) == 15 * 13  # no other position is compared


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_is_exact(turns: int) -> None:
    key_map = noise(3, 16)
    turned = warp(degrees=90 * turns)
    aligned, inside = resample(key_map, key_positions(Geometry(warp(), turned, (16, 16)), 1))
    torch.testing.assert_close(aligned, torch.rot90(key_map, turns, (2, 3)), atol=1e-5, rtol=0)
    assert inside.all()
    # Resampling undoes the rotation of the view.
    restored, _ = resample(apply_warp(key_map, turned), key_positions(Geometry(warp(), turned, (16, 16)), 1))
    torch.testing.assert_close(restored, key_map, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [3.0, -10.0])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_a_rotation_is_the_formula_written_out(degrees: float, stride: int) -> None:
    """A pixel at (x, y) from the centre of the image is at (x cos - y sin, x sin + y cos) in the rotated view."""
    size, angle = 128, math.radians(degrees)
    found = key_positions(Geometry(warp(), warp(degrees=degrees), (size, size)), stride)
    middle = (size - 1) / 2
    for i in range(0, size // stride, max(1, 32 // stride)):
        for j in range(0, size // stride, max(1, 32 // stride)):
            x, y = stride * j - middle, stride * i - middle
            expected = (math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y)
            got = [stride * float(value) - middle for value in found[0, i, j]]
            assert got == pytest.approx(expected, abs=1e-5 * size)


def test_warps_of_both_views_compose_in_any_combination() -> None:
    """Features linear in the image coordinates are interpolated without error, so the maps of both views must agree."""
    query, key = warp((0.04, -0.06), 1.15, 8), warp((-0.05, 0.02), 0.9, -10)
    size, stride = (128, 96), 8

    def features(view: Warp) -> torch.Tensor:
        pixels = stride * indices(size[0] // stride, size[1] // stride)
        x, y = to_image(view, *((2 * pixels + 1) / torch.tensor([size[1], size[0]]) - 1).unbind(-1)).unbind(-1)
        return torch.stack([x, y, 1 + x - 2 * y], dim=1)

    aligned, inside = resample(features(key), key_positions(Geometry(query, key, size), stride))
    assert 0.5 < inside.float().mean() < 1
    difference = (aligned - features(query)).abs().amax(1)
    assert difference[inside].max() < 1e-5
    assert (features(key) - features(query)).abs().amax(1)[inside].max() > 0.1  # without alignment they differ


@pytest.mark.parametrize("preset", PRESETS)
def test_warps_with_distortion_are_inverted(preset: str) -> None:
    moved, _ = unpack(torch.from_numpy(draw(PRESETS[preset], torch.arange(500).numpy(), seed=0, epoch=0, number=0)))
    assert (moved.distortion != 0).float().mean() > 0.1
    grid = (2 * indices(9, 9).expand(500, -1, -1, -1) + 1) / 9 - 1
    torch.testing.assert_close(to_view(moved, to_image(moved, *grid.unbind(-1))), grid, atol=1e-5, rtol=0)


def test_the_extreme_corner_is_inverted_too() -> None:
    """Combines the largest shift, the smallest scale and the strongest distortion."""
    moved = warp((-0.0625, -0.0625), 0.8, 0, -0.05)
    corner = torch.ones(1, 1, 1, 2)
    torch.testing.assert_close(to_view(moved, to_image(moved, *corner.unbind(-1))), corner, atol=1e-4, rtol=0)


def test_a_position_of_a_resnets_map_looks_at_its_stride_times_its_index() -> None:
    """Measured as the centre of the gradient of a feature with respect to the pixels, in a network with constant weights."""
    resnet = backbones.build("resnet18").eval()
    resnet.maxpool = nn.AvgPool2d(3, 2, 1)  # the position of a maximum depends on the image
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    for stage, stride in STRIDES.items():
        image = torch.ones(1, 1, 512, 512, requires_grad=True)
        stage_map = backbones.forward_stages(resnet, image)[1][stage]
        middle = 256 // stride
        torch.autograd.backward(stage_map[0, :, middle, middle].sum())
        assert image.grad is not None
        weights = image.grad.sum((0, 1, 2))
        centre = float((weights * torch.arange(512)).sum() / weights.sum())
        assert centre == pytest.approx(256, abs=1e-3)


def test_features_of_shifted_views_agree_after_alignment() -> None:
    """Features of two shifted views from a real network are equal after alignment, and only then."""
    torch.manual_seed(0)
    resnet = backbones.build("resnet18").eval()
    image = torch.rand(1, 1, 128, 128)
    geometry = Geometry(warp(), warp((8 / 128, -4 / 128)), (128, 128))
    with torch.no_grad():
        query, key = (backbones.forward_stages(resnet, apply_warp(image, view))[1]["layer1"] for view in geometry[:2])
    aligned, inside = align(key, geometry, "layer1")
    clear = (slice(None), slice(8, 24), slice(8, 22))  # excludes the borders, where the views were padded
    assert inside[clear].all()
    assert similarity_map(query, aligned)[clear].min() > 0.9999
    assert similarity_map(query, key)[clear].mean() < 0.99


def test_half_precision_maps_are_resampled_in_half_precision() -> None:
    key_map = noise(8, 16).bfloat16().contiguous(memory_format=torch.channels_last)
    geometry = Geometry(warp((0.02, 0)), warp(degrees=5), (64, 64))
    aligned, _ = align(key_map, geometry, "layer1")
    assert aligned.dtype == torch.bfloat16
    assert aligned.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(aligned.float(), align(key_map.float(), geometry, "layer1")[0], atol=0.02, rtol=0)
