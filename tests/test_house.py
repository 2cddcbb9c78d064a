"""The house: budgets of the folders, files and functions, unique names, no parameter for nobody.

The figures are those of CONTRIBUTING.md; raising one is a commit of its own with its reason.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from book_tools import ROOT

# In lines. The aim for llm_course is 9,300: what the fine-tuning, the readers and the runs hold
# above it goes when each is written anew, and the figure falls with it.
BUDGETS = {"llm_course": 11_357, "llm_lab": 5_300, "llm_town": 3_000, "experiments": 1_600}
LONGEST_FILE = 350
LONGEST_FUNCTION = 40  # lines without the docstring
MOST_PARAMETERS = 7  # of a constructor

# A function that is longer stands here with its reason; an entry that is not needed fails.
LONG_FUNCTIONS: dict[str, str] = {}

# Parameters that no caller of the repository passes, each with its reason.
STREAM = "a public name, the arguments of `generate`; chapter 14 streams"
READERS = "an option of the readers that the command line is to have"
PUBLIC_PARAMETERS: dict[str, str] = {
    "llm_course/data/corpora.py:read_documents(encoding)": READERS,
    "llm_course/data/corpora.py:read_documents(errors)": READERS,
    "llm_course/data/example_files.py:read_examples(encoding)": READERS,
    "llm_course/generation/decode.py:generate_stream(attention_mask)": STREAM,
    "llm_course/generation/decode.py:generate_stream(eos_token_id)": STREAM,
    "llm_course/generation/decode.py:generate_stream(generator)": STREAM,
    "llm_course/generation/decode.py:generate_stream(pad_token_id)": STREAM,
    "llm_course/generation/decode.py:generate_stream(temperature)": STREAM,
    "llm_course/generation/decode.py:generate_stream(top_k)": STREAM,
    "llm_course/generation/decode.py:generate_stream(top_p)": STREAM,
    "llm_course/generation/sampling.py:next_token_probabilities(top_k)": STREAM,
    "llm_course/generation/sampling.py:next_token_probabilities(top_p)": STREAM,
    "llm_course/losses/chunked.py:chunked_cross_entropy(rows)": "tests need small chunks",
    "llm_course/recipes/pretrain_bert.py:prepare_bert(start)": "given by the command's settings",
    "llm_course/tokenizers/scratch/wordpiece.py:WordPiece.__init__(merges)": "set by its training",
    "llm_course/training/scores.py:calibration_error(n_bins)": "chapter 11 draws the ten bins",
}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


PACKAGE = [path for folder in BUDGETS for path in files(folder)]


# Sizes


@pytest.mark.parametrize("folder", BUDGETS)
def test_a_folder_keeps_its_budget(folder: str) -> None:
    assert 0 < sum(map(length, files(folder))) <= BUDGETS[folder]


def test_no_file_is_longer_than_the_limit() -> None:
    assert not {relative(p): n for p in PACKAGE if (n := length(p)) > LONGEST_FILE}


def functions(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(name, definition); methods as Class.name, functions in functions as outer.inner."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                if isinstance(node, ast.FunctionDef):
                    yield prefix + node.name, node
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(module.body, "")


def lines_of(node: ast.FunctionDef) -> int:
    """From `def` to the end, without the docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def test_lengths_are_counted_without_docstrings() -> None:
    source = 'class A:\n    def f(self):\n        """Two\n        lines."""\n        return 1\n'
    counted = [(name, lines_of(node)) for name, node in functions(ast.parse(source))]
    assert counted == [("A.f", 2)]


def test_functions_are_short_or_have_a_reason() -> None:
    long = {
        f"{relative(path)}:{name}": n
        for path in PACKAGE
        for name, node in functions(parse(path))
        if (n := lines_of(node)) > LONGEST_FUNCTION
    }
    assert long.keys() == LONG_FUNCTIONS.keys(), long
    assert all(len(reason) > 20 for reason in LONG_FUNCTIONS.values())


