"""Pieces of the model card."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.register.candidate import Candidate


def interval(metrics: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """A metric with the ends of its interval, as far as they are known."""
    estimate, low, high = (metrics.get(each) for each in (name, f"{name}_low", f"{name}_high"))
    if estimate is None:
        return "not known"
    return f"{estimate:.{digits}f}" + ("" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})")


def counted(candidate: "Candidate", rows: Mapping[str, str]) -> str:
    """Numbers of the training's and of the evaluation's metrics.json, by what they count."""
    values = {name: candidate.training.get(name, candidate.metrics.get(name)) for name in rows}
    shown = {name: "not recorded" if value is None else f"{value:g}" for name, value in values.items()}
    return table(("", "number"), ((text, shown[name]) for name, text in rows.items()))


def listing(values: Mapping[str, Any]) -> str:
    """`name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """Of a header and rows."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
