import numpy as np
import pytest
import torch

from components.common.training import seeds


@pytest.mark.parametrize("keys", [(0,), (3, 1), (2**40, 7, 0)])
def test_generators_are_those_of_numpy(keys: tuple[int, ...]) -> None:
    expected = np.random.default_rng(list(keys)).random(4)
    np.testing.assert_array_equal(seeds.generator_for(*keys).random(4), expected)


def test_seeds_differ_between_keys_and_fit_into_torch() -> None:
    found = {seeds.seed_for(seed, epoch, row) for seed in range(4) for epoch in range(4) for row in range(4)}
    assert len(found) == 64
    assert all(0 <= seed < 2**63 for seed in found)
    torch.manual_seed(max(found))


def test_draws_depend_only_on_the_keys() -> None:
    def draw(*keys: int) -> list[float]:
        values: list[float] = torch.randn(3, generator=seeds.torch_generator_for(torch.device("cpu"), *keys)).tolist()
        return values

    first = draw(0, 5)
    torch.manual_seed(99)
    assert draw(0, 5) == first
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_images_have_generators_of_their_own() -> None:
    draws = {tuple(seeds.image_generator(*keys).random(2)) for keys in np.ndindex(2, 2, 3, 4)}
    assert len(draws) == 48
