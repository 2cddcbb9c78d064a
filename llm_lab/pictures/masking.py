"""A text as BERT reads it, and a button that masks it again; the first masking needs no script.

Everything that the view shows is written here, for a first masking that the package draws from a
fixed seed; the script draws the next ones by the same rule. The output is self-contained, the same
on each machine, and tokens in it are text, never markup (`page_part`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch

from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import CHOSEN, MASKED, REPLACED, Masking
from llm_lab.pictures.page_part import folded, html_table, json_script, page_part, visible

NOT_CHOSEN, AS_MASK, AS_RANDOM, AS_IS = 0, 1, 2, 3
MASK = "[MASK]"
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", MASK)  # never chosen and never put in
NAMES = {AS_MASK: MASK, AS_RANDOM: "random token", AS_IS: "unchanged"}
NO_LABEL = "–"
LONGEST = 200  # tokens of a text


@dataclass(frozen=True)
class MaskingView:
    """The view as a notebook shows it; `repr` is its text form."""

    tokens: tuple[str, ...]
    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"MaskingView({len(self.tokens)} tokens)"


@dataclass(frozen=True)
class Shown:
    """One token of a masking: what stands in the text, what the model reads, and why."""

    token: str
    reads: str
    how: int
    special: bool

    @property
    def label(self) -> str:
        return NO_LABEL if self.how == NOT_CHOSEN else self.token


def masking_view(
    tokens: Sequence[str],
    vocabulary: Sequence[str],
    *,
    seed: int = 0,
    title: str = "",
) -> MaskingView:
    """A text masked by BERT's rule, to be masked again with a button; Devlin et al. 2019, §3.1.

    Args:
        tokens: the text as tokens, with [CLS] and [SEP].
        vocabulary: where random tokens are drawn from; those of `SPECIAL` are left out.

    Raises:
        ValueError: a text that is empty, too long, or has only special tokens.
    """
    if not 0 < len(tokens) <= LONGEST:
        raise ValueError(f"tokens must be from 1 to {LONGEST}, got {len(tokens)}")
    ordinary = [t for t in dict.fromkeys([*vocabulary, *tokens]) if t not in SPECIAL]
    if all(token in SPECIAL for token in tokens):
        raise ValueError(f"tokens must hold one that is not special, got {list(tokens)}")
    first = _first_masking(tokens, ordinary, seed)
    spec = {
        "tokens": [visible(token) for token in tokens],
        "special": [shown.special for shown in first],
        "vocabulary": [visible(token) for token in ordinary],
        "mask": visible(MASK),
        "shares": [CHOSEN, MASKED, REPLACED],
        "first": [[shown.reads, shown.how] for shown in first],
        "seed": seed,
    }
    parts = [
        json_script("llm-mk-spec", spec),
        _chips(first),
        f'<p class="llm-mk-status" role="status">{sentence(first)}</p>',
        _counts(first),
        folded("llm-mk", "All tokens as a table", _table(first), opened=False),
    ]
    note = "Where scripts run, a button draws new maskings. This is the first one."
    return MaskingView(tuple(tokens), page_part("masking", "llm-mk", title, note=note, parts=parts))


def _first_masking(tokens: Sequence[str], ordinary: list[str], seed: int) -> list[Shown]:
    """`Masking.apply` on ids of our own: 0 is the mask, 1 any special token, then the ordinary."""
    number = {token: i + 2 for i, token in enumerate(ordinary)}
    ids = torch.tensor([[number.get(token, 1) for token in tokens]])
    generator = torch.Generator().manual_seed(seed)
    rule = Masking(mask_id=0, cls_id=1, sep_id=1, pad_id=1, vocab_size=len(ordinary) + 2)
    read, labels = rule.apply(ids, generator)
    found = []
    for token, before, after, label in zip(
        tokens, ids[0].tolist(), read[0].tolist(), labels[0].tolist()
    ):
        reads, how = token, NOT_CHOSEN
        if label != IGNORE:
            how = AS_MASK if after == 0 else AS_IS if after == before else AS_RANDOM
            reads = MASK if how == AS_MASK else ordinary[after - 2]
        found.append(Shown(visible(token), visible(reads), how, before == 1))
    return found


def sentence(masking: Sequence[Shown]) -> str:
    """What the view says about its first masking; the script says it in the same words."""
    ordinary = sum(not shown.special for shown in masking)
    parts = [f"{sum(s.how == how for s in masking)} {name}" for how, name in NAMES.items()]
    chosen = sum(shown.how != NOT_CHOSEN for shown in masking)
    return f"Masking 1: {chosen} of {ordinary} tokens chosen: {', '.join(parts)}."


def _chips(masking: Sequence[Shown]) -> str:
    chips = []
    for shown in masking:
        name = "llm-mk-chip" + (" llm-mk-special" if shown.special else "")
        if shown.how != NOT_CHOSEN:
            name += f" llm-mk-chosen llm-mk-how{shown.how}"
        label = f'<span class="llm-mk-label">label <bdi>{escape(shown.label)}</bdi></span>'
        chips.append(
            f'<li class="{name}"><bdi class="llm-mk-token">{escape(shown.reads)}</bdi>'
            f"{label if shown.how != NOT_CHOSEN else ''}</li>"
        )
    return f'<ol class="llm-mk-chips" role="list" translate="no">{"".join(chips)}</ol>'


def _counts(masking: Sequence[Shown]) -> str:
    """The table of shares after one masking."""
    ordinary = sum(not shown.special for shown in masking)
    chosen = sum(shown.how != NOT_CHOSEN for shown in masking)
    rules = {AS_MASK: MASKED, AS_RANDOM: REPLACED, AS_IS: 1 - MASKED - REPLACED}
    counts = [("chosen", chosen, ordinary, CHOSEN)]
    counts += [(NAMES[h], sum(s.how == h for s in masking), chosen, rules[h]) for h in NAMES]
    rows = []
    for name, count, total, rule in counts:
        share = f"{100 * count / total:.1f} %" if total else NO_LABEL
        rows.append((name, [f"{count} of {total}", share, f"{100 * rule:.0f} %"]))
    columns = ("tokens", "all maskings", "share", "rule")
    return html_table("Counts over 1 masking", columns, rows, "llm-mk-counts")


def _table(masking: Sequence[Shown]) -> str:
    return html_table(
        f"Each token, what the model reads, and its label. {NO_LABEL} means: no label.",
        ("place", "text", "model reads", "label"),
        [(str(i), (s.token, s.reads, s.label)) for i, s in enumerate(masking)],
        "llm-mk-table",
    )
