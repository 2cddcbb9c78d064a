"""`llm-course fill-mask`: what a BERT expects in place of [MASK]."""

from __future__ import annotations

from typing import NamedTuple

import torch

from llm_course.errors import ConfigError
from llm_course.models.bert import BERT
from llm_course.recipes.run import load_model
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.devices import choose_device
from llm_course.training.evaluate import evaluating


class Guess(NamedTuple):
    """A token in place of [MASK], and its probability."""

    token: str
    probability: float


def fill_mask(model: BERT, tokenizer: Tokenizer, text: str, top: int = 5) -> list[list[Guess]]:
    """For each [MASK] of a text the `top` likeliest tokens, likeliest first.

    `ConfigError` for a text without [MASK], one that is too long, or `top` out of range.
    """
    if not 1 <= top <= len(tokenizer):
        raise ConfigError(f"top must be from 1 to {len(tokenizer)}, got {top}")
    ids = tokenizer.encode(text, add_special=True, parse_special=True)
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    if not places:
        raise ConfigError(f"text must hold [MASK] at least once, got {text!r}")
    if len(ids) > (most := model.config.n_positions):
        raise ConfigError(
            f"text must be at most {most} tokens with [CLS] and [SEP], got {len(ids)}"
        )
    row = torch.tensor([ids], device=next(model.parameters()).device)
    with evaluating(model):  # without dropout, also in the middle of a training
        logits = model.mlm_head(model.hidden(row)[0, places])
    best = logits[:, : len(tokenizer)].softmax(-1).topk(top)
    return [
        [Guess(tokenizer.token(i), p) for p, i in zip(row_p, row_i)]
        for row_p, row_i in zip(best.values.tolist(), best.indices.tolist())
    ]


def fill_mask_command(*, model: str, text: str, top: int, device: str) -> None:
    """What the command line does."""
    bert, tokenizer = load_model(model, BERT, torch.float32)  # a file may be in float16
    bert.to(choose_device(device))
    guesses = fill_mask(bert, tokenizer, text, top)
    for number, row in enumerate(guesses, 1):
        if len(guesses) > 1:
            print(f"[MASK] number {number}")
        for guess in row:
            print(f"{guess.probability:8.3f}  {guess.token}")
