"""The settings of models and of training: frozen, keyword-only, checked when they are made.

The names of sizes are those of the papers; `book/notation.md` has them beside Hugging Face's.
This module imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from llm_course.errors import ConfigError, did_you_mean

MAX_SEED = 2**32 - 1  # what every library takes, with the number of a process added

C = TypeVar("C", bound="Settings")
Activation = Literal["relu", "gelu", "gelu_tanh"]
Schedule = Literal["cosine", "linear", "constant", "inverse_sqrt"]
TokenizerKind = Literal["bpe", "wordpiece", "unigram", "word", "char"]


def check_numbers(config: Any, *names: str, least: float, most: float = math.inf) -> None:
    """Refuse a field outside least <= value <= most; one whose default is None may be None."""
    whole = isinstance(least, int) and (most == math.inf or isinstance(most, int))
    for name, value in ((name, getattr(config, name)) for name in names):
        if value is None and getattr(type(config), name, "needed") is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} must be a number, got {value!r}")
        if whole and not isinstance(value, int):
            raise ConfigError(f"{name} must be a whole number, got {value!r}")
        if not least <= value <= most or not math.isfinite(value):
            above = f" and at most {most}" if most != math.inf else ""
            raise ConfigError(f"{name} must be at least {least}{above}, got {value}")


class Settings:
    """What all settings share: to and from a plain dict, with unknown keys refused by name."""

    def __post_init__(self) -> None:
        """Refuse a choice that the field's type does not list."""
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                near = did_you_mean(key, names) or f": expected {', '.join(names)}"
                raise ConfigError(f"unknown setting {key!r} of {cls.__name__}{near}")
        return cls(**values)


