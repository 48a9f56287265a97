"""The chest without findings: how it varies between patients, and how much each part attenuates the beam.

Attenuation a weakens the beam by exp(-a); parts add up along the beam. Lengths are in body units (geometry.py).
"""

from dataclasses import dataclass

import numpy as np

from components.simulate.draws import Draws, Map
from components.simulate.geometry import Arc, Grid, Texture, dome, ellipse, inside

LEFT, RIGHT = 1, -1  # sides of the patient as signs of x

BODY, AIR, HEART, MEDIASTINUM, SPINE, ABDOMEN, BONE, VESSEL = 2.2, 1.42, 1.05, 0.45, 0.35, 0.75, 0.36, 0.19


@dataclass(frozen=True)
class Heart:
    """An ellipse that leans to the patient's left."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    tilt: float

    def attenuation(self, grid: Grid) -> Map:
        """(H, W)."""
        return HEART * dome(*ellipse(grid, self.x, self.y, self.radius_x, self.radius_y, self.tilt))

    def enlarged(self, across: float, along: float) -> "Heart":
        """Returns a heart enlarged mostly to the left and downwards, like one with a dilated left ventricle."""
        wider, taller = self.radius_x * across, self.radius_y * along
        return Heart(self.x + 0.45 * (wider - self.radius_x), self.y + 0.3 * (taller - self.radius_y), wider, taller, self.tilt)


@dataclass(frozen=True)
class Anatomy:
    """The chest of a patient."""

    half_height: float  # half the height of the image
    half_width: float  # distance from the midline to the inner chest wall at its widest
    apex: float  # y of the top of the lungs
    base: float  # y of the top of the right diaphragm
    left_lower: float  # how much lower the left diaphragm is
    sulcus: float  # depth of the costophrenic angle below the top of the diaphragm
    thickness: float  # thickness of the soft tissue, relative to the average patient
    heart: Heart
    aortic_knob: float  # radius
    ribs: tuple[Arc, ...]
    clavicle: Arc  # like the ribs in coordinates (distance from the midline, y)
    rib_tilt: float  # how much lower the ribs of the left side are, per unit of x
    vessels: tuple[tuple[int, bool, Arc], ...]  # side, whether it runs downwards rather than sideways, and its course
    vertebra: float  # height of a vertebral body with its disc
    breast: float  # attenuation of the breasts, or 0
    stomach_bubble: float  # radius of the air below the left diaphragm, or 0
    texture: Texture

    def floor(self, side: int, depth: float) -> float:
        """Y of the top of the diaphragm on a side at a given depth of inspiration."""
        return self.base + depth + (self.left_lower if side == LEFT else 0.0)

    def lateral(self, y: Map, side: int, depth: float) -> tuple[Map, Map]:
        """Distances of a lung's medial and lateral borders from the midline, at heights y."""
        height = self.floor(side, depth) + self.sulcus - self.apex
        rest = np.clip(1 - (y - self.apex) / height, 0.0, 1.0)
        cube = rest * rest * rest
        top = 0.38 * self.half_width
        return 0.13 + (top - 0.13) * cube * cube, top + (self.half_width - top) * np.sqrt(1 - cube)

    def lung(self, grid: Grid, side: int, depth: float) -> Map:
        """Mask of the lung on a side, (H, W): 1 inside, 0 outside."""
        a = side * grid.x
        medial, lateral = self.lateral(grid.y, side, depth)
        within = inside(a - lateral, 0.02) * inside(medial - a, 0.025) * inside(self.apex - grid.y, 0.02)
        return within * inside(grid.y - self.diaphragm(a, side, depth), 0.015)

    def diaphragm(self, a: Map, side: int, depth: float) -> Map:
        """Y of the diaphragm at distances a from the midline."""
        crest = 0.48 * self.half_width
        out = (a - crest) / (self.half_width - crest)
        return self.floor(side, depth) + self.sulcus * out * out * np.where(a > crest, 1.0, 0.35)


