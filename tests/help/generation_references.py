"""Tiny models, and their continuations by brute force: without caches, batches or shortcuts."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import GPTConfig, T5Config, TransformerConfig
from llm_course.models.gpt import GPT
from llm_course.models.t5 import T5
from llm_course.models.transformer import Transformer

FAMILIES = ("gpt", "t5", "transformer")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(family: str, vocab_size: int = 5, seed: int = 0) -> nn.Module:
    """A random model with large weights, so that what it says depends on all that it read."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "d_model": 16, "n_heads": 2, "d_ff": 32}
    sizes |= {"n_layers": 2, "tied": False}
    if family == "gpt":
        model: nn.Module = GPT(GPTConfig(n_positions=16, **sizes))
    elif family == "t5":
        model = T5(T5Config(d_head=8, n_decoder_layers=2, n_buckets=8, max_distance=16, **sizes))
    else:
        model = Transformer(TransformerConfig(n_decoder_layers=2, n_positions=16, **sizes))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=rng(1000 * seed + number))
            parameter.copy_(1 + 0.3 * noise if name.endswith("norm.weight") else 0.5 * noise)
        # Neither certain nor uniform: logits of a spread that leaves every token a chance.
        probe = torch.randint(vocab_size, (16, 6), generator=rng(seed))
        model.lm_head.weight.mul_(1.5 / next_logits(model.eval(), [1, 2], probe).std())
    return model


@torch.no_grad()
def next_logits(model: nn.Module, prompt: list[int], answers: Tensor) -> Tensor:
    """Logits after each prefix of each answer [N, T], the empty one first: [N, T + 1, V]."""
    rows = torch.tensor([prompt]).repeat(len(answers), 1)
    if isinstance(model, GPT):
        return model(torch.cat([rows, answers], dim=1))[:, len(prompt) - 1 :]
    start = model.config.bos_token_id if isinstance(model, Transformer) else 0
    first = torch.full((len(answers), 1), start)
    return model(rows, decoder_input_ids=torch.cat([first, answers], dim=1))


def greedy_by_hand(model: nn.Module, prompt: list[int], n: int) -> list[int]:
    answer: list[int] = []
    for _ in range(n):
        prefix = torch.tensor([answer], dtype=torch.long)
        answer.append(int(next_logits(model, prompt, prefix)[0, -1].argmax()))
    return answer


def all_answers(
    model: nn.Module, prompt: list[int], n: int, stops: list[int]
) -> dict[tuple[int, ...], float]:
    """Every answer that ends with a stop token or after n tokens, and its log-probability."""
    strings = torch.tensor(list(product(range(model.config.vocab_size), repeat=n)))
    log_probs = next_logits(model, prompt, strings)[:, :-1].double().log_softmax(-1)
    chosen = log_probs.gather(-1, strings[..., None]).squeeze(-1)
    answers = {}
    for string, terms in zip(strings.tolist(), chosen.tolist()):
        length = next((i + 1 for i, token in enumerate(string) if token in stops), n)
        answers[tuple(string[:length])] = sum(terms[:length])
    return answers


def continuation(model: nn.Module, prompt: list[int], ids: Tensor) -> list[int]:
    """What `generate` added in one row."""
    row = ids.tolist()
    if not isinstance(model, GPT):
        return row
    assert row[: len(prompt)] == prompt
    return row[len(prompt) :]
