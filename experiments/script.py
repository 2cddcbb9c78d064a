"""What a script of recorded runs is made of: its place, its parts, and a training with its curve.

A script is a file `*_runs.py` of this folder with a table `RUNS`; `record` finds it by its name. A
result holds its command, commit, device, versions and seed, and the curve.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVarTuple

import torch

from llm_course.atomic import write_file
from llm_course.errors import DataError
from llm_course.recipes.run import Run

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers")
# What a rehearsal has at most of each number, whichever settings hold it; the rest is replaced.
TINY: dict[str, Any] = {
    **dict.fromkeys(("n_layers", "n_decoder_layers", "min_count", "epochs"), 1),
    **dict.fromkeys(("n_heads", "warmup_steps", "eval_every", "save_every"), 2),
    "batch_size": 4,
    "max_steps": 6,
    "held_out": 8,
    "n_dev": 12,
    "n_test": 12,
    "n_train": 30,
    "d_model": 32,
    "d_ff": 32,
    "context": 192,
    "n_positions": 192,
    "documents": 300,
    "pairs": 300,
    "vocab_size": 400,
    "validation": 0.3,
    "compile": False,
    "device": "cpu",
}
Configs = TypeVarTuple("Configs")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run reads and writes, and whether it is only a rehearsal."""

    out: Path
    data_dir: Path
    tiny: bool
    checkpoint: Path  # the directory of a checkpoint that is kept beside the result

    def text_file(self, name: str) -> Path:
        """A text in the data folder; `DataError` says what to put where."""
        path = self.data_dir / name
        if not path.is_file():
            raise DataError(
                f"{path} is missing: put the text there (README, section on recorded runs), "
                "or name another folder with --data-dir"
            )
        return path

    def sized(self, *configs: *Configs) -> tuple[*Configs]:
        """The settings of a run; in a rehearsal the same run in seconds: only sizes change."""
        return tuple(map(_rehearsed, configs)) if self.tiny else configs


def _rehearsed(config: Any) -> Any:
    changed = {}
    for field in fields(config):
        most, value = TINY.get(field.name), getattr(config, field.name)
        if most is not None and value is not None:
            changed[field.name] = min(most, value) if isinstance(most, int) else most
    return replace(config, **changed)


@dataclass(frozen=True)
class RecordedRun:
    """A run, how long it takes, and on what; its name and title are those of the function."""

    make: Callable[[Place], dict[str, Any]]
    minutes: float
    device: str = "cpu"  # or "cuda"

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def title(self) -> str:
        return (self.make.__doc__ or "").splitlines()[0].rstrip(".")


def part_of(place: Place, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part of a run that has no checkpoints: made now, or kept from an interrupted call.

    Only a part of the same commit on the same device is kept.
    """
    path = place.out / f"part-{name}.json"
    now = provenance()
    made_by = {key: now[key] for key in ("commit", "device_name", "threads", "versions")}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["made_by"] == made_by:
            part: dict[str, Any] = stored["part"]
            return part
    part = make()
    write(path, {"made_by": made_by, "part": part})
    return part


def write(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def say(message: str) -> None:
    """Progress of a long run, on stderr."""
    print(message, file=sys.stderr, flush=True)


def provenance() -> dict[str, Any]:
    """Commit, device and versions of this moment."""
    cuda = torch.cuda.is_available()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "device": "cuda" if cuda else "cpu",
        "device_name": torch.cuda.get_device_name(0) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) if find_spec(name) else None for name in PACKAGES},
    }


def _commit() -> str | None:
    """The commit, marked when the tree has changes; None outside a repository."""
    words = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LLM_COURSE_COMMIT")
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def run_training(run: Run) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and evaluate."""
    lines: list[dict[str, Any]] = []
    for step in run.steps(resume=run.out is not None):
        lines.append(asdict(step))
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
        terms = line["losses"] if len(line["losses"]) > 1 else {}
        validation = line["validation"]
        if terms:
            row["losses"] = {name: round(loss, 4) for name, loss in terms.items()}
        if validation:
            row["validation"] = round(validation["loss"], 4)
        if validation and terms:
            row["validation_losses"] = {name: round(validation[name], 4) for name in terms}
        if line["step"] % every == 0 or validation:
            curve.append(row)
    return curve
