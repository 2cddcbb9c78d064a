"""The sampler: orders that stay, exact resume, shares of processes, workers that change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from row_kinds import KINDS, digest, documents, labelled, same, texts, with_workers
from torch import Tensor

from llm_course.batches import sampler
from llm_course.batches.documents import PackedDocuments, SingleDocuments
from llm_course.batches.labelled import LabelledRows
from llm_course.batches.pairs import Pairs
from llm_course.batches.sampler import Batches, Evaluation, Rows, endless
from llm_course.errors import CheckpointError, ConfigError, DataError

CPU = torch.device("cpu")
Batch = dict[str, Tensor]

# Of 80 batches of 8 rows over several passes: recorded results hang on these orders.
ORDERS = {
    "documents": "193d5f9f7c600d83",
    "documents that see each other": "ef4aae50dd62ab6d",
    "blocks": "8aad5a91b258f61f",
    "few blocks": "8cf93dac0d2e41f3",
    "pairs": "aaefcac500be8e1c",
    "labelled rows": "4f9f4dde78adb097",
    "sentence pairs": "60fbe0bf3b2bbf7f",
    "sentence pairs, one a row": "d15d8efa594ca0b0",
    "sentences without pairs": "1d62a3daf9b034d8",
}


def made(
    kind: str, batch_size: int = 8, workers: int | None = None, seed: int = 5, **options: Any
) -> Batches:
    return with_workers(Batches(KINDS[kind](), batch_size, seed=seed, **options), workers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_every_kind_is_the_one_that_recorded_results_have(kind: str) -> None:
    assert digest(made(kind))[:16] == ORDERS[kind]
    assert digest(made(kind, seed=6))[:16] != ORDERS[kind]  # the control


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 3, 13, 40])
def test_resume_gives_the_very_batches_of_an_uninterrupted_run(kind: str, stop: int) -> None:
    expected = list(islice(made(kind), stop + 20))[stop:]
    first = made(kind)
    list(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    second = made(kind)
    list(islice(second, 3))  # whatever happened before does not matter
    second.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(islice(second, 20), expected, strict=True))


def test_the_first_batch_of_a_pass_comes_from_the_order_of_that_pass() -> None:
    batches = made("documents")
    first = list(islice(batches, batches.batches_per_epoch))
    again = next(iter(batches))
    assert batches.epoch == 1
    assert not torch.equal(again["input_ids"], first[0]["input_ids"])


def test_passes_and_seeds_give_different_orders_and_equal_seeds_equal_ones() -> None:
    def rows_of(seed: int, epoch: int) -> list[list[int]]:
        batches = made("blocks", seed=seed)
        batches.epoch = epoch
        found = islice(batches, batches.batches_per_epoch)
        return [row for batch in found for row in batch["input_ids"].tolist()]

    assert rows_of(0, 0) == rows_of(0, 0)
    assert rows_of(0, 0) != rows_of(0, 1)
    assert rows_of(0, 0) != rows_of(1, 0)
    assert rows_of(0, 1) != rows_of(1, 0)


def test_the_state_of_other_rows_or_settings_is_refused_by_name() -> None:
    state = made("pairs").state_dict()
    for other, name in (
        (made("labelled rows"), "fingerprint"),
        (made("pairs", batch_size=4), "batch_size"),
        (made("pairs", seed=1), "seed"),
        (made("pairs", pool=4), "pool"),
    ):
        with pytest.raises(CheckpointError, match=f"had {name} = .* when this state was saved"):
            other.load_state_dict(state)
    made("pairs").load_state_dict(state)


def test_a_pass_has_each_row_at_most_once_and_leaves_out_less_than_a_batch() -> None:
    rows = [[10 + i] * (2 + i % 7) for i in range(203)]
    batches = Batches(Pairs(rows, rows, pad_id=0, start_id=1), 8, seed=1)
    assert (batches.n_rows, batches.batches_per_epoch) == (200, 25)
    first, second = [
        [i for batch in islice(batches, 25) for i in batch["input_ids"][:, 0].tolist()]
        for _ in range(2)
    ]
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 200
    assert first != second


def test_rows_of_one_length_share_a_batch_and_large_pools_pad_less() -> None:
    rows = texts(3200, 20, 7919)

    def measured(pool: int | None) -> tuple[float, float]:
        """The share of places that hold a token, and how far apart the lengths of a batch are."""
        options = {} if pool is None else {"pool": pool}
        batches = Batches(Pairs(rows, rows, pad_id=0, start_id=1), 32, **options)
        lengths = [batch["attention_mask"].sum(1) for batch in islice(batches, 100)]
        held = sum(int(n.sum()) for n in lengths) / sum(32 * int(n.max()) for n in lengths)
        widths = [int(n.max()) for n in lengths]
        # Batches of one pass do not come in the order of their lengths.
        assert widths not in (sorted(widths), sorted(widths, reverse=True))
        return held, sum(int(n.max() - n.min()) for n in lengths) / len(lengths)

    large, small, one = (measured(pool) for pool in (50, 4, 1))
    assert measured(None) == large  # what a reader gets who says nothing
    assert large[0] > 0.95
    assert large[0] > small[0] > one[0] < 0.65
    assert 3 * large[1] < small[1] < one[1]


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ConfigError, "batch_size must be at least 1, got 0", lambda: made("pairs", 0)),
        (ConfigError, "seed must be at least 0, got -1", lambda: made("pairs", seed=-1)),
        (ConfigError, "pool must be at least 1, got 0", lambda: made("pairs", pool=0)),
        (ConfigError, "batch_size must be at least 1, got 0", lambda: Evaluation(Rows(), 0)),
        (DataError, "= 208 rows, the data make 207: lower batch_size", lambda: made("pairs", 208)),
        (DataError, r"= 999 rows, the data make \d+: lower", lambda: made("documents", 999)),
    ],
)  # fmt: skip
def test_what_makes_no_batch_is_refused(error: type[Exception], message: str, make: Any) -> None:
    with pytest.raises(error, match=message):
        make()


# ---- evaluation ---------------------------------------------------------------------------------


def ended() -> dict[str, Rows]:
    return {
        "documents": SingleDocuments(documents()),
        "pairs": KINDS["pairs"](),
        "labelled rows": LabelledRows(labelled(), 40, pad_id=0),
    }


@pytest.mark.parametrize("batch_size", [1, 8, 400])
@pytest.mark.parametrize("kind", ["documents", "pairs", "labelled rows"])
def test_evaluation_has_each_row_once_the_longest_first_and_says_which(
    kind: str, batch_size: int
) -> None:
    rows = ended()[kind]
    evaluation = Evaluation(rows, batch_size)
    assert sorted(evaluation.order) == list(range(len(rows)))
    lengths = [rows.lengths[-1][i] for i in evaluation.order]
    assert lengths == sorted(lengths, reverse=True)
    listed = list(evaluation)
    assert len(listed) == len(evaluation) == -(-len(rows) // batch_size)
    begin = 0
    for batch in listed:
        n = len(batch["input_ids"])
        assert same(batch, rows.gather(np.asarray(evaluation.order[begin : begin + n])))
        begin += n
    assert begin == len(rows)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_processes_share_an_evaluation_and_compute_equally_often(n_processes: int) -> None:
    evaluation = Evaluation(ended()["pairs"], 16)  # 13 batches
    shares = [list(evaluation.share(rank, n_processes, CPU)) for rank in range(n_processes)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for turn in zip(*shares) for counts, batch in turn if counts]
    assert all(same(a, b) for a, b in zip(counted, evaluation, strict=True))
    assert len(shares[0]) == -(-13 // n_processes)


# ---- shares of the endless stream ---------------------------------------------------------------


class Counting(Rows):
    """Says which rows were gathered in this process."""

    def __init__(self, rows: Rows) -> None:
        self.inner, self.lengths, self.gathered = rows, rows.lengths, 0

    def one_pass(self, generator: torch.Generator, least: int) -> Any:
        return self.inner.one_pass(generator, least)

    def gather(self, keys: Any) -> Batch:
        self.gathered += 1
        return self.inner.gather(keys)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_processes", [2, 3])
def test_each_process_gathers_its_own_batches_of_the_one_stream(
    kind: str, n_processes: int
) -> None:
    whole = list(islice(made(kind), 16 * n_processes))
    states = []
    for rank in range(n_processes):
        rows = Counting(KINDS[kind]())
        batches = Batches(rows, 8, seed=5)
        share = list(islice(batches.share(rank, n_processes, CPU), 16))
        assert all(same(a, b) for a, b in zip(share, whole[rank::n_processes], strict=True))
        assert rows.gathered == 16  # and not the batches of the others
        states.append(batches.state_dict())
    assert all(state == states[0] for state in states)
    one = made(kind)
    list(islice(one, 16 * n_processes))
    assert one.state_dict() == states[0]  # so the number of processes may change


class Plain:
    """An iterable that ends, with a state, as a reader may write one."""

    def __init__(self, n: int) -> None:
        self.n, self.place = n, 0

    def __iter__(self) -> Any:
        while self.place < self.n:
            self.place += 1
            yield self.place
        self.place = 0


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_an_iterable_of_another_kind_is_read_by_all_and_shared(n_processes: int) -> None:
    stream = [1 + i % 5 for i in range(12 * n_processes)]
    for rank in range(n_processes):
        plain = Plain(5)
        found = list(islice(endless(plain, rank, n_processes, CPU), 12))
        assert found == stream[rank::n_processes]
        assert plain.place == stream[-1]  # on each process: its state is that of all batches
    resumed = Plain(5)
    resumed.place = 5  # at its end: the next one is the first
    assert next(endless(resumed, 0, 1, CPU)) == 1
    with pytest.raises(DataError, match="batches are empty"):
        next(endless([], 0, 1, CPU))


# ---- workers ------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_states_do_not_depend_on_the_number_of_workers(kind: str) -> None:
    assert sampler.PREFETCH >= 4
    alone = made(kind, workers=0)
    for workers in (1, 2):
        beside = made(kind, workers=workers)
        here, there = iter(alone), iter(beside)
        for _ in range(30):
            assert same(next(here), next(there))
            # What was taken, although the workers are some batches ahead.
            assert alone.state_dict() == beside.state_dict()
        assert beside.offset + beside.epoch > 0
        alone = made(kind, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_taken_with_batches_in_store_resumes_with_the_very_next_one(workers: int) -> None:
    expected = list(islice(made("sentence pairs"), 60))
    first = made("sentence pairs", workers=workers)
    stream = iter(first)
    taken = 0
    for stop in (1, 3, 4, 23):  # a pass has 3 or 4 batches
        for _ in range(stop - taken):
            next(stream)
        taken = stop
        other = made("sentence pairs", workers=2 - workers)
        other.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for a, b in zip(islice(other, 12), expected[stop : stop + 12], strict=True):
            assert same(a, b)


def test_an_evaluation_does_not_depend_on_the_number_of_workers() -> None:
    for kind, rows in ended().items():
        alone, beside = Evaluation(rows, 16), with_workers(Evaluation(rows, 16), 2)
        assert all(same(a, b) for a, b in zip(alone, beside, strict=True)), kind


@pytest.mark.parametrize("workers", [0, 2])
def test_nobody_elses_random_numbers_are_touched(workers: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(islice(made("sentence pairs", workers=workers), 20))
    list(with_workers(Evaluation(ended()["pairs"], 16), workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    # (From Python's own generator the type checks of the tests draw.)
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


class Saying(PackedDocuments):
    """Each batch says which process gathered it."""

    def gather(self, keys: Any) -> Batch:
        return {"process": torch.tensor(os.getpid())}


def test_workers_leave_signals_to_the_loop_and_end_with_it() -> None:
    stream = iter(with_workers(Batches(Saying(documents(), 48), 4), 2))
    workers = {int(next(stream)["process"]) for _ in range(8)}
    # As a terminal does with Ctrl-C and a cluster with SIGTERM: all processes get it.
    for number in ("INT", "TERM"):
        subprocess.run(["kill", f"-{number}", *map(str, workers)], check=True)
    later = {int(batch["process"]) for batch in islice(stream, 200)}
    assert later == workers
    stream.close()  # type: ignore[attr-defined]
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PROGRAM = """
import os, signal, sys
from row_kinds import KINDS, with_workers
from llm_course.batches.documents import PackedDocuments
from llm_course.batches.sampler import Batches
from llm_course.errors import DataError
class Broken(PackedDocuments):
    def gather(self, keys):
        raise DataError("row 7 is broken")
