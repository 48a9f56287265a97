"""Test metrics of findings in subgroups of the images: by sex, age, view and manufacturer.

All groups use the threshold chosen on the whole validation split: a model can rank equally well in every group and still miss more
positives in one of them (Seyyed-Kalantari et al., Nat Med 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.classify.metrics import ClassificationSplit, Finding, Findings, macro_interval
from components.common.head import CsvTable
from components.common.html.numbers import listing
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Flags, Floats, has_both
from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.ranking import auroc, bootstrap_ranking

ATTRIBUTES = ("sex", "age", "view", "manufacturer")
BANDS = ((18, "below 18"), (40, "18 to 39"), (60, "40 to 59"), (80, "60 to 79"), (float("inf"), "80 and above"))
UNKNOWN = "unknown"  # the group of images without the attribute


@dataclass(frozen=True)
class Member:
    """A finding within a group."""

    name: str
    positives: int
    negatives: int
    auroc: Interval
    sensitivity: float
    specificity: float  # at the threshold; NaN without a threshold or without images of the class
    few: bool  # whether there are too few positives or negatives for a reliable number


@dataclass(frozen=True)
class Subgroup:
    """Images with the same value of an attribute."""

    attribute: str
    value: str
    images: int
    patients: int
    macro: Interval  # mean AUROC of the compared findings; NaN in a group with too few positives or negatives for any finding
    compared: int  # number of findings with enough positives and negatives in every such group of the attribute
    members: list[Member]


def evaluate(rows: pa.Table, found: Findings, params: Evaluate) -> list[Subgroup]:
    """Evaluates the groups of every attribute with more than one value; `rows` are the test split in the order of `found.test`."""
    groups: list[Subgroup] = []
    for attribute in ATTRIBUTES:
        values = attribute_values(rows, attribute)
        if len(names := _ordered(values)) > 1:
            groups += _attribute(attribute, [(name, values == name) for name in names], found, params)
    return groups


def attribute_values(rows: pa.Table, attribute: str) -> npt.NDArray[np.str_]:
    """Returns the value of an attribute for each of n images, ages in bands; UNKNOWN where it is missing or has no column."""
    values = rows[attribute].to_pylist() if attribute in rows.column_names else [None] * len(rows)
    return np.array([_band(value) if attribute == "age" else value or UNKNOWN for value in values], dtype=np.str_)


def points(groups: Sequence[Subgroup]) -> CsvTable:
    """Returns the content of subgroups.csv, one row per group and finding."""
    header = ("finding", "attribute", "group", "positives", "negatives", "auroc", "auroc_low", "auroc_high", "sensitivity", "specificity")
    rows = []
    for group in groups:
        for member in group.members:
            numbers = [*member.auroc[:3], member.sensitivity, member.specificity]
            cells = ["" if np.isnan(value) else round(value, 6) for value in numbers]
            rows.append((member.name, group.attribute, group.value, member.positives, member.negatives, *cells))
    return CsvTable(header, rows)


def warnings(groups: Sequence[Subgroup], minimum: int) -> list[str]:
    """Returns one sentence per attribute with groups that have too few positives or negatives."""
    sentences = []
    for attribute in dict.fromkeys(group.attribute for group in groups):
        few = [
            f"{group.value}: {listing(names)}"
            for group in groups
            if group.attribute == attribute and (names := [member.name for member in group.members if member.few])
        ]
        if few:
            sentences.append(f"by {attribute}, fewer than {minimum} positives or negatives in {'; '.join(few)}")
    return sentences


def _attribute(attribute: str, masks: list[tuple[str, Flags]], found: Findings, params: Evaluate) -> list[Subgroup]:
    enough = np.array([has_both(found.test.targets[mask], params.min_positives) for _, mask in masks])
    usable = np.array([each.any() for each in enough])
    # A few images of unknown sex or of a rare manufacturer should not prevent the comparison of the other groups.
    compared = enough[usable].all(axis=0) & usable.any()
    return [_group(attribute, name, mask, found, compared & inside, params) for (name, mask), inside in zip(masks, usable, strict=True)]


def _group(attribute: str, value: str, mask: Flags, found: Findings, compared: Flags, params: Evaluate) -> Subgroup:
    test = found.test
    part = ClassificationSplit(test.targets[mask], test.scores[mask], patient_indices(test.patients[mask]), test.image_ids[mask])
    samples = bootstrap_ranking(part.targets, part.scores, part.patients, params.resamples, params.seed).auroc
    estimates = part.each(auroc)
    few = [not enough for enough in has_both(part.targets, params.min_positives)]
    intervals = [percentile_interval(float(one), drawn, params.confidence) for one, drawn in zip(estimates, samples.T, strict=True)]
    columns = zip(found.each, part.targets.T, part.scores.T, intervals, few, strict=True)
    members = [_member(*column) for column in columns]
    macro = macro_interval(estimates, samples, compared, params.confidence)
    return Subgroup(attribute, value, len(part.targets), part.patient_count, macro, int(compared.sum()), members)


def _member(finding: Finding, target: Floats, score: Floats, interval: Interval, few: bool) -> Member:
    called = score >= finding.threshold
    return Member(
        name=finding.name,
        positives=int((target == 1).sum()),
        negatives=int((target == 0).sum()),
        auroc=interval,
        sensitivity=_share(called[target == 1], finding.threshold),
        specificity=_share(~called[target == 0], finding.threshold),
        few=few,
    )


def _share(right: Flags, threshold: float) -> float:
    return float(right.mean()) if len(right) and not np.isnan(threshold) else float("nan")


def _band(age: float | None) -> str:
    return UNKNOWN if age is None or np.isnan(age) else next(name for limit, name in BANDS if age < limit)


def _ordered(values: npt.NDArray[np.str_]) -> list[str]:
    """Returns the distinct names: age bands by age, others alphabetically, unknown last."""
    bands = [name for _, name in BANDS]
    return sorted(set(values.tolist()), key=lambda name: (name == UNKNOWN, bands.index(name) if name in bands else 0, name))
