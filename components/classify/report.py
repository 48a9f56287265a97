"""The report's sections on findings: headline, forest plot, curves, thresholds, calibration, counts and subgroups."""

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from components.classify import external
from components.classify.metrics import Finding, Findings
from components.classify.subgroups import Subgroup
from components.common.formats.model import External
from components.common.html.charts import UNIT, Axis, Chart, Line, unit_axis
from components.common.html.numbers import plural
from components.common.html.page import render_blocks
from components.common.runs.params import Evaluate
from components.common.statistics.curves import thin


def sections(found: Findings, groups: Sequence[Subgroup], params: Evaluate, elsewhere: External | None = None) -> list[Markup]:
    """Renders report.html: the headline, then the other sections."""
    missing = {finding.name: params.resamples - finding.intervals["auroc"].used for finding in found.each if finding.roc}
    return render_blocks(
        "classify/report.html",
        found=found,
        external=elsewhere,
        cohorts=list(external.rows(found, elsewhere)) if elsewhere else [],
        params=params,
        macro_name=f"Macro average of {len(found.counted)}",
        headline_axis=unit_axis([found.macro["auroc"]]),
        axis=unit_axis(finding.intervals["auroc"] for finding in found.each),
        excluded=[f"{finding.name} ({_shortage(finding, params)})" for finding in found.each if not finding.counted],
        curves=[(finding, *_curves(finding)) for finding in found.each if finding.roc],
        without_threshold=[finding.name for finding in found.each if math.isnan(finding.threshold)],
        reliability=[(finding, _reliability(finding)) for finding in found.each if len(finding.reliability.score)],
        attributes=[(attribute, list(group)) for attribute, group in groupby(groups, lambda group: group.attribute)],
        left_out=[f"{name} {count:,}" for name, count in missing.items() if count],
        one_class=[finding.name for finding in found.each if not finding.roc],
        lost=params.resamples - found.macro["auroc"].used if found.counted else 0,
    )


def _shortage(finding: Finding, params: Evaluate) -> str:
    positives, negatives, _ = finding.counts["test"]
    counts = ((positives, "positive"), (negatives, "negative"))
    return " and ".join(plural(count, name) for count, name in counts if count < params.min_positives)


def _curves(finding: Finding) -> tuple[Chart, Chart]:
    assert finding.roc is not None and finding.pr is not None
    positives, negatives, _ = finding.counts["test"]
    prevalence = positives / (positives + negatives)
    sensitivity, specificity = (finding.intervals[metric].estimate for metric in ("sensitivity", "specificity"))
    called = sensitivity * positives + (1 - specificity) * negatives
    precision = sensitivity * positives / called if called > 0 else math.nan
    roc = Chart(
        [Line([(0, 0), (1, 1)], "chance"), Line(thin(finding.roc), "first")],
        Axis(0, 1, UNIT, "False positive rate"),
        Axis(0, 1, UNIT, "Sensitivity"),
        [(1 - specificity, sensitivity)],
    )
    precision_recall = Chart(
        [Line([(0, prevalence), (1, prevalence)], "chance"), Line(thin(finding.pr), "first")],
        Axis(0, 1, UNIT, "Recall"),
        Axis(0, 1, UNIT, "Precision"),
        [(sensitivity, precision)],
    )
    return roc, precision_recall


def _reliability(finding: Finding) -> Chart:
    points = list(zip(finding.reliability.score.tolist(), finding.reliability.share.tolist(), strict=True))
    lines = [Line([(0, 0), (1, 1)], "chance"), Line(points, "first")]
    return Chart(lines, Axis(0, 1, UNIT, "Score"), Axis(0, 1, UNIT, "Share of positives"), points, width=310)
