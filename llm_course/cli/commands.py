"""The commands: every one is a dataclass, and its options are the fields."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_course.errors import ConfigError

COMMANDS: dict[str, type] = {}


def command(name: str) -> Callable[[type], type]:
    """Register a dataclass as the command of that name, such as "pretrain gpt"."""

    def register(cls: type) -> type:
        COMMANDS[name] = cls
        return cls

    return register


@command("doctor")
@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine has: versions, processor, GPU, and the preset that suits it."""

    def run(self) -> None:
        from llm_course.recipes.doctor import report

        print(report())


@dataclass(frozen=True, kw_only=True)
class _Pretrain:
    """What all families are pretrained with."""

    preset: Literal["cpu", "t4", "h200"] = "cpu"
    """cpu: 1-2 minutes on 2 cores; t4: Colab's free GPU; h200: the recorded runs."""
    data: Literal["town", "files", "hub"] | None = None
    """town: stories written by this package; files and hub follow from --data-files, --dataset."""
    dataset: str | None = None
    """A data set on the Hugging Face hub (downloads)."""
    column: str | None = None
    """The column with the text, for csv, json and hub data."""
    documents: int | None = None
    """Stories of Town to generate."""
    validation: float | None = None
    """Share of files or of a hub data set kept for validation."""
    resume: bool = False
    """Go on from the newest verified checkpoint in --out, or start afresh where there is none."""
    vocab_size: int | None = None
    """Tokens in the vocabulary, special tokens included; fewer where the text has fewer."""
    context: int | None = None
    """Tokens in a row, and positions of the model."""
    batch_size: int | None = None
    """Rows in a batch."""
    n_layers: int | None = None
    """Blocks."""
    d_model: int | None = None
    """Width of the model, a multiple of --n-heads."""
    n_heads: int | None = None
    """Attention heads of a block."""
    dropout: float | None = None
    """Share of activations set to 0 in training; for small data, which are read many times."""
    max_steps: int | None = None
    """Updates."""
    accumulation: int | None = None
    """Batches per update: a larger batch in the same memory."""
    lr: float | None = None
    """The highest learning rate."""
    min_lr: float | None = None
    """Where the cosine and linear schedules end."""
    optimizer: Literal["adamw", "muon"] | None = None
    """muon: another rule for the matrices of the blocks; the rest is trained by AdamW."""
    embedding_lr_scale: float | None = None
    """The rate of the embeddings, in multiples of the learning rate."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] | None = None
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises."""
    weight_decay: float | None = None
    """Decay of the weights, of matrices only."""
    clip_norm: float | None = None
    """The longest gradient that is let through; 0: any."""
    non_finite: Literal["stop", "skip"] | None = None
    """What to do with an update whose gradient is NaN or infinite."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: what the device computes fastest without harm; `doctor` says what that is."""
    compile: Literal["yes", "no"] | None = None
    """torch.compile the model: slower to start, faster after."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Under torchrun: copy the model to each GPU, or shard it."""
    device: str | None = None
    """cpu, cuda, mps; the default takes what is there."""
    eval_every: int | None = None
    """Updates between two evaluations."""
    patience: int | None = None
    """Stop after so many evaluations without improvement (0: never)."""
    save_every: int | None = None
    """Updates between two checkpoints (0: only at the end)."""
    keep_checkpoints: int | None = None
    """How many of the newest stay."""
    tensorboard: bool = False
    """Write TensorBoard events into --out, beside metrics.jsonl, which is always written."""
    seed: int = 0
    """Of the weights, dropout, the order of the data and Town."""

    def options(self) -> dict[str, Any]:
        """The fields as the runs take them."""
        options = dataclasses.asdict(self)
        if self.compile is not None:
            options["compile"] = self.compile == "yes"
        return options


@command("pretrain gpt")
@dataclass(frozen=True, kw_only=True)
class PretrainGPT(_Pretrain):
    """Train a GPT from nothing: on Town (the default), on your own files or on a hub data set.

    Options that are left out (default None) come from the preset. The directory given by --out
    holds the model in the Hugging Face layout, its tokenizer, checkpoints, metrics.jsonl and
    summary.json. Ctrl-C saves and leaves; the same command with --resume goes on.

    Examples: `pretrain gpt --out runs/first`, then `pretrain gpt --out runs/mine --data-files
    my.txt --tokenizer char --save-every 200`. On 2 GPUs: `torchrun --nproc-per-node 2 -m llm_course
    pretrain gpt --out runs/two`.
    """

    out: str = "runs/gpt"
    """The run directory."""
    data_files: tuple[str, ...] = ()
    """Text files (read as one continuous text), csv or json files (a document a row)."""
    tokenizer: Literal["bpe", "wordpiece", "unigram", "word", "char"] | None = None
    """Trained on the training text. Town, csv, json and hub data need bpe, word or char."""

    def run(self) -> None:
        from llm_course.recipes.pretrain_gpt import pretrain_gpt_command

        pretrain_gpt_command(**self.options())


