"""Checkpoints that are either whole or not there, and that cannot be damaged unnoticed.

A checkpoint is a folder `step-00000040`. Each process writes its own part of the tensors there as
safetensors, by torch.distributed.checkpoint, which reads them again in any number of processes;
`state.json` has the numbers and words, and `SHA256SUMS` the hash of every file, as `sha256sum -c`
reads it. No file format notices a flipped bit by itself (safetensors loads it silently), the hash
does. There is no "latest" pointer that could be older or newer than what it points to: the latest
is the highest step whose checkpoint verifies.

Nothing is pickled: torch's default storage pickles its list of contents, and so would this one a
value that is no tensor. Saving is synchronous: `async_save` has written later values of tensors on
a CPU (PyTorch's issue 144657).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_course.atomic import new_folder, temporary
from llm_course.errors import CheckpointError
from llm_course.training import parallel

SCHEMA = 2
STATE, SUMS = "state.json", "SHA256SUMS"
NAME = re.compile(r"step-(\d{8,})")
RESERVE = 2**20  # bytes that stay free


def checkpoint_path(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """The folders that bear a checkpoint's name, newest first; not verified."""
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> None:
    """Write a checkpoint, then remove all but the newest `keep`.

    All processes call it and see the same folder; `state` is that of the first one. Raises
    CheckpointError when the disk is full or refuses; older checkpoints stay as they are.
    """
    path, first = checkpoint_path(root, step), parallel.rank() == 0
    needed = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with ExitStack() as stack:
            if first:
                _check_space(root, needed)
                stack.enter_context(new_folder(path))
            parallel.barrier()  # the folder is there
            _write_tensors(temporary(path), tensors)
            if first:
                content = {"schema": SCHEMA, "step": step, **state}
                text = json.dumps(content, sort_keys=True, indent=1)
                (temporary(path) / STATE).write_text(text, encoding="utf-8")
                (temporary(path) / SUMS).write_bytes(_sums(temporary(path)))
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path}, which needs {needed:,} bytes: {error.strerror or error}; "
            "older checkpoints are unharmed"
        ) from error
    for old in list_checkpoints(root)[keep:] if first else ():
        shutil.rmtree(old, ignore_errors=True)  # half of one does not verify
    parallel.barrier()  # who leaves now must not end the first process while it writes


def _check_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed + RESERVE:
        raise OSError(f"the disk has {free:,} bytes free, and {RESERVE:,} of them stay so")


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp  # a second, which only a run that saves pays

    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _own_errors():
        dcp.save(detached, storage_writer=writer)


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, each whole or this process's part of one, in place."""
    import torch.distributed.checkpoint as dcp

    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    with _own_errors():
        dcp.load(detached, storage_reader=dcp.HuggingFaceStorageReader(str(path)))


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """Name, shape and dtype of all that a checkpoint holds, without the values."""
    import torch.distributed.checkpoint as dcp

    held: Any = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        for name, each in held.items()
    }


@contextmanager
def _own_errors() -> Iterator[None]:
    """What went wrong in any process, Ctrl-C included, without torch's report around it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as report:
        raise next(iter(report.failures.values()))[0] from report


def _sums(path: Path) -> bytes:
    """The list of all files of a checkpoint but itself, as `sha256sum` writes it."""
    lines = []
    for file in sorted(path.iterdir()):
        if file.name != SUMS:
            with file.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    return "".join(lines).encode()


def verify_checkpoint(path: Path) -> None:
    """CheckpointError unless the files are those of its list, to the last bit."""
    try:
        listed, found = (path / SUMS).read_bytes(), _sums(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if listed != found:
        lines = set(listed.splitlines()) ^ set(found.splitlines())
        names = sorted({line[66:].decode(errors="replace") for line in lines} - {""})
        what = f"does not agree with {', '.join(names)}" if names else "was changed"
        raise CheckpointError(f"{path} is damaged: {SUMS} {what}")
    read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` holds; CheckpointError where it is another version's or another step's."""
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    if state["schema"] != SCHEMA:
        raise CheckpointError(f"{path} has schema {state['schema']}, this version reads {SCHEMA}")
    if path.name != checkpoint_path(path, state["step"]).name:
        raise CheckpointError(f"{path} belongs to step {state['step']}")
    return state


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that verifies; None where there is no checkpoint at all.

    Damaged ones that are newer are renamed to `step-N.damaged`, with a warning that says why; if
    all are damaged, CheckpointError says it.
    """
    damaged: dict[Path, str] = {}
    for path in list_checkpoints(root):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            damaged[path] = str(error)
            continue
        for each, reason in damaged.items():
            warnings.warn(f"{reason}; using {path.name}", RuntimeWarning, stacklevel=2)
            aside = each.with_name(f"{each.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(each, aside)
        return path
    if damaged:
        reasons = "; ".join(damaged.values())
        raise CheckpointError(f"no checkpoint in {root} can be used: {reasons}")
    return None
