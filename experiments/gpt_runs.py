"""The recorded runs of the GPT chapters."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.record import Place, RecordedRun, part_of, say
from experiments.training import run_training
from llm_course.configs import DataConfig, GPTConfig, TrainConfig
from llm_course.losses.causal import causal_lm_loss
from llm_course.models.gpt import GPT
from llm_course.presets import gpt_preset
from llm_course.recipes.pretrain_gpt import GPTRun, prepare_gpt
from llm_course.recipes.sample import sample_texts
from llm_lab.starts import copying
from llm_town.judge import judge

SHAKESPEARE = "tinyshakespeare.txt"
STARTS = {"reset_parameters": GPT.reset_parameters, "reset_to_copying": copying}  # recorded so


def gpt_town(place: Place) -> dict[str, Any]:
    """GPT on Town by the h200 preset, with samples judged by the parser."""
    preset = gpt_preset("h200")
    model, data, training = preset.model, preset.data, preset.train
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    run = prepare_gpt(model, data, training, out=place.out)
    result = run_training(run)
    return result | {"samples": judged_samples(run, 20 if place.tiny else 500)}


def gpt_town_cpu(place: Place) -> dict[str, Any]:
    """GPT on Town by the cpu preset, on as many threads as torch uses."""
    return _town_on_cpu(place, 1, place.out)


def gpt_town_longer_cpu(place: Place) -> dict[str, Any]:
    """The cpu preset with twice and four times the updates, no story read twice."""
    runs = []
    for times in (2, 4):
        longer = partial(_town_on_cpu, place, times, None)
        runs.append({"times": times} | part_of(place, f"times-{times}", longer))
        say(f"{times} times the updates: {runs[-1]['floor_ratio']:.3f} times the floor")
    return {"seed": gpt_preset("cpu").train.seed, "runs": runs}


def _town_on_cpu(place: Place, times: int, out: Path | None) -> dict[str, Any]:
    preset = gpt_preset("cpu")
    model = preset.model
    data = dataclasses.replace(preset.data, documents=times * preset.data.documents)
    training = dataclasses.replace(preset.train, max_steps=times * preset.train.max_steps)
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    every = max(1, training.max_steps // 4) if out is not None else 0
    training = dataclasses.replace(training, device="cpu", save_every=every)
    run = prepare_gpt(model, data, training, out=out)
    result = run_training(run)
    return result | {"samples": judged_samples(run, 20 if place.tiny else 500)}


def gpt_start_cpu(place: Place) -> dict[str, Any]:
    """Start weights of the paper, and heads that copy, on Town and on tinyshakespeare.

    On Town also once with a short memory of squared gradients, the usual one of large models, once
    with one rate for all weights, and once by AdamW alone, with its rates for 4,096 pieces.
    """
    preset = gpt_preset("cpu")
    training = dataclasses.replace(preset.train, max_steps=1000, device="cpu")
    model, data, plays = _small_gpt(str(place.text_file(SHAKESPEARE)), "bpe", 512)
    texts = {"town": (preset.model, preset.data), "tinyshakespeare": (model, data)}
    starts: dict[str, dict[str, Any]] = {name: {} for name in texts}
    for name, (model, data) in texts.items():
        chosen = training if name == "town" else dataclasses.replace(plays, max_steps=1000)
        for start in STARTS:
            trained = partial(_from_start, place, start, model, data, chosen)
            starts[name][start] = part_of(place, f"{name}-{start}", trained)
    other = {
        "town_short_memory": dataclasses.replace(training, beta2=0.95),
        "town_one_rate": dataclasses.replace(training, embedding_lr_scale=1.0),
        "town_adamw": dataclasses.replace(
            training, optimizer="adamw", lr=4e-3, embedding_lr_scale=4.0, weight_decay=0.1
        ),
    }
    results = {}
    for name, changed in other.items():
        trained = partial(
            _from_start, place, "reset_to_copying", preset.model, preset.data, changed
        )
        results[name] = part_of(place, name.replace("_", "-"), trained)
    return {"seed": training.seed, **starts, **results}


def _from_start(
    place: Place, start: str, model: GPTConfig, data: DataConfig, training: TrainConfig
) -> dict[str, Any]:
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    run = prepare_gpt(model, data, training)
    torch.manual_seed(training.seed)
    STARTS[start](run.model)
    result = run_training(run)
    say(f"{data.data}, {start}: {result['val_nats_per_char']:.3f} nats a character")
    return result


def _small_gpt(
    path: str, kind: Any, vocab_size: int, width: int = 128
) -> tuple[GPTConfig, DataConfig, TrainConfig]:
    """nanoGPT's small model for a CPU, with a higher learning rate."""
    data = DataConfig(
        data="files",
        data_files=(path,),
        tokenizer=kind,
        vocab_size=vocab_size,
        context=64,
        batch_size=12,
    )
    return (
        GPTConfig(n_layers=4, d_model=width, n_heads=4, n_positions=64, dropout=0.0),
        data,
        TrainConfig(max_steps=100_000, lr=3e-3, min_lr=1e-4, warmup_steps=100, device="cpu"),
    )


