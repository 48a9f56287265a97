"""Findings: each adds attenuation to a patient's chest, lesion by lesion."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from components.simulate.anatomy import AIR, LEFT, RIGHT, Anatomy, Heart
from components.simulate.draws import Draws, Map
from components.simulate.geometry import Grid, Texture, dome, ellipse, inside

VISIBLE = 0.05  # a lesion's box holds the pixels where it adds at least this attenuation, which weakens the beam by five per cent


class Lesion(Protocol):
    """One place where a finding is visible."""

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """Returns the attenuation (H, W) that the lesion adds."""


@dataclass(frozen=True)
class Nodule:
    """A round shadow in a lung; lengths in body units."""

    x: float
    y: float
    radius: float
    oblong: float  # height over width
    density: float

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """See Lesion."""
        u, v = ellipse(grid, self.x, self.y, self.radius, self.radius * self.oblong)
        return self.density * np.sqrt(dome(u, v))  # flatter than a ball


@dataclass(frozen=True)
class Consolidation:
    """Filled air spaces in part of a lung: patchy, with no sharp border except the lung's own."""

    side: int
    patches: tuple[tuple[float, float, float], ...]  # x, y, radius in body units
    density: float
    texture: Texture

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """See Lesion."""
        filled = np.zeros_like(grid.x)
        for x, y, radius in self.patches:
            ball = dome((grid.x - x) / radius, (grid.y - y) / radius)
            filled = filled + ball * ball * 0.8
        mottled = 0.55 + 0.45 * self.texture.at(grid)
        return self.density * np.minimum(filled, 1.0) * mottled * anatomy.lung(grid, self.side, depth)


@dataclass(frozen=True)
class Effusion:
    """Fluid at the base of the pleural space, its surface rising towards the chest wall."""

    side: int
    height: float  # height of the fluid above the top of the diaphragm, in body units; negative if only the angle is filled
    meniscus: float  # how much higher the fluid stands at the chest wall, roughly
    density: float  # 1 if there is as much fluid as there was air

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """See Lesion."""
        a = self.side * grid.x
        out = np.clip(a / anatomy.half_width, 0.0, 1.1)
        surface = anatomy.floor(self.side, depth) - self.height + self.meniscus * (0.4 - out * out)
        return self.density * AIR * inside(surface - grid.y, 0.05) * anatomy.lung(grid, self.side, depth)


@dataclass(frozen=True)
class Cardiomegaly:
    """A heart wider than half of the chest."""

    heart: Heart

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """See Lesion."""
        return self.heart.attenuation(grid) - anatomy.heart.attenuation(grid)


def _nodules(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    return tuple(_nodule(draws, anatomy, side) for side in _sides(draws, 0.3))


def _nodule(draws: Draws, anatomy: Anatomy, side: int) -> Nodule:
    y = _height(draws, anatomy, side, 0.2, 0.8)
    x = _across(draws, anatomy, side, y, 0.35, 0.8)
    return Nodule(x, y, draws.uniform(0.08, 0.14), draws.uniform(0.85, 1.15), draws.uniform(0.5, 0.85))


def _consolidation(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    side = draws.choose((LEFT, RIGHT))
    y = _height(draws, anatomy, side, 0.25, 0.85)
    x = _across(draws, anatomy, side, y, 0.35, 0.7)
    patches = [(x, y, draws.uniform(0.18, 0.26))]
    for _ in range(draws.integer(3, 6)):
        patches.append((x + draws.uniform(-0.17, 0.17), y + draws.uniform(-0.2, 0.2), draws.uniform(0.1, 0.2)))
    return (Consolidation(side, tuple(patches), draws.uniform(0.65, 1.0), Texture.draw(draws, 0.05)),)


def _effusion(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    draw = draws.uniform
    return tuple(Effusion(side, draw(-0.06, 0.25), draw(0.1, 0.25), draw(0.3, 1.05)) for side in _sides(draws, 0.2))


def _cardiomegaly(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    ratio = anatomy.heart.radius_x / anatomy.half_width
    return (Cardiomegaly(anatomy.heart.enlarged(draws.uniform(0.52, 0.62) / ratio, draws.uniform(1.06, 1.2))),)


def _sides(draws: Draws, both: float) -> tuple[int, ...]:
    """Both sides with the given probability, else one of them."""
    return (LEFT, RIGHT) if draws.chance(both) else (draws.choose((LEFT, RIGHT)),)


def _height(draws: Draws, anatomy: Anatomy, side: int, low: float, high: float) -> float:
    """A height (y) between two fractions of the lung's height."""
    return anatomy.apex + draws.uniform(low, high) * (anatomy.floor(side, 0.0) - anatomy.apex)


def _across(draws: Draws, anatomy: Anatomy, side: int, y: float, low: float, high: float) -> float:
    """An x between two fractions of the lung's width at height y."""
    medial, lateral = anatomy.lateral(np.array(y), side, 0.0)
    return side * (float(medial) + draws.uniform(low, high) * (float(lateral) - float(medial)))


FINDINGS: dict[str, Callable[[Draws, Anatomy], tuple[Lesion, ...]]] = {
    "Nodule": _nodules,
    "Consolidation": _consolidation,
    "Effusion": _effusion,
    "Cardiomegaly": _cardiomegaly,
}
"""Functions by finding that draw the lesions of a patient who has it."""


@dataclass(frozen=True)
class PixelBox:
    """A rectangle in whole pixels of the stored image, origin top left."""

    x: int
    y: int
    width: int
    height: int


def box_of(layer: Map) -> PixelBox | None:
    """Tightest box around the pixels where a lesion is visible, for the attenuation (H, W) that it adds; None if it is invisible."""
    rows, columns = np.nonzero(layer >= VISIBLE)
    if not len(rows):
        return None
    x, y = int(columns.min()), int(rows.min())
    return PixelBox(x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
