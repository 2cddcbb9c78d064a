"""The keys and values that a decoder has computed, so that each new token costs one step."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_course.shapes import Float, Int, Mask


class KVCache:
    """The keys and values of all blocks, in buffers that are allocated once and written in place.

    A model hands `layers(T)[i]` to the attention of block i and calls `advance(T)` at the end. The
    slots that the T new tokens take come from `position`, a tensor, so that a
    compiled step or a recorded CUDA graph is the same at every position. For inference only: no
    gradient flows through a cache.

    Args:
        max_length: positions that fit; writing more is refused.
        fixed_shape: attend to all max_length slots, so that no shape ever changes; the model's
            mask hides the slots that are still empty. Then `length` is not known without
            waiting for the device, and the caller sees to it that nothing overflows. Otherwise
            attend to the written slots only, which is faster where nothing is compiled.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        d_head: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        fixed_shape: bool = False,
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(
                "batch_size and max_length of a cache must be at least 1, "
                f"got {batch_size} and {max_length}"
            )
        shape = (n_layers, batch_size, n_heads, max_length, d_head)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.max_length = max_length
        self.fixed_shape = fixed_shape
        self._length = 0

    @property
    def length(self) -> int:
        """How many positions are written."""
        return int(self.position) if self.fixed_shape else self._length

    def check(self, n_rows: int, n_layers: int, name: str = "input_ids") -> None:
        """Refuse ids of another batch, and a model of another depth, than it was made for."""
        made_for, rows = self.keys.shape[:2]
        if n_rows != rows:
            raise ValueError(f"{name} has {n_rows} rows, but the cache has {rows}")
        if n_layers != made_for:
            raise ValueError(f"the model has {n_layers} blocks, but the cache is for {made_for}")

    def layer(self, index: int, slots: Int[Tensor, " T"]) -> LayerCache:
        """What the attention of block `index` writes to, at `slots`, and reads from."""
        return LayerCache(self, index, slots)

    def layers(self, n_new: int) -> list[LayerCache]:
        """For each block, where it writes the next `n_new` tokens."""
        slots = self.slots(n_new)
        return [self.layer(i, slots) for i in range(len(self.keys))]

    def slots(self, n_new: int) -> Int[Tensor, " T"]:
        """The positions that the next `n_new` tokens take; ValueError where they do not fit."""
        if not self.fixed_shape and self._length + n_new > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} positions: {self._length} are taken, "
                f"and {n_new} more do not fit"
            )
        return self.position + torch.arange(n_new, device=self.position.device)

    def n_keys(self, n_new: int) -> int:
        """How many keys attention sees while `n_new` tokens are added: the S of a mask."""
        return self.max_length if self.fixed_shape else self._length + n_new

    def advance(self, n_new: int) -> None:
        """Count `n_new` positions as written, in all blocks."""
        self.position += n_new
        if not self.fixed_shape:
            self._length += n_new

    def reset(self) -> None:
        """Forget everything and keep the buffers."""
        self.position.zero_()
        self._length = 0

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Let row i of the batch continue what row `rows[i]` held; N may differ from B."""
        end = self.max_length if self.fixed_shape else self._length
        keys, values = self.keys[:, rows, :, :end], self.values[:, rows, :, :end]
        if len(rows) != self.keys.shape[1]:
            shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
            self.keys, self.values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        self.keys[:, :, :, :end] = keys
        self.values[:, :, :, :end] = values


class LayerCache:
    """The part of a `KVCache` that belongs to one block."""

    def __init__(self, cache: KVCache, index: int, slots: Int[Tensor, " T"]) -> None:
        self.cache = cache
        self.index = index
        self.slots = slots
        self._read: tuple[Tensor, Tensor] | None = None

    def write(
        self, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Write new keys and values at the slots; return all that may be seen."""
        end = self.cache.n_keys(k.shape[2])
        keys, values = self.cache.keys[self.index], self.cache.values[self.index]
        keys.index_copy_(2, self.slots, k.detach().to(keys.dtype))
        values.index_copy_(2, self.slots, v.detach().to(values.dtype))
        self._read = keys[:, :, :end].to(k.dtype), values[:, :, :end].to(v.dtype)
        return self._read

    def read(self) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """What the last `write` returned."""
        if self._read is None:
            raise ValueError("nothing has been written to this block's cache yet")
        return self._read


class EncoderDecoderCache(KVCache):
    """A decoder's `KVCache` that also keeps what its blocks attend to in the encoder (F8).

    `source` holds each block's keys and values of the encoder's states, [B, H, S, K], and
    `source_mask` the mask over them; the first step computes them, and until then they are None.
    """

    source: list[tuple[Tensor, Tensor]] | None = None
    source_mask: Mask | None = None

    def reset(self) -> None:
        super().reset()
        self.source = self.source_mask = None

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        super().reorder(rows)
        if self.source is not None:
            self.source = [(k[rows], v[rows]) for k, v in self.source]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[rows]
