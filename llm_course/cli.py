"""`llm-course ...`: every command is a dataclass, and its options are the fields.

tyro turns the dataclasses into a command line. On a machine without tyro a plain argparse parser
with the same options does, so that a training run needs nothing but torch and the tokenizers.
Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

    Options that are left out come from the preset. The directory given by --out holds the model in
    the Hugging Face layout, its tokenizer, checkpoints, metrics.jsonl and summary.json.
    """

    preset: Literal["cpu", "t4", "h200"] = "cpu"
    """cpu: 1-2 minutes on 2 cores; t4: Colab's free GPU; h200: the recorded runs."""
    out: str = "runs/gpt"
    """The run directory."""
    resume: bool = False
    """Go on from the newest verified checkpoint in --out, or start afresh where there is none."""
    data_files: tuple[str, ...] = ()
    """Text files (read as one continuous text), csv or json files (a document a row)."""
    dataset: str | None = None
    """A data set on the Hugging Face hub (downloads)."""
    column: str | None = None
    """The column with the text, for csv, json and hub data."""
    documents: int | None = None
    """Stories of Town to generate."""
    tokenizer: Literal["bpe", "wordpiece", "unigram", "word", "char"] | None = None
    """Trained on the training text."""
    vocab_size: int | None = None
    """Tokens in the vocabulary, special tokens included."""
    context: int | None = None
    """Tokens in a row."""
    batch_size: int | None = None
    """Rows in a batch."""
    n_layers: int | None = None
    d_model: int | None = None
    n_heads: int | None = None
    dropout: float | None = None
    max_steps: int | None = None
    """Updates."""
    lr: float | None = None
    """The highest learning rate."""
    warmup_steps: int | None = None
    accumulation: int | None = None
    """Batches per update."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    compile: Literal["yes", "no"] | None = None
    """torch.compile the model: slower to start, faster after."""
    device: str | None = None
    """cpu, cuda, mps; the default takes what is there."""
    eval_every: int | None = None
    """Updates between two evaluations."""
    patience: int | None = None
    """Stop after so many evaluations without improvement (0: never)."""
    save_every: int | None = None
    """Updates between two checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard events into --out."""
    seed: int = 0

    def run(self) -> None:
        from llm_course.runs.pretrain import pretrain_gpt_command

        options = dataclasses.asdict(self)
        if self.compile is not None:
            options["compile"] = self.compile == "yes"
        pretrain_gpt_command(**options)


@command("generate")
@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt with a trained model."""

    model: str = "runs/gpt/model"
    """A model directory with its tokenizer."""
    prompt: str = ""
    """The text to continue; empty: begin a new document."""
    max_new_tokens: int = 120
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
    device: str = "cpu"
    seed: int = 0

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
    from llm_course.errors import CheckpointError, RunInUseError

    try:
        chosen.run()
    except (
        ValueError,
        TypeError,
        OSError,
        CheckpointError,
        RunInUseError,
        FloatingPointError,
    ) as error:
        print(f"llm-course: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llm-course: interrupted", file=sys.stderr)
        return 130
    return 0


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
        raise SystemExit(f"{DESCRIPTION}\ncommands: {', '.join(COMMANDS)}")
    cls = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"llm-course {name}", description=cls.__doc__)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        _add_option(parser, field.name, hints[field.name], field.default)
    found = vars(parser.parse_args(words[len(name.split()) :]))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def _add_option(parser: argparse.ArgumentParser, name: str, hint: Any, default: Any) -> None:
    option = "--" + name.replace("_", "-")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if hint is bool:
        parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
    elif typing.get_origin(hint) is tuple:
        parser.add_argument(option, nargs="*", default=default)
    elif typing.get_origin(hint) is Literal:
        parser.add_argument(option, choices=typing.get_args(hint), default=default)
    else:
        parser.add_argument(option, type=hint, default=default)


if __name__ == "__main__":
    sys.exit(main())