def parameters(node: ast.FunctionDef) -> list[str]:
    """All names but `self` and `cls`, stars included."""
    arguments = node.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    starred = [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [name for name in (*named, *starred) if name not in ("self", "cls")]


def test_constructors_have_few_parameters() -> None:
    """Those of dataclasses are their fields and not meant; a settings object is one parameter."""
    many = {
        f"{relative(path)}:{name}": n
        for path in PACKAGE
        for name, node in functions(parse(path))
        if node.name == "__init__" and (n := len(parameters(node))) > MOST_PARAMETERS
    }
    assert not many


# Names


@pytest.mark.parametrize("folder", BUDGETS)
def test_a_file_name_is_there_once(folder: str) -> None:
    names = Counter(path.name for path in files(folder) if path.name != "__init__.py")
    assert not [name for name, n in names.items() if n > 1]


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    everything = [*PACKAGE, *files("tests"), *files("tools")]
    assert not [relative(path) for path in everything if path.name in drawers]


# A parameter exists when two callers pass different values; the default is one of them


def optional_parameters(module: ast.Module) -> Iterator[tuple[str, str, int | None, str]]:
    """(name that is called, parameter, its place or None, Class.function) of public functions."""
    for name, node in functions(module):
        owner, _, own = name.rpartition(".")
        if own == "forward" or (own.startswith("_") and own != "__init__"):
            continue  # forward is called through the module
        called = owner.rpartition(".")[2] if own == "__init__" else own
        placed = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        is_method = bool(placed) and placed[0] in ("self", "cls")
        first = len(placed) - len(node.args.defaults)
        for i, parameter in enumerate(placed[first:], first):
            yield called, parameter, i - is_method, name
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults):
            if default is not None:
                yield called, argument.arg, None, name


class Calls:
    """Which parameters the calls of each name pass: by name, by place, or all by a star."""

    def __init__(self, modules: list[ast.Module]) -> None:
        self.named: dict[str, set[str]] = defaultdict(set)
        self.placed: dict[str, int] = defaultdict(int)
        self.starred: set[str] = set()
        for module in modules:
            for node in ast.walk(module):
                if isinstance(node, ast.Call):
                    self._add(node)

    def _add(self, call: ast.Call) -> None:
        name, arguments = self._called(call.func), call.args
        if name == "partial" and arguments:
            name, arguments = self._called(arguments[0]), arguments[1:]
        self.named[name].update(k.arg for k in call.keywords if k.arg)
        self.placed[name] = max(self.placed[name], len(arguments))
        if any(k.arg is None for k in call.keywords) or any(
            isinstance(a, ast.Starred) for a in arguments
        ):
            self.starred.add(name)

    @staticmethod
    def _called(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return node.attr
        return node.id if isinstance(node, ast.Name) else ""

    def pass_(self, called: str, parameter: str, place: int | None) -> bool:
        if called in self.starred or parameter in self.named[called]:
            return True
        return place is not None and self.placed[called] > place


def unused(defining: list[tuple[str, ast.Module]], calls: Calls) -> list[str]:
    return [
        f"{where}:{name}({parameter})"
        for where, module in defining
        for called, parameter, place, name in optional_parameters(module)
        if not calls.pass_(called, parameter, place)
    ]


def test_a_parameter_that_nobody_passes_is_found() -> None:
    source = "def f(a, b=1, *, c=2, d=3): ...\nclass A:\n    def __init__(self, e=4, g=5): ...\n"
    calls = Calls([ast.parse("f(1, 2, d=4)\nA(6)\n")])
    assert unused([("x", ast.parse(source))], calls) == ["x:f(c)", "x:A.__init__(g)"]


def test_every_optional_parameter_is_passed_by_some_caller() -> None:
    """Tests do not count as callers, and the command line calls by the fields of its settings."""
    callers = [*PACKAGE, *files("notebooks"), *files("tools")]
    calls = Calls([parse(path) for path in callers])
    defining = [(relative(path), parse(path)) for path in files("llm_course")]
    found = set(unused(defining, calls))
    assert found == PUBLIC_PARAMETERS.keys(), sorted(found ^ PUBLIC_PARAMETERS.keys())
    assert all(len(reason) > 10 for reason in PUBLIC_PARAMETERS.values())
