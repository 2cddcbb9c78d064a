"""`llm-course ...`: every command is a dataclass, and its options are the fields.

tyro turns the dataclasses into a command line. On a machine without tyro a plain argparse parser
with the same options does, so that a training run needs nothing but torch and the tokenizers.
Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import os
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

COMMANDS: dict[str, type] = {}


def command(name: str) -> Callable[[type], type]:
    def register(cls: type) -> type:
        COMMANDS[name] = cls
        return cls

    return register


@command("doctor")
@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine has: versions, processor, GPU, and the preset that suits it."""

    def run(self) -> None:
        from llm_course.runs.doctor import report

        print(report())


@command("pretrain gpt")
@dataclass(frozen=True, kw_only=True)
class PretrainGPT:
    """Train a GPT from nothing: on Town (the default), on your own files or on a hub data set.

    Options that are left out (default None) come from the preset. The directory given by --out
    holds the model in the Hugging Face layout, its tokenizer, checkpoints, metrics.jsonl and
    summary.json. Ctrl-C saves and leaves; the same command with --resume goes on.

    Examples: `pretrain gpt --out runs/first`, then `pretrain gpt --out runs/mine --data-files
    my.txt --tokenizer char --save-every 200`. On 2 GPUs: `torchrun --nproc-per-node 2 -m llm_course
    pretrain gpt --out runs/two`.
    """

    preset: Literal["cpu", "t4", "h200"] = "cpu"
    """cpu: 1-2 minutes on 2 cores; t4: Colab's free GPU; h200: the recorded runs."""
    data: Literal["town", "files", "hub"] | None = None
    """town: stories written by this package; files and hub follow from --data-files, --dataset."""
    data_files: tuple[str, ...] = ()
    """Text files (read as one continuous text), csv or json files (a document a row)."""
    dataset: str | None = None
    """A data set on the Hugging Face hub (downloads)."""
    column: str | None = None
    """The column with the text, for csv, json and hub data."""
    documents: int | None = None
    """Stories of Town to generate."""
    validation: float | None = None
    """Share of files or of a hub data set kept for validation."""
    out: str = "runs/gpt"
    """The run directory."""
    resume: bool = False
    """Go on from the newest verified checkpoint in --out, or start afresh where there is none."""
    tokenizer: Literal["bpe", "wordpiece", "unigram", "word", "char"] | None = None
    """Trained on the training text. Town, csv, json and hub data need bpe, word or char."""
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
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] | None = None
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises."""
    weight_decay: float | None = None
    """AdamW's decay, of matrices only."""
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

    def run(self) -> None:
        from llm_course.runs.pretrain import pretrain_gpt_command

        options = dataclasses.asdict(self)
        if self.compile is not None:
            options["compile"] = self.compile == "yes"
        pretrain_gpt_command(**options)


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
        from llm_course.runs.sample import generate_command

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
        from llm_course.bench.record import record_command

        record_command(**dataclasses.asdict(self))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of ours are one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    chosen = parse(words)
    if chosen is None:
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        return _run(chosen)


def _run(chosen: Any) -> int:
    """Run a parsed command; its exit status."""
    try:
        chosen.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `llm-course ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not _explains_itself(error):
            raise
        notes = " ".join(getattr(error, "__notes__", ()))
        _say(f"{type(error).__name__}: {error} {notes}".rstrip())
        return 2
    return 0


def _explains_itself(error: Exception) -> bool:
    """Whether the message is all that a user needs; of a fault in the course he sees the place."""
    from llm_course.errors import CheckpointError, RunInUseError

    known = (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError)
    ours = isinstance(error, (*known, CheckpointError, RunInUseError))
    return ours or type(error).__name__ == "OutOfMemoryError"  # torch's, which may not be imported


def _say(message: str) -> None:
    print(f"llm-course: {message}", file=sys.stderr)


def _say_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as one line, without the place in the source that gave it."""
    _say(f"{category.__name__}: {message}")


def parse(words: list[str]) -> Any:
    """The command that the words name, as an instance of its dataclass."""
    try:
        import tyro
    except ImportError:
        return parse_plainly(words)
    tree: dict[str, Any] = {}
    for name, cls in COMMANDS.items():
        *parents, last = name.split()
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = cls
    return tyro.cli(_union(tree), args=words, prog="llm-course", description=DESCRIPTION)


DESCRIPTION = (
    "Train, sample and examine the course's models. Begin with `llm-course doctor`, then "
    "`llm-course pretrain gpt --out runs/first`, then "
    "`llm-course generate --model runs/first/model --temperature 0.7`."
)


def _union(tree: dict[str, Any]) -> Any:
    """tyro's form of a tree of subcommands."""
    import tyro

    members = []
    for name, node in tree.items():
        if isinstance(node, dict):
            inner = _union(node)
            doc = f"Commands: {', '.join(node)}."
            members.append(
                typing.Annotated[inner, tyro.conf.subcommand(name=name, description=doc)]
            )
        else:
            members.append(typing.Annotated[node, tyro.conf.subcommand(name=name)])
    if len(members) == 1:  # a union of one is no union: tyro would drop the subcommand's name
        members.append(typing.Annotated[None, tyro.conf.subcommand(name="none")])
    return typing.Union[tuple(members)]  # noqa: UP007


def parse_plainly(words: list[str]) -> Any:
    """The same command line by argparse, for machines without tyro."""
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    if name is None:
        return _no_command(words)
    cls = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"llm-course {name}",
        description=inspect.getdoc(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # tyro has none either
    )
    hints, helps = typing.get_type_hints(cls), _help_texts(cls)
    for field in dataclasses.fields(cls):
        _add_option(parser, field.name, hints[field.name], field.default, helps.get(field.name))
    found = vars(parser.parse_args(words[len(name.split()) :]))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def _no_command(words: list[str]) -> NoReturn:
    """Say which commands there are; that is an error unless it was asked for."""
    asked = bool({"-h", "--help"} & set(words))
    lines = [f"  {n:<14}{(inspect.getdoc(c) or '').splitlines()[0]}" for n, c in COMMANDS.items()]
    text = "\n".join(["usage: llm-course COMMAND ...", "", DESCRIPTION, "", *lines])
    if not asked and words:
        near = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1)
        text += f"\n\nunknown command {' '.join(words[:2])!r}"
        text += f", did you mean {near[0]!r}?" if near else ""
    print(text, file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)


def _help_texts(cls: type) -> dict[str, str]:
    """The strings under the fields of a dataclass, which tyro reads from the source too."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:]):
        if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
            continue
        if isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = str(text.value.value).replace("%", "%%")
    return texts


def _add_option(
    parser: argparse.ArgumentParser, name: str, hint: Any, default: Any, text: str | None
) -> None:
    option = "--" + name.replace("_", "-")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if hint is bool:
        parser.add_argument(
            option, action=argparse.BooleanOptionalAction, default=default, help=text
        )
        return
    more: dict[str, Any] = {"default": default, "help": f"{text or ''} (default: {default})"}
    if typing.get_origin(hint) is tuple:
        parser.add_argument(option, nargs="*", **more)
    elif typing.get_origin(hint) is Literal:
        parser.add_argument(option, choices=typing.get_args(hint), **more)
    else:
        parser.add_argument(option, type=hint, **more)


if __name__ == "__main__":
    sys.exit(main())
