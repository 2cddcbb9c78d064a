"""The recorded runs of the GPT chapters."""

from __future__ import annotations

import dataclasses
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from experiments.script import Place, RecordedRun, part_of, run_training, say
from llm_course.configs import DataConfig, GPTConfig, TrainConfig
from llm_course.presets import find_preset
from llm_course.recipes.pretrain_gpt import prepare_gpt
from llm_course.recipes.run import Run
from llm_course.recipes.sample import sample_texts
from llm_town.judge import judge

SHAKESPEARE = "tinyshakespeare.txt"
ADAMW = {"optimizer": "adamw", "lr": 4e-3, "embedding_lr_scale": 4.0, "weight_decay": 0.1}
STARTS: Any = {"reset_parameters": "paper", "reset_to_copying": "lab"}  # by their recorded names


def gpt_town(place: Place) -> dict[str, Any]:
    """GPT on Town, h200 preset, with samples judged by the parser."""
    preset = find_preset("gpt", "h200")
    run = prepare_gpt(*place.sized(preset.model, preset.data, preset.train), out=place.out)
    return run_training(run) | {"samples": judged_samples(run, 20 if place.tiny else 500)}


def gpt_town_cpu(place: Place) -> dict[str, Any]:
    """GPT on Town, cpu preset, on as many threads as torch uses."""
    return _town_on_cpu(place, 1, place.out)


def gpt_town_longer_cpu(place: Place) -> dict[str, Any]:
    """GPT on Town, cpu preset, two and four times as long, no story read twice."""
    runs = []
    for times in (2, 4):
        longer = partial(_town_on_cpu, place, times, None)
        runs.append({"times": times} | part_of(place, f"times-{times}", longer))
        say(f"{times} times the updates: {runs[-1]['floor_ratio']:.3f} times the floor")
    return {"seed": find_preset("gpt", "cpu").train.seed, "runs": runs}


def _town_on_cpu(place: Place, times: int, out: Path | None) -> dict[str, Any]:
    preset = find_preset("gpt", "cpu")
    steps = times * preset.train.max_steps
    data = dataclasses.replace(preset.data, documents=times * preset.data.documents)
    training = dataclasses.replace(
        preset.train, max_steps=steps, device="cpu", save_every=0 if out is None else steps // 4
    )
    run = prepare_gpt(*place.sized(preset.model, data, training), out=out)
    return run_training(run) | {"samples": judged_samples(run, 20 if place.tiny else 500)}


def gpt_start_cpu(place: Place) -> dict[str, Any]:
    """Start weights of the paper, and heads that copy, on Town and on tinyshakespeare.

    On Town also once with a short memory of squared gradients, the usual one of large models, once
    with one rate for all weights, and once by AdamW alone, with its rates for 4,096 pieces.
    """
    preset = find_preset("gpt", "cpu")
    town = dataclasses.replace(preset.train, max_steps=1000, device="cpu")
    model, data, plays = _small_gpt(place, "bpe", 512)
    texts = {
        "town": (preset.model, preset.data, town),
        "tinyshakespeare": (model, data, dataclasses.replace(plays, max_steps=1000)),
    }
    result: dict[str, Any] = {"seed": town.seed}
    for name, settings in texts.items():
        result[name] = {}
        for start in STARTS:
            trained = partial(_from_start, place, start, *settings)
            result[name][start] = part_of(place, f"{name}-{start}", trained)
    changes: dict[str, dict[str, Any]] = {
        "town_short_memory": {"beta2": 0.95},
        "town_one_rate": {"embedding_lr_scale": 1.0},
        "town_adamw": ADAMW,
    }
    for name, change in changes.items():
        settings = (preset.model, preset.data, dataclasses.replace(town, **change))
        trained = partial(_from_start, place, "reset_to_copying", *settings)
        result[name] = part_of(place, name.replace("_", "-"), trained)
    return result


def _from_start(
    place: Place, start: str, model: GPTConfig, data: DataConfig, training: TrainConfig
) -> dict[str, Any]:
    run = prepare_gpt(*place.sized(model, data, training), start=STARTS[start])
    result = run_training(run)
    say(f"{data.data}, {start}: {result['val_nats_per_char']:.3f} nats a character")
    return result