def judged_samples(run: GPTRun, number: int) -> dict[str, Any]:
    """Shares of sentences, stories and true stories, at temperature 1 and 0.7."""
    model = run.model.eval()
    verdicts = {}
    for temperature in (1.0, 0.7):
        texts: list[str] = []
        for seed in range(math.ceil(number / 50)):
            texts += sample_texts(
                model,
                run.data.tokenizer,
                samples=min(50, number - len(texts)),
                max_new_tokens=run.model.config.n_positions - 1,
                temperature=temperature,
                seed=seed,
            )
        verdicts[str(temperature)] = {"samples": len(texts), **judge(texts)}
    return verdicts


def gpt_shakespeare(place: Place) -> dict[str, Any]:
    """nanoGPT's character model (6 layers of 384) on tinyshakespeare, with dropout."""
    model = GPTConfig(n_layers=6, d_model=384, n_heads=6, n_positions=256, dropout=0.2)
    data = DataConfig(
        data="files",
        data_files=(str(place.text_file(SHAKESPEARE)),),
        tokenizer="char",
        vocab_size=1024,
        context=256,
        batch_size=64,
    )
    training = TrainConfig(
        max_steps=3000,
        lr=1e-3,
        min_lr=1e-4,
        warmup_steps=100,
        beta2=0.99,
        weight_decay=0.1,
        eval_every=250,
        save_every=1000,
        compile=not place.tiny,
    )
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    run = prepare_gpt(model, data, training, out=place.out)
    result = run_training(run)
    best = min(row["validation"] for row in result["curve"] if "validation" in row)
    return result | {"best_val_loss": best, "target": 1.47}


def gpt_shakespeare_cpu(place: Place) -> dict[str, Any]:
    """Small models of characters and of pieces on tinyshakespeare, for 60 s and for 180 s."""
    path = str(place.text_file(SHAKESPEARE))
    budgets = (1.0,) if place.tiny else (60.0, 180.0)
    runs = []
    for seconds in budgets:
        for kind, vocab_size in (("char", 256), ("bpe", 512)):
            timed = partial(_timed_run, path, kind, vocab_size, seconds, tiny=place.tiny)
            runs.append(part_of(place, f"{kind}-{seconds:g}", timed))
            say(str({k: v for k, v in runs[-1].items() if k != "curve"}))
    return {"seed": 0, "runs": runs}


