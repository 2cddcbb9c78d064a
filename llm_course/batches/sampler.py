"""From rows to batches: endless, shuffled and resumable for training; each row once for evaluation.

What the rows are is the business of their kind (`documents.py`, `pairs.py`, ...). The sampler says
which of them make the next batch; torch's DataLoader gathers them, beside a GPU in processes of its
own. A batch depends on its keys alone, so it is the same in whatever process it is gathered. The
order of a pass follows from the seed and the number of the pass.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llm_course.errors import CheckpointError, ConfigError, DataError

Batch = dict[str, Tensor]
Keys = Any  # of rows: an array or a list, as their kind has it
POOL = 50  # batches whose rows are sorted by length together, unless `pool` says another number
WORKERS, PREFETCH = 2, 4  # processes beside a GPU, and the batches that each has in store


class Rows(Dataset[Any]):
    """One kind of rows, checked when made; a subclass says how some of them become a batch."""

    lengths: tuple[np.ndarray, ...] = ()  # of each row, the last side sorts first; (): all alike

    def __len__(self) -> int:
        return len(self.lengths[0])

    def one_pass(self, generator: torch.Generator, least: int) -> Keys:
        """The keys of a pass in random order; `least` of them make a batch."""
        return torch.randperm(len(self), generator=generator).numpy()

    def gather(self, keys: Keys) -> Batch:
        """The batch of these rows: a function of the keys and of nothing else."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 of all rows in their order, and of how they are laid out."""
        raise NotImplementedError

    def __getitem__(self, place: tuple[Any, Keys]) -> tuple[Any, Batch]:
        """A batch for the DataLoader, with what the sampler wrote beside its keys."""
        return place[0], self.gather(place[1])


class Batches:
    """Passes of shuffled batches, one after the other without end, resumable to the exact batch.

    Rows that have lengths are sorted by them in pools of `pool` batches, then the batches of the
    pass are shuffled. Large pools leave little padding, but the rows of a batch are then alike, and
    its gradient a poorer sample. Rows that do not fill a batch are left out of the pass.

    The state counts the batches that were taken, not those that workers have in store.

    Raises ConfigError (sizes or seed out of range), DataError (fewer rows than a batch).
    """

    workers: int | None = None  # processes that gather; None: two beside a GPU, else none

    def __init__(self, rows: Rows, batch_size: int, *, seed: int = 0, pool: int = POOL) -> None:
        at_least(1, batch_size=batch_size, pool=pool)
        at_least(0, seed=seed)
        self.rows, self.batch_size, self.seed, self.pool = rows, batch_size, seed, pool
        self.epoch = 0
        self.offset = 0  # batches of this pass that were taken, by all processes together
        self._fingerprint = ""
        self._planned: tuple[int, Keys] = (-1, ())
        self._keys(0)

    @property
    def n_rows(self) -> int:
        """Rows of the present pass."""
        return len(self._keys(self.epoch))

    @property
    def batches_per_epoch(self) -> int:
        """Full batches of the present pass."""
        return self.n_rows // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self.share(0, 1, torch.device("cpu"))

    def share(self, rank: int, n_processes: int, device: torch.device) -> Iterator[Batch]:
        """Of each `n_processes` batches the one of this rank; only those are gathered."""
        places = self._places(rank, n_processes)
        for place, batch in load(self.rows, places, self.workers, device):
            self.epoch, self.offset = place  # before the yield: a state saved now has this batch
            yield batch

    def _places(self, rank: int, n_processes: int) -> Iterator[tuple[tuple[int, int], Keys]]:
        """Where the stream is when all processes have theirs, and the keys of this one's batch."""
        epoch, offset, size = self.epoch, self.offset, self.batch_size
        keys = self._keys(epoch)
        while True:
            mine = keys[:0]
            for process in range(n_processes):
                if offset >= len(keys) // size:
                    epoch, offset = epoch + 1, 0
                    keys = self._keys(epoch)
                if process == rank:
                    mine = keys[offset * size : (offset + 1) * size]
                offset += 1
            yield (epoch, offset), mine

    def _keys(self, epoch: int) -> Keys:
        """The rows of a pass in their order."""
        if self._planned[0] != epoch:
            generator = generator_of(self.seed, epoch)
            keys = self.rows.one_pass(generator, self.batch_size)
            if len(keys) < self.batch_size:
                raise DataError(
                    f"a batch needs batch_size = {self.batch_size} rows, the data make "
                    f"{len(keys)}: lower batch_size or add text"
                )
            self._planned = epoch, self._pooled(keys, generator) if self.rows.lengths else keys
        return self._planned[1]

    def _pooled(self, keys: Keys, generator: torch.Generator) -> Keys:
        """Full batches of rows of about one length, in random order."""
        keys = keys[: len(keys) - len(keys) % self.batch_size]
        at_once = self.pool * self.batch_size
        for begin in range(0, len(keys), at_once):
            part = keys[begin : begin + at_once]
            part[:] = part[np.lexsort([side[part] for side in self.rows.lengths])]
        batches = keys.reshape(-1, self.batch_size)
        return batches[torch.randperm(len(batches), generator=generator).numpy()].ravel()

    def fingerprint(self) -> str:
        """That of the rows."""
        self._fingerprint = self._fingerprint or self.rows.fingerprint()
        return self._fingerprint

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is: plain numbers and texts, ready for JSON."""
        names = ("epoch", "offset", "seed", "batch_size", "pool")
        return {"fingerprint": self.fingerprint(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `CheckpointError` names the setting that differs."""
        for name, here in self.state_dict().items():
            if name not in ("epoch", "offset") and state.get(name) != here:
                raise CheckpointError(
                    f"the batches had {name} = {state.get(name)!r} when this state was saved, "
                    f"now it is {here!r}"
                )
        self.epoch, self.offset = int(state["epoch"]), int(state["offset"])


