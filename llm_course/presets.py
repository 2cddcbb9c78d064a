"""Named settings: the same lab on a laptop, on Colab's free GPU and on an H200.

`cpu` takes one to two minutes on two cores. `t4` fits 15 GB and runs in fp16 with loss scaling,
because a T4 has no bf16. `h200` is what the recorded runs use.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from llm_course.configs import (
    BERTConfig,
    BERTDataConfig,
    DataConfig,
    FineTuneConfig,
    GPTConfig,
    PairConfig,
    TrainConfig,
    TransformerConfig,
)
from llm_course.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model (its vocabulary is set when the tokenizer is trained), its data and its training."""

    model: Any  # fine-tuning: None, the checkpoint's
    data: Any
    train: TrainConfig

    def with_options(self, given: dict[str, Any]) -> Preset:
        """The preset with the options that were given, and with what follows from them.

        A width sets `d_ff`, a context the positions, files or a dataset where the data are from; a
        warm-up and a lowest rate are never above what they belong to.
        """
        given = dict(given)
        files, dataset = given.get("data_files"), given.get("dataset")
        if files and dataset:
            raise ConfigError(f"give data files or a dataset, not both: {files[0]!r}, {dataset!r}")
        if files or dataset:
            given.setdefault("data", "files" if files else "hub")
        if "d_model" in given:
            given.setdefault("d_ff", 4 * given["d_model"])
        if "context" in given:
            given.setdefault("n_positions", given["context"])
        if "max_steps" in given:
            given.setdefault("warmup_steps", min(self.train.warmup_steps, given["max_steps"]))
        if "lr" in given:
            given.setdefault("min_lr", min(self.train.min_lr, given["lr"]))
        parts = vars(self)
        names = {key: {each.name for each in fields(part)} for key, part in parts.items()}
        if unknown := sorted(given.keys() - set().union(*names.values())):
            raise ConfigError(f"unknown options: {', '.join(unknown)}")
        options = {key: {n: given[n] for n in given.keys() & names[key]} for key in parts}
        return Preset(**{key: replace(part, **options[key]) for key, part in parts.items()})


GPT_PRESETS = {
    "cpu": Preset(
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
    "t4": Preset(
        model=GPTConfig(n_layers=6, d_model=384, n_heads=6, n_positions=256, dropout=0.0),
        data=DataConfig(context=256, batch_size=64, documents=200_000),
        train=TrainConfig(
            max_steps=3000, lr=1e-3, warmup_steps=100, min_lr=1e-4, eval_every=500, save_every=500
        ),
    ),
    "h200": Preset(
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


TRANSFORMER_PRESETS = {
    # One block reads and two write: with one block that writes, exact matches stay near zero. Small
    # pools and small batches, because sorted pairs of one length are much alike (chapter 08). With
    # smoothed labels two seeds of two did better on unseen templates.
    "cpu": Preset(
        model=TransformerConfig(
            n_layers=1,
            n_decoder_layers=2,
            d_model=96,
            n_heads=4,
            d_ff=192,
            n_positions=64,
            dropout=0.05,
        ),
        data=PairConfig(min_count=100, batch_size=16, pool=8, smoothing=0.1),
        train=TrainConfig(
            max_steps=3600, lr=3e-3, warmup_steps=100, min_lr=1e-4, beta2=0.98, precision="fp32"
        ),
    ),
    "t4": Preset(
        model=TransformerConfig(
            n_layers=3, n_decoder_layers=3, d_model=256, n_heads=4, d_ff=1024, n_positions=128
        ),
        data=PairConfig(pairs=200_000, batch_size=128, vocab_size=12_000, smoothing=0.1),
        train=TrainConfig(
            max_steps=4000, lr=1e-3, warmup_steps=400, min_lr=1e-5, beta2=0.98, eval_every=500
        ),
    ),
    "h200": Preset(
        model=TransformerConfig(
            n_layers=4,
            n_decoder_layers=4,
            d_model=256,
            n_heads=4,
            d_ff=1024,
            n_positions=128,
            dropout=0.2,
        ),
        data=PairConfig(pairs=400_000, batch_size=256, vocab_size=12_000, smoothing=0.1),
        train=TrainConfig(
            max_steps=6000, lr=1e-3, warmup_steps=400, min_lr=1e-5, beta2=0.98, eval_every=500
        ),
    ),
}


BERT_PRESETS = {
    "cpu": Preset(
        model=BERTConfig(
            n_layers=2, d_model=128, n_heads=8, d_ff=512, n_positions=160, dropout=0.0
        ),
        data=BERTDataConfig(context=160, batch_size=8, documents=40_000),
        train=TrainConfig(max_steps=1000, lr=2.5e-3, warmup_steps=50, min_lr=2e-4),
    ),
    "t4": Preset(
        model=BERTConfig(n_layers=6, d_model=384, n_heads=6, d_ff=1536, n_positions=256),
        data=BERTDataConfig(context=256, batch_size=64, documents=200_000, vocab_size=8192),
        train=TrainConfig(
            max_steps=4000, lr=7e-4, warmup_steps=400, min_lr=1e-5, eval_every=500, save_every=500
        ),
    ),
    "h200": Preset(
        model=BERTConfig(n_layers=8, d_model=512, n_heads=8, d_ff=2048, n_positions=256),
        data=BERTDataConfig(context=256, batch_size=128, documents=200_000, vocab_size=8192),
        train=TrainConfig(
            max_steps=6000, lr=5e-4, warmup_steps=600, min_lr=1e-5, eval_every=500, save_every=1000
        ),
    ),
}


# How a pretrained BERT is fine-tuned: the number of updates follows from the epochs, of which a
# tenth warms up.
FINETUNE_PRESETS = {
    # The course's own checkpoints, of up to 20 million parameters.
    "small": Preset(
        model=None,
        data=FineTuneConfig(dropout=0.1),
        train=TrainConfig(lr=1e-3, schedule="linear", weight_decay=0.01, beta2=0.999),
    ),
    # Published ones: Devlin et al. 2019, appendix A.3 (2 to 4 epochs, rates from 2e-5 to 5e-5).
    "published": Preset(
        model=None,
        data=FineTuneConfig(epochs=3, batch_size=32, context=128, frozen_lr=1e-3),
        train=TrainConfig(lr=5e-5, schedule="linear", weight_decay=0.01, beta2=0.999),
    ),
}

PRESETS: dict[str, dict[str, Preset]] = {
    "transformer": TRANSFORMER_PRESETS,
    "bert": BERT_PRESETS,
    "gpt": GPT_PRESETS,
    "finetune": FINETUNE_PRESETS,
}


def find_preset(family: str, name: str) -> Preset:
    """The preset of that family and name; `ConfigError` lists the names when there is none."""
    if name not in PRESETS[family]:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS[family])}, got {name!r}")
    return PRESETS[family][name]
