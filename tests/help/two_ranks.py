"""Two processes (gloo, on the CPU) against one: prints what differs, as JSON; more with `--all`.

Every case is a pair of forked children, so torch is imported once. Float64, 20 updates, ragged
labels, no dropout: what is left is rounding, 1e-12 at most.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed.checkpoint  # once, and not in every child
from killed_run import start, wait
from row_kinds import MASKING, VOCAB, stories, with_workers
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_cases import (
    ShuffledBatches,
    TinyConfig,
    TinyLM,
    digest,
    lm_loss,
    reference_config,
    stored,
    two_losses,
)

from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.configs import BERTConfig
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.training import parallel
from llm_course.training.checkpoint import list_checkpoints
from llm_course.training.loop import train
from llm_course.training.parallel import gathered, rank
from llm_course.training.state import RunState, model_slots


def mean_loss(model: Any, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """The control: each batch's own mean, as DDP averages by default."""
    total, count = lm_loss(model, batch)["lm"]
    return {"lm": (total / count, 1)}


def tiny_parts(dropout: float) -> tuple[Any, Any, Any]:
    """A model, its batches and those of validation, three: two processes share unevenly."""
    model = TinyLM(TinyConfig(dropout=dropout)).double()
    return model, ShuffledBatches(), ShuffledBatches(n=10, seed=5)


