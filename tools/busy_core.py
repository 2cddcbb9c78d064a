"""Tokens per second of `pretrain gpt`'s training, alone and beside a busy process.

    python tools/busy_core.py

Once with the package's policy for threads that wait (they spin for a moment, then sleep), and
once with torch loaded first, so that they spin on as by default. Each figure is a fresh process,
since torch reads the policy when it is loaded. Run it where nothing else runs: two minutes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time

SECONDS = 20.0
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def measure(policy: str) -> None:
    """Train the `cpu` preset on random tokens for SECONDS, and print tokens per second."""
    if policy == "spin":
        importlib.import_module("torch")  # before the package, so its setting comes too late
    llm_course = importlib.import_module("llm_course")
    import torch

    from llm_course.batches.blocks import Blocks
    from llm_course.batches.sampler import Batches
    from llm_course.losses.causal import causal_loss_fn
    from llm_course.presets import GPT_PRESETS

    preset = GPT_PRESETS["cpu"]
    size = dataclasses.replace(preset.model, vocab_size=preset.data.vocab_size)
    ids = torch.randint(size.vocab_size, (100_000,))
    batches = Batches(Blocks(ids, preset.data.context), preset.data.batch_size)
    model = llm_course.GPT(size)
    first, begin = 0, 0.0
    for step in llm_course.train(model, batches, causal_loss_fn, preset.train):
        seconds = time.perf_counter() - begin
        if step.step == 3:  # the first updates allocate
            first, begin = step.tokens, time.perf_counter()
        elif step.step > 3 and seconds > SECONDS:
            break
    speed = (step.tokens - first) / seconds
    print(json.dumps({"tokens_per_second": speed, "threads": torch.get_num_threads()}))


def busy() -> None:
    while True:
        pass


def fresh(policy: str, n_busy: int) -> float:
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(n_busy)]
    for other in others:
        other.start()
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, __file__, policy], env=environment, stdout=subprocess.PIPE, check=True
    )
    for other in others:
        other.kill()
    result: dict[str, float] = json.loads(done.stdout)
    name = {"sleep": "threads that wait soon sleep", "spin": "threads that wait spin"}[policy]
    beside = "beside a busy process" if n_busy else "alone"
    speed = result["tokens_per_second"]
    print(f"{name}, {result['threads']} threads, {beside}: {speed:,.0f} tokens/s", flush=True)
    return speed


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for way in ("sleep", "spin"):
            alone, beside = fresh(way, 0), fresh(way, 1)
            print(f"  {beside / alone:.2f} of its speed alone")
