"""`llm-course COMMAND ...`: every option is a field of a dataclass, and tyro reads them.

A command has options of its own, the classes below. One that trains has those of its preset's
settings too (`configs.py`): the preset's value is the default, the comment beside the field the
help. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_type_hints

import tyro

from llm_course import errors
from llm_course.presets import PRESETS

DESCRIPTION = (
    "Train, sample and examine the course's models. Begin with `llm-course doctor`, then "
    "`llm-course pretrain gpt --out runs/first`, then "
    "`llm-course generate --model runs/first/model --temperature 0.7`."
)
# Errors whose message is all that a user needs.
EXPLAINED = (
    *(ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError),
    *(errors.CheckpointError, errors.HeldOutError, errors.RunInUseError),
)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine has: versions, processor, GPU, and the preset that suits it."""


@dataclass(frozen=True, kw_only=True)
class PretrainGPT:
    """Train a GPT from nothing: on Town (the default), on your own files or on a hub data set.

    The defaults below are the preset's. --out holds the model in the Hugging Face layout, its
    tokenizer, checkpoints, metrics.jsonl and summary.json. Ctrl-C saves; --resume goes on.

    Examples: `pretrain gpt --data-files my.txt --tokenizer char --out runs/mine --save-every 200`;
    on 2 GPUs `torchrun --nproc-per-node 2 -m llm_course pretrain gpt --out runs/two`.
    """

    preset: Literal["cpu", "t4", "h200"] = "cpu"  # t4: Colab's free GPU; h200: the recorded runs
    start: Literal["auto", "paper", "lab"] = "auto"  # of the weights; lab: the course's, for Town
    out: str = "runs/gpt"  # the run directory
    resume: bool = False  # go on from the newest verified checkpoint in --out, or start afresh


@dataclass(frozen=True, kw_only=True)
class PretrainBERT(PretrainGPT):
    """Train a BERT from nothing: hide tokens and predict them, and say which text follows.

    Examples: `pretrain bert --out runs/bert`, then `fill-mask --model runs/bert/model --text
    "The [MASK] was red."`. Your own text: `pretrain bert --out runs/mine --data-files my.txt`.
    """

    out: str = "runs/bert"  # the run directory


