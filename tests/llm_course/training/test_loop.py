"""What an update is: the mean over counted labels, reported, and never taken with a NaN."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import (
    IGNORE,
    Listed,
    ShuffledBatches,
    TinyConfig,
    TinyLM,
    largest_difference,
    lm_loss,
    reference_config,
    tiny,
    two_losses,
    weights,
)

from llm_course.errors import ConfigError, DataError
from llm_course.training.checkpoint import latest_checkpoint
from llm_course.training.evaluate import (
    bits_per_byte,
    evaluate,
    loss_sums,
    nats_per_char,
    perplexity,
)
from llm_course.training.gradients import tokens_in
from llm_course.training.loop import train
from llm_course.training.optim import learning_rate

Batch = dict[str, Tensor]


# ---- the mean over counted labels ---------------------------------------------------------------


class WithCounts:
    """two_losses, and its counts without a forward pass."""

    def __call__(self, model: Any, batch: Batch) -> Any:
        return two_losses(model, batch)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {
            "mlm": int((batch["labels"] != IGNORE).sum()),
            "nsp": int((batch["next_sentence_label"] != IGNORE).sum()),
        }


def whole_batches(k: int) -> tuple[list[Batch], list[Batch]]:
    """Four updates' batches, whole and each cut into k ragged parts."""
    whole, parts = [], []
    for seed in range(4):
        source = ShuffledBatches(n=8, batch_size=8, seed=seed)
        batch = next(iter(source))
        whole.append(batch)
        # Rows go unequally to the parts, so their counts differ in both losses.
        cuts = [0, 1, 4, 6, 8] if k == 4 else [0, 3, 8]
        for a, b in itertools.pairwise(cuts):
            parts.append({name: rows[a:b] for name, rows in batch.items()})
    return whole, parts


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("loss_fn", [lm_loss, two_losses, WithCounts()])
def test_ragged_accumulation_equals_one_batch(k: int, loss_fn: Any) -> None:
    whole, parts = whole_batches(k)
    one, many = tiny(), tiny()
    config = reference_config(max_steps=12, accumulation=1, save_every=0)
    expected = list(train(one, Listed(whole), loss_fn, config))
    steps = list(train(many, Listed(parts), loss_fn, replace(config, accumulation=k)))
    assert largest_difference(weights(many), weights(one)) < 1e-12
    for a, b in zip(steps, expected):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-11)
        assert a.tokens == b.tokens


def test_counting_first_leaves_no_trace_in_dropout() -> None:
    config = reference_config(max_steps=4, save_every=0)
    counted, computed = (
        [s.loss for s in train(tiny(dropout=0.3), ShuffledBatches(), loss_fn, config)]
        for loss_fn in (WithCounts(), two_losses)
    )
    assert counted == pytest.approx(computed, rel=1e-10)


def test_the_mean_of_means_is_another_run() -> None:
    """The control: what the loop would do if it divided each batch by its own count."""
    whole, parts = whole_batches(4)

    def mean(model: Any, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        total, count = lm_loss(model, batch)["lm"]
        return {"lm": (total / count.clamp(min=1), 1)}

    one, many = tiny(), tiny()
    config = reference_config(max_steps=12, accumulation=1, save_every=0)
    list(train(one, Listed(whole), lm_loss, config))
    list(train(many, Listed(parts), mean, replace(config, accumulation=4)))
    assert largest_difference(weights(many), weights(one)) > 1e-3


def test_a_micro_batch_without_labels_is_no_error_but_an_update_is() -> None:
    full = next(iter(ShuffledBatches()))
    empty = {**full, "labels": torch.full_like(full["labels"], IGNORE)}
    config = reference_config(max_steps=2, save_every=0)
    a, b = tiny(), tiny()
    list(train(a, Listed([empty, full]), lm_loss, config))
    list(train(b, Listed([full]), lm_loss, replace(config, accumulation=1)))
    assert largest_difference(weights(a), weights(b)) < 1e-12
    model = tiny()
    before = weights(model)
    with pytest.raises(DataError, match="'lm' has no counted label in update 1"):
        list(train(model, Listed([empty]), lm_loss, config))
    assert largest_difference(weights(model), before) == 0


def test_evaluation_is_the_mean_over_all_labels_and_leaves_the_model_alone() -> None:
    model, data = tiny(dropout=0.5), ShuffledBatches(seed=3)
    model.train()
    result = evaluate(model, data, two_losses)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    terms = [two_losses(model, batch) for batch in ShuffledBatches(seed=3)]
    for name in ("mlm", "nsp"):
        total = sum(t[name][0].item() for t in terms)
        count = sum(int(t[name][1]) for t in terms)
        assert result[name] == pytest.approx(total / count, rel=1e-12)
        assert loss_sums(model, ShuffledBatches(seed=3), two_losses)[name][1] == count
    assert result["loss"] == pytest.approx(result["mlm"] + result["nsp"])
    with pytest.raises(DataError, match="empty"):
        evaluate(model, [], lm_loss)


def test_units() -> None:
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) == math.inf
    assert bits_per_byte(math.log(2), tokens=10, n_bytes=40) == pytest.approx(0.25)
    assert nats_per_char(2.0, tokens=10, chars=40) == 0.5
    for unit in (bits_per_byte, nats_per_char):
        with pytest.raises(DataError, match="at least 1, got 0"):
            unit(1.0, 1, 0)


