"""What the recorded runs that train a model have in common."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from experiments.record import say


def run_training(run: Any) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and evaluate.

    `run` is what a module of `runs/` has prepared: a `GPTRun`, a `TranslationRun`.
    """
    lines: list[dict[str, Any]] = []
    for step in run.steps(resume=run.out is not None):
        lines.append(dataclasses.asdict(step))
        if step.validation:
            say(f"step {step.step}: loss {step.loss:.3f}, validation {step.validation['loss']:.3f}")
    if run.out is not None:  # the log also has the steps before an interruption
        log = (run.out / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in log.splitlines()]
    last = lines[-1]
    return {
        "seed": run.train_config.seed,
        "model": run.model.config.to_dict(),
        "train": run.train_config.to_dict(),
        "train_seconds": round(last["seconds"], 1),
        "tokens": last["tokens"],
        **run.summary(last["seconds"], last["tokens"] / last["seconds"]),
        "curve": _thinned(lines, run.train_config.max_steps),
    }


def _thinned(lines: list[dict[str, Any]], max_steps: int) -> list[dict[str, Any]]:
    """About a hundred points of the curve, and every evaluation; each term where there are two."""
    every = max(max_steps // 100, 1)
    curve = []
    for line in lines:
        row: dict[str, Any] = {"step": line["step"], "loss": round(line["loss"], 4)}
        if len(line["losses"]) > 1:
            row["losses"] = {name: round(loss, 4) for name, loss in line["losses"].items()}
        if line["validation"]:
            row["validation"] = round(line["validation"]["loss"], 4)
            if len(line["losses"]) > 1:
                row["validation_losses"] = {
                    name: round(line["validation"][name], 4) for name in line["losses"]
                }
        if line["step"] % every == 0 or line["validation"]:
            curve.append(row)
    return curve
