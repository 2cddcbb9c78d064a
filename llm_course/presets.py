"""Named settings: the same lab on a laptop, on Colab's free GPU and on an H200.

`cpu` takes one to two minutes on two cores. `t4` fits 15 GB and runs in fp16 with loss scaling,
because a T4 has no bf16. `h200` is what the recorded runs use.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_course.configs import (
    BERTConfig,
    DataConfig,
    GPTConfig,
    PairConfig,
    TrainConfig,
    TransformerConfig,
)
from llm_course.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GPTPreset:
    """A model (its vocabulary is set when the tokenizer is trained), its data and its training."""

    model: GPTConfig
    data: DataConfig
    train: TrainConfig


GPT_PRESETS = {
    "cpu": GPTPreset(
        model=GPTConfig(n_layers=2, d_model=128, n_heads=4, n_positions=160, dropout=0.0),
        # With 6,144 pieces nearly every word of Town is one piece: rare ones are not misspelt.
        data=DataConfig(context=160, batch_size=6, documents=40_000, vocab_size=6144),
        # Most words of Town are rare: a long memory of squared gradients gives them long steps,
        # and the table of embeddings has a higher rate than the matrices (chapter 13).
        train=TrainConfig(
            max_steps=1600,
            optimizer="muon",
            lr=6e-3,
            embedding_lr_scale=2.5,
            schedule="linear",
            warmup_steps=100,
            weight_decay=0.2,
            beta2=0.9995,
        ),
    ),
    "t4": GPTPreset(
        model=GPTConfig(n_layers=6, d_model=384, n_heads=6, n_positions=256, dropout=0.0),
        data=DataConfig(context=256, batch_size=64, documents=200_000),
        train=TrainConfig(
            max_steps=3000, lr=1e-3, warmup_steps=100, min_lr=1e-4, eval_every=500, save_every=500
        ),
    ),
    "h200": GPTPreset(
        model=GPTConfig(n_layers=8, d_model=512, n_heads=8, n_positions=256, dropout=0.0),
        data=DataConfig(context=256, batch_size=128, documents=500_000),
        train=TrainConfig(
            max_steps=4000,
            lr=1e-3,
            warmup_steps=200,
            min_lr=1e-4,
            eval_every=500,
            save_every=1000,
            compile=True,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class TransformerPreset:
    """A translator (its vocabulary is set with the tokenizer), its pairs and its training."""

    model: TransformerConfig
    data: PairConfig
    train: TrainConfig
    smoothing: float = 0.0  # of the labels, Vaswani et al. 2017, §5.4


TRANSFORMER_PRESETS = {
    # One block reads and two write: with one block that writes, exact matches stay near zero. Small
    # pools and small batches, because sorted pairs of one length are much alike (chapter 08). With
    # smoothed labels two seeds of two did better on unseen templates.
    "cpu": TransformerPreset(
        model=TransformerConfig(
            n_layers=1,
            n_decoder_layers=2,
            d_model=96,
            n_heads=4,
            d_ff=192,
            n_positions=64,
            dropout=0.05,
        ),
        data=PairConfig(min_count=100, batch_size=16, pool=8),
        train=TrainConfig(
            max_steps=3600, lr=3e-3, warmup_steps=100, min_lr=1e-4, beta2=0.98, precision="fp32"
        ),
        smoothing=0.1,
    ),
    "t4": TransformerPreset(
        model=TransformerConfig(
            n_layers=3, n_decoder_layers=3, d_model=256, n_heads=4, d_ff=1024, n_positions=128
        ),
        data=PairConfig(pairs=200_000, batch_size=128, vocab_size=12_000),
        train=TrainConfig(
            max_steps=4000, lr=1e-3, warmup_steps=400, min_lr=1e-5, beta2=0.98, eval_every=500
        ),
        smoothing=0.1,
    ),
    "h200": TransformerPreset(
        model=TransformerConfig(
            n_layers=4,
            n_decoder_layers=4,
            d_model=256,
            n_heads=4,
            d_ff=1024,
            n_positions=128,
            dropout=0.2,
        ),
        data=PairConfig(pairs=400_000, batch_size=256, vocab_size=12_000),
        train=TrainConfig(
            max_steps=6000, lr=1e-3, warmup_steps=400, min_lr=1e-5, beta2=0.98, eval_every=500
        ),
        smoothing=0.1,
    ),
}


def transformer_preset(name: str) -> TransformerPreset:
    """The translation preset of that name; `ConfigError` lists the names when there is none."""
    if name not in TRANSFORMER_PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(TRANSFORMER_PRESETS)}, got {name!r}")
    return TRANSFORMER_PRESETS[name]


def gpt_preset(name: str) -> GPTPreset:
    """The GPT preset of that name; `ConfigError` lists the names when there is none."""
    if name not in GPT_PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(GPT_PRESETS)}, got {name!r}")
    return GPT_PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class BERTPreset:
    """A model (its vocabulary is set when the tokenizer is trained), its data and its training."""

    model: BERTConfig
    data: DataConfig
    train: TrainConfig


BERT_PRESETS = {
    "cpu": BERTPreset(
        model=BERTConfig(
            n_layers=2, d_model=128, n_heads=8, d_ff=512, n_positions=160, dropout=0.0
        ),
        data=DataConfig(context=160, batch_size=8, documents=40_000, tokenizer="wordpiece"),
        train=TrainConfig(max_steps=1000, lr=2.5e-3, warmup_steps=50, min_lr=2e-4),
    ),
    "t4": BERTPreset(
        model=BERTConfig(
            n_layers=6, d_model=384, n_heads=6, d_ff=1536, n_positions=256, dropout=0.1
        ),
        data=DataConfig(
            context=256, batch_size=64, documents=200_000, tokenizer="wordpiece", vocab_size=8192
        ),
        train=TrainConfig(
            max_steps=4000, lr=7e-4, warmup_steps=400, min_lr=1e-5, eval_every=500, save_every=500
        ),
    ),
    "h200": BERTPreset(
        model=BERTConfig(
            n_layers=8, d_model=512, n_heads=8, d_ff=2048, n_positions=256, dropout=0.1
        ),
        data=DataConfig(
            context=256, batch_size=128, documents=200_000, tokenizer="wordpiece", vocab_size=8192
        ),
        train=TrainConfig(
            max_steps=6000, lr=5e-4, warmup_steps=600, min_lr=1e-5, eval_every=500, save_every=1000
        ),
    ),
}


def bert_preset(name: str) -> BERTPreset:
    """The BERT preset of that name; `ConfigError` lists the names when there is none."""
    if name not in BERT_PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(BERT_PRESETS)}, got {name!r}")
    return BERT_PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class FineTunePreset:
    """How a pretrained BERT is fine-tuned; the number of updates follows from the epochs."""

    epochs: int
    batch_size: int
    context: int  # tokens in a row, or the model's positions where it has fewer
    warmup: float  # share of the updates
    dropout: float | None  # None: as in the checkpoint
    frozen_lr: float  # where only the new head is trained
    train: TrainConfig


FINETUNE_PRESETS = {
    # The course's own checkpoints, of up to 20 million parameters.
    "small": FineTunePreset(
        epochs=5,
        batch_size=16,
        context=160,
        warmup=0.1,
        dropout=0.1,
        frozen_lr=1e-2,
        train=TrainConfig(
            max_steps=1, lr=1e-3, schedule="linear", warmup_steps=0, weight_decay=0.01, beta2=0.999
        ),
    ),
    # Published ones: Devlin et al. 2019, appendix A.3 (2 to 4 epochs, rates from 2e-5 to 5e-5).
    "published": FineTunePreset(
        epochs=3,
        batch_size=32,
        context=128,
        warmup=0.1,
        dropout=None,
        frozen_lr=1e-3,
        train=TrainConfig(
            max_steps=1, lr=5e-5, schedule="linear", warmup_steps=0, weight_decay=0.01, beta2=0.999
        ),
    ),
}


def finetune_preset(name: str) -> FineTunePreset:
    """The fine-tuning preset of that name; `ConfigError` lists the names when there is none."""
    if name not in FINETUNE_PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(FINETUNE_PRESETS)}, got {name!r}")
    return FINETUNE_PRESETS[name]
