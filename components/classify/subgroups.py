"""How well findings are recognised in groups of patients, by sex, age, view and manufacturer, on the test split.

Groups are compared at the same threshold, that of all: a model may rank as well in every group and still miss more in one
(Seyyed-Kalantari et al., Nat Med 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.classify.metrics import ClassificationSplit, Finding, Findings, macro_interval
from components.common.head import Points
from components.common.html.numbers import listing
from components.common.runs.params import Evaluate
from components.common.statistics.arrays import Flags, Floats, has_both
from components.common.statistics.bootstrap import patient_indices
from components.common.statistics.intervals import Interval, percentile_interval
from components.common.statistics.ranking import auroc, bootstrap_ranking

ATTRIBUTES = ("sex", "age", "view", "manufacturer")
BANDS = ((18, "below 18"), (40, "18 to 39"), (60, "40 to 59"), (80, "60 to 79"), (float("inf"), "80 and above"))
UNKNOWN = "unknown"
"""Of images that do not say."""


@dataclass(frozen=True)
class Member:
    """A finding within a group."""

    name: str
    positives: int
    negatives: int
    auroc: Interval
    sensitivity: float
    specificity: float
    """At the threshold of all groups; NaN without one, or without images of the class."""
    few: bool
    """Whether positives or negatives are too few to be judged."""


@dataclass(frozen=True)
class Subgroup:
    """Images that share an attribute."""

    attribute: str
    value: str
    images: int
    patients: int
    macro: Interval
    """AUROC over the findings that can be compared; none in a group that has too few of every finding."""
    compared: int
    """How many have enough positives and negatives in every other group of the attribute."""
    members: list[Member]


def evaluate(rows: pa.Table, found: Findings, params: Evaluate) -> list[Subgroup]:
    """Evaluates the groups of every attribute that tells images apart.

    Args:
        rows: of the test split, in the order of `found.test`; attributes that it lacks are left out.
        found: scores, targets and thresholds of all images.
        params: of the bootstrap.
    """
    groups: list[Subgroup] = []
    for attribute in ATTRIBUTES:
        values = attribute_values(rows, attribute)
        if len(names := _ordered(values)) > 1:
            groups += _attribute(attribute, [(name, values == name) for name in names], found, params)
    return groups


def attribute_values(rows: pa.Table, attribute: str) -> npt.NDArray[np.str_]:
    """(n,): what each image says of an attribute, ages in bands; an attribute without a column is unknown throughout."""
    values = rows[attribute].to_pylist() if attribute in rows.column_names else [None] * len(rows)
    return np.array([_band(value) if attribute == "age" else value or UNKNOWN for value in values], dtype=np.str_)


def points(groups: Sequence[Subgroup]) -> Points:
    """subgroups.csv: a row a finding and group."""
    header = ("finding", "attribute", "group", "positives", "negatives", "auroc", "auroc_low", "auroc_high", "sensitivity", "specificity")
    rows = []
    for group in groups:
        for member in group.members:
            numbers = [*member.auroc[:3], member.sensitivity, member.specificity]
            cells = ["" if np.isnan(value) else round(value, 6) for value in numbers]
            rows.append((member.name, group.attribute, group.value, member.positives, member.negatives, *cells))
    return Points(header, rows)


def warnings(groups: Sequence[Subgroup], minimum: int) -> list[str]:
    """A sentence for each attribute in which some group has too few positives or negatives."""
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
    """The groups of one attribute."""
    enough = np.array([has_both(found.test.targets[mask], params.min_positives) for _, mask in masks])
    judged = np.array([each.any() for each in enough])
    # A handful of images of unknown sex, or of a rare manufacturer, should not keep the others from being compared.
    compared = enough[judged].all(axis=0) & judged.any()
    return [
        _group(attribute, name, _part(found.test, mask), found.each, compared & inside, params)
        for (name, mask), inside in zip(masks, judged, strict=True)
    ]


def _group(attribute: str, value: str, part: ClassificationSplit, each: Sequence[Finding], compared: Flags, params: Evaluate) -> Subgroup:
    samples = bootstrap_ranking(part.targets, part.scores, part.patients, params.resamples, params.seed).auroc
    estimates = np.array([auroc(target, score) for target, score in zip(part.targets.T, part.scores.T, strict=True)])
    few = ~has_both(part.targets, params.min_positives)
    members = [
        _member(
            finding, part.targets[:, index], part.scores[:, index], float(estimates[index]), samples[:, index], bool(few[index]), params
        )
        for index, finding in enumerate(each)
    ]
    macro = macro_interval(estimates, samples, compared, params.confidence)
    return Subgroup(attribute, value, len(part.targets), part.patient_count, macro, int(compared.sum()), members)


def _member(finding: Finding, target: Floats, score: Floats, estimate: float, samples: Floats, few: bool, params: Evaluate) -> Member:
    called = score >= finding.threshold
    return Member(
        name=finding.name,
        positives=int((target == 1).sum()),
        negatives=int((target == 0).sum()),
        auroc=percentile_interval(estimate, samples, params.confidence),
        sensitivity=_share(called[target == 1], finding.threshold),
        specificity=_share(~called[target == 0], finding.threshold),
        few=few,
    )


def _part(test: ClassificationSplit, mask: Flags) -> ClassificationSplit:
    return ClassificationSplit(test.targets[mask], test.scores[mask], patient_indices(test.patients[mask]), test.image_ids[mask])


def _share(right: Flags, threshold: float) -> float:
    return float(right.mean()) if len(right) and not np.isnan(threshold) else float("nan")


def _band(age: float | None) -> str:
    return UNKNOWN if age is None or np.isnan(age) else next(name for limit, name in BANDS if age < limit)


def _ordered(values: npt.NDArray[np.str_]) -> list[str]:
    """The names that occur: bands by age, others by the alphabet, unknown last."""
    bands = [name for _, name in BANDS]
    return sorted(set(values.tolist()), key=lambda name: (name == UNKNOWN, bands.index(name) if name in bands else 0, name))