class Evaluation:
    """Every row once, the longest first: little is padded, and a lack of memory shows at once.

    `.order` gives for each row, over all batches, its number.
    """

    workers: int | None = None  # as those of `Batches`

    def __init__(self, rows: Rows, batch_size: int) -> None:
        at_least(1, batch_size=batch_size)
        self.rows, self.batch_size = rows, batch_size
        longest_first = [-side for side in rows.lengths] or [np.arange(len(rows))]
        self.order: list[int] = np.lexsort(longest_first).tolist()

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.share(0, 1, torch.device("cpu")))

    def share(
        self, rank: int, n_processes: int, device: torch.device
    ) -> Iterator[tuple[bool, Batch]]:
        """Of each `n_processes` batches the one of this rank, and whether it counts.

        Where the last round is short, some batch is computed again and not counted: all processes
        must compute equally often, or sharded models wait for ever.
        """
        return load(self.rows, self._places(rank, n_processes), self.workers, device)

    def _places(self, rank: int, n_processes: int) -> Iterator[tuple[bool, Keys]]:
        for first in range(0, len(self), n_processes):
            counts = first + rank < len(self)
            begin = (first + rank if counts else first) * self.batch_size
            yield counts, np.asarray(self.order[begin : begin + self.batch_size])


def endless(
    batches: Iterable[Any], rank: int, n_processes: int, device: torch.device
) -> Generator[Any, None, None]:
    """This process's batches, again and again; `DataError` where none are left.

    An iterable of another kind is read by all processes, so that a state that it may have is the
    same in each, and only the own batches are kept.
    """
    if isinstance(batches, Batches):
        yield from batches.share(rank, n_processes, device)
    group: list[Any] = []
    left = 2  # a resumed one may have been at its end
    while left:
        left -= 1
        for batch in batches:
            left = 2
            group.append(batch)
            if len(group) == n_processes:
                yield group[rank]
                group = []
    raise DataError("no batch is left: batches are empty")


def load(
    rows: Rows, places: Iterator[Any], workers: int | None, device: torch.device
) -> Iterator[tuple[Any, Batch]]:
    """The batch of the keys at each place; a worker that dies is a RuntimeError."""
    n = _workers_for(device) if workers is None else workers
    more: dict[str, Any] = {"prefetch_factor": PREFETCH, "multiprocessing_context": "fork"}
    loader = DataLoader(
        rows,
        batch_size=None,  # the keys are already those of a batch
        sampler=places,
        collate_fn=tuple,
        num_workers=n,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_loop,
        generator=torch.Generator(),  # else it draws from the state that dropout draws from
        **(more if n else {}),
    )
    yield from loader


def _workers_for(device: torch.device) -> int:
    """None on a CPU, which has enough to do, and none in a notebook, where a fork is not safe."""
    if device.type != "cuda" or sys.platform != "linux" or "ipykernel" in sys.modules:
        return 0
    return min(WORKERS, len(os.sched_getaffinity(0)))


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach all processes; the loop then finishes its update, and
    needs its batches for that. So a worker ends only when its own parent says so."""

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody learns who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait_for_parent, daemon=True).start()


def generator_of(*name: object) -> torch.Generator:
    """A generator whose seed is a hash of a name, so that another name has other numbers."""
    digest = hashlib.sha256(" ".join(map(str, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def at_least(lowest: int, **values: int) -> None:
    """Refuse sizes below the lowest by their name."""
    for name, value in values.items():
        if value < lowest:
            raise ConfigError(f"{name} must be at least {lowest}, got {value}")
