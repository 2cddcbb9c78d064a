"""A run that is resumed is the same run, or is refused; and its directory has one owner."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from training_cases import (
    ShuffledBatches,
    TinyConfig,
    TinyLM,
    digest,
    largest_difference,
    lm_loss,
    reference_config,
    weights,
    whole_and_broken_run,
)

from llm_course.errors import CheckpointError, ConfigError, RunInUseError
from llm_course.training.checkpoint import latest_checkpoint, save_checkpoint, verify_checkpoint
from llm_course.training.loop import train
from llm_course.training.optim import learning_rate
from llm_course.training.run_directory import SUMMARY_KEYS, RunDirectory, write_summary

Batch = dict[str, Tensor]


def finish(out: Path, batches: Any = None, **changes: Any) -> None:
    config = reference_config(**{"max_steps": 6, "save_every": 2, **changes})
    for _ in train(TinyLM(), batches or ShuffledBatches(), lm_loss, config, out=out, resume=True):
        pass


# ---- resuming -----------------------------------------------------------------------------------


def test_the_schedule_continues_where_it_was(tmp_path: Path) -> None:
    config = reference_config(max_steps=12, save_every=3)
    first = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path)
    rates = [next(first).lr for _ in range(6)]
    first.close()  # type: ignore[attr-defined]
    rest = list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path, resume=True))
    assert [s.step for s in rest] == list(range(7, 13))
    rates += [s.lr for s in rest]
    assert rates == [learning_rate(step, config) for step in range(1, 13)]


def test_the_log_has_each_step_once_after_a_break(tmp_path: Path) -> None:
    config = reference_config(max_steps=12, save_every=4)
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path)
    for _ in range(7):  # the lines of 5, 6 and 7 come again
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # a torn line
    list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path, resume=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_a_run_with_muon_is_resumed_bit_identical(tmp_path: Path) -> None:
    config = reference_config(max_steps=12, save_every=6, optimizer="muon")
    whole_and_broken_run(tmp_path, config, stop=8)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    other = dataclasses.replace(config, optimizer="adamw")
    with pytest.raises(CheckpointError, match="optimizer was 'muon' and is 'adamw'"):
        list(
            train(TinyLM(), ShuffledBatches(), lm_loss, other, out=tmp_path / "whole", resume=True)
        )


def test_the_loss_scale_of_fp16_is_resumed(tmp_path: Path) -> None:
    for out, stops in ((tmp_path / "whole", False), (tmp_path / "broken", True)):
        config = reference_config(max_steps=12, save_every=6, precision="fp16")
        steps = train(TinyLM(), ShuffledBatches(), steep, config, out=out)
        skipped = [next(steps).skipped for _ in range(6 if stops else 12)]
        assert any(skipped)  # so the scale is no longer the first one
        steps.close()  # type: ignore[attr-defined]
        if stops:
            list(train(TinyLM(), ShuffledBatches(), steep, config, out=out, resume=True))
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")


def steep(model: Any, batch: Batch) -> Any:
    """A gradient too large for fp16 at the first loss scale."""
    total, count = lm_loss(model, batch)["lm"]
    return {"lm": (total * 100, count)}


class OtherTokenizer:
    def __init__(self, content: str) -> None:
        self.content = content

    def save(self, path: str | Path) -> None:
        (Path(path) / "tokenizer.json").write_text(self.content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-2}, r"training\.lr was 0\.003 and is 0\.01"),
        ({"schedule": "linear"}, r"training\.schedule was 'cosine' and is 'linear'"),
        ({"max_steps": 9}, r"training\.max_steps was 6 and is 9"),
        ({"warmup_steps": 2}, r"training\.warmup_steps was 5 and is 2"),
        ({"weight_decay": 0.2}, r"training\.weight_decay"),
        ({"beta2": 0.99}, r"training\.beta2"),
        ({"clip_norm": 2.0}, r"training\.clip_norm"),
        ({"seed": 5}, r"training\.seed was 0 and is 5"),
        ({"precision": "bf16"}, r"training\.precision was 'fp32' and is 'bf16'"),
        ({"accumulation": 3}, r"batches_per_update was 2 and is 3"),
    ],
)
def test_another_training_config_is_refused_by_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    finish(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        finish(tmp_path, **change)


def test_another_model_tokenizer_or_data_is_refused(tmp_path: Path) -> None:
    config = reference_config(max_steps=2, save_every=0)

    def go(model: TinyLM, batches: ShuffledBatches, tokenizer: Any) -> None:
        list(train(model, batches, lm_loss, config, out=tmp_path, resume=True, tokenizer=tokenizer))

    go(TinyLM(), ShuffledBatches(), OtherTokenizer("a"))
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "a"
    with pytest.raises(CheckpointError, match=r"model\.dropout was 0\.1 and is 0\.2"):
        go(TinyLM(TinyConfig(dropout=0.2)), ShuffledBatches(), OtherTokenizer("a"))
    with pytest.raises(CheckpointError, match=r"tokenizer was '?[0-9a-f]+… and is"):
        go(TinyLM(), ShuffledBatches(), OtherTokenizer("b"))
    with pytest.raises(CheckpointError, match="data was"):
        go(TinyLM(), ShuffledBatches(seed=1), OtherTokenizer("a"))
    go(TinyLM(), ShuffledBatches(), OtherTokenizer("a"))


def test_what_changes_no_number_may_change(tmp_path: Path) -> None:
    finish(tmp_path, schedule="constant")
    finish(
        tmp_path,
        schedule="constant",
        max_steps=8,  # a constant schedule has no end
        save_every=1,
        eval_every=3,
        keep_checkpoints=5,
        non_finite="skip",
    )
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_a_checkpoint_of_another_shape_lists_every_difference(tmp_path: Path) -> None:
    config = reference_config(max_steps=1, save_every=0)

    class Unnamed(TinyLM):
        """Has no config to compare, so the tensors tell."""

        def __init__(self, size: TinyConfig) -> None:
            super().__init__(size)
            self.config = None  # type: ignore[assignment]

    list(train(Unnamed(TinyConfig()), ShuffledBatches(), lm_loss, config, out=tmp_path))
    model = Unnamed(TinyConfig(n_layers=1, d_model=16))
    before = weights(model)
    with pytest.raises(CheckpointError) as caught:
        list(train(model, ShuffledBatches(), lm_loss, config, out=tmp_path, resume=True))
    text = str(caught.value)
    assert "layers.1.w_1.weight is unknown" in text
    assert "norm.weight is torch.float32 [32], not torch.float32 [16]" in text
    assert largest_difference(weights(model), before) == 0


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    finish(broken)
    newest = broken / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"optimizer.safetensors is damaged.*step-00000004"):
        finish(broken)
    assert digest(broken) == digest(whole)
    assert (broken / "checkpoints" / "step-00000006.damaged").is_dir()  # kept to be looked at
    for path in (broken / "checkpoints").glob("step-????????"):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*state.json"):
        finish(broken)


def test_a_manifest_with_a_right_seal_but_a_wrong_place_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"a": b"x"})
    verify_checkpoint(path)
    moved = path.rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="belongs to step 3, not to step-00000009"):
        verify_checkpoint(moved)
    good = save_checkpoint(tmp_path, 4, {"b": b""})
    with pytest.warns(RuntimeWarning, match=r"belongs to step 3.*using step-00000004"):
        assert latest_checkpoint(tmp_path) == good


def test_a_checkpoint_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    from llm_course.training import checkpoint

    path = save_checkpoint(tmp_path, 1, {"a": b"x"})
    (path / "manifest.json").write_bytes(checkpoint._manifest(1, {"../../secret": b"x"}, {}))
    with pytest.raises(CheckpointError, match="outside its directory"):
        verify_checkpoint(path)


def test_no_room_on_the_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path)
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"1,000 bytes free; it needs 5 bytes"):
        save_checkpoint(tmp_path / "checkpoints", 99, {"a": b"12345"})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


# ---- the directory ------------------------------------------------------------------------------


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


# ---- what a name promises -----------------------------------------------------------------------


class Disk:
    """Which inodes were flushed, when each name was given, and what was on the disk then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: set[int] = set()
        self.named: list[Path] = []  # in their order
        self.early: list[str] = []  # files and directories that had a name before they were flushed
        fsync = os.fsync

        def flush(descriptor: int) -> None:
            fsync(descriptor)
            self.flushed.add(os.fstat(descriptor).st_ino)

        monkeypatch.setattr(os, "fsync", flush)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any) -> None:
            inside = [Path(source), *Path(source).rglob("*")]
            self.early += [str(p) for p in inside if p.stat().st_ino not in self.flushed]
            real(source, target)
            self.named.append(Path(target))
            self.flushed.discard(Path(target).parent.stat().st_ino)  # it has changed

        return rename

    def lasting(self, path: Path) -> bool:
        """Whether the name itself is on the disk: its directory was flushed after it was given."""
        return path in self.named and path.parent.stat().st_ino in self.flushed


