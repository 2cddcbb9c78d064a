"""What the views on a page share: text that is never markup, tables, one element with its script.

Styles and script stand in the output itself, so that it works alike in a page of the book, in
JupyterLab and in the frame of a Colab output. Nothing has an id: two views, even of the same
tokens, cannot collide.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from html import escape
from importlib.resources import files

LONGEST_TOKEN = 40  # characters that are shown; the rest is an ellipsis
SHOWN = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}  # categories that a page does not show
JOINERS = "\u200c\u200d"  # Persian and emoji need them inside a token


def visible(token: str) -> str:
    """The token as text that can be seen: blanks and controls by a sign or by their number."""
    shown = []
    for i, char in enumerate(token[: LONGEST_TOKEN + 1]):
        inside = 0 < i < len(token) - 1
        if char in SHOWN:
            shown.append(SHOWN[char])
        elif unicodedata.category(char) in UNSEEN and not (char in JOINERS and inside):
            shown.append(f"⟨U+{ord(char):04X}⟩")
        else:
            shown.append(char)
    if shown and unicodedata.combining(token[0]):
        shown.insert(0, "◌")  # a mark needs something to stand on
    text = "".join(shown)
    if len(text) > LONGEST_TOKEN:
        text = text[: LONGEST_TOKEN - 1] + "…"
    return text or "∅"


def json_script(name: str, value: object) -> str:
    """Data for the script; no character of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return f'<script type="application/json" class="{name}">{text}</script>'


def html_table(
    caption: str, columns: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]], name: str = ""
) -> str:
    """A table whose first column names the rows; `name` is its class, `caption` is markup."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for row, cells in rows
    )
    start = f'<table class="{name}">' if name else "<table>"
    return (
        f"{start}<caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def folded(prefix: str, summary: str, content: str, *, opened: bool) -> str:
    """What a view shows on demand, or from the start, under a line that opens and closes it."""
    return (
        f'<details class="{prefix}-details"{" open" if opened else ""}>'
        f"<summary>{summary}</summary>\n"
        f'<div class="{prefix}-scroll" role="region" aria-label="{summary}" '
        f'tabindex="0">{content}</div></details>'
    )


def page_part(view: str, prefix: str, title: str, *, note: str, parts: Iterable[str]) -> str:
    """The whole view as one HTML element, its style and script from `{view}_view.css` and `.js`.

    `prefix` begins its classes; `note` is read where no script runs.
    """
    read = files("llm_lab.pictures").joinpath
    style, script = (read(f"{view}_view.{t}").read_text(encoding="utf-8") for t in ("css", "js"))
    name = f"{view.capitalize()} view" + (f": {title}" if title else "")
    lines = [
        f'<div class="{prefix} mathjax_ignore tex2jax_ignore" role="group" '
        f'aria-label="{escape(name)}">',
        f"<style>\n{style}</style>",
        *([f'<p class="{prefix}-title">{escape(title)}</p>'] if title else []),
        f'<p class="{prefix}-note">{note}</p>',
        *parts,
        f"<script>\n{script}</script>",
        "</div>",
    ]
    return "\n".join(lines)
