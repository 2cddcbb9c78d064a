"""The directory of a run: `model/`, `checkpoints/`, `metrics.jsonl`, `summary.json`, one owner."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from llm_course.atomic import new_folder, write_file
from llm_course.configs import TrainConfig
from llm_course.errors import CheckpointError, ConfigError, RunInUseError
from llm_course.training import parallel
from llm_course.training.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    read_state,
    save_checkpoint,
)
from llm_course.training.state import RunState, made_with, model_slots, refuse_another_run

LOCK, LOG, SUMMARY, MODEL = "run.lock", "metrics.jsonl", "summary.json", "model"
SUMMARY_KEYS = (
    "val_loss",  # nats per token
    "val_nats_per_char",
    "floor_ratio",
    "test",  # a dict of scores
    "start",  # of the weights: paper, lab, checkpoint, scratch
    "seconds",
    "tokens_per_second",
    "parameters",
)


def write_summary(out: str | Path, **values: Any) -> Path:
    """Write `summary.json` with all of SUMMARY_KEYS, null where a value is not given or no number.

    Raises ConfigError for a key that is not one of them.
    """
    for key in values:
        if key not in SUMMARY_KEYS:
            raise ConfigError(f"unknown key {key!r} of a summary: it has {', '.join(SUMMARY_KEYS)}")
    summary = {key: _finite(values.get(key)) for key in SUMMARY_KEYS}
    _refuse_links(Path(out))
    path = Path(out) / SUMMARY
    write_file(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return path


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON; null says the same."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_out(path: str | Path, resume: bool, tensorboard: bool = False) -> None:
    """Refuse, before any work and without a trace, what `RunDirectory` would refuse later.

    Raises ConfigError (not a directory, not writable, holds a run and `resume` is false, a link in
    the place of a file, no TensorBoard) or RunInUseError.
    """
    if tensorboard:
        _summary_writer()
    path = Path(path)
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise _unusable(path, f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unusable(path, f"{there}: Permission denied")
    _check_free(path, resume)
    if (path / LOCK).is_file() or (path / "checkpoints").is_dir():
        RunDirectory(path, resume).close()


def _check_free(path: Path, resume: bool) -> None:
    """Refuse to begin where a run is, or a model that the new one would replace."""
    _refuse_links(path)
    held = list_checkpoints(path / "checkpoints")
    if held and not resume:
        raise ConfigError(
            f"{path} already holds a run ({held[0].name}): resume it with "
            "resume=True (--resume), or choose another directory"
        )
    if not held and (path / MODEL).exists():
        raise ConfigError(
            f"{path} already holds a model, and no checkpoint to resume from: choose another "
            f"directory, or {path / MODEL} would be replaced"
        )


def _refuse_links(path: Path) -> None:
    """What a link in the place of an own file points to is not ours to write."""
    for name in (LOCK, LOG, SUMMARY, MODEL):
        if (path / name).is_symlink():
            raise _unusable(path, f"{path / name} is a symbolic link")


def _unusable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"out must be a directory that can be written, {path} is not: {reason}")


def _lock(path: Path) -> FileLock:
    file = path / LOCK
    owner = file.read_text(errors="replace").strip() if file.is_file() else ""
    lock = FileLock(file, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunInUseError(
            f"{path} is in use by process {owner or 'unknown'}: wait for it, or choose another one"
        ) from error
    with contextlib.suppress(OSError):  # on Windows nobody may write to a locked file
        file.write_text(f"{os.getpid()}\n")
    return lock


class RunDirectory:
    """What a run keeps on disk. All processes make one and save together, the first one writes.

    Its lock is held until it is closed or its process ends, however it ends.
    """

    def __init__(self, path: str | Path, resume: bool) -> None:
        """Raises RunInUseError, or ConfigError when the path cannot be used."""
        self.path, self.resume = Path(path), resume
        self.checkpoints = self.path / "checkpoints"
        self.saved_step = 0
        self._lock: FileLock | None = None
        self._log: FileIO | None = None
        self._board: Any = None
        if parallel.rank() > 0:
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _refuse_links(self.path)
            self._lock = _lock(self.path)
        except OSError as error:
            raise _unusable(self.path, error.strerror) from error
        try:
            _check_free(self.path, resume)
            for leftover in self.checkpoints.glob("step-*.tmp"):  # of a killed process
                shutil.rmtree(leftover, ignore_errors=True)
        except BaseException:
            self.close()
            raise

    def open(
        self, state: RunState, config: TrainConfig, tokenizer: Any, settings: Mapping[str, Any]
    ) -> None:
        """Bring `state` to the newest checkpoint that verifies, if wanted, and open the log.

        Raises CheckpointError (damaged, of another run, of another model).
        """
        self._state, self._config, self._tokenizer = state, config, tokenizer
        self._made_with = {
            **made_with(state.model, state.batches, config, tokenizer_hash(tokenizer)),
            **{f"settings.{name}": value for name, value in settings.items()},
        }
        if self.resume:
            self._load()
        if parallel.rank() == 0:
            self._open_log(state.progress.step)

    def _load(self) -> None:
        """The first process verifies, and all take the same checkpoint."""
        found = latest_checkpoint(self.checkpoints) if parallel.rank() == 0 else None
        step = parallel.largest(read_state(found)["step"] if found else 0)
        if step == 0:
            return
        path = checkpoint_path(self.checkpoints, step)
        values = read_state(path)
        refuse_another_run(path, values["made_with"], self._made_with)
        self._state.load(path, values)
        self.saved_step = step
        self._export()  # the process may have been killed before

    def save(self) -> None:
        """A checkpoint, then `model/`, of what is not saved yet; all processes take part.

        Raises CheckpointError when the disk is full or refuses.
        """
        step = self._state.progress.step
        if step == self.saved_step:
            return
        if self._log is not None:  # on the disk before a checkpoint that follows it
            os.fsync(self._log.fileno())
        values = {**self._state.values(), "made_with": self._made_with}
        keep = self._config.keep_checkpoints
        save_checkpoint(self.checkpoints, step, self._state.tensors(), values, keep)
        self.saved_step = step
        self._export()

    def _export(self) -> None:
        """`model/` in the model's own layout with its tokenizer, if it can be written so."""
        model: Any = self._state.model
        weights = parallel.gathered(self._state.best or model_slots(model))
        if parallel.rank() > 0 or not hasattr(model, "save_pretrained"):
            return
        try:
            with new_folder(self.path / MODEL) as folder:
                model.save_pretrained(folder, state_dict=weights)
                if self._tokenizer is not None:
                    self._tokenizer.save(folder)
        except (OSError, SafetensorError) as error:
            needed = sum(tensor.nbytes for tensor in weights.values())
            raise CheckpointError(
                f"cannot write {self.path / MODEL}, which needs {needed:,} bytes: {error}; the "
                "checkpoints are unharmed, so resuming the run writes it again"
            ) from error

    def leave(self) -> None:
        """Save when the reader has left the loop; other processes do not hear of that."""
        if parallel.world_size() == 1:
            self.save()
        elif self.saved_step < self._state.progress.step:
            said = f"step {self._state.progress.step} is not saved, as that takes all processes"
            warnings.warn(f"{said}, and one left the loop; {self.newest()}", stacklevel=4)

    def newest(self) -> str:
        """Where a resumed run would go on."""
        for path in list_checkpoints(self.checkpoints):
            return f"the newest checkpoint is {path}: resume=True (--resume) goes on from there"
        return f"{self.path} has no checkpoint yet"

    def _open_log(self, step: int) -> None:
        """Open `metrics.jsonl` for appending, without the lines after `step`: they come again."""
        if self._config.tensorboard:
            self._board = _summary_writer()(str(self.path / "tensorboard"), purge_step=step + 1)
        path = self.path / LOG
        kept = []
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            if not line.endswith(b"\n") or _step_of(line) > step:
                break
            kept.append(line)
        write_file(path, b"".join(kept))
        self._log = FileIO(path, "a")

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line in one write, so that a kill leaves no half line."""
        if self._log is None:
            return
        rest = (json.dumps(_finite(values), allow_nan=False) + "\n").encode()
        try:
            while rest:
                rest = rest[self._log.write(rest) :]
        except OSError as error:
            reason = f"{error.strerror}; the checkpoints are unharmed"
            raise CheckpointError(f"cannot write {self.path / LOG}: {reason}") from error
        if self._board is not None:
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        for each in (self._board, self._log):
            if each is not None:
                each.close()
        if self._lock is not None:
            self._lock.release()


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the files that the tokenizer saves."""
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        content = b"".join(path.name.encode() + path.read_bytes() for path in files)
        return hashlib.sha256(content).hexdigest()


def _step_of(line: bytes) -> float:
    """The step of a line of the log; infinite for a damaged one, so that it is cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard = True needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`validation.loss` and the like, as `validation/loss`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif name != "step" and value is not None:
            yield name, float(value)
