r"""T5, versions 1.0 and 1.1: an encoder-decoder from text to text, Raffel et al. 2020.

Pre-norm blocks, $x + \mathrm{Sublayer}(\mathrm{RMSNorm}(x))$, without any bias (§2.1); relative
positions, so padding may stand on either side; and attention without the factor $1/\sqrt{d_k}$,
which the initialisation of $W^Q$ carries instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import T5Config
from llm_course.errors import ConfigError
from llm_course.models import layouts
from llm_course.models.cache import KVCache, LayerCache
from llm_course.models.encoder_decoder import EncoderDecoder
from llm_course.models.files import read_settings, write_settings
from llm_course.models.layers import (
    ACTIVATION_FUNCTIONS,
    MultiHeadAttention,
    check_ids,
    combine_masks,
    padding_mask,
)
from llm_course.shapes import Float, Int, Mask

FP16_MAX = 64_504.0  # a margin of 1000 below float16's largest number


def clamp_fp16(x: Tensor) -> Tensor:
    """`x`, and where it is float16 with finite values: T5's activations outgrow that range."""
    return x.clamp(-FP16_MAX, FP16_MAX) if x.dtype == torch.float16 else x


class RMSNorm(nn.Module):
    r"""$x \,/ \sqrt{\frac1D \sum_i x_i^2 + \epsilon} \cdot g$: no mean and no bias.

    Computed in float32 at least, as a square of a float16 overflows from 256 on.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = clamp_fp16(x).to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(self.weight.dtype)


def distance_buckets(
    distance: Int[Tensor, "*shape"], n_buckets: int, max_distance: int
) -> Int[Tensor, "*shape"]:
    r"""The bucket of a distance $r \ge 0$, §2.1: near ones exactly, far ones on a log scale.

    With $e = n/2$ exact buckets of n: $b(r) = r$ for $r < e$, else
    $\min(n-1,\; e + \lfloor (n-e) \log(r/e) / \log(m/e) \rfloor)$ with m = `max_distance`.
    """
    n_exact = n_buckets // 2
    # In this order of operations every implementation rounds alike at the edges of buckets.
    share = torch.log(distance.float() / n_exact) / math.log(max_distance / n_exact)
    far = n_exact + (share * (n_buckets - n_exact)).long()
    return torch.where(distance < n_exact, distance, far.clamp(max=n_buckets - 1))


def encoder_buckets(
    relative: Int[Tensor, "*shape"], n_buckets: int, max_distance: int
) -> Int[Tensor, "*shape"]:
    """Buckets of key position - query position: one half for keys before, one for keys after."""
    half = n_buckets // 2
    return (relative > 0) * half + distance_buckets(relative.abs(), half, max_distance)


def decoder_buckets(
    relative: Int[Tensor, "*shape"], n_buckets: int, max_distance: int
) -> Int[Tensor, "*shape"]:
    """Buckets of key position - query position: all for keys before, as none after is seen."""
    return distance_buckets((-relative).clamp(min=0), n_buckets, max_distance)


def relative_positions(
    n_queries: int, n_keys: int, device: torch.device
) -> Int[Tensor, " {n_queries}+{n_keys}-1"]:
    """Every value of key position - query position, where the queries are the last of the keys."""
    return torch.arange(1 - n_keys, n_queries, device=device)


def spread(values: Float[Tensor, "N H"], n_keys: int) -> Float[Tensor, "1 H T {n_keys}"]:
    """Values of the `relative_positions` as a matrix of queries and keys, for each head.

    The last query's row is the window that begins at the lowest relative position, the row before
    it begins one further, and so on: T + S - 1 buckets are looked up instead of T x S.
    """
    return values.T.unfold(-1, n_keys, 1).flip(1)[None]


class T5FeedForward(nn.Module):
    r"""$f(x W_1)\,W_2$, or gated (v1.1; Shazeer 2020) $(f(x W_{gate}) \odot x W_1)\,W_2$."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        d_model, d_ff = config.d_model, config.d_ff
        self.w_gate = nn.Linear(d_model, d_ff, bias=False) if config.gated_ff else None
        self.w_1 = nn.Linear(d_model, d_ff, bias=False)
        self.w_2 = nn.Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if self.w_gate is None:
            inner = self.activation(self.w_1(x))
        else:
            inner = self.activation(self.w_gate(x)) * self.w_1(x)
        return clamp_fp16(self.w_2(self.dropout(clamp_fp16(inner))))


