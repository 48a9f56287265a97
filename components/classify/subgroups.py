"""How well findings are recognised in groups of patients, by sex, age, view and manufacturer, on the test split.

Groups are compared at the same threshold, that of all: a model may rank as well in every group and still miss more in one
(Seyyed-Kalantari et al., Nat Med 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.classify.metrics import ClassificationSplit, Finding, Findings, macro_interval
from components.common.head import Points
from components.common.html import page
from components.common.html.numbers import cell, number, percent
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
            f"{group.value}: {page.listing(names)}"
            for group in groups
            if group.attribute == attribute and (names := [member.name for member in group.members if member.few])
        ]
        if few:
            sentences.append(f"by {attribute}, fewer than {minimum} positives or negatives in {'; '.join(few)}")
    return sentences


def sections(groups: Sequence[Subgroup], params: Evaluate) -> list[str]:
    """HTML: a table for each attribute, folded, with the macro averages in sight."""
    if not groups:
        return []
    text = (
        "The same images, taken apart by what their headers say. Sensitivity and specificity are at the thresholds above, the same for "
        "every group. Each group's patients are resampled on their own; groups differ in more than the attribute, so that a difference "
        f"has more than one possible cause. Marked: fewer than {params.min_positives} positives or negatives, too few to judge."
    )
    attributes = list(dict.fromkeys(group.attribute for group in groups))
    folds = [_fold(attribute, [group for group in groups if group.attribute == attribute], params) for attribute in attributes]
    return [f"<section><h2>Subgroups</h2><p>{text}</p>{''.join(folds)}</section>"]


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


def _fold(attribute: str, groups: Sequence[Subgroup], params: Evaluate) -> str:
    judged = [group for group in groups if group.compared]
    summary = ", ".join(f"{escape(group.value)} {number(group.macro.estimate)}" for group in judged)
    heads = ["Group", "Finding", "Positive / negative", "AUROC", "Sensitivity", "Specificity"]
    rows = [row for group in groups for row in _rows(group)]
    caption = (
        f"With {percent(params.confidence)} intervals. Macro averages are of the findings that have enough in every group but the smallest."
    )
    table = page.table(caption, heads, rows, left=2)
    over = f"{summary} (macro AUROC of {page.plural(judged[0].compared, 'finding')})" if judged else "no finding can be compared"
    title = f"By {attribute}: {over}"
    return f'<details class="card"><summary>{title}</summary><div class="scroll">{table}</div></details>'


def _rows(group: Subgroup) -> list[str]:
    size = f"{page.plural(group.images, 'image')} of {page.plural(group.patients, 'patient')}"
    macro = page.row(group.value, [f"Macro average of {group.compared}", size, cell(group.macro), "", ""], "macro")
    return [macro, *(_member_row(group.value, member) for member in group.members)]


def _member_row(value: str, member: Member) -> str:
    counts = f"{member.positives:,} / {member.negatives:,}"
    counts = f'<span class="few" title="too few to judge">{counts}</span>' if member.few else counts
    cells = [escape(member.name), counts, cell(member.auroc), number(member.sensitivity), number(member.specificity)]
    return page.row(value, cells, "out" if member.few else "")
