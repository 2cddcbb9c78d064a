"""What the two encoder-decoders, Transformer and T5, share: how they are called, and the cache.

It names no model: embeddings, blocks, positions and heads stand in the file of each.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from llm_course.models.cache import KVCache
from llm_course.models.files import PretrainedModel
from llm_course.models.layers import padding_mask
from llm_course.shapes import Float, Int, Mask


class EncoderDecoder(PretrainedModel):
    """What can be called, made of the `encode`, `decoder_hidden` and `head` of a family.

    Each block of `decoder` has a `cross_attn`, its attention to the encoder.
    """

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    lm_head: nn.Linear

    def blocks(self) -> list[nn.Module]:
        """The units to shard or to checkpoint: the blocks of both stacks."""
        return [*self.encoder, *self.decoder]

    def encode(
        self, input_ids: Int[Tensor, "B S"], *, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "B S D"]:
        """The encoder's last hidden states; `attention_mask` is [B, S] or [B, S, S]."""
        raise NotImplementedError

    def decoder_hidden(
        self,
        states: Float[Tensor, "Bs S D"] | None,
        decoder_input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's last hidden states: `decode` without the head."""
        raise NotImplementedError

    def head(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits: a linear map without a bias; tied, its rows are the embeddings."""
        return self.lm_head(x)

    def decode(
        self,
        states: Float[Tensor, "Bs S D"] | None,
        decoder_input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each of `decoder_input_ids`.

        Args:
            states: what `encode` returned.
            decoder_input_ids: the target shifted right; with a cache, only its new ids.
            attention_mask: of the source, [B, S] or [B, T, S]; with a cache [B, S].
            cache: keeps the keys and values of `states`, and the mask, from the first call on.
                Later calls look at neither, and `states` may be None.

        Raises:
            ValueError: ids outside the vocabulary, more positions than fit, other shapes.
        """
        return self.head(
            self.decoder_hidden(
                states, decoder_input_ids, attention_mask=attention_mask, cache=cache
            )
        )

    def hidden(
        self,
        input_ids: Int[Tensor, "B S"],
        *,
        decoder_input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's last hidden states: `forward` without the head."""
        states = None
        if cache is None or cache.source is None:
            states = self.encode(input_ids, attention_mask=attention_mask)
        if attention_mask is not None and attention_mask.ndim == 3:
            attention_mask = attention_mask.bool().any(dim=1)
        return self.decoder_hidden(
            states, decoder_input_ids, attention_mask=attention_mask, cache=cache
        )

    def forward(
        self,
        input_ids: Int[Tensor, "B S"],
        *,
        decoder_input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each of `decoder_input_ids`, given `input_ids`.

        Args:
            decoder_input_ids: the target shifted right; with a cache, only its new ids.
            attention_mask: of the source, [B, S] or [B, S, S], 1 = attend. The decoder sees the
                positions that any position of the encoder sees.
            cache: from `new_cache`. One that has been used does not ask for the encoder again.

        Raises:
            TypeError: ids or a mask of a wrong type.
            ValueError: ids outside the vocabulary, more positions than fit, other shapes.
        """
        return self.head(
            self.hidden(
                input_ids,
                decoder_input_ids=decoder_input_ids,
                attention_mask=attention_mask,
                cache=cache,
            )
        )

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for `max_length` positions of the decoder."""
        return KVCache(self.decoder, batch_size, max_length)

    def see_source(
        self,
        states: Tensor | None,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: KVCache | None,
    ) -> Mask | None:
        """The mask over the encoder's `states`; a new cache gets it, and their keys and values.

        Without a cache each block computes those by itself: only inside of the block's own call are
        its weights gathered when it is sharded, and its activations recomputed.
        """
        rows, n_new = decoder_input_ids.shape
        if cache is not None:
            cache.check(len(self.decoder), decoder_input_ids, "decoder_input_ids")
            if cache.source is not None:
                return cache.source_mask
        if states is None:
            raise ValueError("states may be None only where the cache already holds their keys")
        if rows != states.shape[0]:
            raise ValueError(f"decoder_input_ids has {rows} rows, but states has {states.shape[0]}")
        mask = None
        if attention_mask is not None:
            if cache is not None and attention_mask.ndim != 2:
                raise ValueError(
                    "attention_mask must have the shape [batch, source positions] with a cache, "
                    f"got {tuple(attention_mask.shape)}"
                )
            mask = padding_mask(attention_mask, rows, n_new, states.shape[1])
        if cache is not None:
            attns: list[Any] = [block.cross_attn for block in self.decoder]
            cache.source = [attn.keys_values(states) for attn in attns]
            cache.source_mask = mask
        return mask
