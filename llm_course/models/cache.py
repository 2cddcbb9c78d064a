"""The keys and values that a decoder has computed, so that each new token costs one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_course.shapes import Float, Int, Mask


class KVCache:
    """The keys and values of all blocks, in buffers that are allocated once and written in place.

    The decoder of an encoder-decoder also keeps what its blocks attend to in the encoder (F8):
    `source` holds each block's keys and values of the encoder's states, [B, H, S, K], and
    `source_mask` the mask over them; the first step computes them, and until then they are None.
    For inference only: no gradient flows through a cache.

    Args:
        blocks: those of the decoder; each has its self-attention as `attn`.
        max_length: positions that fit; writing more is refused.
    """

    source: list[tuple[Tensor, Tensor]] | None = None
    source_mask: Mask | None = None

    def __init__(self, blocks: nn.ModuleList, batch_size: int, max_length: int) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(
                "batch_size and max_length of a cache must be at least 1, "
                f"got {batch_size} and {max_length}"
            )
        attn: Any = blocks[0].attn
        shape = (len(blocks), batch_size, attn.n_heads, max_length, attn.d_head)
        weight = attn.w_k.weight
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0  # positions that are written, in all blocks

    def check(self, n_layers: int, ids: Int[Tensor, "B T"], name: str = "input_ids") -> None:
        """Refuse a model of another depth, ids of another batch, and more than still fit."""
        made_for, rows, _, max_length, _ = self.keys.shape
        if ids.shape[0] != rows:
            raise ValueError(f"{name} has {ids.shape[0]} rows, but the cache has {rows}")
        if n_layers != made_for:
            raise ValueError(f"the model has {n_layers} blocks, but the cache is for {made_for}")
        if self.length + ids.shape[1] > max_length:
            raise ValueError(
                f"the cache holds {max_length} positions: {self.length} are taken, "
                f"and {ids.shape[1]} more do not fit"
            )

    def layers(self) -> list[LayerCache]:
        """Each block's part, to be written to; `length` is for the model to move on."""
        return [LayerCache(self, i) for i in range(len(self.keys))]

    def reorder(self, rows: Int[Tensor, " N"], start: int | None = None) -> None:
        """Let row i of the batch continue what row `rows[i]` held; N may differ from B.

        `start` says that both have the same source, and are alike up to this position: while the
        number of rows stays, only the rest is moved. To move all takes as long as a step.
        """
        if start is not None and len(rows) == self.keys.shape[1]:
            for buffer in (self.keys, self.values):
                buffer[:, :, :, start : self.length] = buffer[:, rows, :, start : self.length]
            return
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        if self.source is not None:
            self.source = [(k[rows], v[rows]) for k, v in self.source]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[rows]


class LayerCache:
    """The part of a `KVCache` that belongs to one block."""

    def __init__(self, cache: KVCache, index: int) -> None:
        self.keys, self.values = cache.keys[index], cache.values[index]
        self.source = None if cache.source is None else cache.source[index]
        self.start = cache.length

    def write(
        self, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Write new keys and values behind the others; return all."""
        end = self.start + k.shape[2]
        self.keys[:, :, self.start : end] = k.detach()
        self.values[:, :, self.start : end] = v.detach()
        return self.keys[:, :, :end].to(k.dtype), self.values[:, :, :end].to(v.dtype)
