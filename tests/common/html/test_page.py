from pathlib import Path

import pytest
from jinja2 import UndefinedError

from components.common.html.page import ENVIRONMENT, render_blocks

ROOT = Path(__file__).parents[3] / "components"


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Path of a template that ENVIRONMENT loads as test.html."""
    monkeypatch.setattr(ENVIRONMENT.loader, "searchpath", [*ENVIRONMENT.loader.searchpath, str(tmp_path)])
    monkeypatch.setattr(ENVIRONMENT, "cache", None)
    return tmp_path / "test.html"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.html")), ids=lambda path: path.name)
def test_every_template_compiles(path: Path) -> None:
    ENVIRONMENT.get_template(str(path.relative_to(ROOT)))


def test_values_are_escaped_and_markup_of_macros_is_not(template: Path) -> None:
    template.write_text('{% block one %}{{ html.row(name, [html.code("<")]) }}{% endblock %}')
    (block,) = render_blocks("test.html", name='<b> "x"')
    assert block == '<tr><th scope="row">&lt;b&gt; &#34;x&#34;</th><td><code>&lt;</code></td></tr>\n'


def test_blocks_come_in_order_without_the_empty_ones(template: Path) -> None:
    template.write_text("{% block z %}1{% endblock %} {% block y %} {% endblock %} {% block a %}{{ two }}{% endblock %}")
    assert render_blocks("test.html", two=2) == ["1", "2"]


def test_a_missing_value_is_an_error(template: Path) -> None:
    template.write_text("{% block one %}{{ missing }}{% endblock %}")
    with pytest.raises(UndefinedError, match="missing"):
        render_blocks("test.html")
