"""The training loop, as a generator: the reader's `for` decides what is shown, and when to stop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
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
from llm_course.training import parallel, snapshot
from llm_course.training.devices import choose_device, choose_precision
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
from llm_course.training.memory import keep_freed_memory
from llm_course.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    trainable,
)
from llm_course.training.run_directory import RunDirectory
from llm_course.training.state import Progress, RandomStream, load_model_tensors, model_tensors

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
) -> Iterator[Step]:
    r"""Train `model` in place and yield a Step after each update.

    `loss_fn(model, batch) -> {name: (sum, count)}`; the loss is $\sum_k S_k / N_k$ with sums and
    counts added over all micro-batches and processes (see `gradients`). `batches` is iterated again
    and again; with `out` it also has `state_dict()` and `load_state_dict()` of plain values. With n
    processes an update takes `accumulation` · n batches of the one stream, so that n processes
    equal one with n times the accumulation.

    With `out`, checkpoints, the log and the model go there, each save before the yield; without,
    nothing is written. `resume` continues from the newest checkpoint that verifies, or starts
    afresh where none is. SIGTERM and Ctrl-C finish the update and its evaluation, save, and leave
    with exit status 143 and 130. With `patience` the model ends with its best weights. Dropout
    draws from a state of torch's global generators that is seeded here and given back at each
    yield.

    Raises ConfigError, DataError (no label counts, no batches), CheckpointError (damaged, or of
    another run), RunInUseError, FloatingPointError (a gradient that is not finite).
    """
    _check_arguments(batches, config, out, resume, validation)
    device = choose_device(config.device)
    choose_precision(device, config.precision)
    return _steps(_Run(model, batches, loss_fn, config, validation, tokenizer), device, out, resume)


def _check_arguments(
    batches: Any, config: Any, out: str | Path | None, resume: bool, validation: Any
) -> None:
    """What can be refused at the call, before the first `next`."""
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    if out is None and (resume or config.tensorboard):
        raise ConfigError("resume and tensorboard need a directory: pass out=...")
    if out is not None and not hasattr(batches, "load_state_dict"):
        raise TypeError(
            "with out=..., batches must have state_dict() and load_state_dict(), or a resumed run "
            f"would read other data: {type(batches).__name__} has not"
        )
    if config.patience and validation is None:
        raise ConfigError(f"patience = {config.patience} needs validation batches")


def _steps(run: _Run, device: torch.device, out: str | Path | None, resume: bool) -> Iterator[Step]:
    with ExitStack() as stack:
        run.start(stack, device, None if out is None else Path(out), resume)
        if run.finished:
            run.finish()
        while not run.finished:
            step = run.after(run.update())
            run.leave_if_asked()
            if run.finished:
                run.finish()
            with run.random.lent(), run.interrupts.lent():
                yield step


class _Run(snapshot.Run):
    """The parts of one call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Any,
        loss_fn: LossFunction,
        config: TrainConfig,
        validation: Any,
        tokenizer: Any,
    ) -> None:
        self.model = model
        self.batches = batches
        self.loss_fn = loss_fn
        self.config = config
        self.validation = validation
        self.tokenizer = tokenizer
        self.progress = Progress()
        self.best_state: dict[str, Tensor] = {}
        self.out: Path | None = None
        self.directory: RunDirectory | None = None  # of the first process only
        self.saved_step = -1
        self.interrupts = Interrupts()

    def start(self, stack: ExitStack, device: torch.device, out: Path | None, resume: bool) -> None:
        """Everything before the first update; what is opened here closes with `stack`."""
        config, self.out = self.config, out
        self.device = parallel.join(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if out is not None and parallel.rank() == 0:
            self.directory = RunDirectory(out, resume)
            stack.callback(self.directory.close)
        self.random = RandomStream(self.device)
        stack.enter_context(self.random.training(config.seed + parallel.rank()))
        stack.enter_context(self.interrupts.caught())
        self.precision = choose_precision(self.device, config.precision)
        self.scaler = self.precision.scaler()
        self.model.to(self.device)
        self.loss_module = LossModule(self.model, self.loss_fn)
        blocks: list[nn.Module] = getattr(self.model, "blocks", list)()
        self.shared = parallel.parallelise(self.loss_module, blocks, config.parallel)
        self.sharded = parallel.is_sharded(self.shared)
        if config.compile:
            self.shared.compile()
        self.optimizers = make_optimizers(self.model, config)
        self.parameters = list(trainable(self.model).values())
        self.start_of_validation = _state_of(self.validation)
        if resume:
            snapshot.resume(self)
        batches = endless(self.batches, parallel.rank(), parallel.world_size(), self.device)
        self._batches = stack.enter_context(closing(batches))
        if self.directory is not None:
            self.directory.open_log(self.progress.step, config.tensorboard)

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
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, rate)
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
            memory_bytes=_memory_bytes(self.device),
            skipped=skipped,
        )

    def _differentiate(self, number: int) -> Totals:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        drawn = list(islice(self._batches, self.config.accumulation))
        tokens = sum(map(tokens_in, drawn))  # before they are on the device
        batches = [to_device(batch, self.device) for batch in drawn]
        counts_of = getattr(self.loss_fn, "counts", None)
        try:
            return accumulate(self.shared, batches, self.precision, self.scaler, counts_of, tokens)
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
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        # fp16 finds its loss scale by overflowing: only a loss that is not finite is a fault then.
        searching = self.scaler.is_enabled() and math.isfinite(loss)
        tired = progress.skipped_in_a_row >= SKIPPED_IN_A_ROW
        if (self.config.non_finite == "stop" and not searching) or tired:
            raise FloatingPointError(
                f"the gradient is not finite in update {number}: loss {loss:.4g}, norm {norm:.4g}, "
                f"{progress.skipped_in_a_row} in a row; the weights are as before, the last "
                f"checkpoint is of step {max(self.saved_step, 0)}. Lower lr, lengthen warmup_steps "
                "or leave such batches out with non_finite='skip'"
            )

    def after(self, step: Step) -> Step:
        """Evaluate, log and save where one is due."""
        every = self.config.eval_every
        last = step.step >= self.config.max_steps
        if self.validation is not None and (last or (every and step.step % every == 0)):
            step = replace(step, validation=self._evaluate())
        if self.directory is not None:
            self.directory.log(asdict(step))
        every = self.config.save_every
        if self.out is not None and (self.finished or (every and step.step % every == 0)):
            self.save()
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
        progress, loss = self.progress, result["loss"]
        if progress.best is None or loss < progress.best:
            progress.best, progress.worse = loss, 0
            if self.config.patience:
                self.best_state = {n: t.clone() for n, t in model_tensors(self.model).items()}
        else:
            progress.worse += 1
        return result

    def save(self) -> None:
        if self.saved_step != self.progress.step:
            snapshot.save(self)
            self.saved_step = self.progress.step

    def leave_if_asked(self) -> None:
        """After a signal to any process: save what is not saved yet, and leave."""
        number = parallel.largest(self.interrupts.received, self.device)
        if number:
            if self.out is not None:
                self.save()
            self.interrupts.leave(number)

    def finish(self) -> None:
        """The best weights if patience asked for them, and the model's own directory."""
        if self.best_state:
            load_model_tensors(self.model, self.best_state)
        if self.out is None:
            return
        state = model_tensors(self.model) if self.sharded else None
        if self.directory is not None:
            self.directory.export(self.model, state, self.tokenizer)


def _state_of(batches: Any) -> Any:
    return batches.state_dict() if hasattr(batches, "load_state_dict") else None


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
