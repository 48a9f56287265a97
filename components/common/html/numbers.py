"""Numbers and lists as text: a typographic minus, a dash for undefined values. The templates use these functions as filters."""

import math
from collections.abc import Iterable, Sequence

UNDEFINED = "–"


def number(value: float) -> str:
    """Formats with three decimals."""
    return f"{value:.3f}".replace("-", "\u2212") if math.isfinite(value) else UNDEFINED


def signed(value: float) -> str:
    """Formats a difference: three decimals and a sign."""
    return f"{value:+.3f}".replace("-", "\u2212") if math.isfinite(value) else UNDEFINED


def probability(value: float) -> str:
    """Formats a p-value."""
    return "< 0.001" if value < 0.001 else number(value)


def limits(interval: Sequence[float], signs: bool = False) -> str:
    """Formats an interval (estimate, low, high, ...) as `low to high`."""
    low, high = map(signed if signs else number, interval[1:3])
    return "no interval" if low == UNDEFINED else f"{low} to {high}"


def percent(fraction: float) -> str:
    """Formats with up to four digits: `95 %`."""
    return f"{100 * fraction:.4g} %"


def share(fraction: float) -> str:
    """Formats with one decimal: `95.0 %`."""
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else UNDEFINED


def decibels(value: float) -> str:
    """Formats with one decimal and the unit."""
    return f"{value:.1f} dB" if math.isfinite(value) else UNDEFINED


def thousands(count: int) -> str:
    """Formats with a comma between groups of three digits."""
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """Formats a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(items: Iterable[str], conjunction: str = "and") -> str:
    """Joins one or more items with commas and, before the last, a conjunction."""
    *first, last = list(items)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def words(name: str) -> str:
    """Turns a file or column name into words."""
    return capital(name.replace("_", " ").replace("-", " ").strip().replace("auroc", "AUROC"))


def capital(text: str) -> str:
    """Capitalizes the first letter and keeps the others."""
    return text[:1].upper() + text[1:]
