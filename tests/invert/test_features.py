import json
from pathlib import Path

import pytest
import torch

from components.common.runs.shards import open_shards
from components.common.training import backbones
from components.common.training.reader import Reader
from components.invert.features import FeatureSpace, maps_distance, pretrained_space, random_space
from components.invert.params import Invert
from tests.conftest import MakeShards

CPU = torch.device("cpu")
SMALL = Invert(arch="resnet18", size=32)


@pytest.fixture
def train(make_shards: MakeShards) -> Reader:
    return Reader(open_shards(make_shards()), "train")


def test_distance_follows_the_formula() -> None:
    a, b = ([torch.rand(2, 3, 2, 2), torch.rand(2, 5, 1, 1)] for _ in range(2))
    by_hand = [sum(float(((x[image] - y[image]) ** 2).sum() / x[0, 0].numel()) for x, y in zip(a, b, strict=True)) for image in range(2)]
    assert maps_distance(a, b).tolist() == pytest.approx(by_hand)


def test_maps_have_unit_length_and_the_network_stays_as_it_is(train: Reader) -> None:
    space = random_space(SMALL, 0, train, (0.4, 0.2), CPU)
    image = torch.rand(2, 1, 32, 32, requires_grad=True)
    other = torch.rand(2, 1, 32, 32)
    maps = space.maps(image)
    lengths = maps[0].norm(dim=1)
    assert lengths[lengths > 0.5].tolist() == pytest.approx([1.0] * int((lengths > 0.5).sum()), abs=1e-5)
    assert maps[0].shape == (2, 64, 8, 8)
    distance = space.distance(image, other)
    distance.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    # Neither the batch norm statistics nor the output depend on the other images of a batch.
    assert float(space.distance(image[:1], other[:1]).detach()) == pytest.approx(float(distance[0].detach()), rel=1e-4)
    assert space.distance(other, other).tolist() == [0, 0]


def test_random_features_are_the_same_for_a_seed_and_leave_torchs_generator_alone(train: Reader) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (random_space(SMALL, seed, train, (0.4, 0.2), CPU) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(first.pooled(image), again.pooled(image))
    assert not torch.equal(first.pooled(image), other.pooled(image))
    assert first.name != other.name


def test_random_features_tell_images_apart(train: Reader) -> None:
    """Without calibrated batch norm statistics, the features of different images are nearly parallel."""
    space = random_space(SMALL, 0, train, (0.4, 0.2), CPU)
    images = torch.stack([torch.rand(1, 32, 32), torch.zeros(1, 32, 32)])
    bare = FeatureSpace("bare", backbones.build("resnet18"), (0.4, 0.2), CPU)
    apart = [1 - torch.cosine_similarity(*each.pooled(images), dim=0) for each in (space, bare)]
    assert apart[0] > 0.02
    assert apart[0] > apart[1]


def test_pretrained_features_are_the_backbones(tmp_path: Path) -> None:
    torch.manual_seed(5)
    resnet = backbones.build("resnet18").eval()
    backbones.export(resnet, tmp_path, {"arch": "resnet18", "method": "ifa", "normalisation": {"mean": 0.25, "std": 0.5}})
    (tmp_path / "run.json").write_text(json.dumps({}))
    space = pretrained_space(backbones.load(str(tmp_path)), CPU)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(space.pooled(image), resnet((image - 0.25) / 0.5))
    assert "pretrained by ifa" in space.name