def test_what_is_named_is_on_the_disk_and_so_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine after a save leaves no empty file and no checkpoint without a name."""
    disk = Disk(monkeypatch)
    saved = save_checkpoint(tmp_path, 1, {"a": b"x" * 100, "b": b""})
    assert disk.early == []
    assert disk.lasting(saved)
    (tmp_path / "out").mkdir()
    summary = write_summary(tmp_path / "out", val_loss=1.5)
    assert disk.early == []
    assert disk.lasting(summary)
    (tmp_path / "new").write_text("not flushed")  # the control
    os.replace(tmp_path / "new", tmp_path / "out" / "old")
    assert disk.early == [str(tmp_path / "new")]
    assert not disk.lasting(tmp_path / "out" / "old")


def test_the_exported_model_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    config = reference_config(max_steps=1, save_every=0)
    tokenizer = OtherTokenizer("a")
    batches = ShuffledBatches()
    list(train(TinyLM(), batches, lm_loss, config, out=tmp_path, tokenizer=tokenizer))
    assert disk.lasting(tmp_path / "model")
    assert disk.early == []


def models_in(out: Path) -> list[dict[str, bytes]]:
    """The files of `model/`, and of `model.old/` where a crash has left one."""
    folders = [out / "model", out / "model.old"]
    return [{p.name: p.read_bytes() for p in f.iterdir()} for f in folders if f.is_dir()]


class Crash(BaseException):
    """The process is gone."""


def crash_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Crash before the call of this number that makes, names or removes something."""
    left = [number]

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return real(*arguments, **options)

        return call

    for owner, names in ((os, ("rename", "replace", "mkdir")), (shutil, ("rmtree",))):
        for name in names:
            patch.setattr(owner, name, watched(getattr(owner, name)))
    patch.setattr(OtherTokenizer, "save", watched(OtherTokenizer.save))


