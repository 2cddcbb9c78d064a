"""Cross-entropy of a linear head, without ever holding the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_course.shapes import Float, Int

IGNORE = -100  # labels of this value do not count, as in PyTorch and Hugging Face
CHUNK_ROWS = 512  # at a vocabulary of 8,192 the logits of a chunk are 16 MB, near a CPU's cache
GPU_LOGITS = 2**26  # of one chunk: 256 MB, so that a GPU has enough to do between two launches


def chunked_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    rows: int | None = None,
) -> Float[Tensor, ""]:
    r"""The sum of $-\log \mathrm{softmax}(W h_n + b)_{y_n}$ over rows with a label, in nats.

    Equal to `F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")` with its
    gradients; labels of -100 do not count. The logits exist for `rows` rows at a time, and their
    gradient $p - \mathrm{onehot}(y)$ is formed in the forward pass, while the probabilities are at
    hand (Hsu et al. 2024, Liger Kernel, §3.2), so nothing is computed twice. Under autocast the
    products are in its precision, sums and softmax in float32. No second derivative.

    `rows=None` is 512 on a CPU, and what fits in 2^26 logits on a GPU. `ValueError` in float16: the
    products would overflow before the loss scale can act.
    """
    if rows is None:
        rows = CHUNK_ROWS if hidden.device.type == "cpu" else max(1, GPU_LOGITS // len(weight))
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16:
        raise ValueError("hidden and weight must be float32, bfloat16 or float64, got float16")
    total: Tensor = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, rows, dtype)
    return total


class ChunkedCrossEntropy(torch.autograd.Function):
    """`chunked_cross_entropy`; its backward pass only multiplies what the forward pass formed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wants = ctx.needs_input_grad
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        states, matrix = hidden.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(states) if wants[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants[1] else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wants[2] else None
        # The same memory for all chunks, and for the logits and their gradient: it is then in a
        # CPU's cache more often.
        narrow = states.new_empty(min(rows, len(states)), len(weight))
        buffer = narrow if dtype == wide else torch.empty_like(narrow, dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(states), rows):
                h, y = states[begin : begin + rows], labels[begin : begin + rows]
                product = torch.mm(h, matrix.mT, out=narrow[: len(h)])
                logits = product if dtype == wide else buffer[: len(h)].copy_(product)
                if bias is not None:
                    logits += bias
                loss, gradient = _loss_and_gradient(logits, y)
                total += loss
                product = gradient if dtype == wide else product.copy_(gradient)
                counted = (y != IGNORE)[:, None]
                if grad_hidden is not None:
                    grad_hidden[begin : begin + rows] = (product @ matrix) * counted
                if grad_weight is not None:
                    _add_product(grad_weight, product, h * counted)
                if grad_bias is not None:
                    grad_bias += gradient.mT @ counted.to(wide)[:, 0]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if saved is None else (saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        ]
        return (*gradients, None, None, None)


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of a chunk, and its gradient by the logits as if every row had a label.

    Rows without one are taken out later, where rows are short: D wide and not V.
    """
    ignored = labels == IGNORE
    target = labels.masked_fill(ignored, 0)[:, None]
    highest, wanted = logits.amax(-1), logits.gather(-1, target)[:, 0]
    # In place on a CPU only: of PyTorch's GPU kernels this is not known.
    gradient = torch.softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)
    # log p of the likeliest token never underflows, and that of the label follows from it.
    normalizer = highest - gradient.amax(-1).log()
    loss = (normalizer - wanted).masked_fill(ignored, 0.0).sum()
    gradient.scatter_add_(-1, target, -torch.ones_like(normalizer)[:, None])
    return loss, gradient


def _add_product(grad_weight: Tensor, gradient: Tensor, states: Tensor) -> None:
    if grad_weight.dtype == states.dtype:
        grad_weight.addmm_(gradient.mT, states)
    else:  # products in bfloat16, their sum in float32
        grad_weight += gradient.mT @ states
