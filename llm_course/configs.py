"""The settings of models and of training: frozen, keyword-only, checked when they are made.

The names of sizes are those of the papers; `book/notation.md` has them beside Hugging Face's.
This module imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from llm_course.errors import ConfigError

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
SCHEDULES = ("cosine", "linear", "constant", "inverse_sqrt")
MAX_SEED = 2**32 - 1  # what every library takes, with the number of a process added
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

C = TypeVar("C", bound="_Config")
Activation = Literal["relu", "gelu", "gelu_tanh"]


def _check(config: Any, name: str, lowest: float, highest: float = math.inf) -> None:
    """Refuse a field outside lowest <= value <= highest."""
    value = getattr(config, name)
    whole = isinstance(lowest, int) and (highest == math.inf or isinstance(highest, int))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    if whole and not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if not lowest <= value <= highest or not math.isfinite(value):
        above = f" and at most {highest}" if highest != math.inf else ""
        raise ConfigError(f"{name} must be at least {lowest}{above}, got {value}")


def _check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


class _Config:
    """What all settings share: to and from a plain dict, with unknown keys refused by name."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f": expected {', '.join(names)}"
                raise ConfigError(f"unknown setting {key!r} of {cls.__name__}{hint}")
        return cls(**values)


class _ModelConfig(_Config):
    def _check_sizes(self, *names: str) -> None:
        for name in names:
            _check(self, name, 1)
        _check(self, "dropout", 0.0, 1.0)
        _check(self, "norm_eps", 1e-20, 1.0)
        _check_choice(self, "activation", ACTIVATIONS)

    def _check_heads(self) -> None:
        d_model, n_heads = self.d_model, self.n_heads  # type: ignore[attr-defined]
        if d_model % n_heads:
            raise ConfigError(f"d_model must be a multiple of n_heads = {n_heads}, got {d_model}")

    def _check_ids(self, *names: str) -> None:
        vocab_size = self.vocab_size  # type: ignore[attr-defined]
        for name in names:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
                raise ConfigError(
                    f"{name} must be a whole number from 0 to {vocab_size - 1}, got {value!r}"
                )


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(_ModelConfig):
    """The base model of Vaswani et al. 2017, §3 and Table 3."""

    vocab_size: int = 37_000  # one vocabulary for source and target, §5.1
    n_layers: int = 6  # of the encoder
    n_decoder_layers: int = 6
    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 2048
    n_positions: int = 512  # rows of the sinusoid table; no parameters
    activation: Activation = "relu"
    tied: bool = True  # both embeddings and the output head are one matrix, §3.4
    dropout: float = 0.1
    norm_eps: float = 1e-5
    pad_token_id: int = 0
    bos_token_id: int = 1  # the decoder's first input
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        self._check_sizes(
            "vocab_size",
            "n_layers",
            "n_decoder_layers",
            "d_model",
            "n_heads",
            "d_ff",
            "n_positions",
        )
        self._check_heads()
        self._check_ids("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class BERTConfig(_ModelConfig):
    """BERT-base, Devlin et al. 2019, §3."""

    vocab_size: int = 30_522
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    d_ff: int = 3072
    n_positions: int = 512
    n_segments: int = 2
    activation: Activation = "gelu"
    dropout: float = 0.1
    norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        self._check_sizes(
            "vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "n_positions", "n_segments"
        )
        self._check_heads()
        self._check_ids("pad_token_id")


@dataclass(frozen=True, kw_only=True)
class BERTLabelConfig(BERTConfig):
    """A BERT that is fine-tuned to choose among named labels."""

    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # the name of each class; they are saved too

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) < 2:
            raise ConfigError(f"labels must be at least 2 names, got {list(self.labels)}")
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"labels must differ, got {list(self.labels)}")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(_ModelConfig):
    """GPT-2 small, Radford et al. 2019, §2.3."""

    vocab_size: int = 50_257
    n_layers: int = 12
    d_model: int = 768
    n_heads: int = 12
    d_ff: int | None = None  # None: 4 * d_model
    n_positions: int = 1024
    activation: Activation = "gelu_tanh"
    tied: bool = True
    dropout: float = 0.1
    norm_eps: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        self._check_sizes("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "n_positions")
        self._check_heads()
        self._check_ids("bos_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class T5Config(_ModelConfig):
    """T5-small, Raffel et al. 2020, §2.1 and §3.7."""

    vocab_size: int = 32_128
    n_layers: int = 6  # of the encoder
    n_decoder_layers: int = 6
    d_model: int = 512
    n_heads: int = 8
    d_head: int = 64  # n_heads * d_head need not equal d_model
    d_ff: int = 2048
    n_buckets: int = 32  # half of them for each direction in the encoder
    max_distance: int = 128  # positions; farther pairs share the last bucket
    activation: Activation = "relu"  # v1.1: "gelu_tanh"
    gated_ff: bool = False  # v1.1: True
    tied: bool = True  # v1.1: False, and then no d_model**-0.5 before the head
    dropout: float = 0.1
    norm_eps: float = 1e-6
    pad_token_id: int = 0  # also the decoder's first input
    eos_token_id: int = 1

    def __post_init__(self) -> None:
        self._check_sizes(
            "vocab_size", "n_layers", "n_decoder_layers", "d_model", "n_heads", "d_head", "d_ff"
        )
        _check(self, "n_buckets", 4)
        _check(self, "max_distance", 1)
        if self.n_buckets % 4:
            raise ConfigError(f"n_buckets must be a multiple of 4, got {self.n_buckets}")
        if self.max_distance <= self.n_buckets // 2:
            raise ConfigError(
                f"max_distance must exceed n_buckets / 2 = {self.n_buckets // 2}, "
                f"got {self.max_distance}"
            )
        self._check_ids("pad_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Config):
    """How a model is trained; the defaults suit a small model on a laptop."""

    max_steps: int = 1000  # updates; a lab trains a fixed number of them
    accumulation: int = 1  # batches per update; the mean is over all their counted labels
    lr: float = 1e-3  # the highest learning rate, reached after the warm-up
    min_lr: float = 0.0  # where cosine and linear end
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks
    embedding_lr_scale: float = 1.0  # times the rate, for embeddings and a head tied to one
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.1  # on matrices only; not on biases, norms and embeddings
    beta1: float = 0.9  # and the momentum of Muon
    beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_norm: float = 1.0  # of the whole gradient; 0: no clipping
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: by the device
    compile: bool = False  # torch.compile the model and its loss
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: copy the model, or shard it
    device: str = "auto"  # auto: cuda, else mps, else cpu
    seed: int = 0  # of dropout; the batches have their own
    eval_every: int = 0  # updates; 0: only at the end, when there is validation data
    patience: int = 0  # evaluations without a lower loss, then stop with the best weights; 0: never
    save_every: int = 0  # updates; 0: only at the end, when there is a directory
    keep_checkpoints: int = 2
    non_finite: Literal["stop", "skip"] = "stop"  # what to do with a NaN or infinite gradient
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("max_steps", 1), ("accumulation", 1), ("keep_checkpoints", 1)):
            _check(self, name, lowest)
        for name in ("warmup_steps", "eval_every", "patience", "save_every"):
            _check(self, name, 0)
        _check(self, "seed", 0, MAX_SEED)
        _check(self, "lr", 1e-12, 1e3)
        for name in ("min_lr", "weight_decay", "clip_norm"):
            _check(self, name, 0.0)
        _check(self, "embedding_lr_scale", 0.0, 1e3)
        _check(self, "beta1", 0.0, 0.999999)
        _check(self, "beta2", 0.0, 0.999999)
        _check(self, "adam_eps", 1e-20, 1.0)
        if self.warmup_steps > self.max_steps:
            raise ConfigError(
                f"warmup_steps must be at most max_steps = {self.max_steps}, "
                f"got {self.warmup_steps}"
            )
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr must be at most lr = {self.lr}, got {self.min_lr}")
        _check_choice(self, "schedule", SCHEDULES)
        _check_choice(self, "optimizer", ("adamw", "muon"))
        _check_choice(self, "precision", PRECISIONS)
        _check_choice(self, "non_finite", ("stop", "skip"))
        _check_choice(self, "parallel", ("ddp", "fsdp"))
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ConfigError(
                "optimizer = 'muon' needs whole matrices, which parallel = 'fsdp' has not: "
                "use parallel = 'ddp', or optimizer = 'adamw'"
            )
        if self.patience and not self.eval_every:
            raise ConfigError(f"patience = {self.patience} needs eval_every of at least 1, got 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Config):
    """Which text a model reads, how it becomes ids, and how the ids become batches."""

    data: Literal["town", "files", "hub"] = "town"
    data_files: tuple[str, ...] = ()  # text, csv or json; with data = "files"
    dataset: str | None = None  # a name on the Hugging Face hub; with data = "hub"
    column: str | None = None  # of a csv or json file, or of a hub data set
    documents: int = 60_000  # stories of Town to generate
    validation: float = 0.1  # share of files or of a hub data set kept for validation
    tokenizer: Literal["bpe", "wordpiece", "unigram", "word", "char"] = "bpe"
    vocab_size: int = 4096  # an upper bound: a small text has fewer
    context: int = 128  # tokens in a row
    batch_size: int = 16  # rows in a batch
    seed: int = 0  # of the data order and of Town

    def __post_init__(self) -> None:
        for name in ("documents", "batch_size"):
            _check(self, name, 1)
        _check(self, "context", 2)
        _check(self, "vocab_size", 2)
        _check(self, "seed", 0, MAX_SEED)
        _check(self, "validation", 0.0001, 0.9)
        _check_choice(self, "data", ("town", "files", "hub"))
        _check_choice(self, "tokenizer", ("bpe", "wordpiece", "unigram", "word", "char"))
        if isinstance(self.data_files, str):
            raise ConfigError(f"data_files must be several names, got {self.data_files!r}")
        if (self.data == "files") != bool(self.data_files):
            raise ConfigError(
                f"data_files go with data = 'files' and only with it, "
                f"got data = {self.data!r} and {len(self.data_files)} files"
            )
        if (self.data == "hub") != bool(self.dataset):
            raise ConfigError(
                f"dataset goes with data = 'hub' and only with it, "
                f"got data = {self.data!r} and dataset = {self.dataset!r}"
            )


@dataclass(frozen=True, kw_only=True)
class PairConfig(_Config):
    """Which pairs of texts a translator learns from, and how they become batches."""

    data: Literal["town", "files", "hub"] = "town"
    data_files: tuple[str, ...] = ()  # csv or json, to train on; with data = "files"
    validation_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    dataset: str | None = None  # a hub name; its splits are train, validation and test
    source: str = "en"  # the columns of files and hub data sets
    target: str = "de"
    pairs: int = 60_000  # sentences of Town to generate
    min_count: int = 1  # leave out pairs with a source word that is rarer than this in training
    held_out: int = 500  # pairs of Town in each validation and test set
    tokenizer: Literal["bpe", "word"] = "word"  # one vocabulary for both languages
    vocab_size: int = 8192  # an upper bound
    batch_size: int = 32  # pairs in a batch
    pool: int = 50  # batches whose pairs are sorted by length together; few: more mixed batches
    seed: int = 0  # of the data order and of Town

    def __post_init__(self) -> None:
        for name in ("pairs", "min_count", "held_out", "batch_size", "pool"):
            _check(self, name, 1)
        _check(self, "vocab_size", 2)
        _check(self, "seed", 0, MAX_SEED)
        _check_choice(self, "data", ("town", "files", "hub"))
        _check_choice(self, "tokenizer", ("bpe", "word"))
        for name in ("data_files", "validation_files", "test_files"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be several names, got {getattr(self, name)!r}")
            if (self.data == "files") != bool(getattr(self, name)):
                raise ConfigError(
                    f"{name} go with data = 'files' and only with it, got data = {self.data!r} "
                    f"and {len(getattr(self, name))} files"
                )
        if (self.data == "hub") != bool(self.dataset):
            raise ConfigError(
                f"dataset goes with data = 'hub' and only with it, "
                f"got data = {self.data!r} and dataset = {self.dataset!r}"
            )
        if self.source == self.target:
            raise ConfigError(f"source and target must be two columns, got {self.source!r} twice")