def _timed_run(
    path: str, kind: str, vocab_size: int, seconds: float, *, tiny: bool
) -> dict[str, Any]:
    """Train for about so many seconds: the rate of the first steps sets the number of steps."""
    model, data, settings = _small_gpt(path, kind, vocab_size, 32 if tiny else 128)
    trial, begin, done = prepare_gpt(model, data, settings), 0.0, 0
    for step in trial.steps():
        if step.step == 5:
            begin = time.monotonic()
        done = step.step - 5
        if begin and time.monotonic() - begin > min(5.0, seconds / 4):
            break
    rate = max(done, 1) / (time.monotonic() - begin)
    steps = max(int(rate * seconds), 20)
    settings = dataclasses.replace(settings, max_steps=steps, warmup_steps=min(100, steps // 4))
    run = prepare_gpt(model, data, settings)
    result = run_training(run)
    return {"tokenizer": kind, "budget_seconds": seconds, "steps": steps} | result


def gpt2_step(place: Place) -> dict[str, Any]:
    """Tokens per second and share of the peak of a GPT-2 124M step, beside transformers."""
    import transformers  # noqa: F401  # if it is missing, better said now than after our half

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if place.tiny:
        config, batch, length, steps = _tiny_model(), 2, 32, 2
    else:
        config, batch, length, steps = GPTConfig(dropout=0.0), 32, 1024, 20
    ids = torch.randint(config.vocab_size, (batch, length), device=device)
    flops = _flops_per_token(config, length)
    rows = {}
    for name, compiled in (("ours", False), ("ours", True), ("hf", False), ("hf", True)):
        if compiled and place.tiny:
            continue
        key = f"{name}{'_compiled' if compiled else ''}"
        measure = partial(_step_row, name, config, ids, steps, flops, compiled=compiled)
        rows[key] = part_of(place, key, measure)
        say(f"{key}: {rows[key]}")
    peak = _matmul_peak(device, 256 if place.tiny else 8192)
    for row in rows.values():
        row["mfu_of_measured_matmul"] = round(row["tokens_per_second"] * flops / peak, 4)
    return {
        "seed": 0,
        "batch": [batch, length],
        "precision": "bf16",
        "flops_per_token": flops,
        "matmul_flops_per_second": peak,
        "rows": rows,
    }


def _step_row(
    name: str, config: GPTConfig, ids: torch.Tensor, steps: int, flops: float, *, compiled: bool
) -> dict[str, Any]:
    """The speed of one implementation; its memory is free again afterwards."""
    network = _network(name, config).to(ids.device)
    step_ms, first = _time_steps(network, ids, steps, compiled=compiled)
    rate = ids.numel() / step_ms * 1e3
    return {
        "ms_per_step": round(step_ms, 2),
        "tokens_per_second": round(rate),
        "mfu_of_989_tflops": round(rate * flops / 989e12, 4),
        "first_step_seconds": round(first, 1),
    }


def _network(name: str, config: GPTConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "ours":
        return GPT(config)
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_layer=config.n_layers,
            n_embd=config.d_model,
            n_head=config.n_heads,
            n_positions=config.n_positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def _time_steps(
    network: torch.nn.Module, ids: torch.Tensor, steps: int, *, compiled: bool
) -> tuple[float, float]:
    """Median milliseconds of a whole step, and seconds of the first one (with compilation)."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    called = torch.compile(network) if compiled else network
    is_ours = isinstance(network, GPT)

    def step() -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            output = called(ids)
            logits = output if is_ours else output.logits
            total, count = causal_lm_loss(logits, ids)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first = _seconds(step, ids.device)
    for _ in range(3):
        step()
    times = [_seconds(step, ids.device) for _ in range(steps)]
    return statistics.median(times) * 1e3, first


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _flops_per_token(config: GPTConfig, length: int) -> float:
    """nanoGPT's count: 6 N + 12 L H K T, N without the table of positions."""
    parameters = sum(p.numel() for p in _meta(config).parameters())
    parameters -= config.n_positions * config.d_model
    return 6.0 * parameters + 12.0 * config.n_layers * config.d_model * length


def _meta(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def _matmul_peak(device: torch.device, size: int) -> float:
    """FLOP/s of a large bf16 matrix product, measured here."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def multiply() -> None:
        torch.mm(a, b)

    for _ in range(3):
        multiply()
    return 2.0 * size**3 / statistics.median(_seconds(multiply, device) for _ in range(10))


def _tiny_model() -> GPTConfig:
    return GPTConfig(
        vocab_size=512, n_layers=2, d_model=32, n_heads=2, n_positions=192, dropout=0.0
    )


def _tiny(
    model: GPTConfig, data: DataConfig, training: TrainConfig
) -> tuple[GPTConfig, DataConfig, TrainConfig]:
    """The same run in seconds: only sizes change."""
    small = dataclasses.replace(
        model, n_layers=2, d_model=32, n_heads=2, d_ff=None, n_positions=192
    )
    return (
        small,
        dataclasses.replace(data, documents=300, context=min(data.context, 192), batch_size=4),
        dataclasses.replace(
            training, max_steps=6, warmup_steps=2, eval_every=3, save_every=3, compile=False
        ),
    )


RUNS = {
    "gpt_town": RecordedRun(
        title="GPT on Town, h200 preset", device="cuda", minutes=6, make=gpt_town
    ),
    "gpt_shakespeare": RecordedRun(
        title="char GPT 6L/384 on tinyshakespeare", device="cuda", minutes=3, make=gpt_shakespeare
    ),
    "gpt2_step": RecordedRun(
        title="GPT-2 124M training step beside transformers",
        device="cuda",
        minutes=4,
        make=gpt2_step,
    ),
    "gpt_town_cpu": RecordedRun(
        title="GPT on Town, cpu preset", device="cpu", minutes=4, make=gpt_town_cpu
    ),
    "gpt_town_longer_cpu": RecordedRun(
        title="GPT on Town, cpu preset, two and four times as long",
        device="cpu",
        minutes=10,
        make=gpt_town_longer_cpu,
    ),
    "gpt_start_cpu": RecordedRun(
        title="two sets of start weights, on Town and tinyshakespeare",
        device="cpu",
        minutes=10,
        make=gpt_start_cpu,
    ),
    "gpt_shakespeare_cpu": RecordedRun(
        title="small GPTs on tinyshakespeare, 60 s and 180 s",
        device="cpu",
        minutes=9.5,
        make=gpt_shakespeare_cpu,
    ),
}
