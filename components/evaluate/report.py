"""`report.html`: one file that says how good a model is, how sure that is, and where it comes from.

Self-contained and the same bytes for the same inputs: no scripts, no network, no times, no ids, no paths.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from components.common import page
from components.common.charts import UNIT, Axis, Line, chart, nice_axis, whole_axis
from components.common.metrics import Interval
from components.common.params import Evaluate
from components.evaluate.charts import scale, strip
from components.evaluate.classification import METRICS, Classification, Finding, thin

NAMES = {"auroc": "AUROC", "ap": "average precision", "accuracy": "accuracy"}
VOLATILE = ("images_per_second", "seconds")  # columns of history.csv that differ from run to run
LEGEND = {"first": "training", "second": "validation"}
TWO_MODELS = 2


def render(evaluated: Sequence[Classification], differences: Sequence[Interval | None], params: Evaluate) -> str:
    """The report as HTML.

    Args:
        evaluated: one a model.
        differences: macro AUROC of the second, third, ... model minus the first's; None where they cannot be compared.
        params: how the intervals were made.
    """
    several = len(evaluated) >= TWO_MODELS
    body = [_header(several)]
    if several:
        body.append(_side_by_side(evaluated, differences, params))
    for index, one in enumerate(evaluated):
        body += [f'<h2 id="model-{index + 1}">{_model_name(one, index)}</h2>'] if several else []
        body += [_hero(one, params), _findings(one, params), _curves(one), _thresholds(one, params)]
        body += [_counts(one), _training(one), _pictures(one), _provenance(one)]
    body.append(_method(evaluated, params))
    return page.document("Evaluation: chest radiograph findings", body)


def _header(several: bool) -> str:
    subject = "these models recognise" if several else "this model recognises"
    lead = f"How well {subject} findings in chest radiographs of patients new to {'them' if several else 'it'}, and how sure that is."
    return f'<header><h1>Evaluation of chest radiograph classification</h1><p class="lead">{lead}</p></header>'


def _hero(one: Classification, params: Evaluate) -> str:
    """The headline: macro numbers of the test split, with what they mean in a sentence."""
    test, macro = one.predictions.test, one.macro
    axis = _auroc_axis([macro["auroc"]])
    main = (
        '<div class="card main"><div class="label">Macro AUROC, test split</div>'
        f'<div class="number">{_number(macro["auroc"].estimate)}</div>'
        f'<div class="interval">{_percent(params.confidence)} interval {_range(macro["auroc"])}</div>'
        f"{strip(_spoken('Macro AUROC', macro['auroc'], params), macro['auroc'], axis, 0.5)}{scale('Axis of AUROC', axis)}"
        f"<p>{_meaning(one)}</p></div>"
    )
    cards = [
        page.card("Macro average precision", _number(macro["ap"].estimate), _range(macro["ap"])),
        page.card("Macro accuracy", _number(macro["accuracy"].estimate), f"{_range(macro['accuracy'])}, at the thresholds below"),
        page.card("Macro AUROC, validation split", _number(one.val_auroc_macro), "the epoch and the thresholds were chosen there"),
        page.card("Test split", f"{len(test.targets):,} images", f"of {page.plural(test.patient_count, 'patient')}"),
    ]
    return f'<section class="hero" aria-label="Headline">{main}{"".join(cards)}</section>'


def _meaning(one: Classification) -> str:
    if not one.counted:
        return "No finding has enough positives and negatives in the test split to be averaged."
    share = round(100 * one.macro["auroc"].estimate)
    what = page.plural(len(one.findings), "finding")
    what = f"{len(one.counted)} of {what}" if len(one.counted) < len(one.findings) else what
    pair = "Of two test images, one with a finding and one without"
    return f"{pair}, the model gives the former the higher score {share} times in 100: the mean over {what}."


def _findings(one: Classification, params: Evaluate) -> str:
    """The forest plot as a table: a row a finding, the macro average below."""
    axis = _auroc_axis([finding.intervals["auroc"] for finding in one.findings])
    rows = [_finding_row(finding, axis, params) for finding in sorted(one.findings, key=lambda finding: not finding.counted)]
    rows.append(_macro_row(one, axis, params))
    level = _percent(params.confidence)
    caption = f"Test split, with {level} intervals. The dotted line is chance. Average precision at chance is the prevalence beside it."
    picture = scale(f"Axis of AUROC from {axis.low:g} to {axis.high:g}", axis)
    heads = ["Positive / negative", "AUROC", picture, "Average precision", "Prevalence"]
    table = page.table(caption, ["Finding", *heads], rows)
    return f'<section><h2>Findings</h2><div class="card scroll">{table}</div>{_membership(one, params)}</section>'


def _finding_row(finding: Finding, axis: Axis, params: Evaluate) -> str:
    positives, negatives, _ = finding.counts["test"]
    style = "" if finding.counted else "off"
    picture = strip(_spoken(f"AUROC of {finding.name}", finding.intervals["auroc"], params), finding.intervals["auroc"], axis, 0.5, style)
    prevalence = _number(positives / (positives + negatives) if positives + negatives else math.nan)
    cells = [f"{positives:,} / {negatives:,}", _cell(finding.intervals["auroc"]), picture, _cell(finding.intervals["ap"]), prevalence]
    return page.row(finding.name, cells, "" if finding.counted else "out")


def _macro_row(one: Classification, axis: Axis, params: Evaluate) -> str:
    picture = strip(_spoken("Macro AUROC", one.macro["auroc"], params), one.macro["auroc"], axis, 0.5)
    name = f"Macro average of {len(one.counted)}"
    return page.row(name, ["", _cell(one.macro["auroc"]), picture, _cell(one.macro["ap"]), ""], "macro")


def _membership(one: Classification, params: Evaluate) -> str:
    """Which findings count, and why the others do not."""
    need = params.min_positives
    text = f"A finding counts in the macro averages when the test split holds at least {need} positives and {need} negatives of it. "
    text += f"In: {page.listing(escape(finding.name) for finding in one.counted)}. " if one.counted else "None is in. "
    out = [f"{escape(finding.name)} ({_shortage(finding, need)})" for finding in one.findings if not finding.counted]
    text += f"Out: {page.listing(out)}." if out else "None is left out."
    return f"<p>{text}</p>"


def _shortage(finding: Finding, need: int) -> str:
    positives, negatives, _ = finding.counts["test"]
    few = [page.plural(count, name) for count, name in ((positives, "positive"), (negatives, "negative")) if count < need]
    return " and ".join(few)


def _curves(one: Classification) -> str:
    cards = [_curve_card(finding) for finding in one.findings if finding.roc and finding.pr]
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
    sensitivity, specificity = finding.sensitivity, finding.specificity
    called = sensitivity * positives + (1 - specificity) * negatives
    precision = sensitivity * positives / called if called > 0 else math.nan
    roc = chart(
        f"ROC curve of {finding.name}, AUROC {_number(finding.intervals['auroc'].estimate)}",
        [Line([(0, 0), (1, 1)], "chance"), Line(thin(finding.roc), "first")],
        Axis(0, 1, UNIT, "False positive rate"),
        Axis(0, 1, UNIT, "Sensitivity"),
        _known([(1 - specificity, sensitivity)]),
    )
    pr = chart(
        f"Precision-recall curve of {finding.name}, average precision {_number(finding.intervals['ap'].estimate)}",
        [Line([(0, prevalence), (1, prevalence)], "chance"), Line(thin(finding.pr), "first")],
        Axis(0, 1, UNIT, "Recall"),
        Axis(0, 1, UNIT, "Precision"),
        _known([(sensitivity, precision)]),
    )
    note = f"AUROC {_number(finding.intervals['auroc'].estimate)}, average precision {_number(finding.intervals['ap'].estimate)}"
    note += "" if finding.counted else "; not in the macro average"
    return f'<figure class="card"><h3>{escape(finding.name)}</h3><div class="pair">{roc}{pr}</div><figcaption>{note}</figcaption></figure>'


def _known(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


def _thresholds(one: Classification, params: Evaluate) -> str:
    caption = "An image counts as positive when its score is at least the threshold. All but the last column are of the test split."
    heads = ["Finding", "Threshold", "Sensitivity", "Specificity", "Accuracy", "AUROC, validation"]
    rows = [_threshold_row(finding) for finding in one.findings]
    macro = ["", "", "", _cell(one.macro["accuracy"]), _number(one.val_auroc_macro)]
    rows.append(page.row(f"Macro average of {len(one.counted)}", macro, "macro"))
    text = "Each threshold maximises sensitivity + specificity (Youden's index) on the validation split; the test split had no part in it."
    missing = [escape(finding.name) for finding in one.findings if math.isnan(finding.threshold)]
    if missing:
        text += f" No threshold for {page.listing(missing)}: the validation split has one class only, so there is no accuracy either."
    return f'<section><h2>Thresholds</h2><p>{text}</p><div class="card scroll">{page.table(caption, heads, rows)}</div></section>'


def _threshold_row(finding: Finding) -> str:
    numbers = [_number(value) for value in (finding.threshold, finding.sensitivity, finding.specificity)]
    return page.row(finding.name, [*numbers, _cell(finding.intervals["accuracy"]), _number(finding.val_auroc)])


def _counts(one: Classification) -> str:
    splits = {"val": one.predictions.val, "test": one.predictions.test}
    sizes = " and ".join(
        f"{page.plural(len(split.targets), 'image')} of {page.plural(split.patient_count, 'patient')} for {name}"
        for name, split in zip(("validation", "test"), splits.values(), strict=True)
    )
    heads = ["Finding", *(f"{split}: {kind}" for split in ("Validation", "Test") for kind in ("positive", "negative", "unknown"))]
    rows = [page.row(finding.name, [f"{count:,}" for split in splits for count in finding.counts[split]]) for finding in one.findings]
    table = page.table("Images by label. Unknown labels are left out of that finding's numbers.", heads, rows)
    return f'<section><h2>Data</h2><p>There are {sizes}; no patient is in both.</p><div class="card scroll">{table}</div></section>'


def _training(one: Classification) -> str:
    """A chart for each quantity of history.csv; those of train and validation share one."""
    history = {name: values for name, values in one.predictions.history.items() if name != "epoch" and name not in VOLATILE}
    groups: dict[str, dict[str, list[float]]] = {}
    for name, values in history.items():
        if any(map(math.isfinite, values)):
            groups.setdefault(name.removeprefix("val_").removeprefix("train_"), {})[name] = values
    cards = [_training_card(one, group, columns) for group, columns in groups.items()]
    if not cards:
        return ""
    best = one.predictions.model.get("best_epoch")
    text = f"Epoch {best} was chosen, the best on the validation split (dashed)." if best else ""
    return f'<section><h2>Training</h2><p>{text}</p><div class="grid-3">{"".join(cards)}</div></section>'


def _training_card(one: Classification, group: str, columns: dict[str, list[float]]) -> str:
    epochs = one.predictions.history.get("epoch") or list(range(1, 1 + len(next(iter(columns.values())))))
    values = [value for column in columns.values() for value in column if math.isfinite(value)]
    y = nice_axis(values)
    best = one.predictions.model.get("best_epoch")
    lines = [Line([(best, y.low), (best, y.high)], "chance")] if best else []
    # Validation keeps its colour whether or not there is a curve of training beside it.
    styles = {name: "second" if name.startswith("val_") else "first" for name in columns}
    lines += [Line(list(zip(epochs, column, strict=True)), styles[name]) for name, column in columns.items()]
    label = f"{', '.join(columns)} by epoch, from {values[0]:.4g} to {values[-1]:.4g}"
    picture = chart(label, lines, whole_axis(int(max(epochs)), "Epoch"), y, size=(310, 190))
    legend = " &nbsp; ".join(f'<span class="key {style}"></span>{LEGEND[style]}' for style in styles.values())
    return f'<figure class="card"><h3>{escape(page.words(group))}</h3>{picture}<figcaption>{legend}</figcaption></figure>'


def _pictures(one: Classification) -> str:
    cards = []
    for name, content in one.predictions.figures.items():
        words = escape(page.words(Path(name).stem), quote=True)
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        cards.append(f'<figure class="card"><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>')
    return f'<section><h2>Pictures</h2><div class="grid-2">{"".join(cards)}</div></section>' if cards else ""


def _provenance(one: Classification) -> str:
    """Code, inputs and parameters that the model was made with, as its run.json and model.json tell."""
    record, model = one.predictions.record, one.predictions.model
    rows = [page.entry("Code", _code(record)), page.entry("Network", escape(_network(model)))]
    inputs = sorted(record.get("inputs", {}).items())
    rows += [page.entry(f"Input of training: {escape(name)}", page.digest(value)) for name, value in inputs]
    rows += [page.entry("Weights", page.digest(model["sha256"]))] if "sha256" in model else []
    rows.append(page.entry("Predictions evaluated", page.digest(one.predictions.digests["predictions"])))
    rows.append(page.entry("Parameters", page.pairs(record.get("params", {}))))
    rows.append(page.entry("Packages", page.pairs(record.get("packages", {}))))
    table = f"<table><caption>Digests are SHA-256, their first {page.SHOWN_DIGITS} digits.</caption><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>Where the model comes from</h2><div class="card scroll">{table}</div></section>'


def _code(record: dict[str, Any]) -> str:
    git = record.get("git") or {}
    if not git.get("commit"):
        return "unknown: trained outside a git repository"
    edited = ", with edits that were not committed" if git.get("dirty") else ""
    return f"git commit <code>{escape(str(git['commit']))}</code>{edited}"


def _network(model: dict[str, Any]) -> str:
    parts = [str(model.get("arch", "unknown"))]
    parts += [f"images of {model['size']} pixels"] if "size" in model else []
    parts += [f"{model['bits']} bits a pixel"] if "bits" in model else []
    return ", ".join(parts)


def _side_by_side(evaluated: Sequence[Classification], differences: Sequence[Interval | None], params: Evaluate) -> str:
    names = [f'<a href="#model-{index + 1}">{_model_name(one, index)}</a>' for index, one in enumerate(evaluated)]
    rows = [page.row(f"Macro {NAMES[metric]}", [_cell(one.macro[metric]) for one in evaluated]) for metric in METRICS]
    cells = [_cell(each, signed=True) if each else "not comparable" for each in differences]
    rows.append(page.row("Macro AUROC, difference to model 1", ["", *cells]))
    findings = list(dict.fromkeys(finding.name for one in evaluated for finding in one.findings))
    for name in findings:
        found = [next((finding for finding in one.findings if finding.name == name), None) for one in evaluated]
        rows.append(page.row(f"AUROC, {name}", [_cell(finding.intervals["auroc"]) if finding else "" for finding in found]))
    text = (
        "The difference is taken within each resample, so that what makes images hard for both models cancels out: it can be certain "
        "where the intervals above it overlap. Models are comparable when they were tested on the same images, labels and findings."
    )
    table = page.table(f"Test split, with {_percent(params.confidence)} intervals.", ["", *names], rows)
    return f'<section><h2>Side by side</h2><p>{text}</p><div class="card scroll">{table}</div></section>'


def _model_name(one: Classification, index: int) -> str:
    record = one.predictions.record
    start = "pretrained" if "backbone" in record.get("inputs", {}) else "from scratch"
    fraction = record.get("params", {}).get("label_fraction", 1)
    share = f", {fraction:.0%} of the labels" if fraction != 1 else ""
    return escape(f"Model {index + 1}: {one.predictions.model.get('arch', 'unknown')}, {start}{share}")


def _method(evaluated: Sequence[Classification], params: Evaluate) -> str:
    """How the numbers were made, and which resamples are missing from which interval."""
    level = _percent(params.confidence)
    paragraphs = [
        f"The test patients were drawn with replacement {params.resamples:,} times (seed {params.seed}), each bringing all of its "
        "images, since images of one patient resemble each other. Every metric was computed on each resample; the "
        f"{level} interval runs between the percentiles {100 * (1 - params.confidence) / 2:.4g} and "
        f"{100 * (1 + params.confidence) / 2:.4g} of the results. It speaks of other patients from the same source, not of other "
        "hospitals, and not of how training again would vary.",
        "AUROC counts tied scores half; average precision is the sum of precision times step in recall. A macro average is the "
        "plain mean over its findings.",
    ]
    for index, one in enumerate(evaluated):
        subject = f"Model {index + 1}: " if len(evaluated) >= TWO_MODELS else ""
        paragraphs.append(subject + _left_out(one, params))
    return f"<section><h2>How the intervals were made</h2>{''.join(f'<p>{text}</p>' for text in paragraphs)}</section>"


def _left_out(one: Classification, params: Evaluate) -> str:
    """How many resamples lack a class."""
    missing = {finding.name: params.resamples - finding.intervals["auroc"].used for finding in one.findings if finding.roc}
    parts = [f"{escape(name)} {count:,}" for name, count in missing.items() if count]
    never = [escape(finding.name) for finding in one.findings if not finding.roc]
    text = "Resamples without a positive or without a negative say nothing of AUROC and average precision and are left out. "
    text += f"Left out of {params.resamples:,}: {page.listing(parts)}. " if parts else "There were none. "
    if one.counted and (lost := params.resamples - one.macro["auroc"].used):
        text += f"The macro intervals leave out the {page.plural(lost, 'resample')} in which any counted finding is undefined. "
    if never:
        text += f"No AUROC at all for {page.listing(never)}: the test split has one class only."
    return text.strip()


def _auroc_axis(intervals: Iterable[Interval]) -> Axis:
    """From 0.5, or lower where an interval reaches there, to 1."""
    values = [value for interval in intervals for value in interval[:3] if math.isfinite(value)]
    low = min([0.5, *(math.floor(10 * value) / 10 for value in values)])
    step = 1 if low >= 0.4 else 2  # tenths between ticks
    ticks = tuple(tick / 10 for tick in range(10, round(10 * low) - 1, -step))
    return Axis(low, 1.0, ticks[::-1])


def _cell(interval: Interval, signed: bool = False) -> str:
    signed = signed and math.isfinite(interval.estimate)
    estimate = f"{interval.estimate:+.3f}".replace("-", "\u2212") if signed else _number(interval.estimate)
    return f'{estimate}<span class="range">{_range(interval, signed)}</span>' if math.isfinite(interval.low) else estimate


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _range(interval: Interval, signed: bool = False) -> str:
    if not math.isfinite(interval.low):
        return "no interval"
    form = "+.3f" if signed else ".3f"
    return f"{interval.low:{form}} to {interval.high:{form}}".replace("-", "\u2212")


def _spoken(name: str, interval: Interval, params: Evaluate) -> str:
    if not math.isfinite(interval.estimate):
        return f"{name}: not defined"
    return f"{name} {_number(interval.estimate)}, {_percent(params.confidence)} interval {_range(interval)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"
