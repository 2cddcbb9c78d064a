"""Two processes equal one, whatever the counts of their labels: `tests/help/two_ranks.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_course.errors import ConfigError
from llm_course.training.parallel import join

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "help" / "two_ranks.py"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "case",
    [
        "ddp, one loss, accumulation",
        "ddp, two losses",
        "ddp, two losses, accumulation",
        "fsdp, two losses, accumulation",
        "ddp, BERT on its own batches",
        "fsdp, BERT on its own batches, accumulation",
        "two processes, then one",
        "one process, then two",
    ],
)
def test_two_processes_equal_one_to_rounding(report: dict[str, Any], case: str) -> None:
    assert report[case] < 1e-12
    assert report["control: mean of means"] > 1e-3  # what DDP does by default is another run


def test_two_killed_processes_resume_bit_identical(report: dict[str, Any]) -> None:
    assert report["fsdp, killed and resumed"] == []


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", ["saved by two and read by one", "saved by one and read by two"])
def test_weights_and_moments_are_read_by_another_number_of_processes(
    report: dict[str, Any], mode: str, way: str
) -> None:
    assert report[f"{mode}, {way}"] == []


def test_each_process_writes_its_own_share(report: dict[str, Any]) -> None:
    assert 0.4 < report["fsdp, share of the first process"] < 0.6


def test_ddp_looks_for_unused_heads_only_where_there_are_some(report: dict[str, Any]) -> None:
    assert report["DDP looks for unused heads"] == ["True", "False"]


def test_a_loop_that_is_left_cannot_be_saved_and_says_which_checkpoint_there_is(
    report: dict[str, Any],
) -> None:
    left = report["the loop is left"]
    assert left["status"] == [0, 0]
    assert left["saved"] == ["step-00000005"]
    assert "step 7 is not saved" in left["said"]
    assert "step-00000005: resume=True" in left["said"]


def test_a_signal_to_one_process_saves_and_ends_both(report: dict[str, Any]) -> None:
    assert report["SIGTERM to one of two"]["status"] == [143, 143]
    assert report["SIGTERM to one of two"]["saved"] == ["step-00000008"]


def test_a_half_set_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"RANK.*torchrun"):
        join(torch.device("cpu"))
