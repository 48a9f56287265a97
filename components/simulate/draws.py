"""Reproducible random draws: one generator per patient, and only the method whose stream is simplest."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float64]
T = TypeVar("T")


class Draws:
    """A stream of random numbers, identified by a seed and a key, such as the number of a patient.

    Everything comes from `Generator.random`, 53 bits of PCG64 divided by a power of two: numpy may change how it draws from
    other distributions, and their code may round differently on another processor.
    """

    def __init__(self, seed: int, *key: int):
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._generator.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._generator.random() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int((high - low + 1) * self._generator.random())

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.integer(0, len(options) - 1)]

    def field(self, height: int, width: int) -> Map:
        """Independent uniform numbers in [0, 1), (height, width)."""
        return self._generator.random((height, width))

    def noise(self, height: int, width: int) -> Map:
        """Independent, nearly normal numbers of mean 0 and variance 1, (height, width): sums of four uniform ones."""
        total = self.field(height, width)
        for _ in range(3):
            total = total + self.field(height, width)
        return (total - 2.0) * 1.7320508075688772
