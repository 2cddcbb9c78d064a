"""Right and wrong answers to the exercises of chapter 12, for `test_contract`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch12


def loss(logits: Tensor, labels: Tensor, ahead: int = 1) -> Tensor:
    outputs, targets = (logits[:, :-ahead], labels[:, ahead:]) if ahead else (logits, labels)
    counted = targets != -100
    picked = outputs.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1)
    return -(picked * counted).sum() / counted.sum()


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits, labels) * (labels[:, 1:] != -100).sum()


def pads_counted(logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits, labels.clamp_min(0))


def total(
    model: Any, vocab_size: int, n: int, bos: int, with_bos: bool = True, ahead: int = 1
) -> float:
    rows = torch.tensor(list(itertools.product(range(vocab_size), repeat=n)))
    if with_bos:
        rows = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
    with torch.no_grad():
        log_p = model(rows).log_softmax(-1)
    log_p = log_p[:, :-1] if ahead else log_p[:, 1:]
    return log_p.gather(-1, rows[:, 1:, None]).squeeze(-1).sum(1).exp().sum().item()


def leak(model: Any, vocab_size: int, length: int, places: Any = None, atol: float = 0.0) -> bool:
    row = torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    before = model(row)
    for j in places or range(1, length):
        changed = row.clone()
        changed[0, j] = (row[0, j] + 1) % vocab_size
        if (model(changed)[0, :j] - before[0, :j]).abs().max() > atol:
            return True
    return False


WRONG: Wrong = [
    (ch12.check_next_token_loss, lambda a, b: loss(a, b, 0), "not shifted"),
    (ch12.check_next_token_loss, lambda a, b: loss(a, b, 2), "shifted twice"),
    (ch12.check_next_token_loss, summed, "divide by the number"),
    (ch12.check_next_token_loss, pads_counted, "-100 are counted"),
    (ch12.check_next_token_loss, lambda a, b: -loss(a, b), "sign"),
    (ch12.check_next_token_loss, lambda a, b: loss(a, b) / math.log(2), "bits"),
    (ch12.check_total_probability, lambda *a: total(*a, with_bos=False), "Put BOS before it"),
    (ch12.check_total_probability, lambda *a: total(*a) / a[1], "another first token"),
    (ch12.check_total_probability, lambda *a: total(*a, ahead=0), "its own token"),
    (ch12.check_total_probability, lambda *a: 1.0, "sees the future"),
    (ch12.check_bits_per_byte, lambda a, n, t: a * n / math.log(2) / len(t), "characters"),
    (ch12.check_bits_per_byte, lambda a, n, t: a * n / len(t.encode()), "nats"),
    (ch12.check_sees_the_future, lambda *a: False, "first output sees the second token"),
    (ch12.check_sees_the_future, lambda *a: leak(*a, places=[a[2] - 1]), "first output sees"),
    (ch12.check_sees_the_future, lambda *a: leak(*a, atol=1e-6), "without a tolerance"),
    (ch12.check_sees_the_future, lambda *a: None, "True or False"),
]

RIGHT: Right = [
    (ch12.check_next_token_loss, loss),
    (ch12.check_total_probability, total),
    (ch12.check_bits_per_byte, lambda a, n, t: a * n / math.log(2) / len(t.encode())),
    (ch12.check_sees_the_future, leak),
]
