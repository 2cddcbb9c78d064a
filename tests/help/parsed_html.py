"""A page part taken apart: what a browser would make of a view, without one."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

import nbformat.v4 as v4
from book_tools import hygiene


class Parsed(HTMLParser):
    """Elements with the names of their attributes, comments, scripts, cells of each table."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.comments: list[str] = []
        self.scripts: list[str] = []  # the data of a view stand in the first one
        self.tables: list[list[list[str]]] = []
        self._tag = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attributes))] += 1
        self._tag = tag
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if self._tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self._tag == "script":
            self.scripts[-1] += data


def notebook_problems(html: str, text: str = "View()") -> list[str]:
    """What the hygiene check finds in a notebook that shows this."""
    data = {"text/html": html, "text/plain": text}
    cell = v4.new_code_cell("view", outputs=[v4.new_output("display_data", data)])
    return list(hygiene.measured_problems(v4.new_notebook(cells=[cell])))
