"""Turns attenuation into a radiograph: transmission, scatter, quantum noise, and the response of the film."""

from dataclasses import dataclass

import numpy as np

from components.simulate.draws import Draws, Map
from components.simulate.geometry import blur


@dataclass(frozen=True)
class Exposure:
    """How an image was taken."""

    scatter: float  # fraction of the detected photons that were scattered
    noise: float  # standard deviation of the quantum noise without attenuation, relative to the signal
    heel: float  # relative change of the beam across the image (heel effect of the anode)
    midpoint: float  # transmission that is shown at half brightness


def draw_exposure(draws: Draws) -> Exposure:
    """A random exposure."""
    return Exposure(draws.uniform(0.15, 0.35), draws.uniform(0.006, 0.016), draws.uniform(-0.2, 0.2), draws.uniform(0.17, 0.23))


def radiograph(attenuation: Map, exposure: Exposure, draws: Draws) -> Map:
    """Renders attenuation (H, W), with random noise, as an image (H, W) in [0, 1], bright = dense."""
    height, width = attenuation.shape
    beam = 1 + exposure.heel * ((np.arange(width) + 0.5) / width - 0.5)
    primary = _transmission(attenuation) * beam
    scattered = blur(primary, max(1, round(0.06 * width)))
    signal = (1 - exposure.scatter) * primary + exposure.scatter * scattered
    signal = signal + exposure.noise * np.sqrt(signal) * draws.noise(height, width)
    return _film(_unsharp(np.clip(signal, 0.0, None)), exposure.midpoint)


def _transmission(attenuation: Map) -> Map:
    """exp(-a) as (1 - a/256)^256, which repeated squaring computes identically everywhere."""
    result = 1 - np.minimum(attenuation, 8.0) / 256
    for _ in range(8):
        result = result * result
    return result


def _film(signal: Map, midpoint: float) -> Map:
    """Hurter-Driffield curve 1 / (1 + (signal / midpoint)^1.5), a logistic function of the log exposure."""
    ratio = signal / midpoint
    return 1 / (1 + ratio * np.sqrt(ratio))


def _unsharp(image: Map) -> Map:
    """Blur of the detector: weights 1, 2, 1 in each direction."""
    for _ in range(2):
        padded = np.concatenate([image[:1], image, image[-1:]])
        image = (0.25 * (padded[:-2] + padded[2:]) + 0.5 * image).T
    return image