def draw_anatomy(draws: Draws, half_height: float, female: bool) -> Anatomy:
    """Draws the chest of a patient, for images of the given half height."""
    half_width = draws.uniform(0.76, 0.86)
    apex = -half_height * draws.uniform(0.76, 0.83)
    base = half_height * draws.uniform(0.40, 0.52)
    left_lower = draws.uniform(0.01, 0.06)
    floor = base + left_lower
    return Anatomy(
        half_height=half_height,
        half_width=half_width,
        apex=apex,
        base=base,
        left_lower=left_lower,
        sulcus=draws.uniform(0.14, 0.28),
        thickness=draws.uniform(0.92, 1.10),
        heart=_heart(draws, half_width, floor),
        aortic_knob=draws.uniform(0.07, 0.11),
        ribs=tuple(_ribs(draws, half_width, apex, floor)),
        clavicle=_clavicle(draws, apex),
        rib_tilt=draws.uniform(-0.03, 0.03),
        vessels=tuple(_vessel(draws, side, half_width, apex, floor) for side in (LEFT, RIGHT) for _ in range(16)),
        vertebra=draws.uniform(0.15, 0.18),
        breast=draws.uniform(0.12, 0.3) if female else 0.0,
        stomach_bubble=draws.uniform(0.08, 0.14) if draws.chance(0.6) else 0.0,
        texture=Texture.draw(draws, 0.11),
    )


def _heart(draws: Draws, half_width: float, floor: float) -> Heart:
    """A heart of normal size on the left diaphragm: cardiothoracic ratio below 0.5."""
    radius = draws.uniform(0.41, 0.48) * half_width
    along = radius * draws.uniform(0.80, 0.92)
    return Heart(radius * draws.uniform(0.28, 0.40), floor - along * draws.uniform(0.5, 0.65), radius, along, draws.uniform(0.15, 0.4))


def _clavicle(draws: Draws, apex: float) -> Arc:
    y, slope, curve = apex + draws.uniform(0.17, 0.24), draws.uniform(-0.45, -0.35), draws.uniform(0.10, 0.20)
    return Arc(0.09, 0.98, y, slope, curve, 0.036, hollow=0.35)


def _ribs(draws: Draws, half_width: float, apex: float, floor: float) -> list[Arc]:
    """Nine posterior ribs, which rise and fall away from the spine, and six anterior ones, which descend towards the middle."""
    step = (floor + 0.15 - apex) / 9
    ribs = []
    for number in range(9):
        y = apex + 0.03 + step * (number + draws.uniform(-0.08, 0.08))
        reach = half_width + 0.06 if number > 1 else half_width * (0.62 + 0.2 * number)
        ribs.append(Arc(0.1, reach, y, -draws.uniform(0.22, 0.30), draws.uniform(0.58, 0.72), draws.uniform(0.032, 0.038), hollow=0.4))
    for number in range(6):
        y = apex + 0.42 + step * (number + draws.uniform(-0.1, 0.1))
        ribs.append(Arc(0.42, half_width + 0.05, y, draws.uniform(-0.25, -0.15), -draws.uniform(0.35, 0.5), 0.036, hollow=0.55))
    return ribs


def _vessel(draws: Draws, side: int, half_width: float, apex: float, floor: float) -> tuple[int, bool, Arc]:
    hilum = 0.45 * apex + 0.55 * floor - 0.12
    downwards = draws.chance(0.45)
    length, width = draws.uniform(0.25, 0.55), draws.uniform(0.012, 0.026)
    if downwards:
        start, offset = hilum + draws.uniform(-0.05, 0.12), draws.uniform(0.2, 0.3)
        slope, curve = draws.uniform(0.0, 0.8), draws.uniform(-0.4, 0.4)
    else:
        start, offset = draws.uniform(0.18, 0.3), hilum + draws.uniform(-0.12, 0.12)
        slope, curve = draws.uniform(-1.3, 1.1), draws.uniform(-0.5, 0.5)
    return side, downwards, Arc(start, start + length, offset, slope, curve, width, taper=0.75)


def attenuation(anatomy: Anatomy, grid: Grid, depth: float, frontal_beam: bool) -> Map:
    """Returns the attenuation (H, W) of a chest without findings, 0 in air, its diaphragm lower than usual by `depth`.

    With a `frontal_beam` (AP rather than PA) the shoulder blades overlie the lungs.
    """
    lungs = {side: anatomy.lung(grid, side, depth) for side in (LEFT, RIGHT)}
    total = BODY * anatomy.thickness * _torso(anatomy, grid)
    for side, lung in lungs.items():
        total = total - lung * (_air(anatomy, grid, side) - _vessels(anatomy, grid, side))
    total = total + _middle(anatomy, grid) + anatomy.heart.attenuation(grid) + _below(anatomy, grid, depth) + _bones(anatomy, grid)
    if anatomy.breast:
        total = total + _breasts(anatomy, grid)
    if frontal_beam:
        total = total + _shoulder_blades(anatomy, grid)
    return np.clip(total, 0.0, None)


