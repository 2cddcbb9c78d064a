"""How a model is set up while it generates, and put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Measured in float32 on one core, d_model 256 and 768: the times in which `columns_first` pays.
MIN_STEPS = 64  # it costs what 10 to 30 steps gain
MAX_ROWS = 2  # 1.5 to 1.9 times as fast for one row; from 4 rows on the gain is gone,
MAX_HEAD_ROWS = 8  # except for the output head: 2.7 times for one row, 1.4 for eight


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is as it was, also where they differed."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def columns_first(model: nn.Module, n_rows: int, n_steps: int) -> Iterator[None]:
    """Inside, wide weights lie in memory column by column, where that makes steps faster.

    A step multiplies a few rows by every weight, and on a CPU the time goes into reading these.
    PyTorch's kernel for few rows reads a wide matrix (more outputs than inputs) much faster along
    its outputs. Shapes and values stay as they are; the model gets its own weights back.
    """
    originals: dict[nn.Linear, Any] = {}
    try:
        if n_steps >= MIN_STEPS:
            for module in _wide(model, n_rows):
                originals[module] = module.weight
                columns = module.weight.detach().T.contiguous().T
                module.weight = nn.Parameter(columns, requires_grad=False)
        yield
    finally:
        for module, weight in originals.items():
            module.weight = weight


def _wide(model: Any, n_rows: int) -> list[nn.Linear]:
    """The linear maps of a decoder's step that are faster with their columns first."""
    modules = list(model.decoder.modules()) if n_rows <= MAX_ROWS else []
    if n_rows <= MAX_HEAD_ROWS:
        modules.append(model.lm_head)
    return [
        module
        for module in modules
        # Exactly nn.Linear: a subclass may read its weight in another way.
        if type(module) is nn.Linear
        and module.out_features > module.in_features
        and _is_plain(module.weight)
    ]


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
