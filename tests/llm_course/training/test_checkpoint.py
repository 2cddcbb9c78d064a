"""A checkpoint is whole, verified and free of pickle, and any number of processes reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import (
    ShuffledBatches,
    TinyConfig,
    TinyLM,
    digest,
    largest_difference,
    lm_loss,
    reference_config,
    stored,
    weights,
)

from llm_course.errors import CheckpointError
from llm_course.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_tensors,
    read_state,
    save_checkpoint,
    stored_tensors,
    verify_checkpoint,
)
from llm_course.training.devices import choose_precision
from llm_course.training.loop import train
from llm_course.training.optim import make_optimizers
from llm_course.training.state import Progress, RandomStream, RunState


def finish(out: Path, validation: Any = None, **changes: Any) -> None:
    config = reference_config(**{"max_steps": 6, "save_every": 2, **changes})
    batches = ShuffledBatches()
    list(train(TinyLM(), batches, lm_loss, config, out=out, resume=True, validation=validation))


def save(root: Path, step: int, keep: int = 9) -> Path:
    save_checkpoint(root, step, {"a": torch.arange(6.0), "b": torch.tensor(step)}, {"x": 1}, keep)
    return list_checkpoints(root)[0]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 40)
    verify_checkpoint(path)
    tensors = {"a": torch.zeros(6), "b": torch.tensor(0)}
    assert {n: (t.shape, t.dtype) for n, t in stored_tensors(path).items()} == {
        n: (t.shape, t.dtype) for n, t in tensors.items()
    }
    load_tensors(path, tensors)
    assert torch.equal(tensors["a"], torch.arange(6.0))
    assert tensors["b"].item() == 40
    assert read_state(path) == {"schema": 2, "step": 40, "x": 1}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000015", "step-00000010"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle is written or read")

    finish(tmp_path / "first")  # torch has imported what it needs, which names a Pickler
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    for steps in (6, 8):  # the second run reads what the first one wrote
        finish(tmp_path / "run", ShuffledBatches(seed=5), max_steps=steps, patience=5, eval_every=2)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000008"
    # The control: torch's own storage, which a dict of plain values would also reach.
    import torch.distributed.checkpoint as dcp

    with pytest.raises(BaseException, match="a pickle is written"):
        dcp.save({"a": torch.zeros(1)}, checkpoint_id=tmp_path / "theirs")


def test_no_file_of_a_run_is_a_pickle(tmp_path: Path) -> None:
    finish(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".lock", ""}
    for path in files:
        data = path.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))  # pickle's and torch.save's first bytes
        if path.suffix == ".safetensors":
            assert data[8:9] == b"{"
        else:
            data.decode()


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    finish(broken)
    newest = next((broken / "checkpoints" / "step-00000006").glob("*.safetensors"))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"step-00000006 is damaged.*shard.*step-00000004"):
        finish(broken)
    assert digest(broken) == digest(whole)
    assert (broken / "checkpoints" / "step-00000006.damaged").is_dir()  # kept to be looked at
    for path in list_checkpoints(broken / "checkpoints"):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*state.json"):
        finish(broken)


def test_a_checkpoint_with_a_file_too_many_or_in_another_place_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    moved = path.rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="step-00000009 belongs to step 3"):
        verify_checkpoint(moved)
    save(tmp_path, 4)
    good = tmp_path / "step-00000004"
    with pytest.warns(RuntimeWarning, match=r"belongs to step 3.*using step-00000004"):
        assert latest_checkpoint(tmp_path) == good
    # torch would read every safetensors file of the folder.
    (good / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000004 is damaged.*shard-00002"):
        verify_checkpoint(good)


def test_a_checkpoint_of_the_format_before_is_refused_by_name(tmp_path: Path) -> None:
    old = tmp_path / "step-00000003"
    old.mkdir()
    (old / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*SHA256SUMS"):
        latest_checkpoint(tmp_path)


def test_the_hashes_can_be_checked_by_hand(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path, 3)
    for line in (path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest


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
    assert "model.layers.1.w_1.weight is unknown" in text
    assert "optimizer.layers.1.w_1.weight.exp_avg is unknown" in text
    assert "model.norm.weight is torch.float32 [32], not torch.float32 [16]" in text
    assert largest_difference(weights(model), before) == 0


def test_a_head_that_the_loss_does_not_use_has_no_moments(tmp_path: Path) -> None:
    finish(tmp_path)
    names = stored(list_checkpoints(tmp_path / "checkpoints")[0])
    assert "model.score_head.weight" in names
    assert "optimizer.norm.weight.exp_avg" in names
    assert not [name for name in names if name.startswith("optimizer.score_head")]


def test_looking_at_an_optimizer_without_moments_gives_it_none() -> None:
    """torch's own way makes them by an update of rate 0, which then counts as the first one."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = TinyLM()
    optimizers = make_optimizers(model, reference_config())
    random = RandomStream(torch.device("cpu"))
    scaler = choose_precision("cpu", "fp32").scaler()
    state = RunState(model, optimizers, ShuffledBatches(), scaler, random, Progress())
    assert not [name for name in state.tensors() if name.startswith("optimizer.")]
    assert not any(optimizer.state for optimizer in optimizers)
    get_optimizer_state_dict(model, optimizers)  # the control
    assert state.tensors()["optimizer.norm.weight.step"] == 1


def test_no_room_on_the_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        CheckpointError,
        match=r"step-00000099, which needs 32 bytes: the disk has 1,000 bytes free, and 1,048,576",
    ):
        save(tmp_path, 99)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_failed_save_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_course.training.checkpoint._sums", full)
    with pytest.raises(CheckpointError, match=r"step-00000099.*No space left.*unharmed"):
        save(tmp_path, 99)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_what_stopped_a_save_is_said_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch wraps it, even Ctrl-C, in an error of its own."""

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_json_of_a_state_is_readable(tmp_path: Path) -> None:
    finish(tmp_path)
    path = list_checkpoints(tmp_path / "checkpoints")[0]
    state = json.loads((path / "state.json").read_text())
    assert state["progress"]["step"] == 6
    assert state["made_with"]["training.lr"] == 3e-3
    assert state["processes"] == 1
