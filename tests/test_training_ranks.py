"""Two processes equal one, whatever the counts of their labels; `tests/two_ranks.py` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import ShuffledBatches, TinyLM, lm_loss, reference_config

from llm_course.errors import ConfigError
from llm_course.training.distributed import join
from llm_course.training.loop import train

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_ranks.py")


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
        "two processes, then one",
    ],
)
def test_two_processes_equal_one_to_rounding(report: dict[str, Any], case: str) -> None:
    assert report[case] < 1e-12
    assert report["control: mean of means"] > 1e-3  # what DDP does by default is another run


def test_two_killed_processes_resume_bit_identical(report: dict[str, Any]) -> None:
    assert report["fsdp, killed and resumed"] == []


def test_a_signal_to_one_process_saves_and_ends_both(report: dict[str, Any]) -> None:
    assert report["SIGTERM to one of two"]["status"] == [143, 143]
    assert report["SIGTERM to one of two"]["saved"] == ["step-00000008"]


def test_a_half_set_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"RANK.*torchrun"):
        join(torch.device("cpu"))


def test_batches_that_are_shared_already_are_refused() -> None:
    batches = ShuffledBatches()
    batches.world_size = 2  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="world_size = 1"):
        train(TinyLM(), batches, lm_loss, reference_config())
