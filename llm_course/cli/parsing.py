"""From words to a command: by tyro, or by argparse where tyro is not installed."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import sys
import textwrap
import types
import typing
from itertools import pairwise
from typing import Any, Literal, NoReturn

from llm_course.cli.commands import COMMANDS

DESCRIPTION = (
    "Train, sample and examine the course's models. Begin with `llm-course doctor`, then "
    "`llm-course pretrain gpt --out runs/first`, then "
    "`llm-course generate --model runs/first/model --temperature 0.7`."
)


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
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _texts_in(base)
    return texts


def _texts_in(cls: type) -> dict[str, str]:
    """Those that stand in the class itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in pairwise(body.body):
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
