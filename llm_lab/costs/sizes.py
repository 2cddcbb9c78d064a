"""Parameters, floating-point operations and bytes of a model, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from llm_course.configs import BERTConfig, GPTConfig, T5Config, TransformerConfig
from llm_course.errors import ConfigError

ModelConfig = BERTConfig | GPTConfig | T5Config | TransformerConfig
Size = ModelConfig | int | float
V = TypeVar("V")

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}  # of one number
FLOAT_BITS = {"fp32": (8, 23), "bf16": (8, 7), "fp16": (5, 10)}  # of the exponent, of the fraction

# Bytes per parameter that AdamW keeps. "mixed" is the way of Rajbhandari et al. 2020, §3.1: 16-bit
# weights and gradients, and the weights once more in fp32 for the update.
TRAINING_BYTES: dict[str, dict[str, float]] = {
    "fp32": {"weights": 4, "gradients": 4, "two moments": 8},
    "mixed": {"weights": 2, "gradients": 2, "fp32 weights": 4, "two moments": 8},
}


def check_positive(**values: float) -> None:
    """Refuse a value that is not positive and finite, by its name."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be positive and finite, got {value}")


def choose(table: Mapping[str, V], name: str, value: str) -> V:
    """The entry of a table; ConfigError names what there is."""
    if value not in table:
        raise ConfigError(f"{name} must be one of {', '.join(table)}, got {value!r}")
    return table[value]


# Parameters


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """The equal blocks of an encoder or of a decoder."""

    n_blocks: int
    d_model: int
    width: int  # n_heads * d_head
    d_ff: int
    gated: bool = False
    cross: bool = False  # each block attends to an encoder too
    attn_biases: bool = True
    ff_biases: bool = True
    norm: int  # parameters of one norm

    @property
    def ff_matrices(self) -> int:
        return 3 if self.gated else 2

    def parameters(self) -> dict[str, int]:
        d, w, f = self.d_model, self.width, self.d_ff
        attention = 4 * d * w + (3 * w + d) * self.attn_biases
        feed_forward = self.ff_matrices * d * f + (f + d) * self.ff_biases
        return {
            "attention": self.n_blocks * attention,
            "cross-attention": self.n_blocks * attention * self.cross,
            "feed-forward": self.n_blocks * feed_forward,
            "norms": self.n_blocks * (3 if self.cross else 2) * self.norm,
        }


def _stacks(config: ModelConfig) -> list[_Stack]:
    """One stack for BERT and GPT; the encoder and the decoder of the others."""
    n, d, f = config.n_layers, config.d_model, config.d_ff
    assert f is not None  # GPTConfig fills it in
    if isinstance(config, BERTConfig | GPTConfig):
        return [_Stack(n_blocks=n, d_model=d, width=d, d_ff=f, norm=2 * d)]
    if isinstance(config, T5Config):
        encoder = _Stack(
            n_blocks=n,
            d_model=d,
            width=config.n_heads * config.d_head,
            d_ff=f,
            gated=config.gated_ff,
            attn_biases=False,
            ff_biases=False,
            norm=d,
        )
    else:
        encoder = _Stack(n_blocks=n, d_model=d, width=d, d_ff=f, attn_biases=False, norm=2 * d)
    fields = vars(encoder) | {"n_blocks": config.n_decoder_layers, "cross": True}
    return [encoder, _Stack(**fields)]


def parameter_table(config: ModelConfig) -> dict[str, int]:
    r"""How many parameters stand in which part of our model; parts without any are left out.

    With D = d_model, W = n_heads · d_head, F = d_ff: attention has $4DW$ weights a block and the
    feed-forward layer $2DF$ ($3DF$ gated), plus biases; a table of V tokens has $VD$. A tied head
    counts once, as "token embedding". BERT is counted with its pooler and both pretraining heads.
    """
    d, v = config.d_model, config.vocab_size
    table = {"token embedding": v * d}
    if isinstance(config, BERTConfig | GPTConfig):
        table["position embedding"] = config.n_positions * d
    if isinstance(config, BERTConfig):
        table["segment embedding"] = config.n_segments * d
    if isinstance(config, T5Config):
        table["relative positions"] = 2 * config.n_buckets * config.n_heads
    stacks = _stacks(config)
    for part in ("attention", "cross-attention", "feed-forward", "norms"):
        table[part] = sum(stack.parameters()[part] for stack in stacks)
    table["heads"] = 0 if config.tied else v * d
    if isinstance(config, BERTConfig):
        table["norms"] += 4 * d  # of the embeddings and of the MLM head
        table["heads"] += 2 * (d * d + d) + v + 2 * d + 2
    else:
        last = {GPTConfig: 2 * d, T5Config: 2 * d}  # a LayerNorm; an RMSNorm for each stack
        table["norms"] += last.get(type(config), 0)
    return {part: count for part, count in table.items() if count}


