"""A model seen as `generate` sees it: logits after the prompt, then after each new token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.generation.request import Request, is_encoder_decoder
from llm_course.shapes import Float, Int


class DecoderStepper:
    """A decoder-only model (GPT): the prompt and its continuation are one sequence."""

    def __init__(self, model: Any, request: Request) -> None:
        self.model = model
        self.input_ids = request.input_ids
        self.mask = self.positions = None
        n_new = request.max_new_tokens - 1  # the last new token is never read back
        if request.mask is not None:
            longest = int(request.mask.sum(1).max())  # columns that are padding in every row go
            self.input_ids = self.input_ids[:, -longest:]
            mask = request.mask[:, -longest:]
            self.mask = torch.cat([mask, mask.new_ones(len(mask), n_new)], dim=1)
            # Padding takes no position: the first real token of each row stands at 0.
            self.positions = (self.mask.long().cumsum(1) - 1).clamp_min(0)
        n_rows, self.n_seen = self.input_ids.shape
        self.cache = model.new_cache(n_rows, self.n_seen + n_new)

    def _logits(self, ids: Int[Tensor, "B T"], end: int) -> Float[Tensor, "B V"]:
        start = end - ids.shape[1]
        hidden = self.model.hidden(
            ids,
            attention_mask=None if self.mask is None else self.mask[:, :end],
            position_ids=None if self.positions is None else self.positions[:, start:end],
            cache=self.cache,
        )
        return self.model.head(hidden[:, -1])  # of a long prompt only the last row is needed

    def first(self) -> Float[Tensor, "B V"]:
        """The logits after the prompt; called once."""
        return self._logits(self.input_ids, self.n_seen)

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits after one more token in each row."""
        self.n_seen += 1
        return self._logits(ids[:, None], self.n_seen)

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Let row i continue what row `rows[i]` held, which has the same prompt."""
        self.cache.reorder(rows, start=self.input_ids.shape[1])
        if self.mask is not None and self.positions is not None:
            self.mask, self.positions = self.mask[rows], self.positions[rows]


class EncoderDecoderStepper:
    """An encoder-decoder (T5, Transformer): the prompt is encoded once, the decoder starts anew."""

    def __init__(self, model: Any, request: Request) -> None:
        self.model = model
        self.request = request
        self.cache = model.new_cache(len(request.input_ids), request.max_new_tokens)

    def first(self) -> Float[Tensor, "B V"]:
        """The logits of the answer's first token; called once."""
        ids, mask = self.request.input_ids, self.request.mask
        states = self.model.encode(ids, attention_mask=mask)
        start = ids.new_full((len(ids), 1), self.request.start_id)
        logits = self.model.decode(states, start, attention_mask=mask, cache=self.cache)
        return logits[:, -1]

    def next(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits after one more token in each row."""
        # The cache holds the encoder's keys and values since the first step.
        return self.model.decode(None, ids[:, None], cache=self.cache)[:, -1]

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Let row i continue what row `rows[i]` held, which has the same prompt."""
        self.cache.reorder(rows, start=0)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is as it was, also where they differed."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


Stepper = DecoderStepper | EncoderDecoderStepper


def make_stepper(model: nn.Module, request: Request) -> Stepper:
    kind = EncoderDecoderStepper if is_encoder_decoder(model) else DecoderStepper
    return kind(model, request)


def finite(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Refuse a broken model: a choice among NaN looks like text."""
    highest = logits.amax(-1)  # NaN where any logit of the row is NaN
    if not bool(highest.isfinite().all()):
        raise ValueError(f"the model's logits must be finite, got {float(highest.max())}")
    return logits
