"""All that a run needs to go on exactly where it stopped, as tensors and plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llm_course.configs import TrainConfig
from llm_course.errors import CheckpointError
from llm_course.training.optim import trainable
from llm_course.training.parallel import sharded_as, whole

# These may change when a run is resumed: they say where, how often and how long, not what is
# computed. max_steps joins them when the schedule does not depend on it. Of accumulation only its
# product with the number of processes counts, and that is compared as batches_per_update.
FREE_FIELDS = {
    "accumulation",
    "device",
    "compile",
    "parallel",
    "eval_every",
    "patience",
    "save_every",
    "keep_checkpoints",
    "non_finite",
    "tensorboard",
}
ENDLESS_SCHEDULES = ("constant", "inverse_sqrt")


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
        self.device = device
        self._other: list[Tensor] | None = None  # the state of whoever does not run now

    @contextmanager
    def training(self, seed: int) -> Iterator[None]:
        self._other = self.states()
        torch.manual_seed(seed)
        try:
            yield
        finally:
            self.restore(self._other)

    @contextmanager
    def lent(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        now = self.states()
        self.restore(self._other or now)
        self._other = now

    def states(self) -> list[Tensor]:
        """Of the CPU and of the device, as bytes."""
        if self.device.type == "cuda":
            return [torch.get_rng_state(), torch.cuda.get_rng_state(self.device)]
        if self.device.type == "mps":
            return [torch.get_rng_state(), torch.mps.get_rng_state()]
        return [torch.get_rng_state()]

    def restore(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1 and self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
        if len(states) > 1 and self.device.type == "mps":
            torch.mps.set_rng_state(states[1])


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model on the CPU, whole; a tied tensor under its first name only.

    With several processes all must call it.
    """
    return {name: whole(t.detach()).cpu().contiguous() for name, t in model_slots(model).items()}


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The optimizers' state on the CPU, `parameter.slot`: torch numbers them, names survive."""
    return {
        f"{name}.{slot}": whole(value.detach()).cpu().contiguous()
        for name, parameter in trainable(model).items()
        for optimizer in optimizers
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
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


def model_slots(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that `model_tensors` saves, as they are: where a loaded state goes."""
    kept: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if kept.setdefault(id(t), name) == name}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy in place, so that tied weights stay tied; checked before."""
    for name, slot in model_slots(model).items():
        slot.copy_(sharded_as(tensors[name], slot))


def check_optimizer_tensors(
    path: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    found: Mapping[str, Tensor],
) -> None:
    """The slots of each parameter that its optimizer has moved, and nothing else."""
    wanted: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for name, parameter in _named(model, optimizer):
            slots = _slots(optimizer)
            if not any(f"{name}.{slot}" in found for slot in slots):
                continue
            like = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            wanted |= {f"{name}.{slot}": like for slot in slots if slot != "step"}
            if "step" in slots:  # float32, or the default type where not fused
                step = found.get(f"{name}.step")
                dtype = torch.float64 if step is not None and step.dtype == torch.float64 else None
                wanted[f"{name}.step"] = torch.empty(
                    (), dtype=dtype or torch.float32, device="meta"
                )
    check_tensors(path, found, wanted)


def load_optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    for optimizer in optimizers:
        state = {}
        for number, (name, parameter) in enumerate(_named(model, optimizer)):
            found = {slot: tensors.get(f"{name}.{slot}") for slot in _slots(optimizer)}
            kept = {slot: tensor.clone() for slot, tensor in found.items() if tensor is not None}
            if kept:
                state[number] = {
                    slot: tensor if slot == "step" else sharded_as(tensor, parameter)
                    for slot, tensor in kept.items()
                }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _named(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of an optimizer with their names, in the order of its numbers."""
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _slots(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer remembers of a parameter."""
    is_muon = isinstance(optimizer, torch.optim.Muon)
    return ("momentum_buffer",) if is_muon else ("step", "exp_avg", "exp_avg_sq")


def describe(config: Any) -> dict[str, Any] | None:
    """A model's config as a plain dict, as JSON gives it back, if it can be compared."""
    if is_dataclass(config) and not isinstance(config, type):
        fields = asdict(config)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    return dict(config) if isinstance(config, Mapping) else None


def refuse_another_run(
    path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], config: TrainConfig
) -> None:
    """Compare what a checkpoint was made with to what it would be continued with.

    `saved` and `now` are what `snapshot.made_with` gives. Raises
    CheckpointError naming every field that differs, with both values.
    """
    free = set(FREE_FIELDS)
    if config.schedule in ENDLESS_SCHEDULES:
        free.add("max_steps")
    faults = []
    for part in ("training", "model"):
        old, new = saved.get(part) or {}, now.get(part) or {}
        faults += [
            f"{part}.{field} was {old.get(field)!r} and is {new.get(field)!r}"
            for field in sorted(old.keys() | new.keys())
            if old.get(field) != new.get(field) and not (part == "training" and field in free)
        ]
    for part in ("tokenizer", "data", "batches_per_update"):
        if saved.get(part) != now.get(part):
            faults.append(f"{part} was {_short(saved.get(part))} and is {_short(now.get(part))}")
    before, after = saved.get("frozen_tensors", 0), now.get("frozen_tensors", 0)
    if before != after:
        faults.append(f"{before} tensors were frozen and {after} are")
    if faults:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(faults)}. Resume with the same settings, "
            "or choose another directory"
        )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else repr(value)
