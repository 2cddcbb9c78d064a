"""Freed memory: the system is not asked for the same pages at every update."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from llm_course.training import memory

PAGES_OF_A_BLOCK = 40_000_000 // 4096
MEASURE = """
import json, resource, sys
import torch
from llm_course.training.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(30):  # aligned blocks move some times before they settle
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)  # 40 MB, freed at once
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, faults]))
"""


def faults_of_ten_blocks(what: str) -> tuple[bool | None, int]:
    run = [sys.executable, "-c", MEASURE, what]
    kept, faults = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    return kept, faults


@pytest.mark.slow
def test_a_block_of_the_same_size_costs_no_new_pages() -> None:
    kept, faults = faults_of_ten_blocks("keep")
    if not kept:
        pytest.skip("this system's C library is not the GNU one, or not told what to keep")
    assert faults < PAGES_OF_A_BLOCK / 10
    # The control. With huge pages one fault brings 512 of them, so few are asked for.
    assert faults_of_ten_blocks("return")[1] > 10 * max(1, faults)


class _OtherLibrary:
    """A C library without mallopt, as on macOS."""


@pytest.mark.parametrize("library", [_OtherLibrary(), OSError("none"), TypeError("Windows")])
def test_other_systems_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert memory.keep_freed_memory.__wrapped__() is False
