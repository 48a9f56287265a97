import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from components.common.html.markdown import escape, joined, listing, table

NAMES = (
    "Mass", "Pleural_Thickening", "Nodule/Mass", "<b>Mass</b>", "<script>alert(1)</script>", "&lt;i&gt;", "a | b", "**bold**", "_it_",
    "`code`", "[link](http://a.b)", "![x][y]", "a\\*b", "~~gone~~", "No Lung Opacity / Not Normal", "1 < 2 & 3 > 2",
)  # fmt: skip
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(markdown: str) -> tuple[str, set[str]]:
    """Returns the text that a browser would show, and the elements around it."""
    page = RENDERER.render(markdown)
    return unescape(re.sub(r"<[^>]*>", "", page)).strip(), set(re.findall(r"<(\w+)", page))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert shown(escape(name)) == (name, {"p"})
    text, elements = shown(table(("finding", "AUROC"), [(name, "0.5")]))
    assert name in text.splitlines() and elements == {"table", "thead", "tbody", "tr", "th", "td"}


def test_lists_of_names() -> None:
    assert shown(joined(NAMES)) == (", ".join(NAMES), {"p"})
    assert shown(listing({"classes": ["<b>"], "lr": 0.1})) == ("classes ['<b>'], lr 0.1", {"p"})


def test_plain_names_stay_readable() -> None:
    assert escape("Pleural_Thickening 2.0") == "Pleural_Thickening 2.0" and escape("two\nlines") == "two lines"
