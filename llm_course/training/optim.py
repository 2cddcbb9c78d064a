"""AdamW with decay groups, Muon, rates as functions of the step, gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import TrainConfig
from llm_course.errors import ConfigError

FUSED_DEVICES = ("cpu", "cuda", "mps")
TABLES = (nn.Embedding, nn.EmbeddingBag)


def learning_rate(step: int, config: TrainConfig) -> float:
    r"""The rate of update `step` = 1, 2, …, a pure function, so that resuming changes nothing.

    With warm-up $w$, last step $T$, highest rate $\eta$ and lowest $\eta_0$:
    cosine, linear and constant rise as $\eta\,t/(w+1)$ for $t \le w$; then with
    $p = (t-1-w)/(T-w)$ cosine is $\eta_0 + (\eta-\eta_0)(1+\cos\pi p)/2$ (Loshchilov and Hutter
    2017, eq. 5), linear is $\eta + (\eta_0-\eta)\,p$. So no update has the rate 0.
    inverse_sqrt is Vaswani et al. 2017, eq. (3), scaled to the peak $\eta$ at $t = w$:
    $\eta\,\min(t/w, \sqrt{w/t})$.
    """
    if step < 1:
        raise ConfigError(f"step must be at least 1, got {step}")
    warmup, peak, low = config.warmup_steps, config.lr, config.min_lr
    if config.schedule == "inverse_sqrt":
        warmup = max(warmup, 1)
        return peak * min(step / warmup, math.sqrt(warmup / step))
    if step <= warmup:
        return peak * step / (warmup + 1)
    if config.schedule == "constant":
        return peak
    part = min((step - 1 - warmup) / max(config.max_steps - warmup, 1), 1.0)
    if config.schedule == "linear":
        return peak + (low - peak) * part
    return low + (peak - low) * (1 + math.cos(math.pi * part)) / 2


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; a tied one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_groups(
    model: nn.Module, weight_decay: float, embedding_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices, which decay; biases and norms; embeddings (and a head tied to one).

    Decay pulls a rarely seen word's embedding to zero, and a gain towards 0 instead of 1. The rate
    of a group is its `lr_scale` times that of the step: a row of an embedding learns only where its
    token occurs, so it bears longer steps than a matrix that every token uses.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, TABLES)
        for parameter in module.parameters(recurse=False)
    }
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    for parameter in trainable(model).values():
        is_table = id(parameter) in embeddings
        (tables if is_table else matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = (
        {"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": tables, "weight_decay": 0.0, "lr_scale": embedding_lr_scale},
    )
    return [group for group in groups if group["params"]]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all that learns, or Muon for the matrices of the blocks and AdamW for the rest.

    AdamW is that of Loshchilov and Hutter 2019, one fused kernel where the device has it. Muon
    (Jordan et al. 2024) follows the mean of the gradients, all its singular values set near 1, so
    that a rare direction is learnt as fast as a frequent one. Its steps are scaled to the usual
    size of AdamW's (Liu et al. 2025, eq. (4)), so both take the same rate and decay, and `beta1`
    is its momentum. `ConfigError` where nothing is to be trained, or no matrix of a block.
    """
    groups = parameter_groups(model, config.weight_decay, config.embedding_lr_scale)
    if not groups:
        raise ConfigError("the model has no parameter to train: all have requires_grad=False")
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        hidden = _hidden_matrices(model)
        optimizers.append(
            torch.optim.Muon(
                [{"params": hidden, "lr_scale": 1.0}],
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.beta1,
                adjust_lr_fn="match_rms_adamw",
            )
        )
        taken = {id(parameter) for parameter in hidden}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in taken]
        groups = [group for group in groups if group["params"]]
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if groups:
        optimizers.append(
            torch.optim.AdamW(
                groups,
                lr=config.lr,
                betas=(config.beta1, config.beta2),
                eps=config.adam_eps,
                fused=devices <= set(FUSED_DEVICES),
            )
        )
    return optimizers


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is made for: the matrices of the blocks, and neither tables nor heads."""
    blocks: list[nn.Module] = getattr(model, "blocks", list)()
    modules = [module for block in blocks for module in block.modules()]
    found = {
        id(parameter): parameter
        for module in modules
        if not isinstance(module, TABLES)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 2 and parameter.requires_grad
    }
    if not found:
        raise ConfigError(
            "optimizer = 'muon' needs a model whose blocks() have matrices to train, "
            f"got {type(model).__name__} with {len(blocks)} blocks; use 'adamw'"
        )
    return list(found.values())


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the rate of every group: `rate` times the group's `lr_scale`."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(
    parameters: Iterable[nn.Parameter], clip_norm: float, scale: Tensor | None = None
) -> Tensor:
    """Multiply the gradients by `scale`, then shrink them to `clip_norm`; the norm between the two.

    Pascanu et al. 2013, algorithm 1, over all parameters together; 0 does not clip.
    """
    gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
    norm: Any = nn.utils.get_total_norm(gradients)
    if hasattr(norm, "full_tensor"):  # of shards: this process holds a part of each gradient
        norm, gradients = norm.full_tensor(), [gradient.to_local() for gradient in gradients]
    if scale is not None:
        scale = scale.to(norm.dtype)
        norm = norm * scale
    if clip_norm > 0:
        shrink = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        scale = shrink if scale is None else scale * shrink
    if scale is not None:
        torch._foreach_mul_(gradients, scale)
    return norm
