"""`llm-course record NAME`: long runs that the book quotes, each by one command, each a JSON file.

A result holds its command, commit, device, versions and seed, and the curve. Runs go on where they
were interrupted, from checkpoints in `--out`; only the JSON file is the result.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_course.errors import ConfigError, DataError

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers")


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


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A named run: what it is, what it needs, how long it takes."""

    title: str
    device: str  # "cuda" or "cpu"
    minutes: float
    make: Callable[[Place], dict[str, Any]]


def recorded_runs() -> dict[str, RecordedRun]:
    """All runs by name."""
    from experiments import bert_runs, finetune_real, finetune_runs, gpt_runs, translate_runs

    runs = gpt_runs.RUNS | translate_runs.RUNS | bert_runs.RUNS
    return runs | finetune_runs.RUNS | finetune_real.RUNS


def record_command(
    *, name: str, list: bool, results: str, out: str, tiny: bool, data_dir: str
) -> None:
    """List the runs, or make one and write its JSON file."""
    runs = recorded_runs()
    if list or not name:
        print(listing(runs, Path(results)))
        return
    if name not in runs:
        raise ConfigError(f"name must be one of {', '.join(runs)}, got {name!r}")
    suffix = "-tiny" if tiny else ""
    place = Place(
        out=Path(out) / f"{name}{suffix}",
        data_dir=Path(data_dir),
        tiny=tiny,
        checkpoint=Path(results) / f"{name}{suffix}",
    )
    path = Path(results) / f"{name}{suffix}.json"
    print(json.dumps(record(name, runs[name], place, path), indent=2))


def record(name: str, run: RecordedRun, place: Place, path: Path) -> dict[str, Any]:
    """Make one run and write its result; returns the result."""
    import torch

    if run.device == "cuda" and not torch.cuda.is_available() and not place.tiny:
        raise ConfigError(f"{name} needs a CUDA device; --tiny rehearses it on a CPU")
    place.out.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):  # better now than after the run
        raise ConfigError(f"results must be a directory that can be written, {path.parent} is not")
    begin = time.time()
    measured = run.make(place)
    result = {
        "name": name,
        "title": run.title,
        "tiny": place.tiny,
        "command": f"llm-course record --name {name}" + (" --tiny" if place.tiny else ""),
        **provenance(),
        "seconds": round(time.time() - begin, 1),
        **measured,
    }
    _write(path, result)
    for part in place.out.glob("part-*.json"):  # the next call measures anew
        part.unlink()
    return result


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
    _write(path, {"made_by": made_by, "part": part})
    return part


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def provenance() -> dict[str, Any]:
    """Commit, device and versions of this moment."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "device": "cuda" if cuda else "cpu",
        "device_name": torch.cuda.get_device_name(0) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, marked when the tree has changes; None outside a repository."""

    def git(*words: str) -> str:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LLM_COURSE_COMMIT")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def listing(runs: dict[str, RecordedRun], results: Path) -> str:
    """A line for each run: its name, device, minutes, and whether its result is there."""
    lines = [f"{'name':<22} {'device':<6} {'minutes':>7}  {'result':<8} what"]
    for name, run in runs.items():
        there = "yes" if (results / f"{name}.json").is_file() else "missing"
        lines.append(f"{name:<22} {run.device:<6} {run.minutes:>7g}  {there:<8} {run.title}")
    return "\n".join(lines)


def say(message: str) -> None:
    """Progress of a long run, on stderr."""
    print(message, file=sys.stderr, flush=True)
