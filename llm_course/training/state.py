"""All that a run needs to go on exactly where it stopped, and what it must go on with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import TrainConfig
from llm_course.errors import CheckpointError
from llm_course.training import parallel
from llm_course.training.checkpoint import load_tensors, stored_tensors
from llm_course.training.optim import trainable


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # updates made or skipped
    tokens: int = 0
    seconds: float = 0.0  # in updates
    skipped: int = 0  # updates not made, their gradient being infinite or NaN
    skipped_in_a_row: int = 0
    best: float | None = None  # the lowest validation loss
    worse: int = 0  # evaluations since then


class RandomStream:
    """Training's own state of torch's global generators.

    Dropout draws from the global generators. They are lent to training while it computes and given
    back at each yield: what the reader draws between two steps changes nothing in the run.
    """

    def __init__(self, device: torch.device) -> None:
        own = [torch.get_device_module(device)] if device.type in ("cuda", "mps") else []
        self._generators: list[Any] = [torch.random, *own]
        self._training: list[Tensor] | None = None  # while the reader draws
        self._readers = self._states()

    @contextmanager
    def training(self, seed: int) -> Iterator[None]:
        torch.manual_seed(seed)
        try:
            yield
        finally:
            self._restore(self._readers)

    @contextmanager
    def lent(self) -> Iterator[None]:
        self._training = self._states()
        self._restore(self._readers)
        try:
            yield
        finally:
            self._readers = self._states()
            self._restore(self._training)
            self._training = None

    def state_dict(self) -> dict[str, Tensor]:
        """This process's, as bytes."""
        states = self._training or self._states()
        return {f"{parallel.rank()}.{i}": state for i, state in enumerate(states)}

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        self._restore(list(states.values()))

    def _states(self) -> list[Tensor]:
        return [each.get_rng_state() for each in self._generators]

    def _restore(self, states: list[Tensor]) -> None:
        for each, state in zip(self._generators, states):
            each.set_rng_state(state)


@dataclass
class RunState:
    """What changes in a run. A checkpoint holds its tensors, by `part.name`, and its values."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: Any
    scaler: torch.amp.GradScaler
    random: RandomStream
    progress: Progress
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights of the lowest loss

    def tensors(self) -> dict[str, Tensor]:
        """As this process holds them."""
        return {
            **_named("model", model_slots(self.model)),
            **_named("best", self.best),
            **self._moments(),
            **_named("random", self.random.state_dict()),
        }

    def values(self) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "batches": self.batches.state_dict(),
            "scaler": self.scaler.state_dict(),
            "processes": parallel.world_size(),
        }

    def load(self, path: Path, values: Mapping[str, Any]) -> None:
        """Go on from a checkpoint with these values: everything is compared, then changed."""
        stored = stored_tensors(path)
        slots = model_slots(self.model)
        if any(name.startswith("best.") for name in stored):
            self.best = {name: torch.empty_like(tensor) for name, tensor in slots.items()}
        self._make_moments(stored)
        wanted = {**_named("model", slots), **_named("best", self.best), **self._moments()}
        _compare(path, {n: t for n, t in stored.items() if not n.startswith("random.")}, wanted)
        random = self.random.state_dict()
        # Where the number of processes or the device changed, dropout is drawn afresh.
        if values["processes"] == parallel.world_size():
            wanted |= {n: t for n, t in _named("random", random).items() if n in stored}
        load_tensors(path, wanted)
        self.random.load_state_dict(random)
        self.batches.load_state_dict(values["batches"])
        if values["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        vars(self.progress).update(values["progress"])

    def judge(self, loss: float, keep_best: bool) -> None:
        """Note whether an evaluation was the best so far, and keep its weights if wanted."""
        # A NaN would stay the best for ever: nothing is lower.
        if math.isfinite(loss) and (self.progress.best is None or loss < self.progress.best):
            self.progress.best, self.progress.worse = loss, 0
            if keep_best:
                slots = model_slots(self.model)
                self.best = {name: tensor.detach().clone() for name, tensor in slots.items()}
        else:
            self.progress.worse += 1

    @torch.no_grad()
    def take_best(self) -> None:
        """The best weights, if any were kept; in place, so that tied ones stay tied."""
        slots = model_slots(self.model)
        for name, tensor in self.best.items():
            slots[name].copy_(tensor)

    def _moments(self) -> dict[str, Tensor]:
        """What the optimizers remember: torch numbers the parameters, names survive."""
        return {
            f"optimizer.{name}.{slot}": value
            for name, parameter in trainable(self.model).items()
            for optimizer in self.optimizers
            for slot, value in optimizer.state.get(parameter, {}).items()
        }

    def _make_moments(self, stored: Mapping[str, Tensor]) -> None:
        """Room for the moments in `stored`: of all parameters that had been moved, and no others.

        torch makes them by an update of rate 0. That is not for a save: an optimizer whose updates
        were all skipped has no moments, and must not get any.
        """
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        get_optimizer_state_dict(self.model, self.optimizers)
        moved = {name.rpartition(".")[0] for name in stored}
        for name, parameter in trainable(self.model).items():
            if f"optimizer.{name}" not in moved:
                for optimizer in self.optimizers:
                    optimizer.state.pop(parameter, None)


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def model_slots(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model, to be changed in place; a tied tensor under its first name only."""
    kept: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if kept.setdefault(id(t), name) == name}


def _compare(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Same names, shapes and dtypes, or a CheckpointError that lists every difference."""
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        has, needs = found[name], wanted[name]
        if (has.shape, has.dtype) != (needs.shape, needs.dtype):
            faults.append(
                f"{name} is {has.dtype} {list(has.shape)}, not {needs.dtype} {list(needs.shape)}"
            )
    if faults:
        raise CheckpointError(f"{path} does not fit this model: " + "; ".join(sorted(faults)))


# What may change when a run is resumed: where, how often and how long, not what is computed. Of
# accumulation only its product with the number of processes counts (`batches_per_update`).
FREE_FIELDS = {
    *("accumulation", "device", "compile", "parallel", "eval_every", "patience"),
    *("save_every", "keep_checkpoints", "non_finite", "tensorboard"),
}


def made_with(
    model: nn.Module, batches: Any, config: TrainConfig, tokenizer: str | None
) -> dict[str, Any]:
    """What a run computes with, as JSON gives it back; `tokenizer` is a hash."""
    size: Any = getattr(model, "config", None)
    fields = asdict(size) if is_dataclass(size) and not isinstance(size, type) else {}
    fingerprint = getattr(batches, "fingerprint", None)
    return {
        **{f"training.{k}": v for k, v in asdict(config).items() if k not in FREE_FIELDS},
        **{f"model.{k}": list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        "tokenizer": tokenizer,
        "data": fingerprint() if callable(fingerprint) else fingerprint,
        "batches_per_update": config.accumulation * parallel.world_size(),
        "frozen tensors": sum(not p.requires_grad for p in model.parameters()),
    }


def refuse_another_run(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """CheckpointError where two `made_with` differ: each name with both values."""
    # A run may become longer or shorter, and then its warm-up too.
    length = "training.max_steps"
    free = {length, "training.warmup_steps"} if saved.get(length) != now.get(length) else set()
    faults = [
        f"{name} was {_short(saved.get(name))} and is {_short(now.get(name))}"
        for name in sorted((saved.keys() | now.keys()) - free)
        if saved.get(name) != now.get(name)
    ]
    if faults:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(faults)}. Resume with the same settings, "
            "or choose another directory"
        )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else repr(value)