def _torso(anatomy: Anatomy, grid: Grid) -> Map:
    """Thickness of the body: neck, shoulders, chest."""
    above = np.clip((anatomy.apex + 0.35 - grid.y) / 0.35, 0.0, 1.0)
    neck = np.clip((grid.y + anatomy.half_height - 0.02) / 0.28, 0.0, 1.0)
    half_width = (anatomy.half_width + 0.12 + 0.25 * above) * neck + 0.34 * (1 - neck)
    out = grid.x / half_width
    out = out * out
    return np.sqrt(np.clip(1 - out * out, 0.0, 1.0))


def _air(anatomy: Anatomy, grid: Grid, side: int) -> Map:
    """Air in the lung along the beam: deepest in its middle, and textured."""
    out = (side * grid.x - 0.55 * anatomy.half_width) / (0.6 * anatomy.half_width)
    return AIR * (1.02 - 0.22 * out * out - 0.12 * anatomy.texture.at(grid))


def _vessels(anatomy: Anatomy, grid: Grid, side: int) -> Map:
    a = side * grid.x
    total = np.zeros_like(a)
    for where, downwards, arc in anatomy.vessels:
        if where == side:
            total = total + (arc.draw(grid.y, a, 0.01) if downwards else arc.draw(a, grid.y, 0.01))
    return VESSEL * np.minimum(total, 2.0)


def _middle(anatomy: Anatomy, grid: Grid) -> Map:
    """Mediastinum with the aortic knob and the hila, trachea, and spine."""
    a = np.abs(grid.x)
    lower = np.clip((grid.y - anatomy.apex) / (anatomy.base - anatomy.apex), 0.0, 1.0)
    column = inside(a - 0.12 - 0.06 * lower, 0.05) * (1 - 0.7 * lower)  # the heart takes its place
    knob = dome(*ellipse(grid, 0.13, anatomy.apex + 0.42, anatomy.aortic_knob, anatomy.aortic_knob * 1.2))
    hilum = 0.45 * anatomy.apex + 0.55 * anatomy.base - 0.12
    hila = dome((a - 0.2) / 0.11, (grid.y - hilum - 0.03 * grid.x / 0.2) / 0.16)
    trachea = inside(np.abs(grid.x + 0.01) - 0.045, 0.02) * inside(grid.y - anatomy.apex - 0.45, 0.05)
    return MEDIASTINUM * column + 0.5 * knob + 0.3 * hila - 0.35 * trachea + _spine(anatomy, grid)


def _spine(anatomy: Anatomy, grid: Grid) -> Map:
    phase = grid.y / anatomy.vertebra
    phase = phase - np.floor(phase) - 0.5
    body = 1 - 0.4 * inside(0.36 - np.abs(phase), 0.08)
    return SPINE * inside(np.abs(grid.x) - 0.085, 0.02) * body


def _below(anatomy: Anatomy, grid: Grid, depth: float) -> Map:
    """Abdomen below the diaphragm, with the air bubble of the stomach."""
    total = np.zeros_like(grid.x)
    for side in (LEFT, RIGHT):
        a = side * grid.x
        total = total + inside(-a, 0.02) * inside(anatomy.diaphragm(a, side, depth) - grid.y, 0.03)
    bubble = anatomy.stomach_bubble
    if bubble:
        y = anatomy.floor(LEFT, depth) + 0.09 + 0.6 * bubble
        total = total - 0.9 * dome(*ellipse(grid, 0.42 * anatomy.half_width, y, 1.3 * bubble, 0.6 * bubble))
    return ABDOMEN * total


def _bones(anatomy: Anatomy, grid: Grid) -> Map:
    a, y = np.abs(grid.x), grid.y - anatomy.rib_tilt * grid.x
    total = anatomy.clavicle.draw(a, grid.y) * 1.1
    for number, rib in enumerate(anatomy.ribs):
        total = total + rib.draw(a, y) * (1.0 if number < 9 else 0.55)
    return BONE * total


def _breasts(anatomy: Anatomy, grid: Grid) -> Map:
    a = np.abs(grid.x)
    return anatomy.breast * dome((a - 0.52 * anatomy.half_width) / 0.42, (grid.y - anatomy.base + 0.22) / 0.4)


def _shoulder_blades(anatomy: Anatomy, grid: Grid) -> Map:
    a = np.abs(grid.x)
    edge = anatomy.half_width - 0.14 + 0.25 * (anatomy.apex + 0.6 - grid.y)
    return 0.2 * inside(edge - a, 0.06) * inside(np.abs(grid.y - anatomy.apex - 0.45) - 0.42, 0.06)
