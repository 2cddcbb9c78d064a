"""Runs whose batches come from workers are the runs without them: `tests/help/worker_runs.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "help" / "worker_runs.py"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_run_with_workers_is_the_run_without(report: dict[str, Any], family: str) -> None:
    assert report[f"{family}, 2 workers, unbroken"] == []


@pytest.mark.parametrize("end", ["SIGKILL", "abandoned", "SIGTERM to all"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_broken_run_goes_on_with_the_batches_that_it_had_not_taken(
    report: dict[str, Any], family: str, workers: int, end: str
) -> None:
    """Killed with batches in store, left, or told to end together with its workers."""
    assert report[f"{family}, {workers} workers, {end}"] == []
