"""What the stages' reports are built of: one self-contained HTML page, and its tables and cards.

The style sheet, page.css, also colours the pictures of charts.py; page.js, where it is asked for, sorts tables. Text is escaped
here only where the docstring says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

SHOWN_DIGITS = 12
"""Of a digest; the whole is in its title."""


def document(title: str, body: Iterable[str], sortable: bool = False) -> str:
    """The page.

    Args:
        title: of the window.
        body: sections; empty ones are left out.
        sortable: whether a click on a table's head sorts it; all else works without scripts.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8") if sortable else ""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title>\n<style>\n{style}</style>"
    content = "\n".join(filter(None, body))
    content += f"\n</main>\n<script>\n{script}</script>\n" if script else "\n</main>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body><main>\n{content}</body>\n</html>\n'


def table(caption: str, heads: Sequence[str], rows: Sequence[str], left: int = 1) -> str:
    """A table.

    Args:
        caption: HTML.
        heads: of the columns, the first that of the rows' names.
        rows: made by `row`.
        left: how many columns, from the first on, hold text rather than numbers: one or two.
    """
    cells = ['<th scope="col" class="left">'] * left + ['<th scope="col">'] * (len(heads) - left)
    cells = [f"{opening}{head}</th>" if head else "<td></td>" for opening, head in zip(cells, heads, strict=True)]
    opening = '<table class="left2">' if left > 1 else "<table>"
    return f"{opening}<caption>{caption}</caption><thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(name: str, cells: Sequence[str], style: str = "") -> str:
    """A row of a table: its name is escaped, its cells are HTML."""
    opening = f'<tr class="{style}">' if style else "<tr>"
    return f'{opening}<th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def entry(name: str, value: str) -> str:
    """A row of a name and a long value."""
    return f'<tr><th scope="row">{name}</th><td class="wrap">{value}</td></tr>'


def card(label: str, number: str, below: str) -> str:
    """A number with what it is and what to know about it."""
    lines = f'<div class="label">{label}</div><div class="number">{number}</div><div class="label interval">{below}</div>'
    return f'<div class="card">{lines}</div>'


def digest(value: str) -> str:
    """The beginning of a digest, escaped."""
    return f'<code title="{escape(value, quote=True)}">{escape(value[:SHOWN_DIGITS])}</code>'


def pairs(values: Mapping[str, object]) -> str:
    """Names and values, escaped."""
    return " ".join(f"<code>{escape(str(name))}={escape(str(value))}</code>" for name, value in values.items())


def plural(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(items: Iterable[str]) -> str:
    """At least one item, with commas and an `and`."""
    *first, last = list(items)
    return f"{', '.join(first)} and {last}" if first else last


def words(name: str) -> str:
    """A file or column name as words."""
    spaced = name.replace("_", " ").replace("-", " ").strip().replace("auroc", "AUROC")
    return spaced[:1].upper() + spaced[1:]