def _shakespeare(place: Place, tokenizer: Any, vocab_size: int, context: int) -> DataConfig:
    path = str(place.text_file(SHAKESPEARE))
    text = DataConfig(data="files", data_files=(path,), tokenizer=tokenizer)
    return dataclasses.replace(text, vocab_size=vocab_size, context=context)


def _small_gpt(
    place: Place, tokenizer: str, vocab_size: int
) -> tuple[GPTConfig, DataConfig, TrainConfig]:
    """nanoGPT's small model for a CPU, with a higher learning rate."""
    data = _shakespeare(place, tokenizer, vocab_size, context=64)
    return (
        GPTConfig(n_layers=4, d_model=128, n_heads=4, n_positions=64, dropout=0.0),
        dataclasses.replace(data, batch_size=12),
        TrainConfig(max_steps=100_000, lr=3e-3, min_lr=1e-4, warmup_steps=100, device="cpu"),
    )


def judged_samples(run: Run, number: int) -> dict[str, Any]:
    """Shares of sentences, stories and true stories, at temperature 1 and 0.7."""
    model, tokens = run.model.eval(), run.model.config.n_positions - 1
    verdicts = {}
    for temperature in (1.0, 0.7):
        texts: list[str] = []
        for seed in range(math.ceil(number / 50)):
            options = {"max_new_tokens": tokens, "temperature": temperature, "seed": seed}
            some = min(50, number - len(texts))
            texts += sample_texts(model, run.data.tokenizer, samples=some, **options)
        verdicts[str(temperature)] = {"samples": len(texts), **judge(texts)}
    return verdicts


def gpt_shakespeare(place: Place) -> dict[str, Any]:
    """nanoGPT's character model (6 layers of 384) on tinyshakespeare, with dropout."""
    model = GPTConfig(n_layers=6, d_model=384, n_heads=6, n_positions=256, dropout=0.2)
    data = dataclasses.replace(_shakespeare(place, "char", 1024, context=256), batch_size=64)
    training = TrainConfig(
        max_steps=3000,
        lr=1e-3,
        min_lr=1e-4,
        warmup_steps=100,
        beta2=0.99,
        weight_decay=0.1,
        eval_every=250,
        save_every=1000,
        compile=True,
    )
    run = prepare_gpt(*place.sized(model, data, training), out=place.out)
    result = run_training(run)
    best = min(row["validation"] for row in result["curve"] if "validation" in row)
    return result | {"best_val_loss": best, "target": 1.47}


def gpt_shakespeare_cpu(place: Place) -> dict[str, Any]:
    """Small models of characters and of pieces on tinyshakespeare, for 60 s and for 180 s."""
    budgets = (1.0,) if place.tiny else (60.0, 180.0)
    runs = []
    for seconds in budgets:
        for kind, vocab_size in (("char", 256), ("bpe", 512)):
            settings = place.sized(*_small_gpt(place, kind, vocab_size))
            timed = partial(_timed_run, *settings, seconds)
            runs.append(part_of(place, f"{kind}-{seconds:g}", timed))
            say(str({k: v for k, v in runs[-1].items() if k != "curve"}))
    return {"seed": 0, "runs": runs}


def _timed_run(
    model: GPTConfig, data: DataConfig, training: TrainConfig, seconds: float
) -> dict[str, Any]:
    """Train for about so many seconds: the rate of the first steps sets the number of steps."""
    trial, begin, done = prepare_gpt(model, data, training), 0.0, 0
    for step in trial.steps():
        if step.step == 5:
            begin = time.monotonic()
        done = step.step - 5
        if begin and time.monotonic() - begin > min(5.0, seconds / 4):
            break
    rate = max(done, 1) / (time.monotonic() - begin)
    steps = max(int(rate * seconds), 20)
    training = dataclasses.replace(training, max_steps=steps, warmup_steps=min(100, steps // 4))
    result = run_training(prepare_gpt(model, data, training))
    return {"tokenizer": data.tokenizer, "budget_seconds": seconds, "steps": steps} | result


RUNS = [
    RecordedRun(gpt_town, 6, "cuda"),
    RecordedRun(gpt_shakespeare, 3, "cuda"),
    RecordedRun(gpt_town_cpu, 4),
    RecordedRun(gpt_town_longer_cpu, 10),
    RecordedRun(gpt_start_cpu, 10),
    RecordedRun(gpt_shakespeare_cpu, 9.5),
]