def count_parameters(config: ModelConfig) -> int:
    """All parameters of our model, those of tied matrices once; see `parameter_table`."""
    return sum(parameter_table(config).values())


def rough_parameters(n_layers: int, d_model: int) -> int:
    r"""$12\,n_\text{layers}\,d_\text{model}^2$: the blocks with d_ff = 4 d_model, without biases.

    Kaplan et al. 2020, §2.1.
    """
    check_positive(n_layers=n_layers, d_model=d_model)
    return 12 * n_layers * d_model**2


def _n_parameters(model: Size) -> float:
    if not isinstance(model, int | float):
        return count_parameters(model)
    check_positive(n_parameters=model)
    return model


# Floating-point operations


def _attend(stack: _Stack, queries: int, keys: int, new_keys: int) -> tuple[int, int]:
    """FLOPs of the projections, and of QKᵀ and the weighted sum of V, in one block."""
    projections = 2 * 2 * stack.d_model * stack.width * (queries + new_keys)
    return projections, 2 * 2 * queries * keys * stack.width


def _lengths(config: ModelConfig, n_tokens: int, n_targets: int | None) -> tuple[int, int]:
    """The tokens of the encoder, and of the decoder; refuses what the model has not."""
    two = isinstance(config, T5Config | TransformerConfig)
    check_positive(n_tokens=n_tokens)
    if two and n_targets is None:
        raise ConfigError("an encoder-decoder needs n_targets, the tokens of the decoder")
    if not two and n_targets is not None:
        raise ConfigError(f"{type(config).__name__} has one stack: n_targets must be None")
    if n_targets is not None:
        check_positive(n_targets=n_targets)
    return n_tokens, n_targets or 0


def _cached_source(config: ModelConfig, n_source: int | None) -> int:
    """The encoder positions that a decoder's cache holds; 0 for GPT."""
    if isinstance(config, BERTConfig):
        raise ConfigError("BERT does not write token by token: use forward_flops")
    if isinstance(config, GPTConfig):
        if n_source is not None:
            raise ConfigError("GPT has no encoder: n_source must be None")
        return 0
    if n_source is None:
        raise ConfigError("an encoder-decoder needs n_source, the tokens of the encoder")
    check_positive(n_source=n_source)
    return n_source


def forward_flops(
    config: ModelConfig,
    n_tokens: int,
    n_targets: int | None = None,
    *,
    n_predictions: int | None = None,
) -> dict[str, int]:
    r"""FLOPs of the matrix products in one forward pass over one row, by part.

    A product of [n, a] and [a, b] costs $2nab$. Per block with T positions: projections $8TDW$,
    attention $4T^2W$ (scores and weighted sum), feed-forward $4TDF$; the head $2TDV$. Softmax,
    norms, activations and additions are left out: they are below a percent. Attention counts all
    T² pairs; a causal kernel may skip almost half of them.

    Args:
        n_targets: tokens of the decoder; only, and always, for an encoder-decoder.
        n_predictions: positions that get logits; None: all. BERT needs 15 % of them in training.
    """
    source, target = _lengths(config, n_tokens, n_targets)
    parts = {"projections": 0, "attention": 0, "feed-forward": 0}
    for stack in _stacks(config):
        n = target if stack.cross else source
        pairs = [(n, n, n)] + [(n, source, source)] * stack.cross
        for queries, keys, new_keys in pairs:
            projections, attention = _attend(stack, queries, keys, new_keys)
            parts["projections"] += stack.n_blocks * projections
            parts["attention"] += stack.n_blocks * attention
        feed_forward = 2 * stack.ff_matrices * n * stack.d_model * stack.d_ff
        parts["feed-forward"] += stack.n_blocks * feed_forward
    d, length = config.d_model, target or source
    predicted = length if n_predictions is None else n_predictions
    if not 0 <= predicted <= length:
        raise ConfigError(f"n_predictions must be from 0 to {length}, got {predicted}")
    parts["heads"] = 2 * predicted * d * config.vocab_size
    if isinstance(config, BERTConfig):  # the MLM head's transform; the pooler and the NSP head
        parts["heads"] += 2 * predicted * d * d + 2 * d * d + 2 * d * 2
    return parts


def training_flops(
    config: ModelConfig,
    n_rows: int,
    n_tokens: int,
    n_targets: int | None = None,
    *,
    n_predictions: int | None = None,
) -> int:
    """FLOPs to train on `n_rows` rows once: the forward pass three times.

    The backward pass computes two products for each one of the forward pass: the gradient of the
    inputs and that of the weights. Recomputed activations are not counted.
    """
    check_positive(n_rows=n_rows)
    one = forward_flops(config, n_tokens, n_targets, n_predictions=n_predictions)
    return 3 * n_rows * sum(one.values())


