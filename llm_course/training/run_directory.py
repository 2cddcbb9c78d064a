"""The directory of a run: `model/`, `checkpoints/`, `metrics.jsonl`, `summary.json`, one owner."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from llm_course.errors import CheckpointError, ConfigError, RunInUseError
from llm_course.training.checkpoint import (
    flush_directory,
    flush_tree,
    list_checkpoints,
    remove_leftovers,
    sha256,
    write_atomically,
)

LOCK, LOG = "run.lock", "metrics.jsonl"
SUMMARY_KEYS = (
    "val_loss",  # nats per token
    "val_nats_per_char",
    "floor_ratio",
    "test",  # a dict of scores
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
    path = Path(out) / "summary.json"
    write_atomically(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return path


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON; null says the same."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the files that the tokenizer saves."""
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return sha256(b"".join(path.name.encode() + path.read_bytes() for path in files))


def check_out(path: str | Path, resume: bool, tensorboard: bool = False) -> None:
    """Refuse, before any work and without a trace, what `RunDirectory` would refuse later.

    Raises ConfigError (not a directory, not writable, holds a run and `resume` is false, no
    TensorBoard) or RunInUseError.
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
    held = list_checkpoints(path / "checkpoints")
    if held and not resume:
        raise ConfigError(
            f"{path} already holds a run ({held[0].name}): resume it with "
            "resume=True (--resume), or choose another directory"
        )
    if not held and (path / "model").exists():
        raise ConfigError(
            f"{path} already holds a model, and no checkpoint to resume from: choose another "
            f"directory, or {path / 'model'} would be replaced"
        )


def _unusable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"out must be a directory that can be written, {path} is not: {reason}")


class RunDirectory:
    """Opened by one process at a time; the lock dies with it, however it dies."""

    def __init__(self, path: str | Path, resume: bool) -> None:
        """Raises RunInUseError, or ConfigError when the path cannot be used."""
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unusable(self.path, error.strerror) from error
        self._log: int | None = None
        self._board: Any = None
        try:
            self._hold_lock()
            _check_free(self.path, resume)
            remove_leftovers(self.checkpoints)
        except BaseException:
            self.close()
            raise

    def _hold_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two runs in one directory are the reader's own care
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._lock, 32).decode(errors="replace").strip() or "unknown"
            raise RunInUseError(
                f"{self.path} is in use by process {owner}: wait for it, or choose another one"
            ) from error
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode())

    def open_log(self, step: int, tensorboard: bool = False) -> None:
        """Open `metrics.jsonl` for appending, without the lines after `step`: they come again."""
        if tensorboard:
            self._board = _tensorboard(self.path / "tensorboard", step)
        path = self.path / LOG
        kept = 0
        if step and path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                kept += len(line)
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._log, kept)
        os.lseek(self._log, kept, os.SEEK_SET)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line in one write, so that a kill leaves no half line."""
        if self._log is not None:
            rest = (json.dumps(_finite(values), allow_nan=False) + "\n").encode()
            try:
                while rest:
                    rest = rest[os.write(self._log, rest) :]
            except OSError as error:
                reason = f"{error.strerror}; the checkpoints are unharmed"
                raise CheckpointError(f"cannot write {self.path / LOG}: {reason}") from error
        if self._board is not None:
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, values["step"])

    def flush_log(self) -> None:
        """On the disk, before a checkpoint that follows it."""
        if self._log is not None:
            os.fsync(self._log)

    def export(self, model: nn.Module, state: Mapping[str, Tensor] | None, tokenizer: Any) -> None:
        """Write `model/` in the model's own layout, with its tokenizer, then put it in place.

        `state` replaces the model's own tensors where it holds only shards of them. Raises
        CheckpointError when the disk is full or refuses.
        """
        save = getattr(model, "save_pretrained", None)
        if save is None:
            return
        final, new, old = (self.path / name for name in ("model", "model.tmp", "model.old"))
        try:
            if old.exists() and not final.exists():  # a crash between the two renames
                os.rename(old, final)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            new.mkdir()
            save(new, state_dict=None if state is None else dict(state))
            if tokenizer is not None:
                tokenizer.save(new)
            flush_tree(new)
            if final.exists():
                os.rename(final, old)
            os.rename(new, final)
            flush_directory(self.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(new, ignore_errors=True)
            raise CheckpointError(
                f"cannot write {final}: {error}; the checkpoints are unharmed, so resuming the run "
                "writes it again"
            ) from error
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        for descriptor in (self._log, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._log = None


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


def _tensorboard(path: Path, step: int) -> Any:
    """A writer that hides what a killed run wrote after `step`."""
    return _summary_writer()(str(path), purge_step=step + 1)


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`validation.loss` and the like, as `validation/loss`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif name != "step" and value is not None:
            yield name, float(value)