@dataclass(frozen=True, kw_only=True)
class FinetuneBERT:
    """Fine-tune a BERT for a task: on Town (the default) or on your own files.

    classify: a class for a text. pair: a class for two texts. tag: BIO tags for words (CoNLL files
    too). qa: the answer to a question in a text (SQuAD's forms). --out holds what `pretrain bert`
    writes; its summary.json has the scores of the test set, which is opened once. The defaults
    below suit the course's own checkpoints; published ones (more than 20 million parameters) get
    3 epochs, 32 rows of 128 tokens, a rate of 5e-5, frozen 1e-3, and their own dropout.

    Examples: `finetune bert --task classify --checkpoint runs/bert/model`, then `predict --text
    "The day was good."`. Your own file: `finetune bert --task pair --data-files train.csv
    --text-column first --pair-column second --label-column same`.
    """

    task: Literal["classify", "tag", "qa", "pair"] = "classify"  # Town has all four
    checkpoint: str = "runs/bert/model"  # a directory, or a name on the hub (downloads)
    out: str = "runs/finetune"  # the run directory
    resume: bool = False  # go on from the newest verified checkpoint in --out, or start afresh
    data_files: tuple[str, ...] = ()  # csv, tsv (without quotes), json, jsonl; tag: .conll too
    dev_files: tuple[str, ...] = ()  # to choose by; without them --dev-share is split off
    test_files: tuple[str, ...] = ()  # to report on, once, at the end
    text_column: str | None = None  # the text; pair: the first one; tag: the words; qa: the context
    pair_column: str | None = None  # pair: the second text; qa: the question
    label_column: str | None = None  # the class; tag: the tags; qa: the answers
    examples: int = 2000  # of Town, to train on; a quarter as many in each other set
    dev_share: float = 0.1  # of the training examples, where there are no --dev-files


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Apply a fine-tuned BERT to a file or to one text; a line of JSON for each example.

    Examples: `predict --text "The day was good."`, `predict --model runs/qa/model --question
    "Who sold the ring?" --context "..."`, `predict --data-files new.csv --out predictions.jsonl`.
    """

    model: str = "runs/finetune/model"  # a model directory that `finetune` has written
    data_files: tuple[str, ...] = ()  # csv, tsv, json, jsonl; tag: .conll too; without labels
    text_column: str | None = None  # as for finetune
    pair_column: str | None = None  # as for finetune
    text: str | None = None  # one text: to classify, to tag, or the first of a pair
    pair: str | None = None  # the second text of a pair
    question: str | None = None  # a question about --context
    context: str | None = None  # the text that answers --question
    out: str | None = None  # a file for the predictions; default: the terminal
    overwrite: bool = False  # replace --out where it is there already
    device: str = "auto"  # auto: cuda, else mps, else cpu


@dataclass(frozen=True, kw_only=True)
class FillMask:
    """Say which tokens a BERT expects in place of [MASK].

    Example: `fill-mask --model runs/bert/model --text "Mara was a [MASK]."`.
    """

    model: str = "runs/bert/model"  # a model directory with its tokenizer
    text: str = ""  # a text with one or more [MASK]
    top: int = 5  # how many tokens for each [MASK]
    device: str = "auto"  # auto: cuda, else mps, else cpu


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt with a trained model.

    Example: `generate --model runs/first/model --prompt "The baker" --temperature 0.7 --samples 3`.
    """

    model: str = "runs/gpt/model"  # a model directory with its tokenizer
    prompt: str = ""  # the text to continue; empty: begin a new document
    max_new_tokens: int = 120  # fewer where the story ends, or the model's context does
    temperature: float = 0.0  # 0: always the likeliest token (greedy)
    top_k: int | None = None  # draw from the k likeliest tokens only
    top_p: float | None = None  # draw from the smallest set of tokens that has this probability
    num_beams: int = 1  # more than 1: beam search
    samples: int = 1  # how many continuations
    device: str = "auto"  # auto: cuda, else mps, else cpu
    seed: int = 0  # of the draws, where --temperature is above 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Make a recorded run: a long run by one command, quoted by the book from results/NAME.json."""

    name: str = ""  # which run; see --list
    list: bool = False  # list the runs, and which of them have a result
    results: str = "results"  # where the JSON files go
    out: str = "runs/record"  # where checkpoints stay: the same command goes on from them
    tiny: bool = False  # seconds instead of minutes, to test the machinery; marked as such
    data_dir: str = "data"  # where the text files of the runs lie