def t5_attention(config: T5Config) -> MultiHeadAttention:
    """Attention as T5 has it: no biases, no scaling of the scores, any width of a head."""
    return MultiHeadAttention(
        config.d_model,
        config.n_heads,
        d_head=config.d_head,
        bias=False,
        scale=1.0,
        dropout=config.dropout,
    )


class T5EncoderBlock(nn.Module):
    """Pre-norm encoder block, §2.1."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = t5_attention(config)
        self.ff_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ff = T5FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B S D"], mask: Mask) -> Float[Tensor, "B S D"]:
        x = x + self.dropout(self.attn(self.attn_norm(x), mask=mask))
        return x + self.dropout(self.ff(self.ff_norm(x)))


class T5DecoderBlock(nn.Module):
    """Pre-norm decoder block, §2.1; the relative bias is in `mask`, and not in cross-attention."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = t5_attention(config)
        self.cross_attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross_attn = t5_attention(config)
        self.ff_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ff = T5FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        states: Float[Tensor, "Bs S D"] | None,
        *,
        mask: Mask,
        source_mask: Mask | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend to the encoder's `states`, or to their keys and values where `cache` has them."""
        x = x + self.dropout(self.attn(self.attn_norm(x), mask=mask, cache=cache))
        source = None if cache is None else cache.source
        h = self.cross_attn_norm(x)
        x = x + self.dropout(self.cross_attn(h, states, mask=source_mask, keys_values=source))
        return x + self.dropout(self.ff(self.ff_norm(x)))


