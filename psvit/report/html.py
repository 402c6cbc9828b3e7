"""Pages of HTML that need no other file: templates, Markdown, and pictures held inside the page."""

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

TEMPLATES = "templates"


def render(template: str, **values: Any) -> str:
    """A page; ``values`` are escaped wherever the template shows them.

    Args:
        template: a file of ``templates/``.
        values: what the template names; a name that is missing is an error.
    """
    return _environment().get_template(template).render(**values)


def from_markdown(text: str) -> Markup:
    """Markdown as HTML, tables included; HTML inside it is shown as text.

    The first heading is left out and the others are those of a section's parts: the page has its
    own headings. Pictures are left out, for the same reason.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", lambda *_: "")
    parser.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    if tokens and tokens[0].type == "heading_open":
        tokens = tokens[3:]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h3"
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def picture(path: Path) -> str:
    """An SVG file as an address that holds the picture itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def width(path: Path) -> int:
    """How wide an SVG file of matplotlib was drawn, in CSS pixels."""
    with path.open() as file:
        points = next(
            re.findall(r'<svg .*width="([\d.]+)pt"', line) for line in file if "<svg " in line
        )
    return round(float(points[0]) * 4 / 3)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("psvit.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": picture, "width": width}
    return environment
