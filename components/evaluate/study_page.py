"""The page of a study: for each claim plain sentences, a plot and a table; and the same as Markdown."""

import math
from collections.abc import Sequence

from components.common.html import page
from components.common.html.charts import Axis, Chart, Line, nice_axis
from components.common.html.numbers import limits, listing, number, probability, signed
from components.common.runs.params import Evaluate
from components.common.statistics.differences import smallest_p
from components.evaluate.params import Study
from components.evaluate.study import ALWAYS, ENOUGH_SEEDS, LEVEL, NOT_SHOWN, Answer, smallest_effects, verdict
from components.pretrain.params import CONTROLS

STYLES = ("eighth", "sixth", "third", "first", "second", "fourth", "fifth", "seventh")  # classes of page.css, one per arm


def render(answers: Sequence[Answer], study: Study, params: Evaluate) -> str:
    """Renders study.html."""
    return page.render(
        "evaluate/study.html",
        answers=[(one, _sentences(one, study), _difference_axis(one), _plot(one)) for one in answers],
        caveats=caveats(answers, params),
        study=study,
        params=params,
        styles=STYLES,
        always=ALWAYS,
    )


def summary(answers: Sequence[Answer], study: Study, params: Evaluate) -> list[str]:
    """Returns the caveats, and one sentence per claim and verdict, without markup."""
    return [*caveats(answers, params), *(sentence for one in answers for sentence in _sentences(one, study))]


def caveats(answers: Sequence[Answer], params: Evaluate) -> list[str]:
    """Returns sentences about what the study as a whole cannot show."""
    seeds = min(one.seed_count for one in answers)
    comparisons = max(sum(math.isfinite(each.p) for each in one.estimates.values()) for one in answers)
    found = []
    if seeds == 1:
        found.append("One seed: intervals and p-values have the chance of the test patients only, not that of the training.")
    elif seeds < ENOUGH_SEEDS:
        found.append(f"{seeds} seeds: fewer than {ENOUGH_SEEDS} say little about how much trainings vary, so that only large effects show.")
    if comparisons * smallest_p(params.resamples) >= LEVEL:
        needed = f"set evaluate.resamples above {2 * comparisons / LEVEL:.0f}"
        found.append(f"After Holm's correction of {comparisons} comparisons no p-value can be below {LEVEL}: {needed}.")
    return found


def as_text(answers: Sequence[Answer], study: Study, params: Evaluate) -> str:
    """Returns the sentences and tables of the page as Markdown."""
    return "\n".join([*(f"{line}\n" for line in caveats(answers, params)), *(line for one in answers for line in _text(one, study))])


def _text(found: Answer, study: Study) -> list[str]:
    condition = found.claim.condition if found.conditions != (ALWAYS,) else ""
    several = any(len(one.seeds) > 1 for one in found.estimates.values())
    spread = "range over seeds" if several else "interval"
    heads = [
        *([condition] if condition else []),
        "arm",
        f"{found.metric} ({spread})",
        f"minus {study.reference} (interval)",
        "p (Holm)",
        "smallest effect",
    ]
    rows = []
    for one in (found.estimates[condition, arm] for condition in found.conditions for arm in found.arms):
        difference = f"{signed(one.difference.estimate)} ({limits(one.difference, signs=True)})" if one.difference else "–"
        around = f"{number(min(one.seeds))} to {number(max(one.seeds))}" if several else limits(one.interval)
        cells = [one.arm, f"{number(one.mean)} ({around})", difference, probability(one.p_adjusted), number(one.smallest)]
        rows.append([*([one.condition] if condition else []), *cells])
    table = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return [f"### {found.claim.title}", "", *table, "", *(f"- {sentence}" for sentence in _sentences(found, study)), ""]


def _sentences(found: Answer, study: Study) -> list[str]:
    """Says which arms the claim holds for, one sentence per verdict."""
    arms_of: dict[str, list[str]] = {}
    for arm in found.arms:
        if arm not in (study.reference, *CONTROLS):
            arms_of.setdefault(verdict(found, arm), []).append(arm)
    return [
        f"That {listing(arms, 'or')} pretraining {found.claim.statement}, compared with {study.reference}, {said}"
        + (f"; the smallest effect that could be shown is {smallest_effects(found, arms)}." if said == NOT_SHOWN else ".")
        for said, arms in arms_of.items()
    ]


def _plot(found: Answer) -> Chart | None:
    """The metric by condition, one line per arm; conditions are evenly spaced."""
    lines = [
        Line([(float(index), found.estimates[condition, arm].mean) for index, condition in enumerate(found.conditions)], style)
        for style, arm in zip(STYLES, found.arms, strict=False)
    ]
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if len(found.conditions) == 1 or not values:
        return None
    last = len(found.conditions) - 1
    x = Axis(0, last, tuple(map(float, range(last + 1))), found.claim.condition, found.conditions)
    return Chart(lines, x, nice_axis(values, found.metric), width=960, height=320)


def _difference_axis(found: Answer) -> Axis:
    known = [value for one in found.estimates.values() if one.difference for value in one.difference[:3] if math.isfinite(value)]
    return nice_axis([*known, 0.0]) if known else Axis(-1, 1, (-1, 0, 1))
