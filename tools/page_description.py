"""Sphinx extension: a page's first paragraph becomes its meta description."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LENGTH = 160  # characters; search engines cut longer descriptions


def description(document: nodes.document) -> str:
    """The first paragraph with a full sentence, cut at a word; pictures and badges do not count."""
    for paragraph in document.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) >= 40 and not isinstance(paragraph.parent, nodes.footnote):
            return text if len(text) <= LENGTH else text[:LENGTH].rsplit(" ", 1)[0] + " …"
    return ""


def add_description(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    text = description(document) if document is not None else ""
    if text and 'name="description"' not in context.get("metatags", ""):
        escaped = escape(text)
        context["metatags"] = (
            context.get("metatags", "") + f'\n<meta name="description" content="{escaped}" />'
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_description)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
