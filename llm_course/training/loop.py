"""The training loop, as a generator: the reader's `for` decides what is shown, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.batches.sampler import endless
from llm_course.configs import TrainConfig
from llm_course.errors import ConfigError, DataError
from llm_course.training import parallel
from llm_course.training.devices import Precision, choose_device, choose_precision, most_memory
from llm_course.training.evaluate import evaluate
from llm_course.training.gradients import (
    Batch,
    LossFunction,
    LossModule,
    Totals,
    accumulate,
    to_device,
    tokens_in,
)
from llm_course.training.interrupt import Interrupts
from llm_course.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    trainable,
)
from llm_course.training.run_directory import RunDirectory
from llm_course.training.state import Progress, RandomStream, RunState

SKIPPED_IN_A_ROW = 100  # updates; a run that learns nothing for so long must not go on silently


@dataclass(frozen=True)
class Step:
    """What one update did."""

    step: int  # 1 is the first
    loss: float  # nats: the sum over `losses`
    losses: dict[str, float]  # each the mean over its counted labels
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # read so far, without padding
    tokens_per_second: float  # of this update
    seconds: float  # spent in updates so far, also before a resume
    memory_bytes: int  # the most so far, on the GPU if there is one
    validation: dict[str, float] | None = None  # where one was due
    skipped: bool = False  # the gradient was not finite, and the weights are as before


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFunction,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    validation: Iterable[Batch] | None = None,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Step]:
    r"""Train `model` in place and yield a Step after each update.

    `loss_fn(model, batch) -> {name: (sum, count)}`; the loss is $\sum_k S_k / N_k$ with sums and
    counts added over all micro-batches and processes (see `gradients`). `batches` is iterated again
    and again; with `out` it has `state_dict()` and `load_state_dict()` of plain values. Of n
    processes each takes its share, so that they equal one with n times the `accumulation`.

    With `out`, checkpoints, the log and `model/` go there: every `save_every` updates, at the end,
    and the last whole update also when the reader leaves the loop (`break`, an error, Ctrl-C,
    `close()`, the end of the program) or SIGTERM comes; while it computes, these signals wait for
    the update and its evaluation (exit status 130, 143). After an error in an update, and where
    other processes cannot follow, the newest checkpoint stays and the message names it.

    `resume` continues from the newest checkpoint that verifies, or starts afresh, and is equal to
    the last bit to a run that was never left. `max_steps` may be another one, and then
    `warmup_steps` too: the rate follows them from there on. With `patience` the model ends with its
    best weights, and `model/` has the best so far. Dropout has its own state of torch's global
    generators, seeded here and put away at each yield. `settings` is what else the run is made
    with, as plain values: saved, and refused where a resumed run has others.

    Raises ConfigError, DataError (no label counts, no batches), CheckpointError (damaged, or of
    another run), RunInUseError, FloatingPointError (a gradient that is not finite).
    """
    if out is None and (resume or config.tensorboard):
        raise ConfigError("resume and tensorboard need a directory: pass out=...")
    if out is not None and not hasattr(batches, "load_state_dict"):
        raise TypeError(
            "with out=..., batches must have state_dict() and load_state_dict(), or a resumed run "
            f"would read other data: {type(batches).__name__} has not"
        )
    if config.patience and validation is None:
        raise ConfigError(f"patience = {config.patience} needs validation batches")
    device = choose_device(config.device)
    precision = choose_precision(device, config.precision)
    run = _Run(model, batches, loss_fn, config, validation, device, precision)
    directory = None if out is None else Path(out)
    return _steps(run, directory, resume, tokenizer, settings or {})


def _steps(
    run: _Run, out: Path | None, resume: bool, tokenizer: Any, settings: Mapping[str, Any]
) -> Iterator[Step]:
    with ExitStack() as stack:
        run.start(stack, out, resume)
        if run.directory is not None:
            run.directory.open(run.state, run.config, tokenizer, settings)
        if run.finished:  # before, and resumed
            run.state.take_best()
        try:
            while not run.finished:
                step = run.after(run.update())
                run.interrupts.leave_if_asked(run.save)
                with run.random.lent(), run.interrupts.lent(run.save):
                    yield step
        except GeneratorExit:
            if run.directory is not None:
                run.directory.leave()
            raise
        except Exception as error:
            if run.directory is not None:
                error.add_note(run.directory.newest())
            raise


@dataclass
class _Run:
    """One call of `train`, in the order of time."""

    model: nn.Module
    batches: Any
    loss_fn: LossFunction
    config: TrainConfig
    validation: Any
    device: torch.device
    precision: Precision
    directory: RunDirectory | None = None
    shared: nn.Module | None = None  # made with the first batch

    def start(self, stack: ExitStack, out: Path | None, resume: bool) -> None:
        """Everything before the first update; what is opened here closes with `stack`."""
        config = self.config
        self.device = parallel.join(self.device)
        if out is not None:
            self.directory = RunDirectory(out, resume)
            stack.callback(self.directory.close)
        self.random = RandomStream(self.device)
        stack.enter_context(self.random.training(config.seed + parallel.rank()))
        self.interrupts = Interrupts()
        stack.enter_context(self.interrupts.caught())
        self.model.to(self.device)
        self.loss_module = LossModule(self.model, self.loss_fn)
        self.n_processes = parallel.world_size()
        self.sharded = self.n_processes > 1 and config.parallel == "fsdp"
        if self.sharded:
            parallel.shard(self.loss_module, getattr(self.model, "blocks", list)())
        self.parameters = list(trainable(self.model).values())
        self.optimizers = make_optimizers(self.model, config)
        self.progress, self.scaler = Progress(), self.precision.scaler()
        self.state = RunState(
            self.model, self.optimizers, self.batches, self.scaler, self.random, self.progress
        )
        resumable = hasattr(self.validation, "load_state_dict")
        self.start_of_validation = self.validation.state_dict() if resumable else None
        batches = endless(self.batches, parallel.rank(), self.n_processes, self.device)
        self._batches: Iterator[Batch] = stack.enter_context(closing(batches))

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        worn_out = patience > 0 and self.progress.worse >= patience
        return worn_out or self.progress.step >= self.config.max_steps

    def update(self) -> Step:
        """Draw, differentiate, step: one update of the weights."""
        started = time.perf_counter()
        config, progress = self.config, self.progress
        if not self.model.training:  # the reader may have evaluated between two steps
            self.loss_module.train()
        number = progress.step + 1
        rate = learning_rate(number, config)
        set_learning_rate(self.optimizers, rate)
        losses, norm, tokens = self._norm_and_losses(self._differentiate(number))
        loss = sum(losses.values())
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if skipped:
            self._skip(number, loss, norm)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
            progress.skipped_in_a_row = 0
        if self.scaler.is_enabled():
            self.scaler.update()
        progress.step = number
        progress.tokens += tokens
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        return Step(
            step=number,
            loss=loss,
            losses=losses,
            lr=rate,
            grad_norm=norm,
            tokens=progress.tokens,
            tokens_per_second=tokens / seconds,
            seconds=progress.seconds,
            memory_bytes=most_memory(self.device),
            skipped=skipped,
        )

    def _differentiate(self, number: int) -> Totals:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        drawn = list(islice(self._batches, self.config.accumulation))
        tokens = sum(map(tokens_in, drawn))  # before they are on the device
        batches = [to_device(batch, self.device) for batch in drawn]
        counts = getattr(self.loss_fn, "counts", None)
        try:
            if self.shared is None:
                with self.precision.autocast():
                    self.shared = parallel.share_gradients(self.loss_module, batches[0])
                if self.config.compile:
                    self.shared.compile()
            return accumulate(
                self.shared, batches, self.precision, self.scaler, counts, tokens, self.n_processes
            )
        except torch.OutOfMemoryError as error:
            shapes = {k: tuple(v.shape) for k, v in batches[0].items() if isinstance(v, Tensor)}
            error.add_note(f"update {number}, batch {shapes}: try smaller batches, more of them")
            raise

    def _norm_and_losses(self, totals: Totals) -> tuple[dict[str, float], float, int]:
        """The gradient made exact and clipped; one wait for the device brings all numbers."""
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        norm = clip_gradients(self.parameters, self.config.clip_norm, totals.correction)
        parts = [totals.sums, totals.counts, totals.tokens, norm.detach().reshape(1)]
        numbers = torch.cat(parts).tolist()
        losses = {}
        for i, name in enumerate(totals.names):
            count = numbers[len(totals.names) + i]
            if count == 0:
                raise DataError(
                    f"the loss {name!r} has no counted label in update {self.progress.step + 1}: "
                    "are all labels -100?"
                )
            losses[name] = numbers[i] / count
        return losses, numbers[-1], int(numbers[-2])

    def _skip(self, number: int, loss: float, norm: float) -> None:
        """Leave this update out, or stop: the optimizer never sees a value that is not finite."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        in_a_row = self.progress.skipped_in_a_row
        # fp16 finds its loss scale by overflowing: only a loss that is not finite is a fault then.
        searching = self.scaler.is_enabled() and math.isfinite(loss)
        if (self.config.non_finite == "stop" and not searching) or in_a_row >= SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient is not finite in update {number}: loss {loss:.4g}, norm {norm:.4g}, "
                f"{in_a_row} in a row; the weights are as before. Lower lr, "
                "lengthen warmup_steps or leave such batches out with non_finite='skip'"
            )

    def after(self, step: Step) -> Step:
        """Evaluate, log and save where one is due."""
        every, last = self.config.eval_every, step.step >= self.config.max_steps
        if self.validation is not None and (last or (every and step.step % every == 0)):
            step = replace(step, validation=self._evaluate())
        if self.directory is not None:
            self.directory.log(asdict(step))
        every = self.config.save_every
        if self.finished or (every and step.step % every == 0):
            self.save()
        if self.finished:
            self.state.take_best()
        return step

    def _evaluate(self) -> dict[str, float]:
        if self.start_of_validation is not None:  # the same order each time: the same rounding
            self.validation.load_state_dict(self.start_of_validation)
        # The sharded module gathers its parameters only in its own forward pass.
        result = evaluate(
            self.loss_module if self.sharded else self.model,
            self.validation,
            (lambda module, batch: module(batch)) if self.sharded else self.loss_fn,
            self.device,
            self.precision,
        )
        self.state.judge(result["loss"], keep_best=self.config.patience > 0)
        return result

    def save(self) -> None:
        if self.directory is not None:
            self.directory.save()
