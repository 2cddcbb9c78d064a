"""One update of GPT, from drawing the batch to the end of `optimizer.step()`: the files it enters.

Whoever wants to know what training does has these files to read, and no others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import llm_course
from llm_course.batches.documents import PackedDocuments
from llm_course.batches.sampler import Batches
from llm_course.configs import GPTConfig, TrainConfig
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.gpt import GPT
from llm_course.training.loop import train

PACKAGE = Path(llm_course.__file__).parent
# A large vocabulary on many tokens adds losses/chunked.py.
FILES = {
    "batches/documents.py",
    "batches/sampler.py",
    "losses/causal.py",
    "models/gpt.py",
    "models/layers.py",
    "training/devices.py",
    "training/gradients.py",
    "training/loop.py",
    "training/optim.py",
}
# Of these files, whole. The aim is 1,600.
LINES = 1_760


def entered(steps: Any) -> set[str]:
    """The files of the package whose functions one more update calls."""
    drawing, stepped = False, False
    files: set[str] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal drawing, stepped
        path = Path(frame.f_code.co_filename)
        if event == "return" and frame.f_code.co_name == "step" and path.name == "adam.py":
            stepped = True
        if event != "call" or stepped or not path.is_relative_to(PACKAGE):
            return
        drawing = drawing or path.parent.name == "batches"
        if drawing:
            files.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(watch)
    try:
        next(steps)
    finally:
        sys.setprofile(None)
    assert stepped
    return files


def test_one_update_of_gpt_enters_nine_files() -> None:
    torch.manual_seed(0)
    documents = [[1, *range(5, 5 + n), 2] for n in (3, 6, 4, 7, 5, 2)]
    batches = Batches(PackedDocuments(documents, 16), 1)
    config = GPTConfig(vocab_size=20, n_layers=1, d_model=8, n_heads=2, n_positions=16)
    settings = TrainConfig(max_steps=3, warmup_steps=0, device="cpu")
    steps = train(GPT(config), batches, causal_loss_fn, settings)
    next(steps)
    assert entered(steps) == FILES
    lines = sum(len((PACKAGE / name).read_text().splitlines()) for name in FILES)
    assert lines <= LINES
