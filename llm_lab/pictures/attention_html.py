"""The HTML of the interactive attention view: codes for the weights, and the table of the start.

The markup is the same on each machine; what a model has measured stands in one block between the
`measured` markers.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llm_course.shapes import Float, Int
from llm_lab.pictures.measured import measured_html
from llm_lab.pictures.page_part import folded, html_table, json_script, page_part, visible

MASKED = "–"  # in a table; in the page the pattern says it too


def hundredths(weights: Sequence[Float[Tensor, "H T S"]]) -> Int[Tensor, "L H T S"]:
    """A number up to 101 for each weight: 0 where it is exactly 0 (masked), else 1 + hundredths."""
    values = torch.stack(list(weights))
    codes = (values * 100).round().int() + 1
    return codes.where(values > 0, torch.zeros_like(codes))


def number(code: int) -> str:
    return MASKED if code == 0 else f"{(code - 1) / 100:.2f}"


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
    return html_table(caption, ["token", *columns], _rows(codes, head, queries, keys))


def attention_part(
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
    spec = {"queries": queries, "keys": keys, "layers": len(codes), "heads": codes.shape[1]}
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
    note = "Where scripts run, this is an interactive view. The table shows how it begins."
    parts = [
        json_script("llm-av-spec", spec),
        folded("llm-av", "The numbers as a table", measured, opened=True),
    ]
    return page_part("attention", "llm-av", title, note=note, parts=parts)
