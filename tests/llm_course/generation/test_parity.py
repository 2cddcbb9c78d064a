"""The same ids as `transformers.generate`: greedy and beams, GPT-2 and T5, padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generation_references import rng
from parity import perturbed
from torch import Tensor, nn

from llm_course import GPT, T5, generate

VOCAB = 23
STOPS = [2, 7, 11, 15, 20]  # several, so that random models meet one


def pair(family: str, directory: Path, seed: int) -> tuple[nn.Module, Any]:
    """Our model and theirs with the same random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, T5ForConditionalGeneration
    from transformers import T5Config as T5ConfigHF

    theirs: Any
    if family == "gpt":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            bos_token_id=0, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        theirs = perturbed(GPT2LMHeadModel(config), seed)
    else:
        config = T5ConfigHF(
            vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=16,
            eos_token_id=2, pad_token_id=0, decoder_start_token_id=0,
        )  # fmt: skip
        theirs = perturbed(T5ForConditionalGeneration(config), seed)
    theirs.save_pretrained(directory)
    return (GPT if family == "gpt" else T5).from_pretrained(directory), theirs


def prompts(seed: int) -> dict[str, Tensor]:
    """Six prompts of 1 to 7 tokens, padded on the left."""
    ids = torch.randint(3, VOCAB, (6, 7), generator=rng(seed))
    starts = torch.tensor([0, 6, 3, 5, 1, 4])
    mask = (torch.arange(7) >= starts[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def until_stop(rows: Tensor) -> list[list[int]]:
    """Each row up to its stop token: what follows is only filling, 0 or 2 in transformers."""
    ends = [next((i for i, id_ in enumerate(row) if id_ in STOPS), 99) for row in rows.tolist()]
    return [row[: end + 1] for row, end in zip(rows.tolist(), ends)]


@pytest.mark.parametrize("family", ["gpt", "t5"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "length_penalty": 1.0},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 2, "length_penalty": 2.0},
    ],
)
def test_same_ids_as_transformers(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    ended = 0
    for seed in range(3):
        ours, theirs = pair(family, tmp_path / str(seed), seed)
        batch = prompts(seed)
        found = generate(ours, **batch, max_new_tokens=12, eos_token_id=STOPS, **settings)
        # "never": end a search only when nothing can win, as we do.
        beams = {**settings, "early_stopping": "never"} if settings else {}
        expected = theirs.generate(
            **batch, max_new_tokens=12, eos_token_id=STOPS, do_sample=False, **beams
        )
        skip = 7 if family == "gpt" else 0  # we return T5's answer without the start token
        answers = until_stop(found[:, skip:])
        assert answers == until_stop(expected[:, skip or 1 :])
        ended += sum(answer[-1] in STOPS for answer in answers)
        if family == "gpt":  # the padding matters: without the mask other ids come out
            assert not torch.equal(generate(ours, batch["input_ids"], max_new_tokens=12), found)
    assert 0 < ended < 18  # some rows met a stop token and some did not


def test_sampling_distribution_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    from llm_course.generation.sampling import next_token_probabilities

    logits = 3 * torch.randn(50, 400, generator=rng(0))
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(30), TopPLogitsWarper(0.9)]
    )
    expected = warpers(torch.zeros(50, 1, dtype=torch.long), logits).softmax(-1)
    found = next_token_probabilities(logits, temperature=0.8, top_k=30, top_p=0.9)
    torch.testing.assert_close(found, expected)
