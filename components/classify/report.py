"""What the report says of findings: headline, forest plot, curves, thresholds, calibration and counts, as HTML."""

import math
from collections.abc import Sequence
from html import escape

from components.classify.metrics import Finding, Findings
from components.common.html import page
from components.common.html.charts import UNIT, Axis, Line, chart
from components.common.html.forest import scale, strip
from components.common.html.numbers import cell, limits, number, percent, spoken, unit_axis
from components.common.runs.params import Evaluate
from components.common.statistics.curves import thin

RULES = {
    "youden": "maximises sensitivity + specificity (Youden's index)",
    "sensitivity": "is the highest that reaches a sensitivity of {}",
}


def sections(found: Findings, params: Evaluate) -> list[str]:
    """All sections but the notes, in order."""
    parts = [_hero(found, params), _forest(found, params), _curves(found), _thresholds(found, params), _calibration(found, params)]
    return [*parts, _counts(found)]


def notes(found: Findings, params: Evaluate) -> str:
    """What is particular to intervals of findings, and which resamples are missing from which."""
    text = (
        "AUROC counts tied scores half; average precision is the sum of precision times step in recall. A macro average is the "
        f"plain mean over its findings. {_left_out(found.each, params)}"
    )
    if found.counted and (lost := params.resamples - found.macro["auroc"].used):
        text += f" The macro intervals leave out the {page.plural(lost, 'resample')} in which any counted finding is undefined."
    return f"<section><h2>Notes on the findings' intervals</h2><p>{text}</p></section>"


def _hero(found: Findings, params: Evaluate) -> str:
    """The headline: macro numbers of the test split, with what they mean in a sentence."""
    test, macro = found.test, found.macro
    axis = unit_axis([macro["auroc"]])
    main = (
        '<div class="card main"><div class="label">Macro AUROC, test split</div>'
        f'<div class="number">{number(macro["auroc"].estimate)}</div>'
        f'<div class="interval">{percent(params.confidence)} interval {limits(macro["auroc"])}</div>'
        f"{strip(spoken('Macro AUROC', macro['auroc'], params.confidence), macro['auroc'], axis, 0.5)}{scale('Axis of AUROC', axis)}"
        f"<p>{_meaning(found)}</p></div>"
    )
    cards = [
        page.card("Macro average precision", number(macro["ap"].estimate), limits(macro["ap"])),
        page.card("Macro accuracy", number(macro["accuracy"].estimate), f"{limits(macro['accuracy'])}, at the thresholds below"),
        page.card("Macro AUROC, validation split", number(found.val_auroc_macro), "the epoch and the thresholds were chosen there"),
        page.card("Test split", f"{len(test.targets):,} images", f"of {page.plural(test.patient_count, 'patient')}"),
    ]
    return f'<section class="hero" aria-label="Headline">{main}{"".join(cards)}</section>'


def _meaning(found: Findings) -> str:
    if not found.counted:
        return "No finding has enough positives and negatives in the test split to be averaged."
    share = round(100 * found.macro["auroc"].estimate)
    what = page.plural(len(found.each), "finding")
    what = f"{len(found.counted)} of {what}" if len(found.counted) < len(found.each) else what
    pair = "Of two test images, one with a finding and one without"
    return f"{pair}, the model gives the former the higher score {share} times in 100: the mean over {what}."


def _forest(found: Findings, params: Evaluate) -> str:
    """The forest plot as a table: a row a finding, the macro average below."""
    axis = unit_axis([finding.intervals["auroc"] for finding in found.each])
    rows = [_forest_row(finding, axis, params) for finding in sorted(found.each, key=lambda finding: not finding.counted)]
    rows.append(_macro_row(found, axis, params))
    level = percent(params.confidence)
    caption = f"Test split, with {level} intervals. The dotted line is chance. Average precision at chance is the prevalence beside it."
    picture = scale(f"Axis of AUROC from {axis.low:g} to {axis.high:g}", axis)
    heads = ["Positive / negative", "AUROC", picture, "Average precision", "Prevalence"]
    table = page.table(caption, ["Finding", *heads], rows)
    return f'<section><h2>Findings</h2><div class="card scroll">{table}</div>{_membership(found, params)}</section>'


