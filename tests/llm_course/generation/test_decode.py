"""`generate`: greedy and sampled text against brute force, padding, stop tokens, modes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from generation_references import (
    FAMILIES,
    all_answers,
    continuation,
    greedy_by_hand,
    next_logits,
    rng,
    tiny,
)
from scipy.stats import chisquare
from torch import Tensor, nn

from llm_course import generate
from llm_course.generation.decode import generate_stream

PROMPTS = [[3, 1, 4], [2], [4, 4, 0, 1, 2], [1, 0]]
NO_STOP: list[int] = []


def padded(prompts: list[list[int]], side: str, pad: int = 0) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt) if side == "left" else 0
        ids[row, start : start + len(prompt)] = torch.tensor(prompt)
        mask[row, start : start + len(prompt)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def answers(model: nn.Module, batch: dict[str, Tensor], ids: Tensor) -> list[list[int]]:
    skip = 0 if hasattr(model, "encode") else batch["input_ids"].shape[1]
    return ids[:, skip:].tolist()


@pytest.mark.covers("F13")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_with_a_cache_is_greedy_by_hand_without_one(family: str, seed: int) -> None:
    model = tiny(family, seed=10 * seed)
    for prompt in PROMPTS:
        ids = generate(model, torch.tensor([prompt]), max_new_tokens=8, eos_token_id=NO_STOP)
        assert continuation(model, prompt, ids[0]) == greedy_by_hand(model, prompt, 8)


@pytest.mark.parametrize(
    ("family", "side"), [("gpt", "left"), ("t5", "left"), ("t5", "right"), ("transformer", "right")]
)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_padded_batch_equals_each_prompt_alone(family: str, side: str, num_beams: int) -> None:
    settings = {"max_new_tokens": 6, "eos_token_id": NO_STOP, "num_beams": num_beams}
    mask_matters = False
    for seed in range(3):
        model = tiny(family, vocab_size=6, seed=seed)
        alone = [
            continuation(model, prompt, generate(model, torch.tensor([prompt]), **settings)[0])
            for prompt in PROMPTS
        ]
        for pad in (0, 5):
            batch = padded(PROMPTS, side, pad)
            assert answers(model, batch, generate(model, **batch, **settings)) == alone
            without_mask = generate(model, batch["input_ids"], **settings)
            mask_matters |= answers(model, batch, without_mask) != alone
    assert mask_matters  # or these models could not tell a padded batch from a wrong one


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_end_at_their_stop_token_and_are_filled_with_pad(family: str) -> None:
    model = tiny(family, vocab_size=6, seed=4)
    prompts = torch.tensor([[a, b] for a in range(6) for b in range(6)])

    def texts(**stops: Any) -> list[list[int]]:
        settings = {"max_new_tokens": 8, "temperature": 1.5, "generator": rng(0)}
        ids = generate(model, prompts, **settings, **stops)
        return [continuation(model, p, row) for p, row in zip(prompts.tolist(), ids)]

    free = texts(eos_token_id=NO_STOP)
    for stops in ([1], [1, 3], 4):
        stop_set = {stops} if isinstance(stops, int) else set(stops)
        cut = [
            next((a[: i + 1] for i, token in enumerate(a) if token in stop_set), a) for a in free
        ]
        longest = max(map(len, cut))
        assert len({len(a) for a in cut}) > 3  # rows of different lengths, or nothing is tested
        found = texts(eos_token_id=stops, pad_token_id=5)
        assert found == [a + [5] * (longest - len(a)) for a in cut]


def test_stop_token_and_fill_default_to_the_config() -> None:
    model = tiny("t5", vocab_size=6, seed=4)  # pad 0, eos 1
    prompts = torch.tensor([[a, b] for a in range(6) for b in range(6)])
    default = generate(model, prompts, max_new_tokens=8)
    assert torch.equal(
        default, generate(model, prompts, max_new_tokens=8, eos_token_id=1, pad_token_id=0)
    )
    free = generate(model, prompts, max_new_tokens=8, eos_token_id=NO_STOP)
    assert not torch.equal(default, free[:, : default.shape[1]])
    gpt = tiny("gpt")  # neither: rows are filled with the stop token
    ids = generate(gpt, torch.tensor([[a] for a in range(5)]), max_new_tokens=8, eos_token_id=2)
    for row in ids[:, 1:].tolist():
        if 2 in row:
            assert set(row[row.index(2) :]) == {2}


def test_generation_ends_when_every_row_has() -> None:
    model = tiny("gpt", seed=1)
    steps = count_steps(model)
    first = greedy_by_hand(model, [2], 1)[0]
    steps.clear()
    ids = generate(model, torch.tensor([[2]] * 3), max_new_tokens=9, eos_token_id=first)
    assert ids.tolist() == [[2, first]] * 3
    assert steps == [1]  # the prompt, and no step after it


def count_steps(model: nn.Module) -> list[int]:
    """How many positions each call of the first block gets."""
    seen: list[int] = []
    model.blocks()[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_each_new_token_costs_one_position(family: str) -> None:
    model = tiny(family)
    steps = count_steps(model)
    generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=5, eos_token_id=NO_STOP)
    assert steps == ([3] if family == "gpt" else [1]) + [1] * 4


@pytest.mark.covers("F13")
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_strings_are_as_frequent_as_their_probability(family: str) -> None:
    model, n = tiny(family, vocab_size=4, seed=5), 6000
    probs = {a: math.exp(p) for a, p in all_answers(model, [3, 1], 3, stops=[2]).items()}
    assert sum(probs.values()) == pytest.approx(1.0)
    ids = generate(
        model,
        torch.tensor([[3, 1]] * n),
        max_new_tokens=3,
        temperature=1.0,
        eos_token_id=2,
        generator=rng(1),
    )
    counts = dict.fromkeys(probs, 0)
    for row in ids.tolist():
        answer = continuation(model, [3, 1], torch.tensor(row))
        end = answer.index(2) + 1 if 2 in answer else 3
        counts[tuple(answer[:end])] += 1
    frequent = [a for a in probs if probs[a] * n >= 5]
    assert len(frequent) > 8
    rare = [a for a in probs if a not in frequent]
    observed = [counts[a] for a in frequent] + [sum(counts[a] for a in rare)] * bool(rare)
    expected = [probs[a] * n for a in frequent] + [n * sum(probs[a] for a in rare)] * bool(rare)
    assert chisquare(observed, expected).pvalue > 1e-3
    flat = [n / len(observed)] * len(observed)
    assert chisquare(observed, flat).pvalue < 1e-3


def test_top_k_of_one_is_greedy_and_top_p_of_one_changes_nothing() -> None:
    model, prompts = tiny("gpt"), torch.tensor(PROMPTS[::3][:1] * 8)
    settings: dict[str, Any] = {"max_new_tokens": 6}
    greedy = generate(model, prompts, **settings)
    settings["temperature"] = 3.0
    assert torch.equal(greedy, generate(model, prompts, top_k=1, **settings))
    assert torch.equal(greedy, generate(model, prompts, top_p=1e-9, **settings))
    plain = generate(model, prompts, generator=rng(0), **settings)
    assert torch.equal(plain, generate(model, prompts, top_p=1.0, generator=rng(0), **settings))
    assert torch.equal(plain, generate(model, prompts, top_k=5, generator=rng(0), **settings))
    assert not torch.equal(plain, greedy)


def test_same_generator_same_text() -> None:
    model, prompts = tiny("gpt"), torch.tensor([[1, 2]] * 4)
    texts = [
        generate(model, prompts, max_new_tokens=12, temperature=1.0, generator=rng(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_stream_yields_what_generate_returns() -> None:
    model = tiny("t5", vocab_size=6, seed=4)
    prompts = torch.tensor([[a, b] for a in range(6) for b in range(6)])
    settings: dict[str, Any] = {"max_new_tokens": 7, "temperature": 0.5, "eos_token_id": [2, 3]}
    whole = generate(model, prompts, **settings, generator=rng(2))
    pieces = list(generate_stream(model, prompts, **settings, generator=rng(2)))
    assert torch.equal(torch.stack(pieces, dim=1), whole)


def test_stream_leaves_gradients_on_and_restores_the_mode_when_it_is_dropped() -> None:
    model = tiny("gpt").train()
    stream = generate_stream(model, torch.tensor([[1]]), max_new_tokens=5)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()  # type: ignore[attr-defined]
    assert model.training


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    model = tiny("gpt").train()
    model.blocks()[0].eval()  # a frozen block stays frozen
    modes = [module.training for module in model.modules()]
    generate(model, torch.tensor([[1, 2]]), max_new_tokens=3)
    assert [module.training for module in model.modules()] == modes

    def fail(*_: object) -> None:
        assert not model.training
        raise RuntimeError("from inside")

    model.blocks()[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="from inside"):
        generate(model, torch.tensor([[1, 2]]), max_new_tokens=3)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("num_beams", [1, 2])
def test_no_step_records_gradients(num_beams: int) -> None:
    model, modes = tiny("gpt"), []
    model.blocks()[0].register_forward_pre_hook(
        lambda *_: modes.append(torch.is_inference_mode_enabled())
    )
    generate(model, torch.tensor([[1]]), max_new_tokens=3, eos_token_id=[], num_beams=num_beams)
    assert modes == [True] * 3


def test_dropout_is_off() -> None:
    model = tiny("gpt")
    expected = generate(model, torch.tensor([[1, 2]]), max_new_tokens=6)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    assert torch.equal(generate(model.train(), torch.tensor([[1, 2]]), max_new_tokens=6), expected)
    assert next_logits(model, [1], torch.zeros(1, 0, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generated_ids_may_be_trained_on_and_changed(num_beams: int) -> None:
    model = tiny("gpt")
    ids = generate(model, torch.tensor([[1, 2]]), max_new_tokens=3, num_beams=num_beams)
    model(ids).sum().backward()
    ids[0, 0] = 0


def test_works_inside_of_inference_mode_and_int32() -> None:
    model = tiny("gpt")
    expected = generate(model, torch.tensor([[1, 2]]), max_new_tokens=3)
    with torch.inference_mode():
        ids = generate(model, torch.tensor([[1, 2]], dtype=torch.int32), max_new_tokens=3)
    assert torch.equal(ids, expected)
    assert ids.dtype == torch.int64


@pytest.mark.parametrize("num_beams", [1, 2])
def test_context_can_be_filled_to_its_last_position(num_beams: int) -> None:
    model = tiny("gpt")  # n_positions = 16
    ids = generate(
        model, torch.tensor([[1] * 6]), max_new_tokens=10, eos_token_id=[], num_beams=num_beams
    )
    assert ids.shape == (1, 16)
    with pytest.raises(ValueError, match=r"17.*16"):
        generate(model, torch.tensor([[1] * 7]), max_new_tokens=10, num_beams=num_beams)
    padding = torch.ones(1, 9, dtype=torch.long)
    padding[0, :3] = 0  # takes no position
    ids = generate(model, torch.tensor([[1] * 9]), max_new_tokens=10, attention_mask=padding)
    assert ids.shape == (1, 19)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_model_that_says_nan_is_refused(num_beams: int) -> None:
    model = tiny("gpt")
    with torch.no_grad():
        next(model.blocks()[0].parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="finite"):
        generate(model, torch.tensor([[1]]), max_new_tokens=2, num_beams=num_beams)
