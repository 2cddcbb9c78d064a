"""Kill, damage and starve training runs, and count how many end as if nothing had happened.

    python tests/help/killed_run.py                  # the short form, about a minute
    python tests/help/killed_run.py --kills 50 --double 20 --mutations 3500 --disk 20 --signals 10

torch is imported once and every case is a forked child, so a case costs well under a second. "The
same" means equal SHA-256 of weights, optimizer, random state, data order, log and exported model.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed.checkpoint  # once, and not in every child
from safetensors.torch import load_file
from training_cases import (
    ShuffledBatches,
    TinyLM,
    digest,
    lm_loss,
    reference_config,
    stored,
)

from llm_course.errors import CheckpointError
from llm_course.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    verify_checkpoint,
)
from llm_course.training.loop import train
from llm_course.training.run_directory import RunDirectory

CALLS = ("open", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")  # of `os`
SHORT = {"max_steps": 20}  # of the runs that are killed at one place: saves at 5, 10, 15, 20


def run(out: Path, batches: Any = None, validation: Any = None, **changes: Any) -> None:
    """The reference run, or the rest of it."""
    config = reference_config(**changes)
    batches = batches or ShuffledBatches()
    validation = validation or ShuffledBatches(seed=5)
    steps = train(TinyLM(), batches, lm_loss, config, out=out, resume=True, validation=validation)
    for _ in steps:
        torch.rand(3)  # the reader's own draws must not matter


def start(work: Callable[[], None], message: Path | None = None) -> int:
    """Fork a child that does `work` and exits as Python would; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        warnings.simplefilter("ignore")
        work()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:
        if message is not None:
            message.write_text(f"{type(error).__name__}: {error}")
        else:
            traceback.print_exc()
    os._exit(status)


def wait(pid: int) -> int:
    """The exit status, negative for the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(out: Path, expected: dict[str, str], **changes: Any) -> list[str]:
    """Resume to the end; what differs from the unbroken run."""
    status = wait(start(lambda: run(out, **changes)))
    if status:
        return [f"exit status {status}"]
    got = digest(out)
    faults = [name for name in expected if got[name] != expected[name]]
    stray = [p.name for p in (out / "checkpoints").iterdir() if "." in p.name]
    return faults + stray


class Bench:
    """A folder of runs, and the unbroken ones to compare with."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.number = 0
        self.faults: list[str] = []
        began = time.perf_counter()
        self.expected = self._unbroken("reference")
        self.seconds = time.perf_counter() - began
        self.expected_short = self._unbroken("reference-short", **SHORT)
        self.base = folder / "base"  # a run of 20 steps that was killed after its save at 10
        status = wait(start(lambda: self._until(self.base, 10)))
        assert status == -signal.SIGKILL, status

    def _unbroken(self, name: str, **changes: Any) -> dict[str, str]:
        status = wait(start(lambda: run(self.folder / name, **changes)))
        assert status == 0, f"the unbroken run failed with {status}"
        return digest(self.folder / name)

    def _until(self, out: Path, step: int) -> None:
        batches, validation = ShuffledBatches(), ShuffledBatches(seed=5)
        config = reference_config(**SHORT)
        for done in train(
            TinyLM(), batches, lm_loss, config, out=out, resume=True, validation=validation
        ):
            if done.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / f"case-{self.number}"

    def copy(self) -> Path:
        out = self.fresh()
        shutil.copytree(self.base, out)
        return out

    def judge(self, name: str, faults: list[str], out: Path) -> int:
        if faults:
            self.faults.append(f"{name}: {', '.join(faults)}")
        shutil.rmtree(out, ignore_errors=True)
        return not faults


