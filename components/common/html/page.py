"""Renders the Jinja2 templates of the HTML reports.

A template is named by its path below components/, such as classify/report.html; those in templates/ beside this file need no path.
Every template can call the macros in templates/macros.html (`html.table`, ...) and in templates/charts.html (`charts.chart`, ...), and use
the functions of numbers.py as filters.
"""

import math
from base64 import b64encode
from inspect import isfunction
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.common.html import numbers

ENVIRONMENT = Environment(
    loader=FileSystemLoader([Path(__file__).parents[2], Path(__file__).with_name("templates")]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {name: function for name, function in vars(numbers).items() if isfunction(function)}
ENVIRONMENT.filters["tenths"] = "{:.1f}".format
ENVIRONMENT.filters["base64"] = lambda content: b64encode(content).decode()
ENVIRONMENT.tests["finite"] = math.isfinite
ENVIRONMENT.globals["charts"] = ENVIRONMENT.get_template("charts.html").module
ENVIRONMENT.globals["html"] = ENVIRONMENT.get_template("macros.html").module


def render(template: str, **values: Any) -> str:
    """Renders a template to HTML; the same values give the same text."""
    return ENVIRONMENT.get_template(template).render(values)


def render_blocks(template: str, **values: Any) -> list[Markup]:
    """Renders each block of a template on its own, in order; blocks that come out empty are left out."""
    loaded = ENVIRONMENT.get_template(template)
    blocks = [Markup("".join(block(loaded.new_context(values)))) for block in loaded.blocks.values()]  # noqa: S704 (the template escaped the values)
    return [block for block in blocks if block.strip()]
