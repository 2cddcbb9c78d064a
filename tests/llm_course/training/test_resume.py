"""A run that is resumed is the same run, longer or shorter if wanted, or is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases
from safetensors.torch import load_file
from torch import Tensor
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
    whole_and_broken_run,
)

from llm_course.errors import CheckpointError
from llm_course.training.checkpoint import latest_checkpoint
from llm_course.training.loop import train
from llm_course.training.optim import learning_rate

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
    for _ in range(7):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000007")  # as if killed: 5 to 7 come again
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


class TokenizerThatMeetsAFullDisk:
    """It can be saved until the run has a model."""

    def __init__(self, out: Path) -> None:
        self.model = out / "model"

    def save(self, path: str | Path) -> None:
        if self.model.exists():
            raise OSError("no space left on device")
        (Path(path) / "tokenizer.json").write_text("{}")


def test_a_model_that_cannot_be_written_whole_leaves_the_one_before(tmp_path: Path) -> None:
    config = reference_config(max_steps=8, warmup_steps=2, save_every=2)
    full = TokenizerThatMeetsAFullDisk(tmp_path)
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path, tokenizer=full)
    next(steps)
    next(steps)
    before = {path.name: path.read_bytes() for path in full.model.iterdir()}
    next(steps)
    with pytest.raises(CheckpointError, match=r"no space left.*the checkpoints are unharmed"):
        next(steps)
    assert len(before) >= 2
    assert {path.name: path.read_bytes() for path in full.model.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-2}, r"training\.lr was 0\.003 and is 0\.01"),
        ({"schedule": "linear"}, r"training\.schedule was 'cosine' and is 'linear'"),
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
        max_steps=8,
        save_every=1,
        eval_every=3,
        keep_checkpoints=5,
        non_finite="skip",
    )
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


# ---- another length -----------------------------------------------------------------------------


def rates_of(out: Path, **changes: Any) -> list[float]:
    config = reference_config(**{"max_steps": 8, "warmup_steps": 2, "save_every": 4, **changes})
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=out, resume=True)
    return [step.lr for step in steps]


@pytest.mark.parametrize("warmup", [2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "inverse_sqrt"])
def test_a_finished_run_can_become_longer_and_the_schedule_follows(
    tmp_path: Path, schedule: str, warmup: int
) -> None:
    first = rates_of(tmp_path, schedule=schedule)
    more = rates_of(tmp_path, schedule=schedule, max_steps=12, warmup_steps=warmup)
    config = reference_config(max_steps=12, warmup_steps=warmup, schedule=schedule)
    assert len(first) == 8
    assert more == [learning_rate(step, config) for step in range(9, 13)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_a_run_with_a_constant_rate_is_the_same_in_one_go_and_lengthened(tmp_path: Path) -> None:
    for out, lengths in ((tmp_path / "whole", [12]), (tmp_path / "longer", [7, 12])):
        for length in lengths:
            rates_of(out, schedule="constant", max_steps=length)
    assert digest(tmp_path / "longer") == digest(tmp_path / "whole")


def test_a_run_can_become_shorter_and_ends_where_it_is_if_it_is_longer_already(
    tmp_path: Path,
) -> None:
    config = reference_config(max_steps=40, warmup_steps=2, save_every=4)
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=tmp_path)
    for _ in range(6):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    (tmp_path / "model" / "model.safetensors").unlink()
    assert len(rates_of(tmp_path, max_steps=9)) == 3
    assert rates_of(tmp_path, max_steps=5) == []
    assert rates_of(tmp_path, max_steps=1, warmup_steps=1) == []  # a warm-up is not above the end
    assert newest(tmp_path) == 9
    assert_model_is_that_of_the_newest_checkpoint(tmp_path)


# ---- what is saved when the loop is left, and how complete it is --------------------------------


def newest(out: Path) -> int:
    found = latest_checkpoint(out / "checkpoints")
    return 0 if found is None else int(found.name[5:])


def assert_model_is_that_of_the_newest_checkpoint(out: Path) -> None:
    path = latest_checkpoint(out / "checkpoints")
    assert path is not None
    tensors, weights = stored(path), load_file(out / "model" / "model.safetensors")
    assert len(weights) > 20
    for name, tensor in weights.items():
        assert torch.equal(tensor, tensors[f"model.{name}"])


def steps_of(out: Path, **changes: Any) -> Any:
    config = reference_config(**{"max_steps": 12, "save_every": 0, "eval_every": 0, **changes})
    return train(TinyLM(), ShuffledBatches(), lm_loss, config, out=out, resume=True)


def leave_by_break(steps: Any) -> None:
    for step in steps:
        if step.step == 5:
            break


def leave_by_close(steps: Any) -> None:
    for _ in range(5):
        next(steps)
    steps.close()


def leave_by_an_error(steps: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        leave_at_the_fifth(steps, lambda: 1 / 0)


def leave_by_ctrl_c(steps: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        leave_at_the_fifth(steps, lambda: os.kill(os.getpid(), signal.SIGINT))


def leave_at_the_fifth(steps: Any, how: Any) -> None:
    for step in steps:
        if step.step == 5:
            how()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_close, leave_by_an_error, leave_by_ctrl_c]
)
def test_the_last_whole_update_is_saved_when_the_reader_leaves(tmp_path: Path, leave: Any) -> None:
    list(steps_of(tmp_path / "whole"))
    out = tmp_path / "left"
    leave(steps_of(out))
    assert newest(out) == 5
    assert_model_is_that_of_the_newest_checkpoint(out)
    assert len(list(steps_of(out))) == 7
    assert digest(out) == digest(tmp_path / "whole")


def test_ctrl_c_between_two_updates_saves_even_where_the_loop_is_not_closed(tmp_path: Path) -> None:
    inside: list[int] = []

    def interrupted(model: Any, batch: Batch) -> Any:
        if inside:
            os.kill(os.getpid(), inside.pop())
        return lm_loss(model, batch)

    config = reference_config(save_every=0)
    steps: Any = train(TinyLM(), ShuffledBatches(), interrupted, config, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        leave_at_the_fifth(steps, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert newest(tmp_path) == 5  # while `steps` is alive, and may even go on
    assert next(steps).step == 6
    inside.append(signal.SIGINT)  # the next one waits for its update again
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert newest(tmp_path) == 7


def test_sigterm_at_a_yield_is_saved_at_once_and_heard_at_the_end(tmp_path: Path) -> None:
    steps = steps_of(tmp_path)
    next(steps)
    os.kill(os.getpid(), signal.SIGTERM)
    assert newest(tmp_path) == 1
    with pytest.raises(SystemExit) as left:
        list(steps)
    assert left.value.code == 143
    assert newest(tmp_path) == 2


def test_the_end_of_the_program_saves(tmp_path: Path) -> None:
    """A loop that was left, but is still in a variable."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(each.__file__).parent) for each in (training_cases,)]!r}