def test_tokens_are_counted_without_padding() -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert tokens_in({"input_ids": ids}) == 10
    assert tokens_in({"input_ids": ids, "attention_mask": mask}) == 8
    packed = mask[:, :, None] * mask[:, None, :]
    assert tokens_in({"input_ids": ids, "attention_mask": packed}) == 8
    labels = torch.tensor([[4, 5, IGNORE]])
    assert tokens_in({"input_ids": ids, "decoder_input_ids": labels, "labels": labels}) == 12


# ---- the steps ----------------------------------------------------------------------------------


def test_it_learns_and_reports_every_update(tmp_path: Path) -> None:
    config = reference_config(max_steps=60, lr=1e-2, save_every=0, eval_every=25)
    model = TinyLM(TinyConfig(dropout=0.0))
    steps = list(
        train(
            model,
            ShuffledBatches(n=6),
            lm_loss,
            config,
            out=tmp_path,
            validation=ShuffledBatches(n=6),
        )
    )
    assert [step.step for step in steps] == list(range(1, 61))
    assert steps[-1].loss < 0.3 < steps[0].loss
    assert [s.step for s in steps if s.validation is not None] == [25, 50, 60]
    assert [s.lr for s in steps] == [learning_rate(s.step, config) for s in steps]
    assert steps[-1].validation == pytest.approx(
        evaluate(model, ShuffledBatches(n=6), lm_loss), rel=1e-6
    )
    assert all(s.tokens_per_second > 0 and s.memory_bytes > 0 for s in steps)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [s.loss for s in steps]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {
        "model", "checkpoints", "metrics.jsonl", "run.lock"
    }  # fmt: skip


def test_the_readers_random_numbers_and_training_do_not_meet() -> None:
    config = reference_config(max_steps=6, save_every=0)
    quiet = [s.loss for s in train(TinyLM(), ShuffledBatches(), lm_loss, config)]
    torch.manual_seed(123)
    expected = torch.rand(6)
    torch.manual_seed(123)
    noisy, drawn = [], []
    model = TinyLM()
    for step in train(model, ShuffledBatches(), lm_loss, config):
        noisy.append(step.loss)
        drawn.append(torch.rand(()))
        model.eval()  # as sampling does; training goes back to its own mode
    assert noisy == quiet
    assert torch.equal(torch.stack(drawn), expected)
    other = [s.loss for s in train(TinyLM(), ShuffledBatches(), lm_loss, replace(config, seed=1))]
    assert other != pytest.approx(quiet, rel=1e-4)  # the seed is that of dropout


def test_patience_stops_and_ends_with_the_best_weights(tmp_path: Path) -> None:
    config = reference_config(
        max_steps=60, lr=3e-2, warmup_steps=0, eval_every=4, patience=2, save_every=0
    )
    model, validation = TinyLM(), ShuffledBatches(seed=9)
    steps = list(
        train(model, ShuffledBatches(), lm_loss, config, out=tmp_path, validation=validation)
    )
    losses = [s.validation["loss"] for s in steps if s.validation is not None]
    assert len(steps) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    best = evaluate(model, ShuffledBatches(seed=9), lm_loss)["loss"]
    assert best == pytest.approx(min(losses), rel=1e-6)
    # A finished run that is resumed does nothing, and has the best weights again.
    again = TinyLM(seed=7)
    assert (
        list(
            train(
                again,
                ShuffledBatches(),
                lm_loss,
                config,
                out=tmp_path,
                resume=True,
                validation=validation,
            )
        )
        == []
    )
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


