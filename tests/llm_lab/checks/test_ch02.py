"""Right and wrong answers to the exercises of chapter 02, for `test_contract`."""

from __future__ import annotations

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch02


def causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def prefix(lengths: Tensor, n: int) -> Tensor:
    return causal(n) | (torch.arange(n) < lengths[:, None, None])


def both_conditions(lengths: Tensor, n: int) -> Tensor:
    return causal(n) & (torch.arange(n) < lengths[:, None, None])


def keys_alone(lengths: Tensor, n: int) -> Tensor:
    return (torch.arange(n) < lengths[:, None, None]).expand(-1, n, n)


def three(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, m = source.shape[1], target.shape[1]
    encoder = source[:, None].expand(-1, n, n)
    return encoder, causal(m) & target[:, None], source[:, None].expand(-1, m, n)


def rows_closed(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder, cross = three(source, target)
    return encoder.mT, decoder, cross


def future_open(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, _, cross = three(source, target)
    m = target.shape[1]
    return encoder, target[:, None].expand(-1, m, m), cross


def padding_open(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder, cross = three(source, target)
    m = target.shape[1]
    return encoder, causal(m).expand_as(decoder), cross


def without_itself(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder, cross = three(source, target)
    return encoder, decoder.tril(-1), cross


def cross_is_causal(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder, cross = three(source, target)
    return encoder, decoder, cross & torch.ones(cross.shape[1:], dtype=torch.bool).tril()


def cross_by_target(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    encoder, decoder, cross = three(source, target)
    return encoder, decoder, target[..., None].expand_as(cross)


def family(moved: Tensor) -> str:
    n, seen = len(moved), int(moved[0].sum())
    if not torch.equal(moved, prefix(torch.tensor([seen]), n)[0]):
        return "none"
    return {n: "encoder", 1: "decoder"}.get(seen, "prefix")


def by_first_row(moved: Tensor) -> str:
    return {len(moved): "encoder", 1: "decoder"}.get(int(moved[0].sum()), "prefix")


def by_the_future(moved: Tensor) -> str:
    if moved.all():
        return "encoder"
    return "prefix" if moved.triu(1).any() else "decoder"


WRONG: Wrong = [
    (ch02.check_prefix_mask, lambda p, n: prefix(p, n).mT, "transposed"),
    (ch02.check_prefix_mask, lambda p, n: causal(n).expand(len(p), n, n), "causal mask"),
    (ch02.check_prefix_mask, lambda p, n: prefix(p + 1, n), "one too long"),
    (ch02.check_prefix_mask, lambda p, n: causal(n) | keys_alone(p, n).mT, "set of keys"),
    (ch02.check_prefix_mask, lambda p, n: causal(n).tril(-1) | keys_alone(p, n), "look at itself"),
    (ch02.check_prefix_mask, both_conditions, "one of them is enough"),
    (ch02.check_prefix_mask, keys_alone, "prefix alone"),
    (ch02.check_prefix_mask, lambda p, n: ~prefix(p, n), "may look"),
    (ch02.check_prefix_mask, lambda p, n: prefix(p, n).int(), "bool"),
    (ch02.check_prefix_mask, lambda p, n: prefix(p[:1], n)[0], "shape"),
    (ch02.check_prefix_mask, lambda p, n: prefix((p - 1).clamp_min(0), n), "query 0 may look"),
    (ch02.check_three_masks, rows_closed, "closes rows"),
    (ch02.check_three_masks, without_itself, "look at itself"),
    (ch02.check_three_masks, future_open, "future is open"),
    (ch02.check_three_masks, padding_open, "padding is not closed"),
    (ch02.check_three_masks, cross_is_causal, "not causal"),
    (ch02.check_three_masks, cross_by_target, "come from the source"),
    (ch02.check_three_masks, lambda s, t: three(s, t)[0], "three masks"),
    (ch02.check_family, lambda moved: "decoder", "everything depends on everything"),
    (ch02.check_family, by_first_row, "output 3 depends on token 4"),
    (ch02.check_family, by_the_future, "output 3 depends on token 4"),
    (ch02.check_epochs_for_equal_signals, lambda rate: -(-1 // rate), "do not round"),
    (ch02.check_epochs_for_equal_signals, lambda rate: rate, "how many passes"),
    (ch02.check_epochs_for_equal_signals, lambda rate: 1 / (1 - rate), "that are hidden count"),
]

RIGHT: Right = [
    (ch02.check_prefix_mask, prefix),
    (ch02.check_three_masks, three),
    (ch02.check_family, family),
    (ch02.check_epochs_for_equal_signals, lambda rate: 1 / rate),
]