rows = KINDS["documents"]()
if "broken" in sys.argv:
    rows.__class__ = Broken
stream = iter(with_workers(Batches(rows, 4), 2))
next(stream)
if "raise" in sys.argv:
    raise ValueError("over")
if "kill" in sys.argv:
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    while True:
        next(stream)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("quietly", 0, ""),
        ("raise", 1, "ValueError: over"),
        ("kill", 1, "DataLoader worker"),
        ("broken", 1, "DataError: row 7 is broken"),
    ],
)
def test_a_program_ends_whatever_it_does_with_its_workers(end: str, status: int, said: str) -> None:
    """It leaves its batches open, it fails, a worker of it dies, or a row in a worker is broken."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, end],
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == status, ended.stderr
    assert said in ended.stderr


def test_workers_of_a_killed_program_end_by_themselves() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        stream = iter(with_workers(Batches(Saying(documents(), 48), 4), 2))
        for _ in range(8):
            os.write(writing, b"%d " % int(next(stream)["process"]))
        os.write(writing, b"end")
        signal.pause()
    found = b""
    while not found.endswith(b"end"):
        found += os.read(reading, 100)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    workers = {int(word) for word in found.split()[:-1]}
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_workers_are_chosen_beside_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sampler.sys.modules, "ipykernel", raising=False)
    cuda = torch.device("cuda")
    assert sampler._workers_for(CPU) == sampler._workers_for(torch.device("mps")) == 0
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
        assert sampler._workers_for(cuda) == 2
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
        assert sampler._workers_for(cuda) == 1
    monkeypatch.setitem(sampler.sys.modules, "ipykernel", object())  # in a notebook
    assert sampler._workers_for(cuda) == 0


@pytest.mark.gpu
def test_beside_a_gpu_batches_are_pinned_and_the_same() -> None:
    cuda = torch.device("cuda")
    for workers in (0, 2):
        pinned = list(islice(made("documents", workers=workers).share(0, 1, cuda), 20))
        assert all(value.is_pinned() for batch in pinned for value in batch.values())
        assert all(same(a, b) for a, b in zip(pinned, made("documents")))


def test_passes_of_packed_rows_have_different_lengths() -> None:
    """A control of the tests above: their data make passes of different lengths."""
    batches = made("sentence pairs")
    sizes = []
    for epoch in range(20):
        batches.epoch, batches.offset = epoch, 0
        sizes.append(batches.n_rows)
    assert len(set(sizes)) > 1
