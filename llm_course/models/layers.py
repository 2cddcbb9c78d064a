r"""What the four families share: attention, its masks and its cache, and the feed-forward layer.

`attention` is the formula, to be read; `fused_attention` computes the same with PyTorch's fused
kernel, and every model calls that one. Shapes: B batch, T query positions, S key positions,
H heads, D d_model, K d_head, F d_ff (`llm_course.shapes`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_course.models.cache import LayerCache
from llm_course.shapes import Bool, Float, Mask

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # what GPT-2 and T5 v1.1 were trained with
}


def attention_weights(
    q: Float[Tensor, "... T K"],
    k: Float[Tensor, "... S K"],
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "... T S"]:
    r"""How much each query attends to each key: $\mathrm{softmax}(QK^T/\sqrt{d_k})$.

    Each row sums to 1; the row of a query that may attend to nothing is zero.

    Args:
        mask: bool, True = attend, or float, added to the scores; broadcast to [..., T, S].
        scale: the factor of the scores; None means $1/\sqrt{d_k}$.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.mT * scale
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if is_bool else scores + mask
    # The softmax of a row of -inf is 0 / 0, and NaN in one row reaches every weight's gradient.
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


def attention(
    q: Float[Tensor, "... T K"],
    k: Float[Tensor, "... S K"],
    v: Float[Tensor, "... S Kv"],
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "... T Kv"]:
    r"""Scaled dot-product attention $\mathrm{softmax}(QK^T/\sqrt{d_k})\,V$ (F1).

    Vaswani et al. 2017, eq. (1). `mask` and `scale` are those of `attention_weights`.
    """
    return attention_weights(q, k, mask, scale) @ v


