"""A text in sentences, by rules: what next-sentence prediction needs of a text file."""

from __future__ import annotations

import re
from itertools import pairwise

# Words before a full stop that does not end a sentence.
ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "st", "prof", "rev", "hon", "capt", "col", "gen", "lt", "sgt"),
        *("jr", "sr", "vs", "etc", "no", "vol", "fig", "pp"),
    )
)
# A stop, closing quotes or brackets, white space, and then what can begin a sentence.
_WESTERN = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+\s++(?=[\"'“‘(\[]*+(?:[^\W\d_a-z]|\d))")
_CHINESE = re.compile(r"[。！？]+[”’」』）]*(?=\S)")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each without the white space around it; none is empty.

    Rules and no model: a sentence ends at . ! ? or …, before white space and a capital or a digit,
    unless a common abbreviation or a single letter stands before the full stop; or at 。！？. A
    line break inside a paragraph is a space.
    """
    ends = []
    for match in _WESTERN.finditer(text):
        window = text[max(0, match.start() - 20) : match.end()]  # holds each abbreviation
        word = re.search(r"([^\W\d_]+)\.[\"'”’)\]]*\s*$", window)
        before = word.group(1) if word else ""
        if before.lower() not in ABBREVIATIONS and len(before) != 1:
            ends.append(match.end())
    ends += [match.end() for match in _CHINESE.finditer(text)]
    borders = [0, *sorted(set(ends)), len(text)]
    pieces = (" ".join(text[a:b].split()) for a, b in pairwise(borders))
    return [piece for piece in pieces if piece]
