"""Files and folders are replaced whole, and are on the disk before they get their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llm_course.atomic import new_folder, write_file


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"one", b"two"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(OSError, match="No space left"):
                write_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flushes and renames from now on, with the names they are about."""
    trace: list[str] = []
    names: dict[int, str] = {}
    real_open, real_fsync = os.open, os.fsync

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = real_open(path, *args, **kwargs)
        names[descriptor] = Path(path).name
        return descriptor

    def fsync(descriptor: int) -> None:
        trace.append(f"flush {names[descriptor]}")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    for call in ("replace", "rename"):
        real = getattr(os, call)

        def moved(old: Any, new: Any, real: Any = real) -> None:
            trace.append(f"name {Path(new).name}")
            real(old, new)

        monkeypatch.setattr(os, call, moved)
    return trace


def test_everything_is_flushed_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    trace = traced(monkeypatch)
    write_file(tmp_path / "runs" / "a", b"x")
    assert trace == [f"flush .a.{os.getpid()}.tmp", "name a", "flush runs"]
    trace.clear()
    with new_folder(tmp_path / "runs" / "model") as folder:
        (folder / "b").write_bytes(b"x")
    assert trace == ["flush b", "flush model.tmp", "name model", "flush runs"]
    trace.clear()
    with new_folder(tmp_path / "runs" / "model") as folder:  # it is there: file by file
        (folder / "b").write_bytes(b"y")
    assert trace == ["flush b", "flush model.tmp", "name b", "flush model", "flush runs"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "left").write_text("by a killed process")
    with new_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert [each.name for each in path.iterdir()] == ["a"]
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other") as folder:
        (folder / "a").write_text(str(1 / 0))
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_there_keeps_what_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_text("old")
    with new_folder(path) as folder:
        (folder / "a").write_text("new")
        assert (path / "a").read_text() == "old"
    assert {each.name: each.read_text() for each in path.iterdir()} == {"a": "new", "b": "old"}
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
