r"""The Transformer: encoder, decoder and the attention between them, Vaswani et al. 2017.

Post-norm blocks, $\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))$ (§3.1), sinusoidal positions
(§3.5), and one matrix for both embeddings and the output head (§3.4). As in the paper's formulas,
the projections of attention have no biases and the feed-forward layers have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import TransformerConfig
from llm_course.models import layouts
from llm_course.models.cache import KVCache, LayerCache
from llm_course.models.encoder_decoder import EncoderDecoder
from llm_course.models.files import read_settings
from llm_course.models.layers import (
    FeedForward,
    MultiHeadAttention,
    check_ids,
    check_length,
    padding_mask,
)
from llm_course.shapes import Float, Int, Mask


def sinusoids(n_positions: int, d_model: int) -> Float[Tensor, "T D"]:
    r"""The position table of §3.5, in float64.

    $PE_{pos,2i} = \sin(pos / 10000^{2i/d_{model}})$, and $PE_{pos,2i+1}$ is the cosine of that.
    """
    positions = torch.arange(n_positions, dtype=torch.float64, device="cpu")
    exponents = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu") / d_model
    angles = positions[:, None] / 10_000**exponents
    # The last column of an odd d_model is a sine without its cosine.
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model]


class TransformerEncoderBlock(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and a norm (§3.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(config.d_model, config.n_heads, bias=False)
        self.attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.ff = FeedForward(config.d_model, config.d_ff, config.activation)
        self.ff_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B S D"], mask: Mask | None = None
    ) -> Float[Tensor, "B S D"]:
        x = self.attn_norm(x + self.dropout(self.attn(x, mask=mask)))
        return self.ff_norm(x + self.dropout(self.ff(x)))


class TransformerDecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder (F8) and feed-forward (§3.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(config.d_model, config.n_heads, bias=False)
        self.attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.cross_attn = MultiHeadAttention(config.d_model, config.n_heads, bias=False)
        self.cross_attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.ff = FeedForward(config.d_model, config.d_ff, config.activation)
        self.ff_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        states: Float[Tensor, "Bs S D"] | None,
        *,
        mask: Mask | None = None,
        source_mask: Mask | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend to the encoder's `states`, or to their keys and values where `cache` has them.

        `mask` hides the later positions and what else is hidden; None: only the later ones.
        """
        attended = self.attn(x, mask=mask, causal=mask is None, cache=cache)
        x = self.attn_norm(x + self.dropout(attended))
        source = None if cache is None else cache.source
        attended = self.cross_attn(x, states, mask=source_mask, keys_values=source)
        x = self.cross_attn_norm(x + self.dropout(attended))
        return self.ff_norm(x + self.dropout(self.ff(x)))


class Transformer(EncoderDecoder):
    """The encoder-decoder of Vaswani et al. 2017 with its output head.

    Positions are counted from the left, so padding stands on the right. Dropout is where §5.4 has
    it: after each sub-layer and on the sums of embeddings and positions.
    """

    layout = layouts.TRANSFORMER
    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TransformerConfig()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        table = sinusoids(config.n_positions, config.d_model).to(self.token_embedding.weight)
        self.position_table: Tensor
        self.register_buffer("position_table", table, persistent=False)
        self.encoder = nn.ModuleList(
            TransformerEncoderBlock(config) for _ in range(config.n_layers)
        )
        self.decoder = nn.ModuleList(
            TransformerDecoderBlock(config) for _ in range(config.n_decoder_layers)
        )
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.tied:
            self.lm_head.weight = self.token_embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Xavier uniform for all matrices but the embeddings, which get $N(0, 1/d_{model})$.

        The paper is silent; its published code (tensor2tensor) does this. Times
        $\sqrt{d_{model}}$ the embeddings are then as large as the sines beside them.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for weight in (self.lm_head.weight, self.token_embedding.weight):
            nn.init.normal_(weight, std=self.config.d_model**-0.5)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for `max_length` positions of the decoder."""
        check_length(max_length, self.config.n_positions)
        return super().new_cache(batch_size, max_length)

    def _embed(self, ids: Int[Tensor, "B T"], start: int = 0) -> Float[Tensor, "B T D"]:
        r"""$\sqrt{d_{model}}\,E_{w} + PE_{pos}$ (§3.4, §3.5), positions from `start` on."""
        end = start + ids.shape[1]
        check_length(end, self.config.n_positions)
        scaled = self.token_embedding(ids) * self.config.d_model**0.5
        return self.dropout(scaled + self.position_table[start:end])

    def encode(
        self, input_ids: Int[Tensor, "B S"], *, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "B S D"]:
        """The encoder's states; `attention_mask` is [B, S] or [B, S, S], 1 = attend."""
        check_ids(input_ids, self.config.vocab_size)
        rows, n = input_ids.shape
        mask = None if attention_mask is None else padding_mask(attention_mask, rows, n, n)
        x = self._embed(input_ids)
        for block in self.encoder:
            x = block(x, mask)
        return x

    def decoder_hidden(
        self,
        states: Float[Tensor, "Bs S D"] | None,
        decoder_input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's last hidden states: `decode` without the head."""
        check_ids(decoder_input_ids, self.config.vocab_size, "decoder_input_ids")
        n_new = decoder_input_ids.shape[1]
        source_mask = self.see_source(states, decoder_input_ids, attention_mask, cache)
        x = self._embed(decoder_input_ids, 0 if cache is None else cache.length)
        layers = [None] * len(self.decoder) if cache is None else cache.layers()
        for block, layer in zip(self.decoder, layers):
            x = block(x, states, source_mask=source_mask, cache=layer)
        if cache is not None:
            cache.length += n_new
        return x

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> TransformerConfig:
        others = ("architectures", "dtype", "model_type", "transformers_version")
        unknown = {key: raw[key] for key in raw if key not in (*cls.layout.settings, *others)}
        return TransformerConfig.from_dict(read_settings(raw, cls.layout) | unknown)
