"""What `generate` was asked for, checked before any compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.models.layers import check_ids, padding_mask
from llm_course.shapes import Bool, Int

MAX_LENGTH_PENALTY = 10  # beyond it length ** penalty leaves the range of a float


@dataclass(frozen=True, kw_only=True)
class Request:
    """The checked arguments; `mask` is None when every token of `input_ids` counts."""

    input_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"] | None
    max_new_tokens: int
    stop_ids: Int[Tensor, " E"]
    pad_id: int
    start_id: int  # what the decoder of an encoder-decoder reads first; GPT has none


def is_encoder_decoder(model: nn.Module) -> bool:
    return hasattr(model, "encode")


def check_request(
    model: Any,
    input_ids: Any,
    *,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    eos_token_id: Any,
    pad_token_id: Any,
    attention_mask: Any,
    generator: Any,
    num_beams: Any = 1,
    length_penalty: Any = 1.0,
) -> Request:
    """Refuse what cannot be continued; names the argument, its value and the range."""
    if not hasattr(model, "new_cache"):
        raise TypeError(f"model must be a GPT, T5 or Transformer, got {type(model).__name__}")
    config, device = model.config, next(model.parameters()).device
    _check_strategy(config.vocab_size, temperature, top_k, top_p, num_beams, length_penalty)
    _check_number("max_new_tokens", max_new_tokens, int, 1)
    if generator is not None:
        _check_place("generator", generator, torch.Generator, device)
    _check_place("input_ids", input_ids, Tensor, device)
    check_ids(input_ids.cpu(), config.vocab_size)
    mask = _check_mask(model, attention_mask, input_ids)
    longest = input_ids.shape[1] if mask is None else int(mask.sum(1).max())
    _check_length(model, longest, max_new_tokens)
    stop_ids, pad_id, start_id = _special_ids(model, eos_token_id, pad_token_id)
    return Request(
        input_ids=input_ids.long(),
        mask=mask,
        max_new_tokens=max_new_tokens,
        stop_ids=torch.tensor(stop_ids, dtype=torch.long, device=device),
        pad_id=pad_id,
        start_id=start_id,
    )


def _check_strategy(
    vocab_size: int, temperature: Any, top_k: Any, top_p: Any, num_beams: Any, length_penalty: Any
) -> None:
    """Refuse numbers that are out of range or contradict each other."""
    for name, value, kind, lowest, highest in (
        ("temperature", temperature, float, 0, math.inf),
        ("top_k", 1 if top_k is None else top_k, int, 1, vocab_size),
        ("top_p", 1 if top_p is None else top_p, float, 0, 1),
        ("num_beams", num_beams, int, 1, math.inf),
        ("length_penalty", length_penalty, float, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
    ):
        _check_number(name, value, kind, lowest, highest)
    if top_p == 0:
        raise ValueError("top_p must be above 0 and at most 1, got 0")
    if num_beams > 1 and temperature > 0:
        raise ValueError(
            f"num_beams = {num_beams} searches and temperature = {temperature} samples: "
            "use num_beams=1 or temperature=0"
        )


def _check_number(
    name: str, value: Any, kind: Any, lowest: float, highest: float = math.inf
) -> None:
    """Kind `float` takes whole numbers too."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{name} must be a {'whole ' * (kind is int)}number, got {value!r}")
    if not lowest <= value <= highest or value == math.inf:
        end = f" and at most {highest}" if highest < math.inf else " and finite" * (kind is float)
        raise ValueError(f"{name} must be at least {lowest}{end}, got {value}")


def _check_place(name: str, value: Any, kind: Any, device: torch.device) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a torch.{kind.__name__}, got {value!r:.60}")
    if value.device.type != device.type:
        raise ValueError(f"{name} is on {value.device}, the model on {device}")


def _check_mask(model: Any, mask: Any, input_ids: Tensor) -> Bool[Tensor, "B T"] | None:
    """Also refuse padding on the side where it would change what the model computes."""
    if mask is None:
        return None
    shape = input_ids.shape
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(mask).__name__}")
    if mask.shape != shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(shape)}, got {list(mask.shape)}"
        )
    mask = padding_mask(mask.cpu(), shape[0], shape[1], shape[1])[:, 0, 0]
    wrong, rule = ~mask.any(1), "is all 0: the prompt is empty"
    if not bool(wrong.any()) and hasattr(model.config, "n_positions"):  # T5: relative positions
        before, after = mask[:, :-1], mask[:, 1:]
        if is_encoder_decoder(model):
            wrong = (~before & after).any(1)
            rule = "has a 1 after a 0: pad on the right, positions count from 0"
        else:
            wrong = (before & ~after).any(1)
            rule = "has a 0 after a 1: pad prompts on the left, where they begin"
    if bool(wrong.any()):
        raise ValueError(f"row {int(wrong.nonzero()[0])} of attention_mask {rule}")
    return None if bool(mask.all()) else mask.to(input_ids.device)


def _check_length(model: Any, longest: int, max_new_tokens: int) -> None:
    n_positions = getattr(model.config, "n_positions", math.inf)
    needs = {"input_ids": longest, "max_new_tokens": max_new_tokens}
    if not is_encoder_decoder(model):  # the prompt and its continuation are one text
        needs = {f"a prompt of {longest} and max_new_tokens": longest + max_new_tokens}
    for name, value in needs.items():
        if value > n_positions:
            raise ValueError(f"{name}: {value} tokens exceed n_positions = {n_positions}")


def _special_ids(model: Any, eos_token_id: Any, pad_token_id: Any) -> tuple[list[int], int, int]:
    """The stop ids, the id that fills finished rows, and the decoder's first id."""
    config, last = model.config, model.config.vocab_size - 1
    eos = getattr(config, "eos_token_id", None) if eos_token_id is None else eos_token_id
    given = eos if isinstance(eos, (list, tuple, set)) else [] if eos is None else [eos]
    stop_ids = list(dict.fromkeys(given))
    for stop_id in stop_ids:
        _check_number("eos_token_id", stop_id, int, 0, last)
    pad_id = getattr(config, "pad_token_id", None) if pad_token_id is None else pad_token_id
    if pad_id is None:
        pad_id = stop_ids[0] if stop_ids else 0  # 0 is never written: no row ends early
    _check_number("pad_token_id", pad_id, int, 0, last)
    start_id = getattr(config, "bos_token_id", None)  # T5 has none and begins with pad
    return stop_ids, pad_id, getattr(config, "pad_token_id", 0) if start_id is None else start_id
