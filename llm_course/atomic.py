"""Files and folders that are replaced whole: a reader, or a killed process, meets no half of one.

What is written goes to the disk under another name first. Then it gets its own name, which the
file system gives in one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary(path: Path) -> Path:
    """Where the files of a folder are written first; a killed process leaves it behind."""
    return path.with_name(f"{path.name}.tmp")


def write_file(path: Path, data: bytes) -> None:
    """Replace a file: whoever opens it gets the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.unlink(missing_ok=True)
    try:
        with new.open("xb") as file:  # x: nobody's link is followed
            file.write(data)
        _flush(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder for files, which becomes `path` when the block ends, or goes if that fails.

    Where `path` is there already it keeps its other files, and those written anew take the places
    of the old ones, each in one step: no file is missing at any time.
    """
    new = temporary(path)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            _flush(file)
        _flush(new)
        if path.is_dir():
            for file in new.iterdir():
                os.replace(file, path / file.name)
            _flush(path)
            new.rmdir()
        else:
            os.rename(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk before what follows."""
    if path.is_dir() and os.name != "posix":  # Windows cannot flush a folder, and need not
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
