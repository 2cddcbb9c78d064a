"""A text as BERT reads it, and a button that masks it again; the first masking needs no script.

Everything that the view shows is written here, for a first masking that the package draws from a
fixed seed; the script draws the next ones by the same rule. The output is self-contained, the same
on each machine, and tokens in it are text, never markup (the technique of `attention_html`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import torch

from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import CHOSEN, MASKED, REPLACED, Masking
from llm_lab.pictures.attention_html import json_script, visible

NOT_CHOSEN, AS_MASK, AS_RANDOM, AS_IS = 0, 1, 2, 3
NAMES = {AS_MASK: "[MASK]", AS_RANDOM: "random token", AS_IS: "unchanged"}
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
    special: Sequence[str] = ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
    mask_token: str = "[MASK]",
    seed: int = 0,
    title: str = "",
) -> MaskingView:
    """A text masked by BERT's rule, to be masked again with a button; Devlin et al. 2019, §3.1.

    Args:
        tokens: the text as tokens, with [CLS] and [SEP].
        vocabulary: where random tokens are drawn from; what is special is left out.
        special: tokens that are never chosen and never put in.

    Raises:
        ValueError: a text that is empty, too long, or has only special tokens.
    """
    if not 0 < len(tokens) <= LONGEST:
        raise ValueError(f"tokens must be from 1 to {LONGEST}, got {len(tokens)}")
    ordinary = [t for t in dict.fromkeys([*vocabulary, *tokens]) if t not in special]
    if all(token in special for token in tokens):
        raise ValueError(f"tokens must hold one that is not special, got {list(tokens)}")
    first = _first_masking(tokens, ordinary, mask_token, seed)
    spec = {
        "tokens": [visible(token) for token in tokens],
        "special": [shown.special for shown in first],
        "vocabulary": [visible(token) for token in ordinary],
        "mask": visible(mask_token),
        "shares": [CHOSEN, MASKED, REPLACED],
        "first": [[shown.reads, shown.how] for shown in first],
        "seed": seed,
    }
    return MaskingView(tuple(tokens), _page_part(first, spec, title))


def _first_masking(
    tokens: Sequence[str], ordinary: list[str], mask_token: str, seed: int
) -> list[Shown]:
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
            reads = mask_token if how == AS_MASK else ordinary[after - 2]
        found.append(Shown(visible(token), visible(reads), how, before == 1))
    return found


def sentence(masking: Sequence[Shown], drawing: int = 1) -> str:
    """What the view says about a masking; the script says it in the same words."""
    ordinary = sum(not shown.special for shown in masking)
    parts = [f"{sum(s.how == how for s in masking)} {name}" for how, name in NAMES.items()]
    chosen = sum(shown.how != NOT_CHOSEN for shown in masking)
    return f"Masking {drawing}: {chosen} of {ordinary} tokens chosen: {', '.join(parts)}."


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
    rows = [("chosen", chosen, ordinary, CHOSEN)]
    rows += [(NAMES[h], sum(s.how == h for s in masking), chosen, rules[h]) for h in NAMES]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{count} of {total}</td>'
        f"<td>{f'{100 * count / total:.1f} %' if total else NO_LABEL}</td>"
        f"<td>{100 * rule:.0f} %</td></tr>"
        for name, count, total, rule in rows
    )
    head = "".join(f'<th scope="col">{c}</th>' for c in ("tokens", "all maskings", "share", "rule"))
    return (
        '<table class="llm-mk-counts"><caption>Counts over 1 masking</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _table(masking: Sequence[Shown]) -> str:
    head = "".join(f'<th scope="col">{c}</th>' for c in ("place", "text", "model reads", "label"))
    body = "".join(
        f'<tr><th scope="row">{i}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in (shown.token, shown.reads, shown.label))
        + "</tr>"
        for i, shown in enumerate(masking)
    )
    return (
        '<table class="llm-mk-table"><caption>Each token, what the model reads, and its label. '
        f"{NO_LABEL} means: no label.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _page_part(masking: Sequence[Shown], spec: dict[str, object], title: str) -> str:
    """The whole view as one HTML element with its own style and script."""
    here = files("llm_lab.pictures")
    style = here.joinpath("masking_view.css").read_text(encoding="utf-8")
    script = here.joinpath("masking_view.js").read_text(encoding="utf-8")
    name = "Masking view" + (f": {title}" if title else "")
    heading = f'<p class="llm-mk-title">{escape(title)}</p>\n' if title else ""
    return (
        f'<div class="llm-mk mathjax_ignore tex2jax_ignore" role="group" '
        f'aria-label="{escape(name)}">\n'
        f"<style>\n{style}</style>\n{heading}"
        '<p class="llm-mk-note">Where scripts run, a button draws new maskings. '
        "This is the first one.</p>\n"
        f"{json_script('llm-mk-spec', spec)}\n"
        f"{_chips(masking)}\n"
        f'<p class="llm-mk-status" role="status">{sentence(masking)}</p>\n'
        f"{_counts(masking)}\n"
        '<details class="llm-mk-details"><summary>All tokens as a table</summary>\n'
        '<div class="llm-mk-scroll" role="region" aria-label="All tokens as a table" '
        f'tabindex="0">{_table(masking)}</div></details>\n'
        f"<script>\n{script}</script>\n</div>"
    )
