"""Checkpoints that are either whole or not there, and that cannot be damaged unnoticed.

A checkpoint is a directory `step-00000040` of files and a `manifest.json` with the size and SHA-256
of each. It is written as `step-00000040.tmp-PID`, every file and the directory are flushed to the
disk, and only then it gets its name, in one step of the file system. Reading begins with the
manifest: no file format notices a flipped bit by itself (safetensors loads it silently), the hash
does. There is no "latest" pointer that could be older or newer than what it points to: the latest
is the highest step whose checkpoint verifies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_course.errors import CheckpointError

SCHEMA = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")
LEFTOVER = re.compile(r"step-\d{8,}\.(tmp|old)-\d+")
CHUNK = 1 << 20  # bytes


def canonical_json(value: Any) -> bytes:
    """One spelling for each value, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checkpoint_path(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """The directories that bear a checkpoint's name, newest first; not verified."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def save_checkpoint(
    root: Path,
    step: int,
    files: Mapping[str, bytes],
    hashes: Mapping[str, str | None] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`; `hashes` go to the manifest.

    Raises CheckpointError when the disk is full or refuses; older checkpoints stay as they are.
    """
    final = checkpoint_path(root, step)
    temporary = root / f"{final.name}.tmp-{os.getpid()}"
    needed = sum(map(len, files.values()))
    try:
        _check_space(root, needed)
        os.mkdir(temporary)
        for name, data in files.items():
            _write(temporary / name, data)
        _write(temporary / MANIFEST, _manifest(step, files, hashes or {}))
        flush_directory(temporary)
        if final.exists():  # a damaged one, passed over when the run was resumed
            remove(final)
        os.rename(temporary, final)
        flush_directory(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot save {final}: {error.strerror or error}; "
            f"it needs {needed:,} bytes; older checkpoints are unharmed"
        ) from error
    for old in list_checkpoints(root)[keep:]:
        remove(old)
    return final


def remove(path: Path) -> None:
    """Take a checkpoint's name away first: half of one must not look like a whole one."""
    doomed = path.with_name(f"{path.name}.old-{os.getpid()}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what killed processes left behind; only for the holder of the run's lock."""
    for path in root.iterdir():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def set_aside_newer(root: Path, chosen: Path | None) -> None:
    """Rename damaged checkpoints newer than the chosen one to `step-N.damaged`."""
    for path in list_checkpoints(root):
        if chosen is not None and path.name == chosen.name:
            return
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest, once every file in it has its size and its hash; else CheckpointError."""
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        size, digest = _measure(path / name)
        if size != expected["size"]:
            raise CheckpointError(
                f"{path / name} is damaged: {size} bytes, its manifest says {expected['size']}"
            )
        if digest != expected["sha256"]:
            raise CheckpointError(
                f"{path / name} is damaged: its SHA-256 is {digest[:12]}…, "
                f"its manifest says {expected['sha256'][:12]}…"
            )
    return manifest


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that verifies; None where there is no checkpoint at all.

    A damaged one is passed over with a warning; if all are damaged, CheckpointError says why.
    """
    reasons = []
    for path in list_checkpoints(root):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason}; using {path.name}", RuntimeWarning, stacklevel=2)
        return path
    if reasons:
        raise CheckpointError(f"no checkpoint in {root} can be used: " + "; ".join(reasons))
    return None


def _manifest(step: int, files: Mapping[str, bytes], hashes: Mapping[str, str | None]) -> bytes:
    content = {
        "schema": SCHEMA,
        "step": step,
        "files": {name: {"size": len(d), "sha256": sha256(d)} for name, d in files.items()},
        "hashes": dict(hashes),
    }
    return canonical_json({**content, "seal": sha256(canonical_json(content))})


def _read_manifest(path: Path) -> dict[str, Any]:
    """Parsed, and unchanged to the last byte: its seal is the hash of all the rest."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        manifest = json.loads(data)
        content = {key: value for key, value in manifest.items() if key != "seal"}
        sealed = canonical_json({**content, "seal": sha256(canonical_json(content))})
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: it is not a JSON object") from error
    if sealed != data:
        raise CheckpointError(f"{file} is damaged: it does not match its own seal")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{file} has schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
        )
    try:
        step, names = manifest["step"], [Path(name) for name in manifest["files"]]
        own = checkpoint_path(path.parent, step).name == path.name
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} lacks a step or a list of files") from error
    if not own:
        raise CheckpointError(f"{file} belongs to step {step}, not to {path.name}")
    if any(name.name != str(name) for name in names):
        raise CheckpointError(f"{file} names a file outside its directory")
    return manifest


def _check_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed + CHUNK:
        raise OSError(f"the disk has {free:,} bytes free")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[: 64 * CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Make new names in a directory durable; Windows cannot and need not."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(path: Path) -> None:
    """Put what others have written below a directory on the disk, before it gets its name."""
    for each in path.rglob("*"):
        if each.is_file():
            descriptor = os.open(each, os.O_RDWR)  # Windows flushes only what may be written
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        else:
            flush_directory(each)
    flush_directory(path)


def _measure(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return size, digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a single file: readers see the old one or the new one, never half."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _write(temporary, data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_directory(path.parent)
