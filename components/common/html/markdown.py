"""Markdown for the model card."""

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MARKUP = re.compile(r"[\\`*|~$]|\](?=[(\[:])|(?<!\w)_|_(?!\w)")


def escape(text: Any) -> str:
    """Escapes text, such as the name of a finding, so that it is shown as it is: neither as Markdown nor as HTML."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(" ".join(str(text).split()), quote=False))


def joined(values: Iterable[Any]) -> str:
    """Joins escaped values by commas."""
    return ", ".join(map(escape, values))


def interval(metrics: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """Formats a metric with its interval, as far as they are known."""
    estimate, low, high = (metrics.get(each) for each in (name, f"{name}_low", f"{name}_high"))
    if estimate is None:
        return "not known"
    return f"{estimate:.{digits}f}" + ("" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})")


def counted(metrics: Mapping[str, float | None], rows: Mapping[str, str]) -> str:
    """Tabulates metrics; `rows` says what each of the wanted names counts."""
    values = [(text, metrics.get(name)) for name, text in rows.items()]
    return table(("", "number"), ((text, "not recorded" if value is None else f"{value:g}") for text, value in values))


def listing(values: Mapping[str, Any]) -> str:
    """Joins names and values, escaped: `name value, name value`."""
    return joined(f"{name} {value}" for name, value in values.items())


def table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """Formats a table of escaped cells."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)