def test_patience_counts_from_the_last_improvement() -> None:
    heights = iter([5.0, 6.0, 4.0, 7.0, 3.0, 8.0, 8.0, 1.0])

    def staged(model: Any, batch: Batch) -> Any:
        total, count = lm_loss(model, batch)["lm"]
        return {"lm": (total if model.training else total * 0 + next(heights) * count, count)}

    config = reference_config(eval_every=1, patience=2, save_every=0)
    validation = Listed([next(iter(ShuffledBatches()))])
    steps = list(train(tiny(), ShuffledBatches(), staged, config, validation=validation))
    seen = [s.validation["loss"] for s in steps if s.validation is not None]
    assert seen == pytest.approx([5, 6, 4, 7, 3, 8, 8])


# ---- values that are not finite -----------------------------------------------------------------


def poisoned(bad: set[int], value: float) -> Any:
    """A loss whose n-th call gives `value`, or a gradient of it."""
    calls = [0]

    def loss_fn(model: Any, batch: Batch) -> Any:
        calls[0] += 1
        total, count = lm_loss(model, batch)["lm"]
        return {"lm": (total * (value if calls[0] in bad else 1.0), count)}

    return loss_fn


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value: float) -> None:
    model = tiny()
    config = reference_config(max_steps=6, accumulation=1, save_every=0)
    steps = train(model, ShuffledBatches(), poisoned({4}, value), config)
    for _ in range(3):
        next(steps)
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"not finite in update 4.*skip"):
        next(steps)
    assert largest_difference(weights(model), before) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skipping_equals_the_run_without_that_batch(value: float) -> None:
    config = reference_config(
        max_steps=8, accumulation=1, schedule="constant", warmup_steps=0, save_every=0
    )
    source = ShuffledBatches(n=32)
    batches = list(source)[:8]
    a, b = tiny(), tiny()
    skip = replace(config, non_finite="skip")
    steps = list(train(a, Listed(batches), poisoned({4}, value), skip))
    assert [s.skipped for s in steps] == [False] * 3 + [True] + [False] * 4
    rest = batches[:3] + batches[4:]
    list(train(b, Listed(rest), lm_loss, replace(config, max_steps=7)))
    assert largest_difference(weights(a), weights(b)) == 0


def test_many_skips_with_updates_between_them_are_no_fault() -> None:
    config = reference_config(
        max_steps=240, accumulation=1, non_finite="skip", save_every=0, eval_every=0
    )
    every_other = poisoned(set(range(0, 300, 2)), math.nan)
    steps = list(train(tiny(), ShuffledBatches(n=4, length=4), every_other, config))
    assert sum(s.skipped for s in steps) == 120


def test_a_run_that_only_skips_stops_in_the_end() -> None:
    config = reference_config(max_steps=500, accumulation=1, non_finite="skip", save_every=0)
    with pytest.raises(FloatingPointError, match="100 in a row"):
        list(train(tiny(), ShuffledBatches(), poisoned(set(range(999)), math.nan), config))


# ---- arguments and signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "message"),
    [
        ({}, {"resume": True}, ConfigError, "pass out="),
        ({"tensorboard": True}, {}, ConfigError, "pass out="),
        ({"patience": 2}, {}, ConfigError, "patience = 2 needs validation"),
        ({"device": "cuda:77"}, {}, ConfigError, "cuda:77"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    changes: dict[str, Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(**changes), **arguments)


def test_batches_without_a_state_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="list has not"):
        train(TinyLM(), [], lm_loss, reference_config(), out=tmp_path)
    with pytest.raises(DataError, match="batches are empty"):
        list(train(TinyLM(), [], lm_loss, reference_config()))


def test_losses_of_the_wrong_form_are_refused() -> None:
    config = reference_config(max_steps=1, save_every=0)

    def rows(model: Any, batch: Batch) -> Any:
        return {"lm": (model(batch["input_ids"]).sum(-1), 1)}

    with pytest.raises(ValueError, match="'lm' must be a sum without axes, got"):
        list(train(TinyLM(), ShuffledBatches(), rows, config))
    with pytest.raises(ValueError, match="at least one loss"):
        list(train(TinyLM(), ShuffledBatches(), lambda model, batch: {}, config))


def test_patience_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match="patience = 3 needs eval_every"):
        reference_config(patience=3, eval_every=0)


def test_signal_handlers_come_back_and_ctrl_c_at_a_yield_is_the_readers(tmp_path: Path) -> None:
    heard: list[int] = []
    readers = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        for out in (None, tmp_path):
            heard.clear()
            config = reference_config(max_steps=3, save_every=0)
            for step in train(TinyLM(), ShuffledBatches(), lm_loss, config, out=out):
                os.kill(os.getpid(), signal.SIGINT)
                assert len(heard) == step.step  # at once, and again after the next update
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        steps = train(TinyLM(), ShuffledBatches(), lm_loss, config)
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    finally:
        signal.signal(signal.SIGINT, readers)