def _forest_row(finding: Finding, axis: Axis, params: Evaluate) -> str:
    positives, negatives, _ = finding.counts["test"]
    interval = finding.intervals["auroc"]
    label = spoken(f"AUROC of {finding.name}", interval, params.confidence)
    picture = strip(label, interval, axis, 0.5, "" if finding.counted else "off")
    prevalence = number(positives / (positives + negatives) if positives + negatives else math.nan)
    cells = [f"{positives:,} / {negatives:,}", cell(interval), picture, cell(finding.intervals["ap"]), prevalence]
    return page.row(finding.name, cells, "" if finding.counted else "out")


def _macro_row(found: Findings, axis: Axis, params: Evaluate) -> str:
    interval = found.macro["auroc"]
    picture = strip(spoken("Macro AUROC", interval, params.confidence), interval, axis, 0.5)
    return page.row(_macro_name(found), ["", cell(interval), picture, cell(found.macro["ap"]), ""], "macro")


def _macro_name(found: Findings) -> str:
    return f"Macro average of {len(found.counted)}"


def _membership(found: Findings, params: Evaluate) -> str:
    """Which findings count, and why the others do not."""
    need = params.min_positives
    text = f"A finding counts in the macro averages when the test split holds at least {need} positives and {need} negatives of it. "
    text += f"In: {page.listing(escape(finding.name) for finding in found.counted)}. " if found.counted else "None is in. "
    out = [f"{escape(finding.name)} ({_shortage(finding, need)})" for finding in found.each if not finding.counted]
    text += f"Out: {page.listing(out)}." if out else "None is left out."
    return f"<p>{text}</p>"


def _shortage(finding: Finding, need: int) -> str:
    positives, negatives, _ = finding.counts["test"]
    few = [page.plural(count, name) for count, name in ((positives, "positive"), (negatives, "negative")) if count < need]
    return " and ".join(few)


def _curves(found: Findings) -> str:
    cards = [_curve_card(finding) for finding in found.each if finding.roc and finding.pr]
    if not cards:
        return ""
    text = (
        "Left: the share of the positives that are found against the share of the negatives that are called positive, as the "
        "threshold falls. Right: how many of those called positive are. Dashed: a model that guesses. Ring: the threshold chosen on "
        "the validation split."
    )
    return f'<section><h2>ROC and precision-recall curves</h2><p>{text}</p><div class="grid-2">{"".join(cards)}</div></section>'


def _curve_card(finding: Finding) -> str:
    assert finding.roc is not None and finding.pr is not None
    positives, negatives, _ = finding.counts["test"]
    prevalence = positives / (positives + negatives)
    sensitivity, specificity = (finding.intervals[metric].estimate for metric in ("sensitivity", "specificity"))
    called = sensitivity * positives + (1 - specificity) * negatives
    precision = sensitivity * positives / called if called > 0 else math.nan
    roc = chart(
        f"ROC curve of {finding.name}, AUROC {number(finding.intervals['auroc'].estimate)}",
        [Line([(0, 0), (1, 1)], "chance"), Line(thin(finding.roc), "first")],
        Axis(0, 1, UNIT, "False positive rate"),
        Axis(0, 1, UNIT, "Sensitivity"),
        _known([(1 - specificity, sensitivity)]),
    )
    pr = chart(
        f"Precision-recall curve of {finding.name}, average precision {number(finding.intervals['ap'].estimate)}",
        [Line([(0, prevalence), (1, prevalence)], "chance"), Line(thin(finding.pr), "first")],
        Axis(0, 1, UNIT, "Recall"),
        Axis(0, 1, UNIT, "Precision"),
        _known([(sensitivity, precision)]),
    )
    note = f"AUROC {number(finding.intervals['auroc'].estimate)}, average precision {number(finding.intervals['ap'].estimate)}"
    note += "" if finding.counted else "; not in the macro average"
    return f'<figure class="card"><h3>{escape(finding.name)}</h3><div class="pair">{roc}{pr}</div><figcaption>{note}</figcaption></figure>'


