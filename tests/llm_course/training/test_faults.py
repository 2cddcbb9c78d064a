"""Killed, damaged and starved runs; `tests/help/killed_run.py --kills 50` is the long form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "help" / "killed_run.py"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert not result["faults"], result["faults"]
    return result


def all_of(figures: dict[str, Any], at_least: int) -> None:
    assert figures["ok"] == figures["of"] >= at_least, figures


def test_a_run_killed_at_a_random_time_ends_bit_identical(report: dict[str, Any]) -> None:
    all_of(report["kill -9 at a random time"], 12)
    all_of(report["kill -9 three times"], 2)


def test_a_run_killed_at_any_point_inside_a_save_ends_bit_identical(report: dict[str, Any]) -> None:
    inside = report["kill -9 inside a save"]
    all_of(inside, inside["points"] + 3)  # before each call, after the last, in each of 3 writes
    assert {what.split()[0] for what in inside["trace"]} >= {"mkdir", "write", "fsync", "rename"}
    assert "create shard-00001-model-00001-of-00001.safetensors" in inside["trace"]
    all_of(report["kill -9 inside the export"], 3)


def test_data_reach_the_disk_before_the_name_does(report: dict[str, Any]) -> None:
    all_of(report["order of flushes and names"], 1)


def test_no_damaged_checkpoint_is_loaded(report: dict[str, Any]) -> None:
    damaged = report["damaged checkpoints"]
    all_of(damaged, 300)
    # The control: without the list of hashes, flipped bits in the weights load silently.
    silent = damaged["silent without the list"].split(" of ")[0]
    assert int(silent) >= 1


def test_a_full_disk_leaves_older_checkpoints_and_says_what_it_needed(
    report: dict[str, Any],
) -> None:
    all_of(report["disk full"], 5)


def test_sigterm_and_sigint_save_in_every_phase(report: dict[str, Any]) -> None:
    all_of(report["signals"], 10)
