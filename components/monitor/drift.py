"""The comparison of a batch with a reference, and whether it raises an alarm."""

from typing import NamedTuple

import numpy as np

from components.common.formats.reference import Reference
from components.common.statistics.differences import holm
from components.common.statistics.shift import Shift, compare_counts, compare_features, kolmogorov_smirnov, population_stability_index
from components.monitor.params import Monitor
from components.monitor.quantities import Cohort, components, counts_of, sample_of

STRUCTURE, FEATURES = "structure", "features"  # names of what the waves, and the features of the backbone, describe
MEASURES = {"psi": "population stability index", "ks": "Kolmogorov-Smirnov distance", "frechet": "Fréchet distance"}


class Quantity(NamedTuple):
    """One quantity in the batch, compared with the reference."""

    name: str
    group: str  # metadata, appearance or scores
    measure: str  # key of MEASURES
    shift: Shift
    p_adjusted: float  # after Holm's correction over all quantities
    alarm: bool
    bins: list[tuple[str, float, float]]  # name, and shares in reference and batch; empty for structure and features


class Drift(NamedTuple):
    """The result for a batch."""

    images: int  # one per patient
    quantities: list[Quantity]  # those with an alarm first

    def metrics(self) -> dict[str, float]:
        """Returns entries of metrics.json."""
        values = {f"{one.measure}_{one.name}": one.shift.value for one in self.quantities}
        adjusted = {f"p_{one.name}": one.p_adjusted for one in self.quantities}
        alarms = [one for one in self.quantities if one.alarm]
        return {"alarm": float(bool(alarms)), "alarms": float(len(alarms)), "patients": float(self.images), **values, **adjusted}


def alarm(drift: Drift) -> tuple[bool, list[str]]:
    """Returns whether there is an alarm, and a line about each quantity that has changed, for a log or a message."""
    changed = [one for one in drift.quantities if one.alarm]
    lines = [
        f"{one.name} ({one.group}): {MEASURES[one.measure]} {one.shift.value:.3f}, up to {one.shift.expected:.3f} without change, "
        f"p {one.p_adjusted:.2g}"
        for one in changed
    ]
    return bool(changed), lines


def compare(reference: Reference, batch: Cohort, params: Monitor) -> Drift:
    """Compares each quantity of a batch with the reference.

    A batch raises an alarm by chance with a probability of at most `params.false_alarms`: p-values are exact (see
    components/common/statistics/shift.py), and Holm's correction holds however the quantities depend on each other.
    """
    generator = np.random.default_rng(params.seed)
    found: list[tuple[str, str, str, Shift, list[tuple[str, float, float]]]] = []
    for name, variable in reference["variables"].items():
        counts, new = np.array(variable["counts"], np.int64), counts_of(batch, name, variable)
        measure, statistic = ("psi", population_stability_index) if variable["values"] else ("ks", kolmogorov_smirnov)
        shares = zip(_bin_names(variable["values"], variable["edges"]), counts / counts.sum(), new / new.sum(), strict=True)
        bins = [(label, float(before), float(now)) for label, before, now in shares]
        found.append((name, variable["group"], measure, compare_counts(statistic, counts, new, params.resamples, generator), bins))
    for name, rows, new_rows in ((STRUCTURE, reference["waves"], batch.waves), (FEATURES, reference["features"], batch.features)):
        if rows:
            shift = compare_features(*components(np.array(rows), np.array(sample_of(new_rows, params.seed))), params.resamples, generator)
            found.append((name, "appearance", "frechet", shift, []))
    least = {"psi": params.min_psi, "ks": params.min_ks, "frechet": params.min_frechet}
    quantities = []
    for (name, group, measure, shift, bins), p in zip(found, holm(np.array([each[3].p for each in found])), strict=True):
        loud = bool(p <= params.false_alarms and shift.value >= least[measure])
        quantities.append(Quantity(name, group, measure, shift, float(p), loud, bins))
    return Drift(batch.images, sorted(quantities, key=lambda one: (not one.alarm, one.p_adjusted, one.shift.p)))


def _bin_names(values: list[str], edges: list[float]) -> list[str]:
    if values:
        return ["unknown", *values, "others"]
    return ["unknown", *(f"to {edge:.4g}" for edge in edges), f"above {edges[-1]:.4g}"]
