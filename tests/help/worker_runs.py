"""Runs whose batches are gathered by workers, broken in several ways: prints what differs, as JSON.

Each run is a forked child of a process that has not forked before, with BERT and GPT on the
package's own batches, dropout, accumulation and validation. Nothing may differ by a bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from killed_run import start, wait
from row_kinds import MASKING, VOCAB, documents, stories, with_workers
from training_cases import digest

from llm_course.batches.documents import PackedDocuments, SingleDocuments
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.configs import BERTConfig, GPTConfig, TrainConfig
from llm_course.losses.causal import causal_loss_fn
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.training.loop import train

SIZE: dict[str, Any] = {"vocab_size": VOCAB, "n_layers": 1, "d_model": 16, "n_heads": 2}
CONFIG = TrainConfig(
    max_steps=12, warmup_steps=2, accumulation=2, save_every=4, eval_every=5,
    device="cpu", precision="fp32",
)  # fmt: skip
STOP = 7  # behind a save, in the second pass of both, with batches in store


def parts(family: str, workers: int) -> tuple[Any, Batches, Evaluation, Any]:
    """Model, batches, validation and loss."""
    torch.manual_seed(0)
    if family == "gpt":
        gpt = GPT(GPTConfig(n_positions=48, dropout=0.1, **SIZE))
        held_out = with_workers(Evaluation(SingleDocuments(documents()[:40]), 8), workers)
        batches = with_workers(Batches(PackedDocuments(documents(), 48), 8), workers)
        return gpt, batches, held_out, causal_loss_fn
    bert = BERT(BERTConfig(n_positions=80, d_ff=32, dropout=0.1, **SIZE))
    fixed = FixedPairs(SentencePairs(stories(20), 80, MASKING))
    batches = with_workers(Batches(SentencePairs(stories(), 80, MASKING), 8), workers)
    return bert, batches, with_workers(Evaluation(fixed, 8), workers), bert_loss_fn


def run(out: Path, family: str, workers: int, end: str = "") -> None:
    """The run, or the rest of it; `end` says how it is broken after `STOP` updates."""
    torch.set_num_threads(1)
    model, batches, validation, loss_fn = parts(family, workers)
    if end == "SIGTERM to all":
        os.setpgrp()
    steps = train(model, batches, loss_fn, CONFIG, out=out, resume=True, validation=validation)
    for step in steps:
        if step.step != STOP:
            continue
        if end == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "SIGTERM to all":  # as a cluster does: the workers get it too
            command = ["kill", "-TERM", "--", f"-{os.getpgrp()}"]
            subprocess.run(command, start_new_session=True, check=True)
        if end == "abandoned":
            steps.close()  # type: ignore[attr-defined]
            return


ENDS = {"SIGKILL": -signal.SIGKILL, "abandoned": 0, "SIGTERM to all": 143}


def main() -> None:
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family in ("gpt", "bert"):
            assert wait(start(lambda f=family: run(folder / f, f, 0))) == 0  # type: ignore[misc]
            whole = digest(folder / family)
            for workers in (0, 2):
                for end, status in {"": 0, **ENDS}.items():
                    if workers == 0 and not end:
                        continue
                    out = folder / f"{family}-{workers}-{end}"
                    ended = wait(start(lambda: run(out, family, workers, end)))  # noqa: B023
                    if end:  # the rest with another number of workers
                        rest = 2 - workers
                        wait(start(lambda: run(out, family, rest)))  # noqa: B023
                    found = digest(out)
                    faults = [part for part in whole if found[part] != whole[part]]
                    faults += [] if ended == status else [f"exit status {ended}, not {status}"]
                    report[f"{family}, {workers} workers, {end or 'unbroken'}"] = faults
    print(json.dumps(report))


if __name__ == "__main__":
    main()
