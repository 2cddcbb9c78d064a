"""From logits to one drawn token: temperature, top-k and top-p (nucleus) sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llm_course.shapes import Float, Int

NEVER = float("-inf")
SHORT_LIST = 256  # tokens that are ranked first, before the whole vocabulary


class Candidates(NamedTuple):
    """The tokens that may be drawn: logits (-inf: dropped) and ids (None: column i is id i)."""

    logits: Float[Tensor, "B N"]
    ids: Int[Tensor, "B N"] | None


def candidates(
    logits: Float[Tensor, "B V"], *, temperature: float, top_k: int | None, top_p: float | None
) -> Candidates:
    r"""Divide by the temperature, then keep the `top_k` best, then the nucleus of `top_p`.

    Top-k (Fan et al. 2018) keeps exactly k tokens. Top-p (Holtzman et al. 2020, §3.1) keeps the
    smallest set of best tokens whose probability, after temperature and top-k, is at least p.
    """
    # Less the maximum first: a tiny temperature then gives 0 and -inf, never inf - inf.
    logits = logits.float()
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    ids = None
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled, ids = scaled.topk(top_k)
    if top_p is None or top_p >= 1:
        return Candidates(scaled, ids)
    log_probs = scaled.log_softmax(-1)
    if ids is None:
        log_probs, ids = _ranked(log_probs, top_p)
    # A token stays while the tokens ranked before it have less than top_p together.
    probs = log_probs.exp().double()
    before = probs.cumsum(-1) - probs
    return Candidates(log_probs.masked_fill(before >= top_p, NEVER), ids)


def _ranked(
    log_probs: Float[Tensor, "B V"], top_p: float
) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B N"]]:
    """The best tokens in falling order: all of them, or enough of them to hold `top_p`."""
    # On a CPU sorting 50,000 tokens takes longer than a small model's step, and a short list
    # nearly always holds the nucleus. A GPU sorts fast, but would have to wait for the answer.
    if log_probs.device.type == "cpu" and log_probs.shape[-1] > SHORT_LIST:
        best, ids = log_probs.topk(SHORT_LIST)
        if bool((best.exp().double().sum(-1) >= top_p).all()):
            return best, ids
    best, ids = log_probs.sort(-1, descending=True)
    return best, ids


def next_token_probabilities(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "B V"]:
    """The distribution that `sample` draws from: 0 for every token that was dropped."""
    kept = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    probs = kept.logits.softmax(-1)
    if kept.ids is None:
        return probs
    return torch.zeros_like(logits, dtype=probs.dtype).scatter_(-1, kept.ids, probs)


def sample(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " B"]:
    r"""Draw one token a row: the first i with $\sum_{j \le i} p_j \ge u$, u uniform in (0, 1].

    Inverting the distribution function takes one random number a row; `torch.multinomial` takes
    one for every token of the vocabulary, which is ten times slower.
    """
    kept = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    # float64, since a float32 sum over a large vocabulary would lose the rare tokens.
    mass = kept.logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    u = torch.rand((mass.shape[0], 1), generator=generator, device=mass.device, dtype=torch.float64)
    # 1 - u is never 0, so no token of probability 0 is drawn; and at most 1, so one is found.
    drawn = torch.searchsorted(mass, (1 - u) * mass[:, -1:])
    return (drawn if kept.ids is None else kept.ids.gather(-1, drawn)).squeeze(-1)
