"""Checks of chapter 12: the loss, the chain rule, bits per byte, the causal mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from llm_course.configs import GPTConfig
from llm_course.models.gpt import GPT
from llm_lab.checks.grading import at_labels, expect_close, expect_verdict, passed


def _tiny_gpt(vocab_size: int = 4, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=vocab_size, n_layers=1, d_model=8, n_heads=2, n_positions=12)
    model = GPT(config).double().eval()
    with torch.no_grad():  # larger weights: a fresh model is nearly uniform and hides mistakes
        for parameter in model.parameters():
            parameter.mul_(20.0)
    return model


def check_next_token_loss(answer: Callable[[Tensor, Tensor], Tensor | float]) -> None:
    """The mean of F12 over counted labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 6), generator=generator)
    labels[0, 4:] = -100
    log_p = logits.log_softmax(-1)

    def mean(outputs: Tensor, targets: Tensor) -> float:
        counted = targets != -100
        return float(-(at_labels(outputs, targets) * counted).sum() / counted.sum())

    right = mean(log_p[:, :-1], labels[:, 1:])
    counted = int((labels[:, 1:] != -100).sum())
    all_places = labels[:, 1:].numel()
    with_padding = -at_labels(log_p[:, :-1], labels[:, 1:]).mean()
    expect_close(
        answer(logits, labels),
        right,
        name="next_token_loss",
        hints={
            mean(log_p, labels): "the labels are not shifted: output i speaks about token i + 1",
            mean(log_p[:, :-2], labels[:, 2:]): "the labels are shifted twice",
            mean(log_p[:, 1:], labels[:, :-1]): "shifted the wrong way: outputs must come first",
            right * counted: "this is the sum: divide by the number of counted labels",
            right * counted / all_places: (
                f"the sum is right, but it is divided by all {all_places} places; "
                f"only {counted} labels count"
            ),
            float(with_padding): "labels of -100 are counted as if they were token 0",
        },
    )
    passed("the loss is shifted once, counted once, and in nats")


def check_total_probability(answer: Callable[[Any, int, int, int], float]) -> None:
    """The chain rule F13, summed over all texts."""
    # Where an output has seen its token, the sum is not 1: it must be computed.
    leaky = _Leaky(_tiny_gpt(3), 0, 20.0)
    for model, vocab_size, n in ((_tiny_gpt(3), 3, 2), (_tiny_gpt(4), 4, 3), (leaky, 3, 2)):
        honest = "" if model is not leaky else " of a model that sees the future"
        expect_close(
            answer(model, vocab_size, n, 0),
            _total_probability(model, vocab_size, n),
            name=f"total_probability of all {vocab_size}**{n} texts{honest}",
            tolerance=1e-9,
            hints={
                _total_probability(model, vocab_size, n, ahead=0): (
                    "each output is asked about its own token: output i speaks about token i + 1"
                ),
                float(vocab_size): (
                    f"the sum is V = {vocab_size}: the first token has no factor. Put BOS before it"
                ),
                1.0 / vocab_size: "the sum is 1 / V: texts with another first token are missing",
                0.0: "the sum is 0: are these log-probabilities? Take exp before the sum",
            },
        )
    passed("all texts together have the probability 1")


@torch.no_grad()
def _total_probability(model: nn.Module, vocab_size: int, n: int, ahead: int = 1) -> float:
    rows = torch.tensor([(0, *text) for text in product(range(vocab_size), repeat=n)])
    log_p = model(rows).log_softmax(-1)[:, 1 - ahead : n + 1 - ahead]
    return at_labels(log_p, rows[:, 1:]).sum(1).exp().sum().item()


def check_bits_per_byte(answer: Callable[[float, int, str], float]) -> None:
    """Nats per token to bits per byte."""
    text = "名字 and café, 12 words"
    nats, tokens = 2.31, 17
    size = len(text.encode())
    right = nats * tokens / math.log(2) / size
    expect_close(
        answer(nats, tokens, text),
        right,
        name="bits_per_byte",
        hints={
            nats * tokens / math.log(2) / len(text): (
                f"divided by {len(text)} characters: the text has {size} bytes in UTF-8"
            ),
            nats * tokens / size: "these are nats: one bit is ln 2 = 0.693 nats",
            nats * tokens * math.log(2) / size: "multiplied by ln 2: divide, bits are smaller",
            nats / math.log(2): "this is per token: use the number of tokens and of bytes",
            nats / math.log(2) / size: "multiply by the number of tokens: the loss is a mean",
        },
    )
    passed("one scale for every tokenizer")


class _Leaky(nn.Module):
    """A GPT whose output at one position leans towards the next token."""

    def __init__(self, model: GPT, position: int, size: float) -> None:
        super().__init__()
        self.model, self.position, self.size = model, position, size

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.model(input_ids).clone()
        following = one_hot(input_ids[:, self.position + 1], logits.shape[-1])
        logits[:, self.position] += self.size * following
        return logits


def check_sees_the_future(answer: Callable[[nn.Module, int, int], bool]) -> None:
    """Finds a leak wherever it is, and accuses no honest model."""
    honest, length = _tiny_gpt(), 8
    cases = [
        (honest, False, "an honest GPT"),
        (_Leaky(honest, 0, 1.0), True, "a model whose first output sees the second token"),
        (_Leaky(honest, 3, 1.0), True, "a model with a leak in the middle of the row"),
        (_Leaky(honest, length - 2, 1.0), True, "a model whose last but one output sees the end"),
        (_Leaky(honest, 3, 1e-9), True, "a model with a leak of 1e-9: compare without a tolerance"),
    ]
    for model, expected, what in cases:
        expect_verdict(
            answer(model, 4, length),
            expected,
            name="sees_the_future",
            case=what,
            advice={
                True: "Change each token in turn, and look at all outputs before it.",
                False: "Only outputs before the changed token must stay; the others may move.",
            },
        )
    passed("no leak escapes")
