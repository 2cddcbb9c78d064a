"""BERT's objectives: hide tokens and predict them (F10), and does B follow A (F11)? F9 adds them.

Devlin et al. 2019, §3.1, tasks #1 and #2. Losses are in nats, as sums with their counts: the mean
of each is taken over its own count, and the loss of BERT is the sum of the two means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_course.errors import ConfigError
from llm_course.losses.chunked import IGNORE
from llm_course.shapes import Bool, Float, Int

INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1  # §3.1; what remains, 0.1, stays as it is


def mask_tokens(
    input_ids: Int[Tensor, "B T"],
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
    chosen: float = CHOSEN,
    masked: float = MASKED,
    replaced: float = REPLACED,
    continues: Bool[Tensor, "B T"] | None = None,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """What BERT reads, and the labels: the token at each chosen position, -100 elsewhere.

    Each token that is not special is chosen with the probability `chosen`. A chosen one becomes
    [MASK] with the probability `masked`, a random token that is not special with `replaced`, and
    else stays: so the model cannot know which of the tokens that it sees are right.

    Args:
        special_ids: never chosen and never put in: [CLS], [SEP], [PAD], [MASK], ...
        continues: True where a token continues the word of the token before it. Then whole words
            are chosen: all tokens of a word or none (the drawing of 80/10/10 is for each token).

    Raises:
        ConfigError: a share outside 0 to 1, or `masked` and `replaced` more than 1 together.
    """
    check_shares(chosen, masked, replaced)
    ordinary = _ordinary_ids(vocab_size, special_ids)
    is_special = torch.isin(input_ids, torch.tensor(list(special_ids), dtype=input_ids.dtype))
    draw = torch.rand(input_ids.shape, generator=generator)
    if continues is not None:
        draw = _shared_in_words(draw, continues & ~is_special)
    labels = input_ids.masked_fill((draw >= chosen) | is_special, IGNORE)
    how = torch.rand(input_ids.shape, generator=generator)
    random_ids = ordinary[torch.randint(len(ordinary), input_ids.shape, generator=generator)]
    counted = labels != IGNORE
    hidden = torch.where(how < masked, mask_id, random_ids.to(input_ids.dtype))
    return torch.where(counted & (how < masked + replaced), hidden, input_ids), labels


def mlm_loss(
    logits: Float[Tensor, "*rows V"], labels: Int[Tensor, "*rows"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Masked-token loss $-\sum_{i \in masked} \log p(w_i \mid w_{/i})$ in nats (F10), its count.

    Labels stand at the position that they are about; those of -100 do not count, and the logits
    there get no gradient. `ValueError` when the shapes do not agree.
    """
    return _cross_entropy(logits, labels, "labels")


def nsp_loss(
    logits: Float[Tensor, "*rows 2"], next_sentence_label: Int[Tensor, "*rows"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Next-sentence loss $-y \log p - (1-y) \log(1-p)$ in nats (F11), and its count.

    p is the probability of class 0, "B follows A", and y = 1 - `next_sentence_label`. Labels of
    -100 do not count. A label of 0 is a class like the other: to ignore it would be a bug that no
    error shows. `ValueError` when the shapes do not agree.
    """
    return _cross_entropy(logits, next_sentence_label, "next_sentence_label")


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


def _cross_entropy(logits: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"{name} must be {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum"
    )
    return total, (labels != IGNORE).sum()


def check_shares(chosen: float, masked: float, replaced: float) -> None:
    """Refuse a share that is none, and more hidden and replaced tokens than chosen ones."""
    for name, value in (("chosen", chosen), ("masked", masked), ("replaced", replaced)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must be from 0 to 1, got {value}")
    if masked + replaced > 1 + 1e-9:
        raise ConfigError(
            f"masked + replaced must be at most 1, got {masked} + {replaced} = {masked + replaced}"
        )


def _ordinary_ids(vocab_size: int, special_ids: Sequence[int]) -> Tensor:
    ordinary = torch.ones(vocab_size, dtype=torch.bool)
    for i in special_ids:
        if not 0 <= i < vocab_size:
            raise ConfigError(f"special_ids must be from 0 to {vocab_size - 1}, got {i}")
        ordinary[i] = False
    if not ordinary.any():
        raise ConfigError(f"all {vocab_size} ids are special: nothing could be masked")
    return ordinary.nonzero()[:, 0]


def _shared_in_words(draw: Tensor, continues: Tensor) -> Tensor:
    """The draw of each word's first token, for all of its tokens."""
    place = torch.arange(draw.shape[-1]).expand(draw.shape)
    first = place.masked_fill(continues, 0).cummax(-1).values
    return draw.gather(-1, first)