def _known(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


def _thresholds(found: Findings, params: Evaluate) -> str:
    level = percent(params.confidence)
    caption = (
        f"At or above its threshold an image counts as positive. All but the last column are of the test split, with {level} intervals."
    )
    heads = ["Finding", "Threshold", "Sensitivity", "Specificity", "Accuracy", "AUROC, validation"]
    rows = [_threshold_row(finding) for finding in found.each]
    macro = [cell(found.macro[metric]) for metric in ("sensitivity", "specificity", "accuracy")]
    rows.append(page.row(_macro_name(found), ["", *macro, number(found.val_auroc_macro)], "macro"))
    rule = RULES[params.threshold].format(percent(params.target_sensitivity))
    text = f"Each threshold {rule} on the validation split; the test split had no part in it."
    missing = [escape(finding.name) for finding in found.each if math.isnan(finding.threshold)]
    if missing:
        text += f" No threshold for {page.listing(missing)}: the validation split has one class only, so there is no accuracy either."
    return f'<section><h2>Thresholds</h2><p>{text}</p><div class="card scroll">{page.table(caption, heads, rows)}</div></section>'


def _threshold_row(finding: Finding) -> str:
    cells = [cell(finding.intervals[metric]) for metric in ("sensitivity", "specificity", "accuracy")]
    return page.row(finding.name, [number(finding.threshold), *cells, number(finding.val_auroc)])


def _calibration(found: Findings, params: Evaluate) -> str:
    """Whether of images with a score of 0.3 three in ten are positive."""
    text = (
        "Of the images with scores around 0.3, three in ten should be positive. ECE, the expected calibration error, is the mean "
        "distance between the two over ten bins of equal width, weighted by images; in small test splits chance alone keeps it above 0. "
        "The Brier score is the mean squared distance between score and label, so that it also falls with better ranking."
    )
    heads = ["Finding", "ECE", "Brier score"]
    rows = [page.row(each.name, [number(each.reliability.error), cell(each.intervals["brier"])]) for each in found.each]
    rows.append(page.row(_macro_name(found), [number(found.ece_macro), cell(found.macro["brier"])], "macro"))
    table = page.table(f"Test split, with {percent(params.confidence)} intervals.", heads, rows)
    cards = "".join(map(_reliability_card, (each for each in found.each if len(each.reliability.score))))
    grid = f'<div class="grid-3 apart">{cards}</div>'
    return f'<section><h2>Calibration</h2><p>{text}</p><div class="card scroll">{table}</div>{grid}</section>'


def _reliability_card(finding: Finding) -> str:
    score, share, images, error = finding.reliability
    points = list(zip(score.tolist(), share.tolist(), strict=True))
    picture = chart(
        f"Reliability curve of {finding.name}, expected calibration error {number(error)}",
        [Line([(0, 0), (1, 1)], "chance"), Line(points, "first")],
        Axis(0, 1, UNIT, "Score"),
        Axis(0, 1, UNIT, "Share of positives"),
        points,
        size=(310, 200),
    )
    note = f"Dashed: perfect calibration. {page.plural(len(points), 'bin')} of {int(images.min()):,} to {int(images.max()):,} images."
    return f'<figure class="card"><h3>{escape(finding.name)}</h3>{picture}<figcaption>{note}</figcaption></figure>'


def _counts(found: Findings) -> str:
    splits = {"val": found.val, "test": found.test}
    sizes = " and ".join(
        f"{page.plural(len(split.targets), 'image')} of {page.plural(split.patient_count, 'patient')} for {name}"
        for name, split in zip(("validation", "test"), splits.values(), strict=True)
    )
    heads = ["Finding", *(f"{split}: {kind}" for split in ("Validation", "Test") for kind in ("positive", "negative", "unknown"))]
    rows = [page.row(finding.name, [f"{count:,}" for split in splits for count in finding.counts[split]]) for finding in found.each]
    table = page.table("Images by label. Unknown labels are left out of that finding's numbers.", heads, rows)
    return f'<section><h2>Data</h2><p>There are {sizes}; no patient is in both.</p><div class="card scroll">{table}</div></section>'


def _left_out(each: Sequence[Finding], params: Evaluate) -> str:
    """How many resamples lack a class."""
    missing = {finding.name: params.resamples - finding.intervals["auroc"].used for finding in each if finding.roc}
    parts = [f"{escape(name)} {count:,}" for name, count in missing.items() if count]
    never = [escape(finding.name) for finding in each if not finding.roc]
    text = "Resamples without a positive or without a negative say nothing of AUROC and average precision and are left out. "
    text += f"Left out of {params.resamples:,}: {page.listing(parts)}." if parts else "There were none."
    return text + (f" No AUROC at all for {page.listing(never)}: the test split has one class only." if never else "")