def six_nd(n_parameters: float, n_tokens: float) -> float:
    r"""$6ND$: FLOPs to train N parameters on D tokens, where each token meets each weight once.

    Two for the multiplication and addition of the forward pass, four for the backward pass;
    Kaplan et al. 2020, §2.1. In an encoder-decoder a token meets one of the two stacks: about half.
    """
    check_positive(n_parameters=n_parameters, n_tokens=n_tokens)
    return 6 * n_parameters * n_tokens


def decode_flops(config: ModelConfig, context: int, n_source: int | None = None) -> dict[str, int]:
    """FLOPs to write one token with a KV cache, when attention sees `context` positions.

    Of an encoder-decoder: one step of the decoder, whose `n_source` keys are computed already.
    """
    source = _cached_source(config, n_source)
    check_positive(context=context)
    stack = _stacks(config)[-1]
    projections, attention = _attend(stack, 1, context, 1)
    if stack.cross:
        more, seen = _attend(stack, 1, source, 0)
        projections, attention = projections + more, attention + seen
    return {
        "projections": stack.n_blocks * projections,
        "attention": stack.n_blocks * attention,
        "feed-forward": stack.n_blocks * 2 * stack.ff_matrices * stack.d_model * stack.d_ff,
        "heads": 2 * config.d_model * config.vocab_size,
    }


# Memory


def largest_finite(precision: str) -> float:
    r"""The largest finite number of a format: $(2 - 2^{-m})\,2^{2^{e-1}-1}$; IEEE 754.

    With e bits of exponent and m of fraction: 65,504 in fp16, about 3.4e38 in fp32 and bf16.
    """
    exponent, fraction = choose(FLOAT_BITS, "precision", precision)
    return (2 - 2.0**-fraction) * 2.0 ** (2 ** (exponent - 1) - 1)


def weight_bytes(model: Size, precision: str = "bf16") -> float:
    """Bytes of the weights alone: what a file or an inference server holds."""
    return _n_parameters(model) * choose(BYTES, "precision", precision)


def training_bytes(model: Size, kind: str = "mixed") -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's moments, by part: 16 per parameter in both kinds.

    Activations come on top: `activation_bytes`.
    """
    n, sizes = _n_parameters(model), choose(TRAINING_BYTES, "kind", kind)
    return {part: n * size for part, size in sizes.items()}


def activation_bytes(
    config: ModelConfig,
    n_rows: int,
    n_tokens: int,
    n_targets: int | None = None,
    *,
    precision: str = "bf16",
) -> float:
    r"""Bytes that the backward pass needs of the forward pass, without dropout.

    Per position and block $4D + 4W + 2F$ numbers: input and output of both norms, Q, K, V and the
    result of attention, the inner layer before and after its activation (ReLU needs only what
    comes after). Then the logits. Within 2 % of what our models keep with fused attention, which
    stores no T² weights; our T5 keeps up to half as much again, for its RMSNorm and its float mask.
    With T² weights and dropout, in 16 bits and F = 4D, a block has $34D + 5HT$ bytes a position:
    Korthikanti et al. 2023, §4.1.
    """
    source, target = _lengths(config, n_tokens, n_targets)
    check_positive(n_rows=n_rows)
    d, numbers = config.d_model, 0
    for stack in _stacks(config):
        n = target if stack.cross else source
        inner = (4 if stack.gated else 2) - (config.activation == "relu")
        numbers += stack.n_blocks * n * (4 * d + 4 * stack.width + inner * stack.d_ff)
        if stack.cross:  # a third norm; Q and the result here, K and V at the source
            numbers += stack.n_blocks * 2 * (n * d + (n + source) * stack.width)
        numbers += n * d * (5 if isinstance(config, BERTConfig) else 2)  # around the blocks
    numbers += (target or source) * config.vocab_size
    return n_rows * numbers * choose(BYTES, "precision", precision)


def cache_bytes(
    n_layers: int, width: int, n_positions: int, n_rows: int = 1, precision: str = "bf16"
) -> float:
    """Bytes of a KV cache: a key and a value of `width` numbers for each block and position."""
    check_positive(n_layers=n_layers, width=width, n_positions=n_positions, n_rows=n_rows)
    return 2 * n_layers * width * n_positions * n_rows * choose(BYTES, "precision", precision)


def kv_cache_bytes(
    config: ModelConfig,
    n_positions: int,
    n_rows: int = 1,
    precision: str = "bf16",
    n_source: int | None = None,
) -> float:
    """`cache_bytes` of our model; an encoder-decoder keeps `n_source` positions of the encoder."""
    positions = n_positions + _cached_source(config, n_source)
    stack = _stacks(config)[-1]
    return cache_bytes(stack.n_blocks, stack.width, positions, n_rows, precision)