@command("pretrain bert")
@dataclass(frozen=True, kw_only=True)
class PretrainBERT(_Pretrain):
    """Train a BERT from nothing: hide tokens and predict them, and say which text follows.

    The directory given by --out is like that of `pretrain gpt`. The tokenizer is WordPiece.

    Examples: `pretrain bert --out runs/bert`, then `fill-mask --model runs/bert/model --text
    "The [MASK] was red."`. Your own text: `pretrain bert --out runs/mine --data-files my.txt`.
    """

    out: str = "runs/bert"
    """The run directory."""
    data_files: tuple[str, ...] = ()
    """Text files (a document is a paragraph), csv or json files (a document a row)."""
    next_sentence: bool = True
    """Also learn whether the second segment follows the first (documents of 2 sentences or more)"""
    whole_words: bool = False
    """Choose whole words to be hidden, not their pieces."""

    def run(self) -> None:
        from llm_course.recipes.pretrain_bert import pretrain_bert_command

        pretrain_bert_command(**self.options())


@command("finetune bert")
@dataclass(frozen=True, kw_only=True)
class FinetuneBERT:
    """Fine-tune a BERT for a task: on Town (the default) or on your own files.

    classify: a class for a text. pair: a class for two texts. tag: BIO tags for words (CoNLL files
    too). qa: the answer to a question in a text (SQuAD's forms). The directory given by --out is
    like that of `pretrain bert`; its summary.json has the scores of the test set, which is opened
    once.

    Examples: `finetune bert --task classify --checkpoint runs/bert/model`, then `predict --text
    "The day was good."`. Your own file: `finetune bert --task pair --data-files train.csv
    --text-column first --pair-column second --label-column same`.
    """

    task: Literal["classify", "tag", "qa", "pair"] = "classify"
    """On Town: sentiment, entities, questions, entailment."""
    checkpoint: str = "runs/bert/model"
    """A BERT with its tokenizer: a directory, or a name on the Hugging Face hub (downloads)."""
    out: str = "runs/finetune"
    """The run directory."""
    data_files: tuple[str, ...] = ()
    """Training files: csv, tsv (without quotes), json, jsonl; for tag also .conll."""
    dev_files: tuple[str, ...] = ()
    """To choose by; without them --dev-share of the training examples is split off."""
    test_files: tuple[str, ...] = ()
    """To report on, once, at the end."""
    text_column: str | None = None
    """The text; pair: the first text; tag: the words; qa: the context."""
    pair_column: str | None = None
    """pair: the second text; qa: the question."""
    label_column: str | None = None
    """The class; tag: the tags; qa: the answers."""
    examples: int = 2000
    """Training examples of Town, and a quarter as many in each other set."""
    dev_share: float = 0.1
    """Share of the training examples split off where there are no --dev-files."""
    train_blocks: int | None = None
    """Train only the last so many blocks and the new head; 0: BERT is frozen. Default: all."""
    from_scratch: bool = False
    """Fresh weights in place of the checkpoint's, to see what pretraining is worth."""
    epochs: int | None = None
    """Passes over the training examples."""
    max_steps: int | None = None
    """Updates, in place of --epochs."""
    keep_best: bool = False
    """Evaluate after each epoch, and end with the weights of the lowest development loss."""
    batch_size: int | None = None
    """Rows in a batch."""
    accumulation: int | None = None
    """Batches per update: a larger batch in the same memory."""
    context: int | None = None
    """Tokens in a row; the end of a longer text is cut, but for qa, which reads on in windows."""
    stride: int | None = None
    """qa: tokens that two windows share. Default: a quarter of the row."""
    longest_answer: int = 30
    """qa: tokens."""
    lr: float | None = None
    """The highest learning rate."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] | None = None
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises; with --epochs a tenth of them."""
    weight_decay: float | None = None
    """AdamW's decay, of matrices only."""
    clip_norm: float | None = None
    """The longest gradient that is let through; 0: any."""
    dropout: float | None = None
    """Share of activations set to 0 in training."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: what the device computes fastest without harm; `doctor` says what that is."""
    device: str | None = None
    """cpu, cuda, mps; the default takes what is there."""
    eval_every: int | None = None
    """Updates between two evaluations on the development set."""
    save_every: int | None = None
    """Updates between two checkpoints (0: only at the end)."""
    resume: bool = False
    """Go on from the newest verified checkpoint in --out, or start afresh where there is none."""
    seed: int = 0
    """Of the new head, dropout, the order of the data, the split and Town."""

    def run(self) -> None:
        from llm_course.recipes.finetune_command import finetune_command

        finetune_command(**dataclasses.asdict(self))


