"""`report.html`: one file that says how good models are, how sure that is, and where they come from.

Self-contained and the same bytes for the same inputs: no network, no times, no ids, no paths. The headline and the
sections of a head come from its evaluation; comparisons, training curves, figures and provenance are added here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from components.common.formats.history import EPOCH, metrics_of
from components.common.head import Evaluation, HeadOutput
from components.common.html import page
from components.common.html.charts import Chart, Line, nice_axis, whole_axis
from components.common.html.numbers import limits, listing, number
from components.common.runs.params import Evaluate
from components.common.statistics.differences import Difference
from components.common.statistics.intervals import Interval
from components.heads import HEADS


@dataclass(frozen=True)
class Entry:
    """One model of the report."""

    evaluated: Evaluation
    number: int  # within its head, from 1
    prefix: str  # prefix of metric names: detect, detect_2
    baseline: Evaluation | None
    differences: Sequence[Difference]  # from the baseline

    def metrics(self) -> dict[str, float]:
        """The model's metrics and its differences from the baseline, flat."""
        flat = self.evaluated.metrics(self.prefix)
        for difference in self.differences:
            name = f"{self.prefix}_difference_{difference.key}"
            flat |= {name: difference.interval.estimate, f"{name}_low": difference.interval.low, f"{name}_high": difference.interval.high}
            flat |= {f"{name}_p": difference.p, f"{name}_p_holm": difference.p_adjusted}
        return flat

    def headline(self) -> str:
        """The first of the numbers by which models of the head are compared, in words."""
        name, interval = next(iter(self.evaluated.headline().items()))
        return f"{self.prefix}: {name} {number(interval.estimate)} ({limits(interval)})"


def render(entries: Sequence[Entry], params: Evaluate) -> str:
    """Renders report.html; models of one head are shown together, heads in the order in which they first appear."""
    names = list(dict.fromkeys(entry.evaluated.model.head for entry in entries))
    tasks = [[entry for entry in entries if entry.evaluated.model.head == name] for name in names]
    return page.render(
        "evaluate/report.html",
        entries=[entry for models in tasks for entry in models],
        tasks=[(models, _headlines(models)) for models in tasks],
        titles={name: head.title for name, head in HEADS.items()},
        subject=listing(HEADS[name].title for name in names),
        params=params,
        warned=[(entry, warning) for entry in entries for warning in entry.evaluated.warnings()],
        histories={entry.prefix: _history(entry.evaluated.model) for entry in entries},
    )


def _headlines(entries: Sequence[Entry]) -> dict[str, list[Interval | None]]:
    """The headline numbers by name, one per model."""
    headlines = [entry.evaluated.headline() for entry in entries]
    names = dict.fromkeys(name for headline in headlines for name in headline)
    return {name: [headline.get(name) for headline in headlines] for name in names}


def _history(model: HeadOutput) -> list[tuple[str, dict[str, list[float]], Chart]]:
    """The quantities of history.csv: name, columns and chart; training and validation share a chart."""
    quantities: dict[str, dict[str, list[float]]] = {}
    for name, values in metrics_of(model.history).items():
        if any(map(math.isfinite, values)):
            quantities.setdefault(name.removeprefix("val_").removeprefix("train_"), {})[name] = values
    return [(quantity, columns, _history_chart(model, columns)) for quantity, columns in quantities.items()]


def _history_chart(model: HeadOutput, columns: dict[str, list[float]]) -> Chart:
    epochs = model.history.get(EPOCH) or list(range(1, 1 + len(next(iter(columns.values())))))
    y = nice_axis([value for column in columns.values() for value in column if math.isfinite(value)])
    best = model.description.get("best_epoch")
    lines = [Line([(best, y.low), (best, y.high)], "chance")] if best else []
    for name, column in columns.items():
        lines.append(Line(list(zip(epochs, column, strict=True)), "second" if name.startswith("val_") else "first"))
    return Chart(lines, whole_axis(int(max(epochs)), "Epoch"), y, width=310, height=190)
