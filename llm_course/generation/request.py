"""What `generate` was asked for, checked before any compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.shapes import Bool, Int

MAX_LENGTH_PENALTY = 10.0  # beyond it length ** penalty leaves the range of a float


@dataclass(frozen=True, kw_only=True)
class Request:
    """The checked arguments; `mask` is None when every token of `input_ids` counts."""

    input_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"] | None
    max_new_tokens: int
    stop_ids: Int[Tensor, " E"]
    pad_id: int
    start_id: int  # what the decoder of an encoder-decoder reads first; GPT has none


def _config(model: nn.Module) -> Any:
    """The config of a model that can generate; TypeError for any other module."""
    if not hasattr(model, "new_cache"):
        raise TypeError(f"model must be a GPT, T5 or Transformer, got {type(model).__name__}")
    return model.config


def is_encoder_decoder(model: nn.Module) -> bool:
    return hasattr(model, "encode")


def check_request(
    model: nn.Module,
    input_ids: Any,
    *,
    max_new_tokens: Any,
    eos_token_id: Any,
    pad_token_id: Any,
    attention_mask: Any,
    generator: Any,
) -> Request:
    """Refuse what cannot be continued; names the argument, its value and the range."""
    vocab_size = _config(model).vocab_size
    device = next(model.parameters()).device
    check_whole("max_new_tokens", max_new_tokens, 1)
    _check_ids(input_ids, vocab_size, device)
    mask = _check_mask(attention_mask, input_ids)
    _check_padding(model, mask)
    _check_generator(generator, device)
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


def check_strategy(
    model: nn.Module,
    *,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    num_beams: Any = 1,
    length_penalty: Any = 1.0,
) -> None:
    """Refuse a strategy whose numbers are out of range or contradict each other."""
    check_number("temperature", temperature, 0.0, math.inf)
    if top_k is not None:
        check_whole("top_k", top_k, 1, _config(model).vocab_size)
    if top_p is not None:
        check_number("top_p", top_p, 0.0, 1.0)
        if top_p == 0:
            raise ValueError("top_p must be above 0 and at most 1, got 0")
    check_whole("num_beams", num_beams, 1)
    check_number("length_penalty", length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    if num_beams > 1 and temperature > 0:
        raise ValueError(
            f"num_beams = {num_beams} searches and temperature = {temperature} samples: "
            "use num_beams=1 or temperature=0"
        )


def check_whole(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < lowest or (highest is not None and value > highest):
        above = f" and at most {highest}" if highest is not None else ""
        raise ValueError(f"{name} must be at least {lowest}{above}, got {value}")


def check_number(name: str, value: object, lowest: float, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not lowest <= value <= highest or not math.isfinite(value):
        above = f" and at most {highest:g}" if highest != math.inf else " and finite"
        raise ValueError(f"{name} must be at least {lowest:g}{above}, got {value}")


def _check_ids(input_ids: Any, vocab_size: int, device: torch.device) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor [B, T], got {type(input_ids).__name__}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    shape = list(input_ids.shape)
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must have the shape [B, T], got {shape}")
    if input_ids.numel() == 0:
        raise ValueError(f"the prompt is empty: input_ids has the shape {shape}")
    if input_ids.device.type != device.type:
        raise ValueError(f"input_ids are on {input_ids.device}, the model on {device}")
    wrong = (input_ids < 0) | (input_ids >= vocab_size)
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"input_ids[{row}, {column}] must be from 0 to {vocab_size - 1}, "
            f"got {int(input_ids[row, column])}"
        )


def _check_generator(generator: Any, device: torch.device) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    if generator.device.type != device.type:
        raise ValueError(f"generator is on {generator.device}, the model on {device}")


def _check_mask(mask: Any, input_ids: Tensor) -> Bool[Tensor, "B T"] | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_floating_point():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"attention_mask must be an int or bool tensor, got {got}")
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, "
            f"got {list(mask.shape)}"
        )
    mask = mask.to(input_ids.device)
    attend = mask.bool()
    other = mask[mask != attend]
    if len(other):
        raise ValueError(f"attention_mask must hold 0 and 1 only, got {int(other[0])}")
    empty = ~attend.any(1)
    if bool(empty.any()):
        raise ValueError(f"the prompt of row {int(empty.nonzero()[0])} is empty: its mask is all 0")
    return None if bool(attend.all()) else attend


def _check_padding(model: nn.Module, mask: Bool[Tensor, "B T"] | None) -> None:
    """Refuse padding on the side where it would change what the model computes."""
    if mask is None or not hasattr(_config(model), "n_positions"):  # T5: relative positions
        return
    before, after = mask[:, :-1], mask[:, 1:]
    if is_encoder_decoder(model):
        wrong, rule = ~before & after, "a 1 after a 0: pad on the right, positions count from 0"
    else:
        wrong, rule = before & ~after, "a 0 after a 1: pad prompts on the left, where they begin"
    rows = wrong.any(1).nonzero()
    if len(rows):
        raise ValueError(f"row {int(rows[0])} of attention_mask has {rule}")


def _check_length(model: nn.Module, longest: int, max_new_tokens: int) -> None:
    n_positions = getattr(_config(model), "n_positions", None)
    if n_positions is None:
        return
    if is_encoder_decoder(model):
        for name, value in (("input_ids", longest), ("max_new_tokens", max_new_tokens)):
            if value > n_positions:
                raise ValueError(f"{name}: {value} tokens exceed n_positions = {n_positions}")
    elif longest + max_new_tokens > n_positions:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens = {max_new_tokens} make "
            f"{longest + max_new_tokens}, more than n_positions = {n_positions}"
        )


def _special_ids(
    model: nn.Module, eos_token_id: Any, pad_token_id: Any
) -> tuple[list[int], int, int]:
    """The stop ids, the id that fills finished rows, and the decoder's first id."""
    config = _config(model)
    eos = getattr(config, "eos_token_id", None) if eos_token_id is None else eos_token_id
    given = eos if isinstance(eos, (list, tuple, set)) else [] if eos is None else [eos]
    stop_ids = list(dict.fromkeys(given))
    for stop_id in stop_ids:
        check_whole("eos_token_id", stop_id, 0, config.vocab_size - 1)
    pad_id = getattr(config, "pad_token_id", None) if pad_token_id is None else pad_token_id
    if pad_id is None:
        pad_id = stop_ids[0] if stop_ids else 0  # 0 is never written: no row ends early
    check_whole("pad_token_id", pad_id, 0, config.vocab_size - 1)
    if not is_encoder_decoder(model):
        return stop_ids, pad_id, 0
    bos_token_id = getattr(config, "bos_token_id", None)  # T5 has none and begins with pad
    return stop_ids, pad_id, config.pad_token_id if bos_token_id is None else bos_token_id
