"""Weights and tokens for the tests of the attention view, among them 40 hostile tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_lab.pictures.attention import AttentionView, attention_view

WORDS = ["<s>", "the", "baker", "sold", "warm", "bread", "\n", " she"]
SOURCE = ["the", "old", "baker", "sold", "bread"]
TARGET = ["玛", "拉", "</s>"]

HOSTILE = [
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 1</script>",
    "</SCRIPT\n>",
    "<img src=x onerror='window.broken = 1'>",
    '"><img src=x onerror="window.broken = 1">',
    "' onmouseover='window.broken = 1",
    '" autofocus onfocus="window.broken = 1',
    "<svg/onload=window.broken=1>",
    "<b>bold</b>",
    "</table></div></details>",
    "</td><td colspan=9>",
    "</th>",
    "</style>",
    "<style>* { display: none }</style>",
    "</textarea></title></noscript>",
    "<!--",
    "-->",
    "<!-- measured -->",
    "<!-- /measured -->",
    "--- measured ---",
    "<![CDATA[x]]>",
    "<?php echo 1 ?>",
    "<!doctype html>",
    "<base href=//example.org>",
    "<iframe src=javascript:window.broken=1>",
    "&lt;b&gt;",
    "&amp;&#60;b&#62;",
    "&quot;",
    "\u2028",
    "\u2029\u0085",
    "\u202eevil\u202c",
    "\u2066a\u2069\u200f",
    "\0",
    "a\0b\x1b\x08",
    "\ud800",
    "\\u003c/script\\u003e",
    "${window.broken = 1}`",
    "$$\\href{javascript:window.broken=1}{x}$$ \\(x\\)",
    "x" * 5000,
    "",
]


def random_weights(
    layers: int, heads: int, queries: int, keys: int, *, causal: bool = False, seed: int = 0
) -> list[Tensor]:
    """Two rows of a batch, so that a view which shows the wrong one is found."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, 2, heads, queries, keys, generator=generator) * 2
    if causal:
        scores = scores.masked_fill(torch.ones(queries, keys).triu(1).bool(), -torch.inf)
    return list(scores.softmax(-1))


def causal_view(seed: int = 0, title: str = "Causal") -> AttentionView:
    weights = random_weights(2, 3, len(WORDS), len(WORDS), causal=True, seed=seed)
    return attention_view(weights, WORDS, title=title, row=1)


def cross_view(seed: int = 0) -> AttentionView:
    weights = random_weights(2, 4, len(TARGET), len(SOURCE), seed=seed)
    return attention_view(weights, TARGET, key_tokens=SOURCE, title="Cross", layer=1)


def hostile_view(tokens: list[str] | None = None, *, head: int | None = None) -> AttentionView:
    tokens = HOSTILE if tokens is None else tokens
    weights = random_weights(1, 2, len(tokens), len(tokens))
    return attention_view(weights, tokens, title=tokens[3], head=head)
