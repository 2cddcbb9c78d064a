"""`llm-course record NAME`: long runs that the book quotes, each by one command, each a JSON file.

Runs go on where they were interrupted, from checkpoints in `--out`; only the JSON file is the
result.
"""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from experiments.script import Place, RecordedRun, provenance, write
from llm_course.errors import ConfigError


def recorded_runs() -> dict[str, RecordedRun]:
    """All runs by name: those of every file of this folder whose name ends in `_runs.py`."""
    scripts = sorted(Path(__file__).parent.glob("*_runs.py"))
    tables = [import_module(f"experiments.{script.stem}").RUNS for script in scripts]
    return {run.name: run for table in tables for run in table}


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
    label = f"{name}-tiny" if tiny else name
    kept = Path(results) / label
    place = Place(out=Path(out) / label, data_dir=Path(data_dir), tiny=tiny, checkpoint=kept)
    print(json.dumps(record(runs[name], place, Path(results) / f"{label}.json"), indent=2))


def record(run: RecordedRun, place: Place, path: Path) -> dict[str, Any]:
    """Make one run and write its result; returns the result."""
    if run.device == "cuda" and not torch.cuda.is_available() and not place.tiny:
        raise ConfigError(f"{run.name} needs a CUDA device; --tiny rehearses it on a CPU")
    place.out.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):  # better now than after the run
        raise ConfigError(f"results must be a directory that can be written, {path.parent} is not")
    begin = time.time()
    measured = run.make(place)
    result = {
        "name": run.name,
        "title": run.title,
        "tiny": place.tiny,
        "command": f"llm-course record --name {run.name}" + (" --tiny" if place.tiny else ""),
        **provenance(),
        "seconds": round(time.time() - begin, 1),
        **measured,
    }
    write(path, result)
    for part in place.out.glob("part-*.json"):  # the next call measures anew
        part.unlink()
    return result


def listing(runs: dict[str, RecordedRun], results: Path) -> str:
    """A line for each run: its name, device, minutes, and whether its result is there."""
    lines = [f"{'name':<22} {'device':<6} {'minutes':>7}  {'result':<8} what"]
    for name, run in runs.items():
        there = "yes" if (results / f"{name}.json").is_file() else "missing"
        lines.append(f"{name:<22} {run.device:<6} {run.minutes:>7g}  {there:<8} {run.title}")
    return "\n".join(lines)