import torch
from pathlib import Path
from training_cases import *
torch.set_num_threads(1)
steps = train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(save_every=0),
              out=Path({str(tmp_path)!r}))
for step in steps:
    if step.step == 3:
        break
"""
    subprocess.run(
        [sys.executable, "-W", "error:::llm_course", "-c", code], check=True, timeout=300
    )
    assert newest(tmp_path) == 3
    assert_model_is_that_of_the_newest_checkpoint(tmp_path)


def test_an_error_inside_an_update_names_the_newest_checkpoint(tmp_path: Path) -> None:
    calls = [0]

    def fails(model: Any, batch: Batch) -> Any:
        calls[0] += 1
        if calls[0] == 11:
            raise ZeroDivisionError("in the loss")
        return lm_loss(model, batch)

    config = reference_config(max_steps=12, save_every=2, eval_every=0)
    steps = train(TinyLM(), ShuffledBatches(), fails, config, out=tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        list(steps)
    assert newest(tmp_path) == 4  # of 5 updates
    assert "step-00000004: resume=True" in " ".join(caught.value.__notes__)
    del config, steps
    calls[0] = 10
    steps = train(TinyLM(), ShuffledBatches(), fails, reference_config(), out=tmp_path / "new")
    with pytest.raises(ZeroDivisionError) as caught:
        next(steps)
    assert "no checkpoint yet" in " ".join(caught.value.__notes__)


def test_the_model_is_complete_after_every_save(tmp_path: Path) -> None:
    for step in steps_of(tmp_path, save_every=3):
        if step.step % 3 == 0:
            assert newest(tmp_path) == step.step
            assert_model_is_that_of_the_newest_checkpoint(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_with_patience_the_model_on_the_disk_is_the_best_so_far(tmp_path: Path) -> None:
    config = reference_config(
        max_steps=30, lr=3e-2, warmup_steps=0, eval_every=2, patience=2, save_every=1
    )
    validation, model, best = ShuffledBatches(seed=9), TinyLM(), math.inf
    for step in train(
        model, ShuffledBatches(), lm_loss, config, out=tmp_path, validation=validation
    ):
        if step.validation is not None and step.validation["loss"] < best:
            best, expected = step.validation["loss"], weights(model)
        if step.step >= 2:
            saved = load_file(tmp_path / "model" / "model.safetensors")
            assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert step.step < 30
    assert largest_difference(weights(model), expected) == 0
