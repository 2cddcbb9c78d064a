"""The directory of a run has one owner, follows no link, and keeps what is not its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from training_cases import ShuffledBatches, TinyLM, lm_loss, reference_config

from llm_course.errors import ConfigError, RunInUseError
from llm_course.training.loop import train
from llm_course.training.run_directory import (
    SUMMARY_KEYS,
    RunDirectory,
    check_out,
    write_summary,
)


def finish(out: Path, **changes: Any) -> None:
    config = reference_config(**{"max_steps": 6, "save_every": 2, **changes})
    list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=out, resume=True))


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    config = reference_config(max_steps=4, save_every=2)
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path)
    next(steps)
    with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()}"):
        next(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path, resume=True))
    list(steps)
    assert (
        list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path, resume=True)) == []
    )


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    finish(tmp_path)
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(), out=tmp_path)
    with pytest.raises(ConfigError, match=r"already holds a run .step-00000006.*resume"):
        next(steps)


@pytest.mark.parametrize("place", ["file", "under a file", "/proc/nowhere"])
def test_a_directory_that_cannot_be_used_is_refused_before_the_first_step(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    out = {"file": tmp_path / "file", "under a file": tmp_path / "file" / "run"}.get(
        place, Path(place)
    )
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(), out=out)
    with pytest.raises(ConfigError, match="out must be a directory"):
        next(steps)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        next(train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(), out=tmp_path))


def test_a_summary_has_all_keys(tmp_path: Path) -> None:
    write_summary(tmp_path, val_loss=1.5, test={"f1": math.nan, "accuracy": 0.5})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["val_loss"] == 1.5
    assert summary["floor_ratio"] is None
    assert summary["test"] == {"f1": None, "accuracy": 0.5}
    with pytest.raises(ConfigError, match="unknown key 'perplexity'"):
        write_summary(tmp_path, perplexity=2.0)


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finish(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        finish(tmp_path, tensorboard=True)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = f"""
from llm_course.training.run_directory import RunDirectory
held = RunDirectory({str(tmp_path)!r}, False)
print("held", flush=True)
import time; time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        for _ in range(2):  # the first refusal takes nothing away from the owner
            with pytest.raises(RunInUseError, match=f"in use by process {owner.pid}: wait"):
                RunDirectory(tmp_path, resume=False)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    RunDirectory(tmp_path, resume=False).close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.lock", "summary.json", "model"])
def test_a_link_in_the_place_of_an_own_file_is_refused(tmp_path: Path, name: str) -> None:
    target, out = tmp_path / "target", tmp_path / "run"
    target.mkdir() if name == "model" else target.write_text("precious")
    out.mkdir()
    (out / name).symlink_to(target)
    before = target.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
        next(train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(), out=out))
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
        check_out(out, resume=True)
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
        write_summary(out, val_loss=1.0)
    assert target.stat().st_mtime_ns == before
    assert (out / name).is_symlink()


def test_a_link_to_nothing_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is a symbolic link"):
        next(train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(), out=tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_linked_folder_may_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    finish(tmp_path / "runs" / "a")
    assert (tmp_path / "disk" / "a" / "model" / "model.safetensors").is_file()


def test_what_others_put_beside_the_weights_stays(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "model" / "README.md").write_text("mine")
    finish(tmp_path, max_steps=8)
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