@command("predict")
@dataclass(frozen=True, kw_only=True)
class Predict:
    """Apply a fine-tuned BERT to a file or to one text; a line of JSON for each example.

    Examples: `predict --text "The day was good."`, `predict --model runs/qa/model --question
    "Who sold the ring?" --context "..."`, `predict --data-files new.csv --out predictions.jsonl`.
    """

    model: str = "runs/finetune/model"
    """A model directory that `finetune` has written."""
    data_files: tuple[str, ...] = ()
    """csv, tsv, json, jsonl; for tag also .conll. Labels are not needed."""
    text_column: str | None = None
    """As for finetune."""
    pair_column: str | None = None
    """As for finetune."""
    text: str | None = None
    """One text: to classify, to tag, or the first of a pair."""
    pair: str | None = None
    """The second text of a pair."""
    question: str | None = None
    """A question about --context."""
    context: str | None = None
    """The text that answers --question."""
    out: str | None = None
    """A file for the predictions; default: the terminal."""
    overwrite: bool = False
    """Replace --out where it is there already."""
    device: str = "auto"
    """auto: cuda, else mps, else cpu."""

    def run(self) -> None:
        from llm_course.recipes.predict import predict_command

        predict_command(**dataclasses.asdict(self))


@command("fill-mask")
@dataclass(frozen=True, kw_only=True)
class FillMask:
    """Say which tokens a BERT expects in place of [MASK].

    Example: `fill-mask --model runs/bert/model --text "Mara was a [MASK]."`.
    """

    model: str = "runs/bert/model"
    """A model directory with its tokenizer."""
    text: str = ""
    """A text with one or more [MASK]."""
    top: int = 5
    """How many tokens for each [MASK]."""
    device: str = "auto"
    """auto: cuda, else mps, else cpu."""

    def run(self) -> None:
        from llm_course.recipes.fill_mask import fill_mask_command

        fill_mask_command(**dataclasses.asdict(self))


@command("generate")
@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt with a trained model.

    Example: `generate --model runs/first/model --prompt "The baker" --temperature 0.7 --samples 3`.
    """

    model: str = "runs/gpt/model"
    """A model directory with its tokenizer."""
    prompt: str = ""
    """The text to continue; empty: begin a new document."""
    max_new_tokens: int = 120
    """At most so many; fewer where the story ends, or the model's context does."""
    temperature: float = 0.0
    """0: always the likeliest token (greedy)."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the smallest set of tokens that has this much probability."""
    num_beams: int = 1
    """More than 1: beam search."""
    samples: int = 1
    """How many continuations."""
    device: str = "auto"
    """auto: cuda, else mps, else cpu."""
    seed: int = 0
    """Of the draws, where --temperature is above 0."""

    def run(self) -> None:
        from llm_course.recipes.sample import generate_command

        generate_command(**dataclasses.asdict(self))


@command("record")
@dataclass(frozen=True, kw_only=True)
class Record:
    """Make a recorded run: a long run by one command, quoted by the book from results/NAME.json."""

    name: str = ""
    """Which run; see --list."""
    list: bool = False
    """List the runs, and which of them have a result."""
    results: str = "results"
    """Where the JSON files go."""
    out: str = "runs/record"
    """Where checkpoints stay: the same command goes on after an interruption."""
    tiny: bool = False
    """Seconds instead of minutes, for a test of the machinery: the result is marked as such."""
    data_dir: str = "data"
    """Where the text files of the runs lie."""

    def run(self) -> None:
        clone = Path(__file__).resolve().parents[2]
        if not (clone / "experiments").is_dir():
            raise ConfigError(f"record needs a clone of the course, {clone} holds no experiments/")
        sys.path.insert(0, str(clone))  # its scripts are not part of the installed package
        from experiments.record import record_command

        record_command(**dataclasses.asdict(self))