class T5(EncoderDecoder):
    """T5 with its output head, Raffel et al. 2020, §2.1; v1.1 as in its published weights."""

    layout = layouts.T5
    config_class = T5Config

    def __init__(self, config: T5Config | None = None) -> None:
        super().__init__()
        self.config = config = config or T5Config()
        if config.gated_ff:
            self.layout = layouts.T5_GATED
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        # One table for all blocks of a stack.
        self.encoder_bias = nn.Embedding(config.n_buckets, config.n_heads)
        self.decoder_bias = nn.Embedding(config.n_buckets, config.n_heads)
        self.encoder = nn.ModuleList(T5EncoderBlock(config) for _ in range(config.n_layers))
        self.decoder = nn.ModuleList(T5DecoderBlock(config) for _ in range(config.n_decoder_layers))
        self.encoder_norm = RMSNorm(config.d_model, config.norm_eps)
        self.decoder_norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.tied:
            self.lm_head.weight = self.token_embedding.weight
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        r"""Normal numbers, as wide as the published code has them (its factor is 1).

        $W^Q$ has the variance $1/(D\,K)$: it takes the place of the factor $1/\sqrt{d_k}$.
        """
        config = self.config
        narrow = config.d_model**-0.5
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                module.w_q.weight.normal_(std=(config.d_model * config.d_head) ** -0.5)
                module.w_k.weight.normal_(std=narrow)
                module.w_v.weight.normal_(std=narrow)
                module.w_o.weight.normal_(std=(config.n_heads * config.d_head) ** -0.5)
            elif isinstance(module, T5FeedForward):
                module.w_1.weight.normal_(std=narrow)
                module.w_2.weight.normal_(std=config.d_ff**-0.5)
                if module.w_gate is not None:
                    module.w_gate.weight.normal_(std=narrow)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
        self.encoder_bias.weight.normal_(std=narrow)
        self.decoder_bias.weight.normal_(std=narrow)
        # An untied head is not scaled, so its weights are: either way logits begin near N(0, 1).
        # (transformers gives it std 1, and a first loss far above log V.)
        self.lm_head.weight.normal_(std=narrow)
        self.token_embedding.weight.normal_(std=1.0)

    def encode(
        self, input_ids: Int[Tensor, "B S"], *, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "B S D"]:
        """The encoder's states; `attention_mask` is [B, S] or [B, S, S], 1 = attend."""
        config = self.config
        check_ids(input_ids, config.vocab_size)
        rows, n = input_ids.shape
        padding = None if attention_mask is None else padding_mask(attention_mask, rows, n, n)
        relative = relative_positions(n, n, input_ids.device)
        buckets = encoder_buckets(relative, config.n_buckets, config.max_distance)
        mask = combine_masks(spread(self.encoder_bias(buckets), n), padding)
        x = self.dropout(self.token_embedding(input_ids))
        for block in self.encoder:
            x = block(x, mask)
        return self.dropout(self.encoder_norm(x))

    def decoder_hidden(
        self,
        states: Float[Tensor, "Bs S D"] | None,
        decoder_input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's last hidden states: `decode` without the head."""
        config, n_new = self.config, decoder_input_ids.shape[1]
        check_ids(decoder_input_ids, config.vocab_size, "decoder_input_ids")
        source_mask = self.see_source(states, decoder_input_ids, attention_mask, cache)
        n_keys = n_new if cache is None else cache.length + n_new
        relative = relative_positions(n_new, n_keys, decoder_input_ids.device)
        buckets = decoder_buckets(relative, config.n_buckets, config.max_distance)
        # The relative bias, and -inf for keys later than the query.
        bias = self.decoder_bias(buckets).masked_fill((relative > 0)[:, None], -torch.inf)
        mask = spread(bias, n_keys)
        x = self.dropout(self.token_embedding(decoder_input_ids))
        layers = [None] * len(self.decoder) if cache is None else cache.layers()
        for block, layer in zip(self.decoder, layers):
            x = block(x, states, mask=mask, source_mask=source_mask, cache=layer)
        if cache is not None:
            cache.length += n_new
        return self.dropout(self.decoder_norm(x))

    def head(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        r"""Logits; a tied head scales by $1/\sqrt{d_{model}}$: embeddings have the variance 1."""
        return self.lm_head(x * self.config.d_model**-0.5 if self.config.tied else x)

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> T5Config:
        """Version 1.0 or 1.1, as the file says; what neither has is refused by name."""
        values = read_settings(raw, cls.layout)
        values.setdefault("n_decoder_layers", values.get("n_layers", T5Config.n_layers))
        kind = raw.get("feed_forward_proj", "relu")
        if not isinstance(kind, str) or kind not in layouts.T5_FEED_FORWARDS:
            known = ", ".join(layouts.T5_FEED_FORWARDS)
            raise ConfigError(f"config.json: feed_forward_proj must be in {known}; got {kind!r}")
        values["activation"], values["gated_ff"] = layouts.T5_FEED_FORWARDS[kind]
        # transformers 5 always writes "tied"; of version 1.1 only the other flag is left there.
        tied = values.get("tied", True)
        scaled = raw.get("scale_decoder_outputs", tied)
        if scaled and not tied:
            raise ConfigError(
                "config.json: tie_word_embeddings is false, scale_decoder_outputs not"
            )
        values["tied"] = bool(scaled)
        config = T5Config.from_dict(values)
        if raw.get("decoder_start_token_id") not in (None, config.pad_token_id):
            raise ConfigError(
                "config.json: decoder_start_token_id must be pad_token_id = "
                f"{config.pad_token_id} here, got {raw['decoder_start_token_id']!r}"
            )
        return config

    @classmethod
    def config_to_file(cls, config: T5Config) -> dict[str, Any]:
        kinds = {kind: name for name, kind in reversed(layouts.T5_FEED_FORWARDS.items())}
        return write_settings(config, cls.layout) | {
            "feed_forward_proj": kinds[config.activation, config.gated_ff],
            "decoder_start_token_id": config.pad_token_id,
        }