def fused_attention(
    q: Float[Tensor, "... T K"],
    k: Float[Tensor, "... S K"],
    v: Float[Tensor, "... S Kv"],
    mask: Mask | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "... T Kv"]:
    """`attention` by PyTorch's fused kernel, which never stores the T x S weights.

    Args:
        causal: the T queries are the last T of the S positions, and none sees a later one. The
            kernel then skips half of the work; a mask is built only where it has to be.
        dropout: probability of dropping an attention weight; pass 0 outside training.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if causal and n_queries > 1 and (mask is not None or n_queries != n_keys):
        mask = combine_masks(causal_mask(n_queries, n_keys, q.device), mask)
    # The newest position alone sees everything. (The kernel would count it as position 0.)
    causal = causal and mask is None and n_queries > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )


class MultiHeadAttention(nn.Module):
    r"""$\mathrm{Concat}(head_1, \dots, head_h)\,W^O$, where $head_i$ attends with its own $W_i$.

    Vaswani et al. 2017, §3.2.2 (F2, F3). `w_q`, `w_k`, `w_v` map D to H * K, `w_o` maps back. They
    hold the matrices of all heads: rows $iK$ to $(i+1)K - 1$ of `w_q.weight` are $(W_i^Q)^T$.

    Args:
        d_head: K; None means d_model / n_heads, but it may be anything.
        scale: the factor of the scores; None means $1/\sqrt{d_k}$.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        d_head: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads = {n_heads}, got {d_model}")
        self.n_heads = n_heads
        self.d_head = d_head or d_model // n_heads
        self.scale = scale
        self.dropout = dropout
        width = n_heads * self.d_head
        self.w_q = nn.Linear(d_model, width, bias=bias)
        self.w_k = nn.Linear(d_model, width, bias=bias)
        self.w_v = nn.Linear(d_model, width, bias=bias)
        self.w_o = nn.Linear(width, d_model, bias=bias)

    def _split(self, x: Float[Tensor, "B T HK"]) -> Float[Tensor, "B H T K"]:
        return x.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)

    def keys_values(
        self, source: Float[Tensor, "B S D"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """The keys and values of `source`; a decoder computes those of its encoder only once."""
        return self._split(self.w_k(source)), self._split(self.w_v(source))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        source: Float[Tensor, "B S D"] | None = None,
        *,
        mask: Mask | None = None,
        causal: bool = False,
        keys_values: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend from `x` to `source` (F8), or to `x` itself.

        Args:
            mask: bool, True = attend, or float, added to the scores; broadcast to [B, H, T, S].
            causal: no position sees a later one; see `fused_attention`.
            keys_values: used in place of those of `source`.
            cache: the new keys and values are written to it, and all that it holds are seen.
        """
        q = self._split(self.w_q(x))
        k, v = keys_values or self.keys_values(x if source is None else source)
        if cache is not None:
            k, v = cache.write(k, v)
        dropout = self.dropout if self.training else 0.0
        heads = fused_attention(q, k, v, mask, causal=causal, scale=self.scale, dropout=dropout)
        return self.w_o(heads.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "B T D"],
        source: Float[Tensor, "B S D"] | None = None,
        *,
        mask: Mask | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B H T S"]:
        """The attention weights that `forward` uses where it has no cache, to be looked at."""
        q = self._split(self.w_q(x))
        k, _ = self.keys_values(x if source is None else source)
        if causal:
            mask = combine_masks(causal_mask(q.shape[-2], k.shape[-2], q.device), mask)
        return attention_weights(q, k, mask, self.scale)


class FeedForward(nn.Module):
    r"""$f(x W_1 + b_1)\,W_2 + b_2$, at each position alone; Vaswani et al. 2017, eq. (2)."""

    def __init__(self, d_model: int, d_ff: int, activation: str = "relu") -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)
        self.activation = ACTIVATION_FUNCTIONS[activation]

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.w_2(self.activation(self.w_1(x)))


def causal_mask(
    n_queries: int, n_keys: int, device: torch.device | None = None
) -> Bool[Tensor, "T S"]:
    """True where the key is not later than the query; the queries are the last of the keys."""
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(diagonal=n_keys - n_queries)


def padding_mask(
    attention_mask: Tensor, batch_size: int, n_queries: int, n_keys: int
) -> Bool[Tensor, "B 1 _ S"]:
    """An `attention_mask` of [B, S] or [B, T, S] as a mask for every head: [B, 1, 1 or T, S].

    Raises:
        TypeError: it is neither int nor bool.
        ValueError: another shape, or (on a CPU) values other than 0 and 1.
    """
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(
            f"attention_mask must be int or bool, 1 = attend, got {attention_mask.dtype}"
        )
    shapes = (batch_size, n_keys), (batch_size, n_queries, n_keys)
    if attention_mask.shape not in shapes:
        raise ValueError(
            f"attention_mask must have the shape {shapes[0]} or {shapes[1]}, "
            f"got {tuple(attention_mask.shape)}"
        )
    if attention_mask.dtype != torch.bool and _may_look_at(attention_mask):
        low, high = attention_mask.aminmax()
        if low < 0 or high > 1:
            value = int(low if low < 0 else high)
            raise ValueError(f"attention_mask must hold only 0 and 1, got {value}")
    attention_mask = attention_mask.bool()
    return attention_mask[:, None, None] if attention_mask.ndim == 2 else attention_mask[:, None]


def combine_masks(first: Mask, second: Mask | None) -> Mask:
    """One mask that lets through what both let through; None lets everything through.

    A float mask, which is added to the scores, stays one, with -inf where a bool mask forbids.
    """
    if second is None:
        return first
    if first.dtype == torch.bool:
        first, second = second, first
    if second.dtype != torch.bool:
        return first + second
    return first & second if first.dtype == torch.bool else first.masked_fill(~second, -torch.inf)


def check_ids(
    ids: Tensor, n_ids: int, name: str = "input_ids", shape: torch.Size | None = None
) -> None:
    """Refuse ids that an embedding of `n_ids` rows has not, before anything is computed.

    `shape` is what they must have, or one row of it for the whole batch; None: any two sizes.

    The values are looked at on a CPU only, and not while compiling: on a GPU it would make the
    training loop wait for the device, which has its own assertion in the embedding.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must hold whole numbers (int64 or int32), got {ids.dtype}")
    if ids.ndim != 2 or not ids.numel():
        raise ValueError(
            f"{name} must have the shape [batch, positions] with at least one position, "
            f"got {tuple(ids.shape)}"
        )
    if shape is not None and (ids.shape[1] != shape[1] or ids.shape[0] not in (1, shape[0])):
        raise ValueError(f"{name} must have the shape {tuple(shape)}, got {tuple(ids.shape)}")
    if not _may_look_at(ids):
        return
    low, high = ids.aminmax()
    if low < 0 or high >= n_ids:
        row, column = ((ids < 0) | (ids >= n_ids)).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be from 0 to {n_ids - 1}, "
            f"got {int(ids[row, column])} at row {row}, position {column}"
        )


def check_length(n_positions: int, longest: int) -> None:
    """Refuse more positions than the model's position embedding has."""
    if n_positions > longest:
        raise ValueError(f"at most {longest} positions fit the model, got {n_positions}")


def _may_look_at(tensor: Tensor) -> bool:
    """Whether its values cost nothing to read here."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