class _ModelConfig(Settings):
    """The field names say what must hold: sizes are at least 1, ids lie in the vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        values: dict[str, Any] = vars(self)
        sizes = [name for name in values if name.startswith(("n_", "d_")) or name == "vocab_size"]
        check_numbers(self, *sizes, least=1)
        check_numbers(self, "dropout", least=0.0, most=1.0)
        check_numbers(self, "norm_eps", least=1e-20, most=1.0)
        d_model, n_heads, vocab_size = (values[n] for n in ("d_model", "n_heads", "vocab_size"))
        if "d_head" not in values and d_model % n_heads:
            raise ConfigError(f"d_model must be a multiple of n_heads = {n_heads}, got {d_model}")
        for name, value in values.items():
            if not name.endswith("_token_id") or value is None:
                continue
            if type(value) is not int or not 0 <= value < vocab_size:
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


@dataclass(frozen=True, kw_only=True)
class BERTConfig(_ModelConfig):
    """BERT-base, Devlin et al. 2019, §3."""

    vocab_size: int = 30_522
    n_layers: int = 12  # blocks
    d_model: int = 768  # width, a multiple of n_heads
    n_heads: int = 12
    d_ff: int = 3072  # width of the feed-forward layers
    n_positions: int = 512  # the longest row
    n_segments: int = 2
    activation: Activation = "gelu"
    tied: bool = True  # the last matrix of the MLM head is the token embedding
    dropout: float = 0.1  # share of activations set to 0 in training
    norm_eps: float = 1e-12
    pad_token_id: int = 0


@dataclass(frozen=True, kw_only=True)
class BERTLabelConfig(BERTConfig):
    """A BERT that is fine-tuned to choose among named labels."""

    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # the name of each class; they are saved too

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"labels must be at least 2 that differ, got {list(self.labels)}")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(_ModelConfig):
    """GPT-2 small, Radford et al. 2019, §2.3."""

    vocab_size: int = 50_257
    n_layers: int = 12  # blocks
    d_model: int = 768  # width, a multiple of n_heads
    n_heads: int = 12
    d_ff: int | None = None  # width of the feed-forward layers; None: 4 * d_model
    n_positions: int = 1024  # the longest row
    activation: Activation = "gelu_tanh"
    tied: bool = True  # the output head is the token embedding
    dropout: float = 0.1  # share of activations set to 0 in training
    norm_eps: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        super().__post_init__()


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
        super().__post_init__()
        check_numbers(self, "max_distance", least=1)
        if self.n_buckets % 4:
            raise ConfigError(f"n_buckets must be a multiple of 4, got {self.n_buckets}")
        if self.max_distance <= (half := self.n_buckets // 2):
            raise ConfigError(
                f"max_distance must exceed n_buckets / 2 = {half}, got {self.max_distance}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """How a model is trained; the defaults suit a small model on a laptop."""

    max_steps: int = 1000  # updates
    accumulation: int = 1  # batches per update; the mean is over all their counted labels
    lr: float = 1e-3  # the highest learning rate, reached after the warm-up
    min_lr: float = 0.0  # where cosine and linear end
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks
    embedding_lr_scale: float = 1.0  # times the rate, for embeddings and a head tied to one
    schedule: Schedule = "cosine"  # how the learning rate falls after the warm-up
    warmup_steps: int = 100  # updates in which the learning rate rises
    weight_decay: float = 0.1  # on matrices only; not on biases, norms and embeddings
    beta1: float = 0.9  # of AdamW, and the momentum of Muon
    beta2: float = 0.95  # of AdamW: the memory of squared gradients
    adam_eps: float = 1e-8  # AdamW divides by the root of those, plus this
    clip_norm: float = 1.0  # the longest gradient that is let through; 0: any
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: by the device, see `doctor`
    compile: bool = False  # torch.compile the model and its loss: slower to start, faster after
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: copy the model, or shard it
    device: str = "auto"  # auto: cuda, else mps, else cpu
    seed: int = 0  # of dropout; a command draws weights, Town and the order of the data by it too
    eval_every: int = 0  # updates; 0: only at the end, when there is validation data
    patience: int = 0  # evaluations without a lower loss, then stop with the best weights; 0: never
    save_every: int = 0  # updates; 0: only at the end, when there is a directory
    keep_checkpoints: int = 2  # how many of the newest stay
    non_finite: Literal["stop", "skip"] = "stop"  # what to do with a NaN or infinite gradient
    tensorboard: bool = False  # write events for TensorBoard beside metrics.jsonl

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "max_steps", "accumulation", "keep_checkpoints", least=1)
        check_numbers(self, "warmup_steps", "eval_every", "patience", "save_every", least=0)
        check_numbers(self, "seed", least=0, most=MAX_SEED)
        check_numbers(self, "lr", least=1e-12, most=1e3)
        check_numbers(self, "min_lr", "weight_decay", "clip_norm", least=0.0)
        check_numbers(self, "embedding_lr_scale", least=0.0, most=1e3)
        check_numbers(self, "beta1", "beta2", least=0.0, most=0.999999)
        check_numbers(self, "adam_eps", least=1e-20, most=1.0)
        steps, warmup = self.max_steps, self.warmup_steps
        if warmup > steps:
            raise ConfigError(f"warmup_steps must be at most max_steps = {steps}, got {warmup}")
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr must be at most lr = {self.lr}, got {self.min_lr}")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ConfigError(
                "optimizer = 'muon' needs whole matrices, which parallel = 'fsdp' has not: "
                "use parallel = 'ddp', or optimizer = 'adamw'"
            )
        if self.patience and not self.eval_every:
            raise ConfigError(f"patience = {self.patience} needs eval_every of at least 1, got 0")


@dataclass(frozen=True, kw_only=True)
class _TextConfig(Settings):
    """Where texts come from, and how their ids become batches."""

    data: Literal["town", "files", "hub"] = "town"  # town: generated by this package
    data_files: tuple[str, ...] = ()  # csv, json or text (one continuous text; for BERT documents)
    dataset: str | None = None  # a data set on the Hugging Face hub (downloads)
    vocab_size: int = 4096  # tokens, special ones included; fewer where the text has fewer
    batch_size: int = 16  # rows in a batch
    seed: int = 0  # of the data order and of Town

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "vocab_size", least=2)
        check_numbers(self, "batch_size", least=1)
        check_numbers(self, "seed", least=0, most=MAX_SEED)
        for name in (each.name for each in fields(self) if each.name.endswith("_files")):
            files = getattr(self, name)
            if isinstance(files, str):
                raise ConfigError(f"{name} must be several names, got {files!r}")
            if (self.data == "files") != bool(files):
                raise ConfigError(
                    f"{name} go with data = 'files' and only with it, "
                    f"got data = {self.data!r} and {len(files)} files"
                )
        if (self.data == "hub") != bool(self.dataset):
            raise ConfigError(
                f"dataset goes with data = 'hub' and only with it, "
                f"got data = {self.data!r} and dataset = {self.dataset!r}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(_TextConfig):
    """Which text a model reads, how it becomes ids, and how the ids become batches."""

    column: str | None = None  # with the text, of a csv or json file or of a hub data set
    documents: int = 60_000  # stories of Town to generate
    validation: float = 0.1  # share of files or of a hub data set kept for validation
    tokenizer: TokenizerKind = "bpe"  # trained on the text; all but text files: bpe, word or char
    context: int = 128  # tokens in a row

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "documents", least=1)
        check_numbers(self, "context", least=2)
        check_numbers(self, "validation", least=0.0001, most=0.9)


@dataclass(frozen=True, kw_only=True)
class BERTDataConfig(DataConfig):
    """The same for BERT, which reads pairs of segments with hidden tokens."""

    tokenizer: Literal["wordpiece"] = "wordpiece"  # trained on the text
    next_sentence: bool = True  # learn too whether the second segment follows the first
    whole_words: bool = False  # choose whole words to be hidden, not their pieces


@dataclass(frozen=True, kw_only=True)
class PairConfig(_TextConfig):
    """Which pairs of texts a translator learns from, and how they become batches."""

    validation_files: tuple[str, ...] = ()  # csv or json, as data_files; a hub set has its splits
    test_files: tuple[str, ...] = ()
    source: str = "en"  # the columns of files and hub data sets
    target: str = "de"
    pairs: int = 60_000  # sentences of Town to generate
    min_count: int = 1  # leave out pairs with a source word that is rarer than this in training
    held_out: int = 500  # pairs of Town in each validation and test set
    tokenizer: Literal["bpe", "word"] = "word"  # one vocabulary for both languages
    vocab_size: int = 8192
    batch_size: int = 32
    pool: int = 50  # batches whose pairs are sorted by length together; few: more mixed batches
    smoothing: float = 0.0  # of the labels, Vaswani et al. 2017, §5.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "pairs", "min_count", "held_out", "pool", least=1)
        check_numbers(self, "smoothing", least=0.0, most=1.0)
        if self.source == self.target:
            raise ConfigError(f"source and target must be two columns, got {self.source!r} twice")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(Settings):
    """How a pretrained model is fine-tuned; the defaults suit the course's own checkpoints."""

    epochs: int = 5  # passes over the training examples, in place of max_steps
    warmup_steps: int | None = None  # with epochs; None: a tenth of the updates
    batch_size: int = 16  # rows in a batch
    context: int = 160  # tokens in a row; a longer text is cut, but for qa, which has windows
    stride: int | None = None  # qa: tokens that two windows share; None: a quarter of the row
    longest_answer: int = 30  # qa: tokens
    dropout: float | None = None  # None: as in the checkpoint
    train_blocks: int | None = None  # only the last so many and the new head; 0: BERT is frozen
    frozen_lr: float = 1e-2  # in place of lr where only the new head is trained
    from_scratch: bool = False  # fresh weights, to see what pretraining is worth
    keep_best: bool = False  # evaluate after each epoch, keep the weights of the lowest loss

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "epochs", "batch_size", "longest_answer", least=1)
        check_numbers(self, "context", least=8)
        check_numbers(self, "warmup_steps", "stride", "train_blocks", least=0)
        check_numbers(self, "frozen_lr", least=1e-12, most=1e3)
        check_numbers(self, "dropout", least=0.0, most=1.0)
