"""BERT's objectives: hide tokens and predict them (F10), and does B follow A (F11)? F9 adds them.

Devlin et al. 2019, §3.1, tasks #1 and #2. Losses are in nats, as sums with their counts: the mean
of each is taken over its own count, and the loss of BERT is the sum of the two means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_course.errors import ConfigError
from llm_course.losses.causal import cross_entropy_sum
from llm_course.losses.chunked import IGNORE
from llm_course.shapes import Float, Int

INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1  # §3.1; what remains, 0.1, stays as it is


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The ids that BERT's input is made of, and how much of it is hidden.

    With `continues`, which says of each id whether it continues the word of the token before it,
    whole words are chosen: all tokens of a word or none (80/10/10 is drawn for each token).
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    vocab_size: int
    continues: tuple[bool, ...] | None = None
    chosen: float = CHOSEN
    masked: float = MASKED
    replaced: float = REPLACED

    def __post_init__(self) -> None:
        for name in ("chosen", "masked", "replaced"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, got {value}")
        if self.masked + self.replaced > 1 + 1e-9:
            both = f"{self.masked} + {self.replaced} = {self.masked + self.replaced}"
            raise ConfigError(f"masked + replaced must be at most 1, got {both}")
        for i in self.special_ids:
            if not 0 <= i < self.vocab_size:
                raise ConfigError(f"special_ids must be from 0 to {self.vocab_size - 1}, got {i}")
        if len(set(self.special_ids)) == self.vocab_size:
            raise ConfigError(f"all {self.vocab_size} ids are special: nothing could be masked")
        if self.continues is not None and len(self.continues) != self.vocab_size:
            raise ConfigError(
                f"continues must say it of each of {self.vocab_size} ids, got {len(self.continues)}"
            )

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Those that are never chosen and never put in."""
        return (self.pad_id, self.cls_id, self.sep_id, self.mask_id)

    def apply(
        self,
        input_ids: Int[Tensor, "B T"],
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """What BERT reads, and the labels: the token at each chosen position, -100 elsewhere.

        Each token that is not special is chosen with the probability `chosen`. A chosen one becomes
        [MASK] with the probability `masked`, a random token that is not special with `replaced`,
        and else stays: so the model cannot know which of the tokens that it sees are right.

        With a generator for each row, its masks hang on nothing else: neither on the other rows nor
        on the padding.
        """
        is_special = torch.zeros(self.vocab_size, dtype=torch.bool)
        is_special[list(self.special_ids)] = True
        ordinary = (~is_special).nonzero()[:, 0]
        draw, how, which = _random_numbers(input_ids.shape, generator)
        if self.continues is not None:
            inside = torch.tensor(self.continues) & ~is_special
            draw = _shared_in_words(draw, inside[input_ids])
        chosen = (draw < self.chosen) & ~is_special[input_ids]
        random_ids = ordinary[(which.double() * len(ordinary)).long()]
        hidden = torch.where(how < self.masked, self.mask_id, random_ids)
        changed = chosen & (how < self.masked + self.replaced)
        return torch.where(changed, hidden, input_ids), input_ids.masked_fill(~chosen, IGNORE)


def mlm_loss(
    logits: Float[Tensor, "*rows V"], labels: Int[Tensor, "*rows"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Masked-token loss $-\sum_{i \in masked} \log p(w_i \mid w_{/i})$ in nats (F10), its count.

    Labels stand at the position that they are about; those of -100 do not count, and the logits
    there get no gradient. `ValueError` when the shapes do not agree.
    """
    return cross_entropy_sum(logits, labels)


def nsp_loss(
    logits: Float[Tensor, "*rows 2"], next_sentence_label: Int[Tensor, "*rows"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Next-sentence loss $-y \log p - (1-y) \log(1-p)$ in nats (F11), and its count.

    p is the probability of class 0, "B follows A", and y = 1 - `next_sentence_label`. Labels of
    -100 do not count. A label of 0 is a class like the other: to ignore it would be a bug that no
    error shows. `ValueError` when the shapes do not agree.
    """
    return cross_entropy_sum(logits, next_sentence_label, name="next_sentence_label")


def bert_loss_fn(model: Any, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Both losses of BERT on a batch, as `train` and `evaluate` want them (F9).

    The MLM head is applied to the chosen positions only, 15 % of them. `next_sentence_label` is
    [B], one pair a row with its [CLS] at position 0, or [B, T] for rows with several pairs: the
    label at each [CLS], -100 elsewhere. Without it there is no next-sentence term.
    """
    hidden = model.hidden(**{name: batch[name] for name in INPUTS if name in batch})
    labels = batch["labels"]
    if labels.shape != hidden.shape[:2]:
        raise ValueError(
            f"labels must have the shape of input_ids {list(hidden.shape[:2])}, "
            f"got {list(labels.shape)}"
        )
    counted = labels != IGNORE
    terms = {"mlm": mlm_loss(model.mlm_head(hidden[counted]), labels[counted])}
    if (next_sentence := batch.get("next_sentence_label")) is not None:
        if next_sentence.ndim == 2:
            first = next_sentence != IGNORE  # the [CLS] of each pair
            hidden, next_sentence = hidden[first][:, None], next_sentence[first]
        terms["nsp"] = nsp_loss(model.nsp_head(model.pooler(hidden)), next_sentence)
    return terms


def bert_counts(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How many labels each of BERT's losses counts; accumulation asks before the forward pass."""
    labels = {"mlm": batch["labels"], "nsp": batch.get("next_sentence_label")}
    return {name: (each != IGNORE).sum() for name, each in labels.items() if each is not None}


bert_loss_fn.counts = bert_counts  # type: ignore[attr-defined]


def _random_numbers(
    shape: torch.Size, generator: torch.Generator | Sequence[torch.Generator]
) -> tuple[Tensor, ...]:
    """Three numbers from 0 to 1 for each token."""
    if isinstance(generator, torch.Generator):
        return torch.rand((3, *shape), generator=generator).unbind(0)
    # The three of a token side by side: then it does not matter how many tokens follow.
    rows = [torch.rand((*shape[1:], 3), generator=each) for each in generator]
    return torch.stack(rows).unbind(-1)


def _shared_in_words(draw: Tensor, continues: Tensor) -> Tensor:
    """The draw of each word's first token, for all of its tokens."""
    place = torch.arange(draw.shape[-1]).expand(draw.shape)
    first = place.masked_fill(continues, 0).cummax(-1).values
    return draw.gather(-1, first)