def test_a_signal_is_not_lost_when_the_reader_leaves_the_loop() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        steps = train(TinyLM(), ShuffledBatches(), lm_loss, reference_config(save_every=0))
        next(steps)
        os.kill(os.getpid(), signal.SIGTERM)  # it waits for the end of an update that never comes
        assert heard == []
        steps.close()  # type: ignore[attr-defined]
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_while_it_computes_saves_the_finished_update(tmp_path: Path) -> None:
    calls = [0]

    def interrupted(model: Any, batch: Batch) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return lm_loss(model, batch)

    config = reference_config(save_every=0)
    steps = train(TinyLM(), ShuffledBatches(), interrupted, config, out=tmp_path)
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000003"


# ---- evaluations --------------------------------------------------------------------------------


def staged(heights: list[float]) -> Any:
    """A loss that trains as ever, and whose n-th evaluation gives the n-th height."""
    left = iter(heights)

    def loss_fn(model: Any, batch: Batch) -> Any:
        total, count = lm_loss(model, batch)["lm"]
        return {"lm": (total if model.training else total * 0 + next(left) * count, count)}

    return loss_fn


@pytest.mark.parametrize(
    ("heights", "patience", "best"),
    [
        ([5.0, 7.0, 6.0], 2, 1),  # better than the last one is not better than the best
        ([5.0, 4.0, 4.0, 4.0], 2, 2),  # as good is no better
        ([5.0, 6.0, 3.0, 4.0], 1, 1),  # the first that is worse is enough
    ],
)
def test_patience_compares_with_the_best_evaluation_so_far(
    heights: list[float], patience: int, best: int
) -> None:
    config = reference_config(eval_every=1, patience=patience, save_every=0)
    validation = Listed([next(iter(ShuffledBatches()))])
    model, after = tiny(), []
    for _ in train(model, ShuffledBatches(), staged(heights), config, validation=validation):
        after.append(weights(model))
    assert len(after) == best + patience
    assert largest_difference(after[-1], after[best - 1]) == 0  # it ends with the best weights
    if best > 1:
        assert largest_difference(after[-1], after[0]) > 0


def test_patience_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    config = reference_config(eval_every=1, patience=3, save_every=1, schedule="constant")
    validation = Listed([next(iter(ShuffledBatches()))])

    def steps(heights: list[float], resume: bool) -> list[int]:
        run = train(
            TinyLM(), ShuffledBatches(), staged(heights), config,
            out=tmp_path, resume=resume, validation=validation,
        )  # fmt: skip
        return [step.step for _, step in zip(heights, run)]

    assert steps([3.0, 4.0, 4.0], resume=False) == [1, 2, 3]
    assert steps([3.5, 3.5], resume=True) == [4]  # the third in a row that is worse than 3


class Walking:
    """Validation batches that go on where they stopped, as a stream does, two at a time."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Any:
        for _ in range(2):
            self.place += 1
            yield next(iter(ShuffledBatches(seed=self.place)))

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_every_evaluation_is_of_the_same_batches() -> None:
    def loss_fn(model: Any, batch: Batch) -> Any:
        total, count = lm_loss(model, batch)["lm"]
        value = batch["input_ids"].double().mean()
        return {"lm": (total if model.training else total * 0 + value * count, count)}

    config = reference_config(max_steps=3, warmup_steps=1, eval_every=1, save_every=0)
    validation = Walking()
    steps = train(tiny(), ShuffledBatches(), loss_fn, config, validation=validation)
    losses = [step.validation["loss"] for step in steps if step.validation]
    assert losses == [losses[0]] * 3
    # The control: the batches that would come next have another mean.
    assert abs(evaluate(tiny(), validation, loss_fn)["loss"] - losses[0]) > 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite_is_never_the_best_and_can_be_saved(
    value: float, tmp_path: Path
) -> None:
    config = reference_config(eval_every=1, patience=2, save_every=1)
    validation = Listed([next(iter(ShuffledBatches()))])
    loss_fn = staged([value, 6.0, 5.0, value, 7.0])
    model, after = TinyLM(), []
    for _ in train(model, ShuffledBatches(), loss_fn, config, out=tmp_path, validation=validation):
        after.append(weights(model))
    assert len(after) == 5
    assert largest_difference(after[-1], after[2]) == 0
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in log]
    assert losses == [None, pytest.approx(6), pytest.approx(5), None, pytest.approx(7)]
