"""The page of a study: for each claim a plain sentence, a plot and a table."""

import math
from collections.abc import Sequence
from html import escape

from components.common.html import page
from components.common.html.charts import Axis, Line, chart, nice_axis
from components.common.html.forest import scale, strip
from components.common.html.numbers import cell, limits, number, percent, probability, signed, spoken
from components.common.runs.params import Evaluate
from components.evaluate.params import Study
from components.evaluate.study import ALWAYS, Answer, Estimate, verdict

STYLES = ("third", "first", "second", "fourth", "fifth", "sixth", "seventh")
"""Of the style sheet, one an arm."""
SCRATCH = "scratch"


def render(answers: Sequence[Answer], study: Study, evaluate: Evaluate) -> str:
    """The page as HTML."""
    reference = f"<code>{escape(study.reference)}</code>"
    lead = f"Which claims of the paper hold on this cohort. Each arm is compared with {reference} on the same test patients."
    header = f'<header><h1>Does IFA pretraining help?</h1><p class="lead">{lead}</p></header>'
    return page.document(
        "Study: chest radiographs", [header, *(_section(one, study) for one in answers), _method(study, evaluate)], sortable=True
    )


def summary(answers: Sequence[Answer], study: Study) -> list[str]:
    """A sentence for each claim and arm, without markup."""
    return [sentence for one in answers for sentence in _sentences(one, study)]


def as_text(answers: Sequence[Answer], study: Study) -> str:
    """The page's sentences and tables as Markdown, to be quoted."""
    return "\n".join(line for one in answers for line in _text(one, study))


def _text(found: Answer, study: Study) -> list[str]:
    condition = found.claim.condition
    several = any(len(one.seeds) > 1 for one in found.estimates.values())
    spread = "range over seeds" if several else "interval"
    heads = [*([condition] if condition else []), "arm", f"{found.metric} ({spread})", f"minus {study.reference} (interval)", "p (Holm)"]
    rows = []
    for one in (found.estimates[condition, arm] for condition in found.conditions for arm in found.arms):
        difference = f"{signed(one.difference.estimate)} ({limits(one.difference, signs=True)})" if one.difference else "–"
        around = f"{number(min(one.seeds))} to {number(max(one.seeds))}" if several else limits(one.interval)
        cells = [one.arm, f"{number(one.mean)} ({around})", difference, probability(one.p_adjusted)]
        rows.append([*([one.condition] if condition else []), *cells])
    table = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return [f"### {found.claim.title}", "", *table, "", *(f"- {sentence}" for sentence in _sentences(found, study)), ""]


def _section(found: Answer, study: Study) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in _sentences(found, study))
    picture = _lines(found) if len(found.conditions) > 1 else ""
    table = f'<div class="card scroll">{_table(found, study)}</div>'
    return f"<section><h2>{escape(found.claim.title)}</h2><ul>{sentences}</ul>{picture}{table}</section>"


def _sentences(found: Answer, study: Study) -> list[str]:
    arms = [arm for arm in found.arms if arm not in (study.reference, SCRATCH)]
    return [f"That {arm} pretraining {found.claim.statement}, compared with {study.reference}, {verdict(found, arm)}." for arm in arms]


def _lines(found: Answer) -> str:
    """The metric over the condition, a line an arm; the conditions are spaced evenly."""
    places = {condition: float(index) for index, condition in enumerate(found.conditions)}
    lines, keys, told = [], [], []
    for style, arm in zip(STYLES, found.arms, strict=False):
        of_arm = [found.estimates[condition, arm] for condition in found.conditions]
        lines.append(Line([(places[one.condition], one.mean) for one in of_arm], style))
        keys.append(f'<span class="key {style}"></span>{escape(arm)}')
        told.append(f"{arm}: " + ", ".join(f"{number(one.mean)} at {one.condition}" for one in of_arm))
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if not values:
        return ""
    x = Axis(0, len(places) - 1, tuple(places.values()), found.claim.condition, tuple(found.conditions))
    picture = chart("; ".join(told), lines, x, nice_axis(values, found.metric), size=(960, 320))
    return f'<figure class="card">{picture}<figcaption>{" &nbsp; ".join(keys)}</figcaption></figure>'


def _table(found: Answer, study: Study) -> str:
    ordered = [found.estimates[condition, arm] for condition in found.conditions for arm in found.arms]
    known = [value for one in ordered if one.difference for value in one.difference[:3] if math.isfinite(value)]
    axis = nice_axis([*known, 0.0]) if known else Axis(-1, 1, (-1, 0, 1))
    caption = f"{escape(found.metric)} on the test split: the mean over seeds and their range; the difference to "
    caption += f"{escape(study.reference)} with its interval."
    heads = [
        found.claim.condition.capitalize() or "Condition",
        "Arm",
        escape(found.metric),
        "Difference",
        scale("axis of the differences", axis),
        "p (Holm)",
    ]
    rows = [_row(one, axis, study) for one in ordered]
    if found.conditions == (ALWAYS,):
        heads, rows = heads[1:], [_row(one, axis, study, conditions=False) for one in ordered]
        return page.table(caption, heads, rows)
    return page.table(caption, heads, rows, left=2)


def _row(one: Estimate, axis: Axis, study: Study, conditions: bool = True) -> str:
    spread = f'<span class="range">{number(min(one.seeds))} to {number(max(one.seeds))}</span>' if len(one.seeds) > 1 else ""
    compared = ["–", "", "–"]
    if one.difference:
        label = spoken(f"{one.arm} minus {study.reference}", one.difference, 0.95)
        compared = [cell(one.difference, signs=True), strip(label, one.difference, axis, 0.0), probability(one.p_adjusted)]
    cells = [f"{number(one.mean)}{spread}", *compared]
    return page.row(one.condition, [escape(one.arm), *cells]) if conditions else page.row(one.arm, cells)


def _method(study: Study, evaluate: Evaluate) -> str:
    return (
        f"<footer><p>Seeds: {page.listing(map(str, study.seeds))}; each pretrains, and trains, anew. Intervals: "
        f"{percent(evaluate.confidence)}, percentile bootstrap of {evaluate.resamples:,} resamples of the test patients, the same for both "
        "of a pair, differences averaged over seeds; they speak of other patients of this cohort, and the range over seeds of another "
        "training. p-values: two-sided, from the same resamples, Holm over all comparisons of a claim. An arm is called better or worse "
        "where p is below 0.05.</p></footer>"
    )
