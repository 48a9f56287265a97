"""Derives every random draw from the run's seed and from what it is for, such as an epoch, a step or an image.

No generator's state outlives a step, so that a resumed run, or one with another number of processes, draws the same numbers.
"""

import numpy as np
import torch


def seed_for(*keys: int) -> int:
    """Derives a 63-bit seed for torch from the run's seed and further keys."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(*keys: int) -> np.random.Generator:
    """Makes a NumPy generator from the run's seed and further keys."""
    return np.random.default_rng(keys)


def torch_generator_for(device: torch.device, *keys: int) -> torch.Generator:
    """Makes a torch generator on a device from the run's seed and further keys."""
    return torch.Generator(device).manual_seed(seed_for(*keys))


def image_generator(seed: int, stream: int, epoch: int, image: int) -> np.random.Generator:
    """Makes a counter-based generator (Philox), cheap enough for one per image; `stream` separates the draws for one image."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, stream, epoch, image]))