def killed(bench: Bench, out: Path, within: float) -> bool:
    """Start or resume the reference run and kill it at a random time; False if it was too late."""
    pid = start(lambda: run(out))
    time.sleep(bench.random.uniform(0, within))
    os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def random_kills(bench: Bench, cases: int, times: int) -> dict[str, int]:
    """kill -9 at random times, `times` in a row."""
    good = kills = 0
    for case in range(cases):
        while True:
            out = bench.fresh()
            within = bench.seconds if times == 1 else bench.seconds / 2
            if all(killed(bench, out, within) for _ in range(times)):
                break  # else the run was over before a kill: try another
        kills += times
        good += bench.judge(f"kill {case} x{times}", finish(out, bench.expected), out)
    return {"ok": good, "of": cases, "kills": kills}


class Trap:
    """Count the calls to the file system while armed, and kill the process at one of them."""

    def __init__(self, at: int = -1, half: bool = False) -> None:
        self.at, self.half = at, half
        self.trace: list[str] = []

    def around(self, name: str) -> None:
        """Arm the trap during the run directory's `name` in the save of step 15."""
        original = getattr(RunDirectory, name)

        def armed(directory: RunDirectory) -> None:
            if directory._state.progress.step != 15:
                return original(directory)
            real = {call: getattr(os, call) for call in CALLS}
            real_open = io.open
            for call in CALLS:
                setattr(os, call, self._watched(call, real[call]))
            io.open = self._watched_open(real_open)  # type: ignore[assignment]
            original(directory)
            self._point("end")
            io.open = real_open
            for call in CALLS:
                setattr(os, call, real[call])

        setattr(RunDirectory, name, armed)

    def _watched(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            name = Path(args[0]).name if isinstance(args[0], (str, Path)) else ""
            self._point(f"{call} {name}".strip())
            return real(*args, **kwargs)

        return watched

    def _watched_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Of a file to be written; also torch's own writer opens its files so."""

        def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa"):
                return real(file, mode, *args, **kwargs)
            name = Path(file).name
            self._point(f"create {name}")
            stream = real(file, mode, *args, **kwargs)
            real_write = stream.write

            def write(data: Any) -> Any:
                if self.half and len(self.trace) == self.at:
                    real_write(data[: len(data) // 2])
                    stream.flush()
                self._point(f"write {name}")
                return real_write(data)

            stream.write = write
            return stream

        return watched

    def _point(self, what: str) -> None:
        if len(self.trace) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.trace.append(what)


def trapped(out: Path, trap: Trap, name: str) -> None:
    trap.around(name)
    run(out, **SHORT)


def points_of(bench: Bench, name: str) -> list[str]:
    """All calls to the file system inside one save, in order."""
    out, trap = bench.copy(), Trap()
    report = bench.folder / "trace.json"

    def work() -> None:
        trapped(out, trap, name)
        report.write_text(json.dumps(trap.trace))

    assert wait(start(work)) == 0
    shutil.rmtree(out)
    return json.loads(report.read_text())


def kills_inside(bench: Bench, name: str) -> dict[str, Any]:
    """Kill before each call to the file system, after the last, and in the middle of each write.

    Each time a checkpoint verifies, and `model/` is whole: that of one of the checkpoints.
    """
    trace = points_of(bench, name)
    cases = [(i, False) for i in range(len(trace))]
    cases += [(i, True) for i, what in enumerate(trace) if what.startswith("write")]
    good = 0
    for at, half in cases:
        out = bench.copy()
        status = wait(start(partial(trapped, out, Trap(at, half), name)))
        faults = [] if status == -signal.SIGKILL else [f"not killed: {status}"]
        newest = latest_checkpoint(out / "checkpoints")
        if newest is None or newest.name < "step-00000010":
            faults.append(f"committed state lost: {newest}")
        if not model_is_whole(out):
            faults.append("model/ is not whole")
        faults += finish(out, bench.expected_short, **SHORT)
        good += bench.judge(f"inside {name}, point {at} ({trace[at]})", faults, out)
    return {"ok": good, "of": len(cases), "points": len(trace), "trace": trace}


def model_is_whole(out: Path) -> bool:
    """Whether `model/` has the weights of a checkpoint that verifies."""
    weights = load_file(out / "model" / "model.safetensors")
    for path in list_checkpoints(out / "checkpoints"):
        tensors = stored(path)
        if all(torch.equal(weights[name], tensors[f"model.{name}"]) for name in weights):
            verify_checkpoint(path)
            return len(weights) > 20
    return False


def order_holds(trace: list[str]) -> bool:
    """Every file is on the disk before its checkpoint, or it itself, gets its name."""
    rename = trace.index("rename step-00000015.tmp")

    def flushed(name: str, before: int) -> bool:
        return any(
            trace[i] == f"open {name}" and trace[i + 1] == "fsync" for i in range(before - 1)
        )

    created = [what.split()[1] for what in trace[:rename] if what.startswith("create ")]
    replaced = [(i, what.split()[1]) for i, what in enumerate(trace) if what.startswith("replace ")]
    after = trace.index("open checkpoints")
    removed = [i for i, what in enumerate(trace) if what.split()[0] == "unlink"]
    return (
        len(created) == 3
        and all(flushed(name, rename) for name in (*created, "step-00000015.tmp"))
        and rename < after
        and trace[after + 1] == "fsync"
        and all(i > after for i in removed)
        and len(replaced) > 0
        and all(flushed(name, i) for i, name in replaced)
    )


def mutate(path: Path, other: Path, kind: str, rng: random.Random) -> str | None:
    """Damage one checkpoint; what was done, or None where the draw changes nothing."""
    files = sorted(p.name for p in path.iterdir())
    name = rng.choice(files)
    data = (path / name).read_bytes()
    changed = bytearray(data)
    at = rng.randrange(len(data))
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    elif kind == "truncate":
        del changed[at:]
    elif kind == "append":
        changed += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
    elif kind == "delete":
        (path / name).unlink()
        return name
    elif kind == "swap":
        second = rng.choice([f for f in files if f != name])
        (path / name).write_bytes((path / second).read_bytes())
        (path / second).write_bytes(data)
        return f"{name} and {second}"
    else:  # stale: a file of the checkpoint before
        changed = bytearray((other / name).read_bytes())
    if bytes(changed) == data:
        return None
    (path / name).write_bytes(changed)
    return f"{name} at {at}"


KINDS = ("flip", "zero", "truncate", "append", "delete", "swap", "stale")


def mutations(bench: Bench, cases: int) -> dict[str, Any]:
    """Damage a checkpoint: it must be refused with a reason, and the older one used instead."""
    detected = fallbacks = done = unprotected = flips = 0
    root = bench.fresh() / "checkpoints"
    while done < cases:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(bench.base / "checkpoints", root)
        newest, older = list_checkpoints(root)
        kind = KINDS[done % len(KINDS)]
        what = mutate(newest, older, kind, bench.random)
        if what is None:
            continue
        done += 1
        try:
            verify_checkpoint(newest)
            bench.faults.append(f"silent: {kind} {what}")
        except CheckpointError as error:
            detected += str(newest) in str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fallbacks += latest_checkpoint(root) == older
        if kind == "flip" and "model" in what:
            flips += 1
            unprotected += _loads(root / f"{newest.name}.damaged" / what.split()[0])
    return {
        "ok": min(detected, fallbacks),
        "of": cases,
        "silent without the list": f"{unprotected} of {flips} bit flips in the weights",
    }


def _loads(path: Path) -> bool:
    """The control: the format alone does not notice."""
    try:
        load_file(path)
    except Exception:
        return False
    return True


def disk_full(bench: Bench, cases: int) -> dict[str, int]:
    """A limit on the size of files makes the save at 15 fail, at many sizes."""
    good = 0
    newest = list_checkpoints(bench.base / "checkpoints")[0]
    largest = max(path.stat().st_size for path in newest.iterdir())
    sizes = [12_000 + i * (largest - 12_001) // max(cases - 1, 1) for i in range(cases)]
    for size in sizes:
        out, message = bench.copy(), bench.folder / "message.txt"

        def starved(out: Path = out, size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            run(out, **SHORT)

        message.write_text("")
        status = wait(start(starved, message))
        faults = [] if status == 1 else [f"exit status {status}"]
        text = message.read_text()
        if not ("CheckpointError" in text and str(out) in text and "bytes" in text):
            faults.append(f"message {text!r}")
        if [p.name[-2:] for p in list_checkpoints(out / "checkpoints")] != ["10", "05"]:
            faults.append("older checkpoints are gone")
        if any(".tmp" in p.name for p in (out / "checkpoints").iterdir()):
            faults.append("half a checkpoint is left on the full disk")
        faults += finish(out, bench.expected_short, **SHORT)
        good += bench.judge(f"disk full at {size}", faults, out)
    return {"ok": good, "of": len(sizes)}


class Signalling(ShuffledBatches):
    """Sends this process a signal while its n-th batch is drawn."""

    def __init__(self, number: int, at: int, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.number, self.left = number, at

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
            yield batch


def signalled(out: Path, number: int, phase: str, at: int) -> None:
    batches = validation = None
    if phase == "loading":
        batches = Signalling(number, at)
    elif phase == "evaluation":
        validation = Signalling(number, 1 + at % 4, seed=5)
    elif phase == "save":
        real = os.fsync

        def fsync(descriptor: int) -> None:
            os.fsync = real
            os.kill(os.getpid(), number)
            real(descriptor)

        os.fsync = fsync
    else:
        model_forward = TinyLM.forward
        left = [at]

        def forward(self: TinyLM, input_ids: torch.Tensor) -> torch.Tensor:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return model_forward(self, input_ids)

        TinyLM.forward = forward  # type: ignore[method-assign]
    run(out, batches=batches, validation=validation)


def signals(bench: Bench, each: int) -> dict[str, int]:
    """SIGTERM and SIGINT while training, warming up, evaluating, saving, reading data."""
    good = cases = 0
    for number, wanted in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for phase in ("training", "warm-up", "evaluation", "save", "loading"):
            for _ in range(each):
                cases += 1
                at = bench.random.randrange(1, 9 if phase == "warm-up" else 60)
                out = bench.fresh()
                status = wait(start(partial(signalled, out, number, phase, at)))
                faults = [] if status == wanted else [f"exit status {status}, not {wanted}"]
                logged = len((out / "metrics.jsonl").read_text().splitlines())
                newest = latest_checkpoint(out / "checkpoints")
                if newest is None or int(newest.name[5:]) != logged:
                    faults.append(f"{newest} does not hold step {logged}")
                faults += finish(out, bench.expected)
                good += bench.judge(f"signal {number} in {phase} at {at}", faults, out)
    return {"ok": good, "of": cases}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bench = Bench(folder, arguments.seed)
    inside = kills_inside(bench, "save")
    report = {
        "kill -9 at a random time": random_kills(bench, arguments.kills, 1),
        "kill -9 three times": random_kills(bench, arguments.double, 3),
        "kill -9 inside a save": inside,
        "kill -9 inside the export": kills_inside(bench, "_export"),
        "order of flushes and names": {"ok": int(order_holds(inside["trace"])), "of": 1},
        "damaged checkpoints": mutations(bench, arguments.mutations),
        "disk full": disk_full(bench, arguments.disk),
        "signals": signals(bench, arguments.signals),
        "faults": bench.faults,
    }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (
        ("kills", 12),
        ("double", 2),
        ("mutations", 350),
        ("disk", 5),
        ("signals", 1),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(report))
        return bool(report["faults"])
    for name, figures in report.items():
        if name != "faults":
            more = {k: v for k, v in figures.items() if k not in ("ok", "of", "trace")}
            print(f"{name:30} {figures['ok']:>5}/{figures['of']:<5} {more or ''}")
    print("\n".join(report["faults"]) or "no fault", f"({time.perf_counter() - began:.0f} s)")
    return bool(report["faults"])


if __name__ == "__main__":
    sys.exit(main())
