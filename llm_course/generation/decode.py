"""Text from a model: greedy, sampled, or by beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llm_course.generation.beam import beam_search
from llm_course.generation.request import Request, check_request, is_encoder_decoder
from llm_course.generation.sampling import sample
from llm_course.generation.stepping import eval_mode, finite, make_stepper
from llm_course.shapes import Int

Choose = Callable[[Tensor], Tensor]  # logits [B, V] -> ids [B]


def generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B T"]:
    """Continue each row of `input_ids` by up to `max_new_tokens` tokens.

    Each token costs one step of the model; keys and values of earlier ones are kept in buffers of
    fixed size. The model runs in eval mode without gradients and is put back as it was.

    Args:
        model: a GPT, which continues the prompt, or a T5 or Transformer, which answers it.
        input_ids: prompts [B, T].
        temperature: 0 takes the best token (greedy, or the best beam), whatever top_k and top_p
            are; above 0, tokens are drawn from softmax(logits / temperature).
        top_k: draw from the k best tokens only.
        top_p: draw from the smallest set of best tokens that has at least this probability.
        num_beams: above 1, search along this many prefixes (`beam_search`).
        length_penalty: beams only; a continuation's log-probability is divided by its length to
            this power.
        eos_token_id: one or several stop tokens; None: that of the model's config; []: none.
        pad_token_id: fills rows that ended; None: that of the config, else the first stop token.
        attention_mask: [B, T], 1 = attend. GPT takes padding on the left, Transformer on the
            right, T5 on either side.
        generator: the random numbers of sampling, on the model's device.

    Returns:
        Prompt and new ids for GPT; new ids without the start token for T5 and Transformer. As
        long as the longest row, which includes its stop token.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, before any compute.
    """
    request = check_request(
        model,
        input_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        length_penalty=length_penalty,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        attention_mask=attention_mask,
        generator=generator,
    )
    n_prompt = 0 if is_encoder_decoder(model) else input_ids.shape[1]
    # Made outside inference mode, so that the ids may be trained on.
    ids = request.input_ids.new_empty(len(input_ids), n_prompt + max_new_tokens)
    ids[:, :n_prompt] = request.input_ids[:, :n_prompt]
    if num_beams > 1:
        columns = iter(_search(model, request, num_beams, length_penalty).T)
    else:
        columns = _stream(model, request, _chooser(temperature, top_k, top_p, generator))
    for end, new in enumerate(columns, start=n_prompt + 1):  # at least one: it is checked
        ids[:, end - 1] = new
    return ids[:, :end]


def generate_stream(
    model: nn.Module,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, " B"]]:
    """The new ids of `generate`, [B] at a time, as soon as each is known.

    Arguments and errors are those of `generate`, and come at the call, not at the first token.
    The model is in eval mode until the iterator ends or is closed.
    """
    request = check_request(
        model,
        input_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        attention_mask=attention_mask,
        generator=generator,
    )
    return _stream(model, request, _chooser(temperature, top_k, top_p, generator))


def _chooser(
    temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Choose:
    if temperature == 0:
        return partial(torch.argmax, dim=-1)
    return partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)


def _stream(model: nn.Module, request: Request, choose: Choose) -> Iterator[Int[Tensor, " B"]]:
    """The loop of greedy decoding and of sampling; each token is yielded outside the mode."""
    n_rows, n_steps = len(request.input_ids), request.max_new_tokens
    with eval_mode(model):
        stepper = make_stepper(model, request)
        finished = torch.zeros(n_rows, dtype=torch.bool, device=request.input_ids.device)
        can_stop = len(request.stop_ids) > 0
        ids = None
        for left in reversed(range(n_steps)):
            with torch.inference_mode():
                logits = finite(stepper.first()) if ids is None else stepper.next(ids)
                ids = choose(logits)
                if can_stop:
                    ids = ids.masked_fill(finished, request.pad_id)
                    finished = finished | (ids[:, None] == request.stop_ids).any(-1)
                # The only wait for the device in a step, and none where nothing can stop it.
                done = left == 0 or (can_stop and bool(finished.all()))
            yield ids
            if done:
                return


@torch.inference_mode()
def _search(
    model: nn.Module, request: Request, num_beams: int, length_penalty: float
) -> Int[Tensor, "B T"]:
    """The best continuations, cut after the longest."""
    with eval_mode(model):
        stepper = make_stepper(model, request)
        best = beam_search(stepper, request, num_beams=num_beams, length_penalty=length_penalty)
    return best.ids[:, : int(best.lengths.max())]
