"""The HTML of the interactive attention view: text that is never markup, numbers, one page part.

The markup is the same on each machine; what a model has measured stands in one block between the
`measured` markers. Styles and script stand in the output itself, so that it works alike in a page
of the book, in JupyterLab and in the frame of a Colab output. Nothing has an id: two views, even of
the same tokens, cannot collide.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

import torch
from torch import Tensor

from llm_course.shapes import Float, Int
from llm_lab.pictures.measured import measured_html

LONGEST_TOKEN = 40  # characters that are shown; the rest is an ellipsis
SHOWN = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}  # categories that a page does not show
JOINERS = "\u200c\u200d"  # Persian and emoji need them inside a token
MASKED = "–"  # in a table; in the page the pattern says it too


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


def hundredths(weights: Sequence[Float[Tensor, "H T S"]]) -> Int[Tensor, "L H T S"]:
    """A number up to 101 for each weight: 0 where it is exactly 0 (masked), else 1 + hundredths."""
    values = torch.stack(list(weights))
    codes = (values * 100).round().int() + 1
    return codes.where(values > 0, torch.zeros_like(codes))


def number(code: int) -> str:
    return MASKED if code == 0 else f"{(code - 1) / 100:.2f}"


def json_script(name: str, value: object) -> str:
    """Data for the script; no character of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return f'<script type="application/json" class="{name}">{text}</script>'


def _rows(
    codes: Int[Tensor, "H T S"], head: int | None, queries: Sequence[str], keys: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """The name and the cells of each row of the table."""
    for t, query in enumerate(queries):
        if head is None:
            best = codes[:, t].argmax(-1).tolist()
            cells = [f"{keys[s]} {number(int(codes[h, t, s]))}" for h, s in enumerate(best)]
        else:
            cells = [number(code) for code in codes[head, t].tolist()]
        yield query, cells


def table(
    codes: Int[Tensor, "H T S"],
    layer: int,
    head: int | None,
    queries: Sequence[str],
    keys: Sequence[str],
) -> str:
    """What the view shows at its start; the script writes the same table for other choices."""
    if head is None:
        caption = f"Layer {layer}: the token that each head looks at most, and its weight."
        columns = [f"head {h}" for h in range(len(codes))]
    else:
        caption = (
            f"Layer {layer}, head {head}: the weight that each token (row) gives to each token "
            f"(column). {MASKED} means masked."
        )
        columns = list(keys)
    names = "".join(f'<th scope="col">{escape(c)}</th>' for c in ["token", *columns])
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in _rows(codes, head, queries, keys)
    )
    return (
        f"<table><caption>{caption}</caption><thead><tr>{names}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def page_part(
    weights: Sequence[Float[Tensor, "H T S"]],
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None,
    layer: int,
    head: int | None,
    title: str,
) -> str:
    """The whole view as one HTML element with its own style and script."""
    queries = [visible(token) for token in tokens]
    keys = None if key_tokens is None else [visible(token) for token in key_tokens]
    codes = hundredths(weights)
    spec = {
        "queries": queries,
        "keys": keys,
        "layers": len(codes),
        "heads": codes.shape[1],
    }
    # A head that a measure has found may be another one on another machine.
    start = {
        "layer": layer,
        "head": head,
        "codes": base64.b64encode(bytes(codes.flatten().tolist())).decode(),
    }
    measured = measured_html(
        json_script("llm-av-weights", start)
        + table(codes[layer], layer, head, queries, queries if keys is None else keys)
    )
    return _frame(title, json_script("llm-av-spec", spec), measured)


def _frame(title: str, spec: str, measured: str) -> str:
    here = files("llm_lab.pictures")
    style = here.joinpath("attention_view.css").read_text(encoding="utf-8")
    script = here.joinpath("attention_view.js").read_text(encoding="utf-8")
    name = "Attention view" + (f": {title}" if title else "")
    heading = f'<p class="llm-av-title">{escape(title)}</p>\n' if title else ""
    return (
        '<div class="llm-av mathjax_ignore tex2jax_ignore" role="group" '
        f'aria-label="{escape(name)}">\n'
        f"<style>\n{style}</style>\n"
        f"{heading}"
        '<p class="llm-av-note">Where scripts run, this is an interactive view. '
        "The table shows how it begins.</p>\n"
        f"{spec}\n"
        '<details class="llm-av-details" open><summary>The numbers as a table</summary>\n'
        '<div class="llm-av-scroll" role="region" aria-label="The numbers as a table" '
        f'tabindex="0">{measured}</div></details>\n'
        f"<script>\n{script}</script>\n"
        "</div>"
    )
