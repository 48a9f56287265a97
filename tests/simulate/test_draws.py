import numpy as np

from components.simulate.draws import Draws


def test_noise_is_nearly_normal():
    noise = Draws(0, 1).noise(300, 300)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert 0.62 < (np.abs(noise) < 1).mean() < 0.70  # 0.683 for a normal distribution


def test_every_key_gives_an_independent_stream():
    keys = [(0,), (1,), (0, 0), (0, 1), (0, 1, 1), (1, 0)]
    first = {Draws(seed, *key).uniform(0, 1) for seed in (0, 1) for key in keys}
    assert len(first) == 2 * len(keys)
    assert Draws(3, 4).uniform(0, 1) == Draws(3, 4).uniform(0, 1)


def test_integers_reach_both_bounds_and_nothing_else():
    draws = Draws(5)
    assert {draws.integer(2, 4) for _ in range(200)} == {2, 3, 4}
