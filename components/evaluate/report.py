"""`report.html`: one file that says how good models are, how sure that is, and where they come from.

Self-contained and the same bytes for the same inputs: no network, no times, no ids, no paths. What is said of a task is the
task's; here stand the frame, the comparisons, training curves, pictures and provenance.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from components.common.head import Evaluated
from components.common.html import page
from components.common.html.charts import Line, chart, nice_axis, whole_axis
from components.common.html.numbers import cell, percent, probability
from components.common.runs.params import Evaluate
from components.common.statistics.differences import Difference
from components.common.training.progress import VOLATILE
from components.evaluate.predictions import Model

TITLES = {"classify": "Classification of findings", "detect": "Detection of findings", "invert": "GAN inversion"}
LEGEND = {"first": "training", "second": "validation"}


@dataclass(frozen=True)
class Entry:
    """One model of the report."""

    evaluated: Evaluated
    number: int
    """Within its task, from 1 on."""
    prefix: str
    """Of its metrics: detect, detect_2."""
    baseline: Evaluated | None
    differences: Sequence[Difference]
    """To the baseline."""

    def metrics(self) -> dict[str, float]:
        """Of the model, and its differences."""
        flat = self.evaluated.metrics(self.prefix)
        for difference in self.differences:
            name = f"{self.prefix}_difference_{difference.key}"
            flat |= {name: difference.interval.estimate, f"{name}_low": difference.interval.low, f"{name}_high": difference.interval.high}
            flat |= {f"{name}_p": difference.p, f"{name}_p_holm": difference.p_adjusted}
        return flat


def render(entries: Sequence[Entry], params: Evaluate) -> str:
    """The report as HTML.

    Args:
        entries: one a model.
        params: how the intervals were made.
    """
    tasks = [list(group) for _, group in groupby(sorted(entries, key=_task_order(entries)), lambda entry: entry.evaluated.model.task)]
    body = [_header(tasks), _warnings(entries)]
    for group in tasks:
        body += [_side_by_side(group, params)] if len(group) > 1 else []
        for entry in group:
            body += [f'<h2 class="model" id="{entry.prefix}">{_title(entry)}</h2>'] if len(entries) > 1 else []
            headline, *sections = entry.evaluated.sections()
            body += [headline, _differences(entry, params), *sections]
            body += [_training(entry.evaluated.model), _pictures(entry.evaluated.model), _provenance(entry.evaluated.model)]
    body.append(_method(entries, params))
    return page.document("Evaluation: chest radiographs", body, sortable=True)


def _task_order(entries: Sequence[Entry]) -> Any:
    """A key that brings models of a task together, tasks in the order in which they first come."""
    order = list(dict.fromkeys(entry.evaluated.model.task for entry in entries))
    return lambda entry: order.index(entry.evaluated.model.task)


def _header(tasks: list[list[Entry]]) -> str:
    names = [TITLES[group[0].evaluated.model.task] for group in tasks]
    subject = names[0] if len(names) == 1 else page.listing([names[0], *(name[:1].lower() + name[1:] for name in names[1:])])
    several = sum(map(len, tasks)) > 1
    lead = f"How well {'these models do' if several else 'this model does'} on chest radiographs of patients new to "
    lead += f"{'them' if several else 'it'}, and how sure that is."
    links = ", ".join(f'<a href="#{entry.prefix}">{_title(entry)}</a>' for group in tasks for entry in group) if several else ""
    return f'<header><h1>{subject.replace("gAN", "GAN")}</h1><p class="lead">{lead}</p>{f"<p>{links}</p>" if links else ""}</header>'


def _title(entry: Entry) -> str:
    return escape(f"{TITLES[entry.evaluated.model.task]}, model {entry.number}: {_description(entry.evaluated.model)}")


def _description(model: Model) -> str:
    """Architecture, start and labels of a model, in words."""
    start = "pretrained" if "backbone" in model.record.get("inputs", {}) else "from scratch"
    start += ", linear probe" if model.description.get("mode") == "linear" else ""
    fraction = model.record.get("params", {}).get("label_fraction", 1)
    share = f", {percent(fraction)} of the labels" if fraction != 1 else ""
    return f"{model.description.get('arch', 'unknown')}, {start}{share}"


def _warnings(entries: Sequence[Entry]) -> str:
    """What the numbers below cannot say."""
    found = [(entry, warning) for entry in entries for warning in entry.evaluated.warnings()]
    if not found:
        return ""
    items = [
        f"<li>{escape(f'{_title(entry)}: {text}' if len(entries) > 1 else text[:1].upper() + text[1:])}.</li>" for entry, text in found
    ]
    return f'<section class="note"><h2>Too few to judge</h2><ul>{"".join(items)}</ul></section>'


def _side_by_side(group: Sequence[Entry], params: Evaluate) -> str:
    headlines = [entry.evaluated.headline() for entry in group]
    names = dict.fromkeys(name for headline in headlines for name in headline)
    rows = [page.row(name, [cell(headline[name]) if name in headline else "–" for headline in headlines]) for name in names]
    heads = [f'<a href="#{entry.prefix}">Model {entry.number}</a>' for entry in group]
    models = "; ".join(f"model {entry.number}: {escape(_description(entry.evaluated.model))}" for entry in group)
    text = (
        f"{models[:1].upper()}{models[1:]}. Overlapping intervals do not mean that models are alike: a difference is judged by --baseline."
    )
    table = page.table(f"Test split, with {percent(params.confidence)} intervals.", ["Number", *heads], rows)
    title = TITLES[group[0].evaluated.model.task]
    return f'<section><h2>{title}: side by side</h2><p>{text}</p><div class="card scroll">{table}</div></section>'


def _differences(entry: Entry, params: Evaluate) -> str:
    """The model beside its baseline."""
    if entry.baseline is None:
        return ""
    rows = [_difference_row(entry, entry.baseline, difference) for difference in entry.differences]
    text = (
        f"The baseline is {escape(_description(entry.baseline.model))}. Each difference is taken within each resample, so that what makes "
        "images hard for both models cancels out: it can be certain where the models' own intervals overlap. p is two-sided: twice the "
        "share of resamples on the other side of no difference, one resample added to either. Adjusted: by Holm's method over the rows "
        "that belong together, a macro average alone."
    )
    heads = ["Number", "Difference to the baseline", "p", "Adjusted p"]
    table = page.table(f"Model minus baseline on the same test images, with {percent(params.confidence)} intervals.", heads, rows)
    return f'<section><h2>Beside the baseline</h2><p>{text}</p><div class="card scroll">{table}</div></section>'


def _difference_row(entry: Entry, baseline: Evaluated, difference: Difference) -> str:
    p = [probability(value) for value in (difference.p, difference.p_adjusted)]
    return page.row(difference.name, [cell(difference.interval, signs=True), *map(escape, p)])


def _training(model: Model) -> str:
    """A chart for each quantity of history.csv; those of train and validation share one."""
    history = {name: values for name, values in model.history.items() if name != "epoch" and name not in VOLATILE}
    groups: dict[str, dict[str, list[float]]] = {}
    for name, values in history.items():
        if any(map(math.isfinite, values)):
            groups.setdefault(name.removeprefix("val_").removeprefix("train_"), {})[name] = values
    cards = [_training_card(model, group, columns) for group, columns in groups.items()]
    if not cards:
        return ""
    best = model.description.get("best_epoch")
    text = f"Epoch {best} was chosen, the best on the validation split (dashed)." if best else ""
    return f'<section><h2>Training</h2><p>{text}</p><div class="grid-3">{"".join(cards)}</div></section>'


def _training_card(model: Model, group: str, columns: dict[str, list[float]]) -> str:
    epochs = model.history.get("epoch") or list(range(1, 1 + len(next(iter(columns.values())))))
    values = [value for column in columns.values() for value in column if math.isfinite(value)]
    y = nice_axis(values)
    best = model.description.get("best_epoch")
    lines = [Line([(best, y.low), (best, y.high)], "chance")] if best else []
    # Validation keeps its colour whether or not there is a curve of training beside it.
    styles = {name: "second" if name.startswith("val_") else "first" for name in columns}
    lines += [Line(list(zip(epochs, column, strict=True)), styles[name]) for name, column in columns.items()]
    label = f"{', '.join(columns)} by epoch, from {values[0]:.4g} to {values[-1]:.4g}"
    picture = chart(label, lines, whole_axis(int(max(epochs)), "Epoch"), y, size=(310, 190))
    legend = " &nbsp; ".join(f'<span class="key {style}"></span>{LEGEND[style]}' for style in styles.values())
    return f'<figure class="card"><h3>{escape(page.words(group))}</h3>{picture}<figcaption>{legend}</figcaption></figure>'


def _pictures(model: Model) -> str:
    cards = []
    for name, content in model.figures.items():
        words = escape(page.words(Path(name).stem), quote=True)
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        cards.append(f'<figure class="card"><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>')
    return f'<section><h2>Pictures</h2><div class="grid-2">{"".join(cards)}</div></section>' if cards else ""


def _provenance(model: Model) -> str:
    """Code, inputs and parameters that the model was made with, as its run.json and model.json tell."""
    record, description = model.record, model.description
    rows = [page.entry("Code", _code(record)), page.entry("Network", escape(_network(description)))]
    inputs = sorted(record.get("inputs", {}).items())
    rows += [page.entry(f"Input of training: {escape(name)}", page.digest(value)) for name, value in inputs]
    rows += [page.entry("Weights", page.digest(description["sha256"]))] if "sha256" in description else []
    rows.append(page.entry("Predictions evaluated", page.digest(model.digests["predictions"])))
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


def _network(description: dict[str, Any]) -> str:
    parts = [str(description.get("arch", "unknown"))]
    parts += [f"images of {description['size']} pixels"] if "size" in description else []
    parts += [f"{description['bits']} bits a pixel"] if "bits" in description else []
    return ", ".join(parts)


def _method(entries: Sequence[Entry], params: Evaluate) -> str:
    """How the intervals were made."""
    level = percent(params.confidence)
    text = (
        f"The test patients were drawn with replacement {params.resamples:,} times (seed {params.seed}), each bringing all of its "
        "images, since images of one patient resemble each other. Every metric was computed on each resample; the "
        f"{level} interval runs between the percentiles {100 * (1 - params.confidence) / 2:.4g} and "
        f"{100 * (1 + params.confidence) / 2:.4g} of the results. It speaks of other patients from the same source, not of other "
        "hospitals, and not of how training again would vary."
    )
    return f"<section><h2>How the intervals were made</h2><p>{text}</p></section>"