# A command: its own options, the function that takes them, and the family of its presets, whose
# settings are options too.
COMMANDS: dict[str, tuple[type, str, str | None]] = {
    "doctor": (Doctor, "recipes.doctor:doctor_command", None),
    "pretrain gpt": (PretrainGPT, "recipes.pretrain_gpt:pretrain_gpt_command", "gpt"),
    "pretrain bert": (PretrainBERT, "recipes.pretrain_bert:pretrain_bert_command", "bert"),
    "finetune bert": (FinetuneBERT, "recipes.finetune:finetune_command", "finetune"),
    "predict": (Predict, "recipes.predict:predict_command", None),
    "fill-mask": (FillMask, "recipes.fill_mask:fill_mask_command", None),
    "generate": (Generate, "recipes.sample:generate_command", None),
    "record": (Record, "cli:record_command", None),
}


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The function of a command, and its arguments.

    Where there are presets, `options` are the settings that were given, without the defaults.
    """
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    if name is None:
        _no_command(words)
    (own, function, family), words = COMMANDS[name], words[len(name.split()) :]
    groups = _options(own=own(), **_settings(family, words))
    mine = groups.pop("own")
    parts = [(g, cls := make_dataclass(g, each, frozen=True), cls()) for g, each in groups.items()]
    options = make_dataclass(name, [*mine, *parts], kw_only=True)
    options.__doc__ = inspect.getdoc(own)
    found = tyro.cli(tyro.conf.OmitArgPrefixes[options], args=words, prog=f"llm-course {name}")
    arguments = {option: getattr(found, option) for option, *_ in mine}
    if family:
        there = {word.split("=")[0].replace("-", "_") for word in words}
        values = {k: v for group in groups for k, v in vars(getattr(found, group)).items()}
        given = {k: v for k, v in values.items() if there & {f"__{k}", f"__no_{k}"}}
        arguments["options"] = given
    return function, arguments


def _settings(family: str | None, words: list[str]) -> dict[str, Any]:
    """The settings of the preset that the words name: its model, data and training."""
    if family is None:
        return {}
    presets = PRESETS[family]
    named = re.search(r"--preset[ =](\w+)", " ".join(words))
    preset = presets.get(named[1] if named else "", next(iter(presets.values())))
    return {part: values for part, values in vars(preset).items() if values is not None}


def _options(**groups: Any) -> dict[str, list[Any]]:
    """The fields of each dataclass: its values are the defaults, the comments beside them the help.

    A field that two of them have is an option of the last. The tokenizer sets the ids of tokens.
    """
    owner = {each.name: group for group, values in groups.items() for each in fields(values)}
    found = {}
    for group, values in groups.items():
        cls = type(values)
        source = "".join(inspect.getsource(c) for c in reversed(cls.__mro__) if is_dataclass(c))
        helps = dict(re.findall(r"^    (\w+): .*?  # (.+)$", source, re.MULTILINE))
        found[group] = [
            (n, Annotated[hint, tyro.conf.arg(help=helps.get(n))], getattr(values, n))
            for n, hint in get_type_hints(cls).items()
            if owner[n] == group and not n.endswith("_token_id")
        ]
    return found


def _no_command(words: Sequence[str]) -> NoReturn:
    """Say which commands there are; that is an error unless it was asked for."""
    asked = bool({"-h", "--help"} & set(words))
    lines = [f"  {n:<14}{(own.__doc__ or '').splitlines()[0]}" for n, (own, *_) in COMMANDS.items()]
    text = "\n".join(["usage: llm-course COMMAND ...", "", DESCRIPTION, "", *lines])
    if not asked and words:
        name = " ".join(words[:2])
        text += f"\n\nunknown command {name!r}{errors.did_you_mean(name, COMMANDS)}"
    print(text, file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)


def record_command(**options: Any) -> None:
    """The recorded runs are scripts of a clone, not of the installed package."""
    clone = Path(__file__).resolve().parents[1]
    if not (clone / "experiments").is_dir():
        raise errors.ConfigError(f"record needs a clone of the course, {clone} has no experiments/")
    sys.path.insert(0, str(clone))
    from experiments import record

    record.record_command(**options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of ours are one line on stderr and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    with warnings.catch_warnings():
        warnings.showwarning = lambda said, kind, *place, **_: _say(f"{kind.__name__}: {said}")
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:
    """Parse a command and run it; its exit status."""
    try:
        function, options = parse(words)
        module, name = function.split(":")
        getattr(import_module(f"llm_course.{module}"), name)(**options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `llm-course ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Torch's may not be imported. Of a fault in the course the user sees the place.
        if not isinstance(error, EXPLAINED) and type(error).__name__ != "OutOfMemoryError":
            raise
        notes = " ".join(getattr(error, "__notes__", ()))
        _say(f"{type(error).__name__}: {error} {notes}".rstrip())
        return 2
    return 0


def _say(message: str) -> None:
    print(f"llm-course: {message}", file=sys.stderr)
