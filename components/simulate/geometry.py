"""Soft shapes on a grid of body coordinates.

The unit is half the width of the image; x points to the right of the image (the patient's left), y downwards, and (0, 0)
is the centre of an image taken without a shift.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from components.simulate.draws import Draws, Map


class Grid(NamedTuple):
    """Body coordinates of the pixel centres, (H, W) each."""

    x: Map
    y: Map


@dataclass(frozen=True)
class Pose:
    """Position of the body in the image, which differs between two images of a patient."""

    shift_x: float = 0.0
    shift_y: float = 0.0  # in body units, like shift_x
    scale: float = 1.0  # magnification
    half_tilt: float = 0.0  # tangent of half the angle of rotation: makes sine and cosine rational
    inspiration: float = 0.0  # how much lower than usual the diaphragm is, in body units

    def grid(self, height: int, width: int) -> Grid:
        """Body coordinates of the pixels of a (height, width) image."""
        column = (np.arange(width) + 0.5 - width / 2) * (2 / width) / self.scale - self.shift_x
        row = (np.arange(height) + 0.5 - height / 2) * (2 / width) / self.scale - self.shift_y
        norm = 1 + self.half_tilt * self.half_tilt
        cosine, sine = (2 - norm) / norm, 2 * self.half_tilt / norm
        return Grid(cosine * column[None, :] + sine * row[:, None], cosine * row[:, None] - sine * column[None, :])


def inside(distance: Map, softness: float) -> Map:
    """1 where a signed distance is below -softness, 0 where it is above softness, a smooth step between."""
    step = np.clip(0.5 - distance * (0.5 / softness), 0.0, 1.0)
    return step * step * (3.0 - 2.0 * step)


def dome(x: Map, y: Map) -> Map:
    """Thickness of a unit ball along the beam: sqrt(1 - x^2 - y^2), and 0 outside."""
    return np.sqrt(np.clip(1.0 - x * x - y * y, 0.0, 1.0))


def ellipse(grid: Grid, x: float, y: float, radius_x: float, radius_y: float, tilt: float = 0.0) -> tuple[Map, Map]:
    """Coordinates in which a sheared ellipse is the unit circle: the long axis gains `tilt` in y per unit of x."""
    across = (grid.x - x) / radius_x
    return across, (grid.y - y - tilt * (grid.x - x)) / radius_y


@dataclass(frozen=True)
class Arc:
    """A band along a parabola: a rib, a clavicle, a vessel."""

    start: float
    end: float  # along the first coordinate, above `start`
    offset: float  # second coordinate at the start
    slope: float
    curve: float  # offset + slope * s + curve * s^2 at a distance s from the start
    half_width: float
    taper: float = 0.0  # fraction of the width that is lost towards the end
    hollow: float = 0.0  # fraction of the density that is missing in the middle, as in a bone with a dense cortex

    def draw(self, along: Map, across: Map, softness: float = 0.012) -> Map:
        """Density in [0, 1] at points with the given coordinates, arrays of one shape."""
        near = (along > self.start - 3 * softness) & (along < self.end + 3 * softness)  # elsewhere it is 0
        density = np.zeros(along.shape)
        density[near] = self._density(along[near], across[near], softness)
        return density

    def _density(self, along: Map, across: Map, softness: float) -> Map:
        s = along - self.start
        slope = self.slope + 2 * self.curve * s
        distance = np.abs(across - self.offset - s * (self.slope + self.curve * s)) / np.sqrt(1 + slope * slope)
        half_width = self.half_width * (1 - self.taper * np.clip(s / (self.end - self.start), 0.0, 1.0))
        depth = np.clip(distance / half_width, 0.0, 1.0)
        ends = inside(-s, 2 * softness) * inside(along - self.end, 2 * softness)
        return inside(distance - half_width, softness) * (1 - self.hollow * (1 - depth * depth)) * ends


@dataclass(frozen=True)
class Texture:
    """A smooth random function of body coordinates, so that it moves with the body from image to image."""

    knots: Map  # values in [0, 1) on a square lattice, which repeats beyond its border
    spacing: float  # distance between knots in body units

    @classmethod
    def draw(cls, draws: Draws, spacing: float, knots: int = 32) -> "Texture":
        """A random texture."""
        return cls(draws.field(knots, knots), spacing)

    def at(self, grid: Grid) -> Map:
        """Values in [0, 1], (H, W)."""
        row, v = _lattice(grid.y / self.spacing)
        column, u = _lattice(grid.x / self.spacing)
        size = len(self.knots)
        top, bottom = row % size, (row + 1) % size
        left, right = column % size, (column + 1) % size
        upper = self.knots[top, left] * (1 - u) + self.knots[top, right] * u
        lower = self.knots[bottom, left] * (1 - u) + self.knots[bottom, right] * u
        return upper * (1 - v) + lower * v


def _lattice(position: Map) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Map]:
    """Index of the knot before a position, and the smooth weight of the one after it."""
    floor = np.floor(position)
    rest = position - floor
    return floor.astype(np.int64), rest * rest * (3.0 - 2.0 * rest)


def blur(image: Map, radius: int) -> Map:
    """Applies three box filters of 2 radius + 1 pixels in each direction, close to a Gaussian; the border is repeated."""
    for _ in range(3):
        image = _mean_of_rows(_mean_of_rows(image, radius).T, radius).T
    return image


def _mean_of_rows(image: Map, radius: int) -> Map:
    """Means over 2 radius + 1 rows by running sums: cumsum adds strictly in order."""
    padded = np.concatenate([np.repeat(image[:1], radius + 1, axis=0), image, np.repeat(image[-1:], radius, axis=0)])
    sums = np.cumsum(padded, axis=0)
    means: Map = (sums[2 * radius + 1 :] - sums[: -2 * radius - 1]) / (2 * radius + 1)
    return means
