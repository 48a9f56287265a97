"""The findings: each adds attenuation to a patient's chest, lesion by lesion."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from components.simulate.anatomy import AIR, LEFT, RIGHT, Anatomy, Heart
from components.simulate.draws import Draws, Map
from components.simulate.geometry import Grid, Texture, dome, ellipse, inside

VISIBLE = 0.05
"""A lesion's box holds the pixels where it adds at least this attenuation: it weakens the beam by five per cent."""


class Lesion(Protocol):
    """One place where a finding shows."""

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """(H, W) attenuation that it adds."""


@dataclass(frozen=True)
class Nodule:
    """A round shadow in a lung; lengths in body units."""

    x: float
    y: float
    radius: float
    oblong: float
    """Its height over its width."""
    density: float

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """(H, W); flatter than a ball's, as most nodules are drawn."""
        u, v = ellipse(grid, self.x, self.y, self.radius, self.radius * self.oblong)
        return self.density * np.sqrt(dome(u, v))


@dataclass(frozen=True)
class Consolidation:
    """Air spaces of part of a lung filled: patchy, with no sharp border except the lung's own."""

    side: int
    patches: tuple[tuple[float, float, float], ...]
    """x, y, radius in body units."""
    density: float
    texture: Texture

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """(H, W)."""
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
    height: float
    """Of the fluid above the top of the diaphragm, in body units; negative: only the angle is filled."""
    meniscus: float
    """How much higher the fluid stands at the chest wall, about."""
    density: float
    """1: as much fluid as there was air."""

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """(H, W)."""
        a = self.side * grid.x
        out = np.clip(a / anatomy.half_width, 0.0, 1.1)
        surface = anatomy.floor(self.side, depth) - self.height + self.meniscus * (0.4 - out * out)
        return self.density * AIR * inside(surface - grid.y, 0.05) * anatomy.lung(grid, self.side, depth)


@dataclass(frozen=True)
class Cardiomegaly:
    """A heart wider than half of the chest."""

    heart: Heart

    def attenuation(self, anatomy: Anatomy, grid: Grid, depth: float) -> Map:
        """(H, W): what the enlarged heart adds to the usual one."""
        return self.heart.attenuation(grid) - anatomy.heart.attenuation(grid)


def _nodules(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    number = 2 if draws.chance(0.3) else 1
    return tuple(_nodule(draws, anatomy, side) for side in ((LEFT, RIGHT) if number == 2 else (draws.choose((LEFT, RIGHT)),)))


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
    sides = (LEFT, RIGHT) if draws.chance(0.2) else (draws.choose((LEFT, RIGHT)),)
    return tuple(Effusion(side, draws.uniform(-0.06, 0.25), draws.uniform(0.1, 0.25), draws.uniform(0.3, 1.05)) for side in sides)


def _cardiomegaly(draws: Draws, anatomy: Anatomy) -> tuple[Lesion, ...]:
    ratio = anatomy.heart.radius_x / anatomy.half_width
    return (Cardiomegaly(anatomy.heart.enlarged(draws.uniform(0.52, 0.62) / ratio, draws.uniform(1.06, 1.2))),)


def _height(draws: Draws, anatomy: Anatomy, side: int, low: float, high: float) -> float:
    """A height in the lung, between two fractions of it."""
    return anatomy.apex + draws.uniform(low, high) * (anatomy.floor(side, 0.0) - anatomy.apex)


def _across(draws: Draws, anatomy: Anatomy, side: int, y: float, low: float, high: float) -> float:
    """An x in the lung at a height, between two fractions of its width there."""
    medial, lateral = anatomy.lateral(np.array(y), side, 0.0)
    return side * (float(medial) + draws.uniform(low, high) * (float(lateral) - float(medial)))


FINDINGS: dict[str, Callable[[Draws, Anatomy], tuple[Lesion, ...]]] = {
    "Nodule": _nodules,
    "Consolidation": _consolidation,
    "Effusion": _effusion,
    "Cardiomegaly": _cardiomegaly,
}
"""By name: draws the lesions of a patient who has the finding."""


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels of the stored image, origin top left."""

    x: int
    y: int
    width: int
    height: int


def box_of(layer: Map) -> Box | None:
    """The tightest box around the pixels where a lesion is visible; None: nowhere.

    Args:
        layer: (H, W) attenuation that the lesion adds.
    """
    rows, columns = np.nonzero(layer >= VISIBLE)
    if not len(rows):
        return None
    x, y = int(columns.min()), int(rows.min())
    return Box(x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
