"""From a run to a checkpoint and back: everything is compared before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from llm_course.configs import TrainConfig
from llm_course.errors import CheckpointError
from llm_course.training import parallel
from llm_course.training.checkpoint import (
    canonical_json,
    checkpoint_path,
    latest_checkpoint,
    save_checkpoint,
    set_aside_newer,
    sha256,
)
from llm_course.training.run_directory import RunDirectory, tokenizer_hash
from llm_course.training.state import (
    Progress,
    RandomStream,
    check_optimizer_tensors,
    check_tensors,
    describe,
    load_model_tensors,
    load_optimizer_tensors,
    model_slots,
    model_tensors,
    optimizer_tensors,
    read_tensors,
    refuse_another_run,
)

MODEL, OPTIMIZER, BEST, STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "best.safetensors",
    "state.json",
)


class Run:
    """What of a run is saved; the loop's own class adds how it runs."""

    model: nn.Module
    batches: Any
    config: TrainConfig
    tokenizer: Any
    device: torch.device
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    random: RandomStream
    progress: Progress
    best_state: dict[str, Tensor]
    out: Path | None
    directory: RunDirectory | None
    saved_step: int


def made_with(run: Run) -> dict[str, Any]:
    """What the run computes with; a run with another cannot be continued."""
    fingerprint = getattr(run.batches, "fingerprint", None)
    return {
        "training": run.config.to_dict(),
        "model": describe(getattr(run.model, "config", None)),
        "tokenizer": tokenizer_hash(run.tokenizer),
        "data": fingerprint() if callable(fingerprint) else fingerprint,
        "batches_per_update": run.config.accumulation * parallel.world_size(),
        "frozen_tensors": sum(not p.requires_grad for p in run.model.parameters()),
    }


def save(run: Run) -> None:
    """Write the checkpoint of the present step; all processes take part, the first one writes."""
    model = model_tensors(run.model)
    optimizer = optimizer_tensors(run.model, run.optimizers)
    random = [parallel.gather(state, run.device) for state in run.random.states()]
    if run.directory is None:
        return
    settings = made_with(run)
    state = {
        "progress": asdict(run.progress),
        "random": [[each.numpy().tobytes().hex() for each in states] for states in random],
        "batches": run.batches.state_dict(),
        "scaler": run.scaler.state_dict(),
        "made_with": settings,
    }
    files = {
        MODEL: to_bytes(model),
        OPTIMIZER: to_bytes(optimizer),
        STATE: canonical_json(state),
    }
    if run.best_state:
        files[BEST] = to_bytes(run.best_state)
    hashes = {
        "config": sha256(canonical_json([settings["training"], settings["model"]])),
        "tokenizer": settings["tokenizer"],
        "data": settings["data"],
    }
    run.directory.flush_log()
    root, step = run.directory.checkpoints, run.progress.step
    save_checkpoint(root, step, files, hashes, run.config.keep_checkpoints)


def resume(run: Run) -> None:
    """Continue from the newest checkpoint that verifies; do nothing where there is none."""
    path = _choose(run)
    if path is None:
        return
    state = _read_state(path)
    refuse_another_run(path, state["made_with"], made_with(run), run.config)
    model = read_tensors(path / MODEL)
    optimizer = read_tensors(path / OPTIMIZER)
    best = read_tensors(path / BEST) if (path / BEST).exists() else {}
    slots = model_slots(run.model)
    check_tensors(path / MODEL, model, slots)
    check_optimizer_tensors(path / OPTIMIZER, run.model, run.optimizers, optimizer)
    if best:
        check_tensors(path / BEST, best, slots)
    load_model_tensors(run.model, model)
    load_optimizer_tensors(run.model, run.optimizers, optimizer)
    run.best_state = {name: tensor.clone() for name, tensor in best.items()}
    run.batches.load_state_dict(state["batches"])
    if state["scaler"] and run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    _restore_random(run, state["random"])
    run.progress = Progress(**state["progress"])
    run.saved_step = run.progress.step


def _choose(run: Run) -> Path | None:
    """The first process verifies, and all take the same one."""
    step = -1
    if run.directory is not None:
        root = run.directory.checkpoints
        path = latest_checkpoint(root)
        set_aside_newer(root, path)
        step = -1 if path is None else int(path.name[5:])
    step = parallel.largest(step, run.device)
    if step < 0 or run.out is None:
        return None
    return checkpoint_path(run.out / "checkpoints", step)


def _read_state(path: Path) -> Mapping[str, Any]:
    try:
        state = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} is damaged: {error}") from error
    missing = {"progress", "random", "batches", "scaler", "made_with"} - set(state)
    if missing:
        raise CheckpointError(f"{path / STATE} lacks {', '.join(sorted(missing))}")
    return state


def _restore_random(run: Run, saved: list[list[str]]) -> None:
    """Each process its own state; where their number changed, dropout is drawn afresh."""
    if any(len(states) != parallel.world_size() for states in saved):
        return
    mine = [states[parallel.rank()] for states in saved]
    if len(mine) == len(run.random.states()):  # else it was saved on another kind of device
        tensors = [torch.frombuffer(bytearray.fromhex(s), dtype=torch.uint8) for s in mine]
        run.random.restore(tensors)
