"""`llm-course generate`: continue a prompt with a model from a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llm_course.configs import MAX_SEED
from llm_course.errors import ConfigError
from llm_course.generation.decode import generate
from llm_course.models.gpt import GPT
from llm_course.recipes.run import load_model, printable
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.devices import choose_device


def load_for_generation(directory: str | Path) -> tuple[GPT, Tokenizer]:
    """A GPT and the tokenizer that lies beside it; their sizes must agree."""
    return load_model(directory, GPT)


def sample_texts(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    prompt: str = "",
    samples: int = 1,
    max_new_tokens: int = 120,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Continuations of a prompt as texts; a document ends at EOS. Options go to `generate`."""
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed must be from 0 to {MAX_SEED}, got {seed}")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt_ids = bos + (tokenizer.encode(prompt) if prompt else [])
    if not prompt_ids:
        raise ConfigError("prompt must not be empty: this tokenizer has no token for a beginning")
    device = next(model.parameters()).device
    rows = torch.tensor([prompt_ids] * samples, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    room = model.config.n_positions - len(prompt_ids)
    ids = generate(
        model,
        rows,
        max_new_tokens=min(max_new_tokens, room) if room > 0 else max_new_tokens,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        generator=generator,
        **options,
    )
    texts = []
    for row in ids.tolist():
        new = row[len(bos) :]
        if tokenizer.eos_id in new:
            new = new[: new.index(tokenizer.eos_id)]
        texts.append(tokenizer.decode(new))
    return texts


def generate_command(*, model: str, device: str, samples: int, **options: Any) -> None:
    """What the command line does: load, sample, print."""
    chosen = choose_device(device)
    if samples > 1 and not options["temperature"]:
        raise ConfigError(f"samples = {samples} are alike at temperature 0: raise --temperature")
    network, tokenizer = load_for_generation(model)
    network.to(chosen)
    texts = sample_texts(network, tokenizer, samples=samples, **options)
    for number, text in enumerate(texts, start=1):
        if samples > 1:
            print(f"--- {number} ---")
        print(printable(text))