def export(out: Path, letter: str) -> None:
    """The end of a run: its model, whose weights the letter decides, and its tokenizer."""
    if not (out / "checkpoints").exists():
        (out / "checkpoints").mkdir(parents=True)
        save_checkpoint(out / "checkpoints", 1, {"a": b"x"})
    directory = RunDirectory(out, resume=True)
    try:
        directory.export(TinyLM(seed=ord(letter)), None, OtherTokenizer(letter))
    finally:
        directory.close()


def test_a_crash_in_the_middle_of_an_export_leaves_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "a", "a"), export(tmp_path / "b", "b")
    (old,), (new,) = models_in(tmp_path / "a"), models_in(tmp_path / "b")
    assert old.keys() == new.keys() == {"model.safetensors", "tokenizer.json"}
    crashes = 0
    for first, second in itertools.product(range(10), (4, 6)):
        out = tmp_path / f"{first}-{second}"
        shutil.copytree(tmp_path / "a", out)
        for number in (first, second):  # the second time it meets what the first has left
            with monkeypatch.context() as patch, contextlib.suppress(Crash):
                crash_at(patch, number)
                export(out, "b")
                crashes -= 1
            crashes += 1
            found = models_in(out)
            assert old in found or new in found
            assert not (out / "model").exists() or found[0] in (old, new)
        export(out, "b")
        assert models_in(out) == [new]
    assert crashes > 20


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no")])
def test_an_export_that_fails_leaves_the_model_that_was_there(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, "a")
    (old,) = models_in(tmp_path)

    def half(self: OtherTokenizer, path: str | Path) -> None:
        (Path(path) / "tokenizer.json").write_text("ha")
        raise error

    monkeypatch.setattr(OtherTokenizer, "save", half)
    with pytest.raises((CheckpointError, ValueError)):
        export(tmp_path, "b")
    assert models_in(tmp_path) == [old]
