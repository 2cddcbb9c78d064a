"""What `generate` refuses: each by name, value and range, before the model computes anything."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import pytest
import torch
from generation_references import tiny
from torch import nn

from llm_course import BERT, BERTConfig, generate
from llm_course.generation.decode import generate_stream

IDS = torch.tensor([[1, 2, 3], [3, 2, 1]])
NAN = float("nan")

REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("gpt", {"temperature": -0.5}, ValueError, r"temperature must be at least 0 .*-0.5"),
    ("gpt", {"temperature": NAN}, ValueError, "temperature .*nan"),
    ("gpt", {"temperature": float("inf")}, ValueError, "temperature .*finite.*inf"),
    ("gpt", {"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
    ("gpt", {"temperature": True}, TypeError, "temperature must be a number"),
    ("gpt", {"temperature": 1.0, "top_p": 0.0}, ValueError, "top_p must be above 0 .*got 0"),
    ("gpt", {"temperature": 1.0, "top_p": 1.2}, ValueError, "top_p must .* at most 1, got 1.2"),
    ("gpt", {"temperature": 1.0, "top_k": 0}, ValueError, "top_k .* at least 1 .*5, got 0"),
    ("gpt", {"temperature": 1.0, "top_k": 6}, ValueError, "top_k .* at most 5, got 6"),
    ("gpt", {"temperature": 1.0, "top_k": 2.5}, TypeError, "top_k must be a whole number"),
    ("gpt", {"num_beams": 0}, ValueError, "num_beams must be at least 1, got 0"),
    ("gpt", {"num_beams": 2, "temperature": 1.0}, ValueError, "num_beams = 2 .*temperature = 1.0"),
    ("gpt", {"num_beams": 2, "length_penalty": NAN}, ValueError, "length_penalty .*nan"),
    ("gpt", {"num_beams": 2, "length_penalty": 99}, ValueError, "length_penalty .*10, got 99"),
    ("gpt", {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
    ("gpt", {"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be a whole number, got 2.0"),
    (
        "gpt",
        {"max_new_tokens": 14},
        ValueError,
        "prompt of 3 and max_new_tokens: 17 tokens exceed n_positions = 16",
    ),
    ("gpt", {"eos_token_id": 5}, ValueError, "eos_token_id .* at most 4, got 5"),
    ("gpt", {"eos_token_id": [1, -1]}, ValueError, "eos_token_id .*-1"),
    ("gpt", {"eos_token_id": 1.5}, TypeError, "eos_token_id must be a whole number, got 1.5"),
    ("gpt", {"generator": 7}, TypeError, "generator must be a torch.Generator, got 7"),
    ("gpt", {"attention_mask": 1 - IDS}, ValueError, "attention_mask .*got -2"),
    ("gpt", {"pad_token_id": 5}, ValueError, "pad_token_id .* at most 4, got 5"),
    (
        "gpt",
        {"input_ids": [[1, 2]]},
        TypeError,
        r"input_ids must be a torch.Tensor, got \[\[1, 2\]\]",
    ),
    ("gpt", {"input_ids": IDS.float()}, TypeError, "input_ids .*int64 or int32.*float32"),
    ("gpt", {"input_ids": IDS[0]}, ValueError, r"input_ids must have the shape .*\(3,\)"),
    ("gpt", {"input_ids": IDS[:, :0]}, ValueError, r"at least one position, got \(2, 0\)"),
    ("gpt", {"input_ids": IDS[:0]}, ValueError, r"at least one position, got \(0, 3\)"),
    (
        "gpt",
        {"input_ids": IDS + 2},
        ValueError,
        "input_ids must be from 0 to 4, got 5 at row 0, position 2",
    ),
    ("gpt", {"input_ids": IDS - 2}, ValueError, "input_ids .*, got -1 at row 0, position 0"),
    (
        "gpt",
        {"attention_mask": torch.ones(2, 4).long()},
        ValueError,
        r"attention_mask must have the shape .*\[2, 3\], got \[2, 4\]",
    ),
    ("gpt", {"attention_mask": torch.ones(2, 3)}, TypeError, "attention_mask .*float32"),
    ("gpt", {"attention_mask": [[1, 1, 1]]}, TypeError, "attention_mask .*list"),
    (
        "gpt",
        {"attention_mask": 2 * IDS},
        ValueError,
        "attention_mask must hold only 0 and 1, got 6",
    ),
    (
        "gpt",
        {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
        ValueError,
        "row 1 of attention_mask is all 0: the prompt is empty",
    ),
    (
        "gpt",
        {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
        ValueError,
        "row 1 .* 0 after a 1: pad prompts on the left",
    ),
    (
        "transformer",
        {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])},
        ValueError,
        "row 1 .* 1 after a 0: pad on the right",
    ),
    ("transformer", {"max_new_tokens": 17}, ValueError, "max_new_tokens: 17 .*n_positions = 16"),
    ("transformer", {"input_ids": IDS.repeat(1, 6)}, ValueError, "input_ids: 18 .*16"),
    ("t5", {"input_ids": IDS + 2}, ValueError, "got 5 at row 0, position 2"),
]


def forbid_compute(model: nn.Module) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("the model computed something before the refusal")

    for module in model.modules():
        module.register_forward_pre_hook(computed)


@pytest.mark.parametrize(("family", "arguments", "error", "message"), REFUSED)
def test_refused_before_any_compute(
    family: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = tiny(family).train()
    forbid_compute(model)
    arguments = {"input_ids": IDS, "max_new_tokens": 2} | arguments
    ids = arguments.pop("input_ids")
    # Unwrapped: else the checks of annotations, which only tests have, would refuse a type first.
    with pytest.raises(error, match=message):
        unwrap(generate)(model, ids, **arguments)
    if not {"num_beams", "length_penalty"} & set(arguments):  # at the call, not at the first token
        with pytest.raises(error, match=message):
            unwrap(generate_stream)(model, ids, **arguments)
    assert model.training


def test_the_same_call_without_the_fault_computes() -> None:
    model = tiny("gpt")
    forbid_compute(model)
    with pytest.raises(AssertionError, match="computed something"):
        generate(model, IDS, max_new_tokens=2)


def test_model_that_cannot_generate_is_refused_by_name() -> None:
    bert = BERT(BERTConfig(vocab_size=5, n_layers=1, d_model=8, n_heads=2, d_ff=8))
    with pytest.raises(TypeError, match="GPT, T5 or Transformer, got BERT"):
        generate(bert, IDS, max_new_tokens=2)


@pytest.mark.gpu
def test_generator_on_another_device_is_refused() -> None:
    model = tiny("gpt").cuda()
    with pytest.raises(ValueError, match="generator is on cpu"):
        generate(model, IDS.cuda(), max_new_tokens=2, temperature=1.0, generator=torch.Generator())
    with pytest.raises(ValueError, match="input_ids are on cpu, the model on cuda"):
        generate(model, IDS, max_new_tokens=2)
