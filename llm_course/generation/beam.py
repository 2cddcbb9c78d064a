"""Beam search: the most probable continuation, sought along the `num_beams` best prefixes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llm_course.generation.request import Request
from llm_course.generation.stepping import Stepper, finite
from llm_course.shapes import Bool, Float, Int

NEVER = float("-inf")


class Hypotheses(NamedTuple):
    """The best continuation of each row, padded after its end, and its score."""

    ids: Int[Tensor, "B T"]
    scores: Float[Tensor, " B"]  # nats, divided by length ** length_penalty
    lengths: Int[Tensor, " B"]  # with the stop token


class _Step(NamedTuple):
    """The best extensions of the prefixes of each row, in falling order of their sums."""

    sums: Float[Tensor, "B N"]  # log-probability of the prefix and its new token, nats
    parents: Int[Tensor, "B N"]  # which prefix was extended
    tokens: Int[Tensor, "B N"]
    stops: Bool[Tensor, "B N"]  # the new token is a stop token


def _extend(
    logits: Float[Tensor, "R V"],
    sums: Float[Tensor, "B W"],
    num_beams: int,
    stop_ids: Int[Tensor, " E"],
) -> _Step:
    """Rank all extensions; W prefixes a row, R = B * W, and all that one step can need is kept."""
    vocab_size = logits.shape[-1]
    totals = (sums.flatten()[:, None] + logits.float().log_softmax(-1)).view(len(sums), -1)
    # At most E extensions of each of the best num_beams prefixes are stops: num_beams more remain.
    n_best = min(num_beams * (1 + len(stop_ids)), totals.shape[-1])
    best, places = totals.topk(n_best)
    tokens = places % vocab_size
    stops = (tokens[..., None] == stop_ids).any(-1)
    return _Step(best, places // vocab_size, tokens, stops)


def beam_search(
    stepper: Stepper, request: Request, *, num_beams: int, length_penalty: float
) -> Hypotheses:
    r"""Maximise $\log p(y \mid x) / |y|^\alpha$ over the continuations y that the beams reach.

    |y| counts the stop token; α is `length_penalty` (0: plain probability; above 0: longer
    answers win more often). A continuation ends with a stop token or at `max_new_tokens`. With
    `num_beams` >= V ** max_new_tokens nothing is dropped and the answer is the true maximum.
    The search stops when no prefix can still beat the best finished continuation of its row.
    """
    stop_ids, max_new_tokens = request.stop_ids, request.max_new_tokens
    logits = finite(stepper.first())
    n_rows, vocab_size = logits.shape
    sums = logits.new_zeros(n_rows, 1, dtype=torch.float32)
    prefixes = stop_ids.new_full((n_rows, 1, max_new_tokens), request.pad_id)
    best = Hypotheses(
        ids=prefixes[:, 0].clone(),
        scores=sums.new_full((n_rows,), NEVER),
        lengths=stop_ids.new_zeros(n_rows),
    )
    rows = torch.arange(n_rows, device=logits.device)[:, None]
    n_free = vocab_size - len(stop_ids)  # tokens that do not stop
    for length in range(1, max_new_tokens + 1):
        step = _extend(logits, sums, num_beams, stop_ids)
        ends = step.stops if length < max_new_tokens else torch.ones_like(step.stops)
        best = _keep_best(best, prefixes, step, ends, num_beams, length, length_penalty)
        width = min(num_beams, sums.shape[1] * n_free)
        if length == max_new_tokens or width == 0:
            break
        sums, places = step.sums.masked_fill(step.stops, NEVER).topk(width)
        # A prefix gains most at the greatest length when long answers are favoured, else at once.
        reach = max_new_tokens if length_penalty > 0 else length + 1
        if bool((best.scores >= sums[:, 0] / reach**length_penalty).all()):
            break
        parents, tokens = step.parents.gather(1, places), step.tokens.gather(1, places)
        stepper.reorder((rows * prefixes.shape[1] + parents).flatten())
        prefixes = prefixes[rows, parents]
        prefixes[:, :, length - 1] = tokens
        logits = stepper.next(tokens.flatten())
    return best


def _keep_best(
    best: Hypotheses,
    prefixes: Int[Tensor, "B W T"],
    step: _Step,
    ends: Bool[Tensor, "B N"],
    num_beams: int,
    length: int,
    length_penalty: float,
) -> Hypotheses:
    """The best of each row, or the best of its `num_beams` best extensions if it ends and wins."""
    sums, place = step.sums.masked_fill(~ends, NEVER)[:, :num_beams].max(-1)
    scores = sums / length**length_penalty
    rows = torch.arange(len(sums), device=sums.device)
    ids = prefixes[rows, step.parents[rows, place]]
    ids[:, length - 1] = step.tokens[rows, place]
    better = scores > best.scores
    return Hypotheses(
        torch.where(better[:, None], ids, best.ids),
        torch.where(better, scores, best.scores),
        best.lengths.masked_fill(better, length),
    )