def bert_parts(workers: int) -> tuple[Any, Any, Any]:
    """The same of the package's own: pairs whose numbers in a batch differ, as their masks do."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32}
    model = BERT(BERTConfig(vocab_size=VOCAB, n_positions=80, dropout=0.0, **size)).double()
    for name, parameter in model.named_parameters():
        if name.endswith("w_k.bias"):  # its gradient is pure rounding, see TinyBlock
            parameter.requires_grad_(False)
    batches = with_workers(Batches(SentencePairs(stories(), 80, MASKING), 4), workers)
    fixed = FixedPairs(SentencePairs(stories(20), 80, MASKING))
    return model, batches, with_workers(Evaluation(fixed, 8), workers)


def learn(target: Path, loss_fn: Callable[..., Any], dropout: float = 0.0, **changes: Any) -> None:
    """Train for 20 updates; write the weights, the last validation loss and the tokens read."""
    if changes.pop("loud", False):
        warnings.simplefilter("default")  # `start` ignores them
    workers = changes.pop("workers", None)
    parts = tiny_parts(dropout) if workers is None else bert_parts(workers)
    model, batches, validation = parts
    out = changes.pop("out", None)
    config = reference_config(**{"max_steps": 20, "save_every": 0, **changes})
    last = None
    for last in train(
        model,
        batches,
        loss_fn,
        config,
        out=out,
        resume=out is not None,
        validation=validation,
    ):
        if last.step == int(os.environ.get("STOP_AT", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        if f"{rank()}:{last.step}" == os.environ.get("TERM_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
        if last.step == int(os.environ.get("BREAK_AT", "-1")):
            break
    weights = gathered(model_slots(model))  # all processes call it, and the first one keeps it
    assert (rank() == 0) == bool(weights)
    if rank() == 0 and last is not None and last.validation is not None:
        weights["validation"] = torch.tensor(last.validation["loss"], dtype=torch.float64)
        weights["tokens"] = torch.tensor(last.tokens, dtype=torch.float64)
        save_file(weights, target)


def one(target: Path, *args: Any, **kwargs: Any) -> list[int]:
    return [wait(start(lambda: learn(target, *args, **kwargs)))]


def two(target: Path, *args: Any, **kwargs: Any) -> list[int]:
    """The same on two processes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for number in range(2):

        def work(number: int = number) -> None:
            os.environ.update(
                RANK=str(number),
                LOCAL_RANK=str(number),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            signal.alarm(60)  # a case that hangs dies
            learn(target, *args, **kwargs)

        pids.append(start(work))
    return [wait(pid) for pid in pids]


def difference(first: Path, second: Path) -> float:
    """The largest difference relative to the largest value of each tensor."""
    a, b = load_file(first), load_file(second)
    if a.keys() != b.keys():
        return float("inf")
    return max(((a[n] - b[n]).abs().max() / b[n].abs().max()).item() for n in b)


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def compare(
            what: str, loss_fn: Callable[..., Any], accumulation: int, mode: str, **more: Any
        ) -> None:
            status = one(folder / "one", loss_fn, accumulation=2 * accumulation, **more)
            status += two(folder / "two", loss_fn, accumulation=accumulation, parallel=mode, **more)
            report[what] = difference(folder / "two", folder / "one") if not any(status) else status

        compare("ddp, one loss, accumulation", lm_loss, 2, "ddp")
        compare("ddp, two losses", two_losses, 1, "ddp")
        compare("ddp, two losses, accumulation", two_losses, 2, "ddp")
        compare("fsdp, two losses, accumulation", two_losses, 2, "fsdp")
        compare("ddp, BERT on its own batches", bert_loss_fn, 1, "ddp", workers=2)
        compare("fsdp, BERT on its own batches, accumulation", bert_loss_fn, 2, "fsdp", workers=0)
        if "--all" in sys.argv:
            compare("ddp, one loss", lm_loss, 1, "ddp")
            compare("fsdp, one loss", lm_loss, 1, "fsdp")
            compare("fsdp, one loss, accumulation", lm_loss, 2, "fsdp")
            compare("fsdp, two losses", two_losses, 1, "fsdp")
            report["ddp, killed and resumed"] = resumed(folder, "ddp")
        one(folder / "one", lm_loss, accumulation=2)
        two(folder / "two", mean_loss, accumulation=1)
        report["control: mean of means"] = difference(folder / "two", folder / "one")
        report["fsdp, killed and resumed"] = resumed(folder, "fsdp")
        report["two processes, then one"] = changed(folder, "fewer", two, 1, one, 2)
        report["one process, then two"] = changed(folder, "more", one, 2, two, 1)
        for mode in ("ddp", "fsdp"):
            report[f"{mode}, saved by two and read by one"] = read(folder, mode, two, one)
            report[f"{mode}, saved by one and read by two"] = read(folder, mode, one, two)
        report["fsdp, share of the first process"] = first_share(folder)
        report["DDP looks for unused heads"] = looks_for_unused(folder)
        report["the loop is left"] = left(folder)
        report["SIGTERM to one of two"] = terminated(folder)
    print(json.dumps(report))


def resumed(folder: Path, mode: str) -> list[str]:
    """With dropout: what differs after a kill from the unbroken run of two processes."""
    kwargs: dict[str, Any] = {"dropout": 0.1, "save_every": 5, "parallel": mode}
    two(folder / "w", lm_loss, out=folder / f"{mode}-whole", **kwargs)
    os.environ["STOP_AT"] = "12"
    two(folder / "w", lm_loss, out=folder / f"{mode}-broken", **kwargs)
    del os.environ["STOP_AT"]
    two(folder / "w", lm_loss, out=folder / f"{mode}-broken", **kwargs)
    whole, broken = digest(folder / f"{mode}-whole"), digest(folder / f"{mode}-broken")
    return [part for part in whole if whole[part] != broken[part]]


def changed(folder: Path, name: str, first: Any, one_each: int, then: Any, each: int) -> float:
    """A run is killed, and another number of processes goes on with as many batches an update."""
    kwargs: dict[str, Any] = {"save_every": 5, "out": folder / name, "parallel": "fsdp"}
    os.environ["STOP_AT"] = "12"
    first(folder / "two", lm_loss, accumulation=one_each, **kwargs)
    del os.environ["STOP_AT"]
    status = then(folder / "two", lm_loss, accumulation=each, **kwargs)
    one(folder / "one", lm_loss, accumulation=2)
    return difference(folder / "two", folder / "one") if not any(status) else float("inf")


def read(folder: Path, mode: str, saver: Any, reader: Any) -> list[str]:
    """What differs between the files of a checkpoint and the state that is read from it."""
    out = folder / f"read-{mode}-{saver.__name__}"
    per_process = {one: 2, two: 1}
    saver(folder / "w", lm_loss, out=out, parallel=mode, accumulation=per_process[saver])
    load = RunState.load

    def watched(state: RunState, *args: Any) -> None:
        load(state, *args)
        got = gathered(state.tensors())
        if rank() == 0:
            save_file(got, out / "got")

    RunState.load = watched  # type: ignore[method-assign]
    status = reader(folder / "w", lm_loss, out=out, parallel=mode, accumulation=per_process[reader])
    RunState.load = load  # type: ignore[method-assign]
    if any(status):
        return [f"exit status {status}"]
    expected, got = stored(list_checkpoints(out / "checkpoints")[0]), load_file(out / "got")
    names = [name for name in expected.keys() | got.keys() if not name.startswith("random.")]
    moments = sum(name.startswith("optimizer.") for name in names)
    faults = [] if moments > 60 else [f"only {moments} moments"]
    return faults + [n for n in names if n not in expected or not torch.equal(expected[n], got[n])]


def first_share(folder: Path) -> float:
    """How much of a sharded checkpoint the first process wrote; the other one wrote the rest."""
    newest = list_checkpoints(folder / "read-fsdp-two" / "checkpoints")[0]
    first, second = (path.stat().st_size for path in sorted(newest.glob("*.safetensors")))
    return first / (first + second)


def looks_for_unused(folder: Path) -> list[Any]:
    """With a loss that leaves a head out, and with one that uses all."""
    said = []
    share = parallel.share_gradients

    def watched(module: Any, batch: Any) -> Any:
        shared = share(module, batch)
        if rank() == 0:
            (folder / "unused").write_text(str(shared.find_unused_parameters))
        return shared

    parallel.share_gradients = watched
    for loss_fn in (lm_loss, two_losses):
        two(folder / "w", loss_fn, max_steps=5)
        said.append((folder / "unused").read_text())
    parallel.share_gradients = share
    return said


def left(folder: Path) -> dict[str, Any]:
    """Both processes break out of the loop: neither knows of the other, so nothing is saved."""
    os.environ["BREAK_AT"] = "7"
    errors = os.dup(2)
    with (folder / "stderr").open("w") as file:
        os.dup2(file.fileno(), 2)
        status = two(folder / "w", lm_loss, out=folder / "left", save_every=5, loud=True)
        os.dup2(errors, 2)
    del os.environ["BREAK_AT"]
    saved = [path.name for path in list_checkpoints(folder / "left" / "checkpoints")]
    return {"status": status, "saved": saved, "said": (folder / "stderr").read_text()}


def terminated(folder: Path) -> dict[str, Any]:
    """Both save and leave, and neither waits for the other for ever."""
    os.environ["TERM_AT"] = "1:7"
    began = time.perf_counter()
    status = two(folder / "w", lm_loss, out=folder / "terminated")
    del os.environ["TERM_AT"]
    saved = [path.name for path in list_checkpoints(folder / "terminated" / "checkpoints")]
    return {"status": status, "saved": saved, "seconds": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    main()
