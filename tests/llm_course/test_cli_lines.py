"""Every command line that the book, the README and the results print: it parses, and means this."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from book_tools import ROOT

from llm_course.cli import COMMANDS, parse
from llm_course.configs import BERTDataConfig, DataConfig, GPTConfig
from llm_course.errors import ConfigError
from llm_course.presets import find_preset

# What is not an option's default. `options` are settings of the preset that were given.
PRINTED: dict[str, dict[str, Any]] = {
    "doctor": {},
    "pretrain gpt --out runs/first": {"out": "runs/first"},
    "pretrain gpt --out runs/town": {"out": "runs/town"},
    "pretrain gpt --data-files my.txt --out runs/mine": {
        "out": "runs/mine",
        "options": {"data_files": ("my.txt",)},
    },
    "pretrain gpt --data-files data/tinyshakespeare.txt --out runs/shakespeare": {
        "out": "runs/shakespeare",
        "options": {"data_files": ("data/tinyshakespeare.txt",)},
    },
    "generate --model runs/first/model --temperature 0.7": {
        "model": "runs/first/model",
        "temperature": 0.7,
    },
    "pretrain bert --out runs/bert": {"out": "runs/bert"},
    "pretrain bert --preset t4 --dataset roneneldan/TinyStories --out runs/tiny-stories": {
        "preset": "t4",
        "out": "runs/tiny-stories",
        "options": {"dataset": "roneneldan/TinyStories"},
    },
    "pretrain bert --data-files data/gutenberg_en/*.txt data/wikitext2/valid.txt "
    "--out runs/books": {
        "out": "runs/books",
        "options": {"data_files": ("data/gutenberg_en/*.txt", "data/wikitext2/valid.txt")},
    },
    "pretrain bert --preset h200 --no-next-sentence --whole-words --out runs/town": {
        "preset": "h200",
        "out": "runs/town",
        "options": {"next_sentence": False, "whole_words": True},
    },
    'fill-mask --model runs/bert/model --text "Mara was a [MASK]."': {
        "model": "runs/bert/model",
        "text": "Mara was a [MASK].",
    },
    'fill-mask --model runs/bert/model --text "The [MASK] was red."': {
        "model": "runs/bert/model",
        "text": "The [MASK] was red.",
    },
    "finetune bert --task classify --checkpoint runs/bert/model --out runs/mood": {
        "task": "classify",
        "checkpoint": "runs/bert/model",
        "out": "runs/mood",
    },
    "finetune bert --task classify --checkpoint results/bert_town_cpu --out runs/mood --epochs 5": {
        "task": "classify",
        "checkpoint": "results/bert_town_cpu",
        "out": "runs/mood",
        "options": {"epochs": 5},
    },
    "finetune bert --task pair --checkpoint runs/bert/model --data-files train.csv "
    "--dev-files dev.csv --test-files test.csv --text-column first --pair-column second "
    "--label-column same": {
        "task": "pair",
        "checkpoint": "runs/bert/model",
        "data_files": ("train.csv",),
        "dev_files": ("dev.csv",),
        "test_files": ("test.csv",),
        "text_column": "first",
        "pair_column": "second",
        "label_column": "same",
    },
    'predict --model runs/mood/model --text "Mara was happy, because the soup was good."': {
        "model": "runs/mood/model",
        "text": "Mara was happy, because the soup was good.",
    },
    "record --list": {"list": True},
}


def command_lines(path: Path) -> Iterator[str]:
    """The lines of code blocks and the `spans` that begin with the program's name."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = f"`{json.loads(text).get('command', '')}`"
    if path.suffix == ".py":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    spans = re.findall(r"`llm-course ([^`]+)`", text)
    blocks = re.findall(r"^\s*llm-course (.+)$", re.sub(r"`[^`\n]+`", "", text), re.MULTILINE)
    yield from (" ".join(line.split()) for line in spans + blocks)


def printed() -> dict[str, str]:
    """Each command line that is printed anywhere, and where."""
    paths = [ROOT / "README.md", *(ROOT / "book").glob("*.md"), *ROOT.glob("notebooks/*.py")]
    found = [(line, path) for path in paths for line in command_lines(path)]
    found += [(line, path) for path in ROOT.glob("results/*.json") for line in command_lines(path)]
    return {line: path.name for line, path in found}


def meant(line: str) -> dict[str, Any]:
    """What a command line says beyond the defaults of its command."""
    name = next(n for n in COMMANDS if line.split()[: len(n.split())] == n.split())
    function, arguments = parse(shlex.split(line))
    own, wanted, _ = COMMANDS[name]
    assert function == wanted
    plain = vars(own()) | {"options": {}}
    return {key: value for key, value in arguments.items() if value != plain[key]}


@pytest.mark.parametrize("line", PRINTED)
def test_a_printed_command_line_means_what_it_meant(line: str) -> None:
    expected = PRINTED[line]
    own, _, family = COMMANDS[next(n for n in COMMANDS if line.startswith(n))]
    defaults = {key: value for key, value in expected.items() if value == vars(own()).get(key)}
    found = meant(line)
    assert found | defaults == expected
    if family in ("gpt", "bert"):  # and its settings hold together
        find_preset(family, expected.get("preset", "cpu")).with_options(found.get("options", {}))


def test_no_printed_command_line_is_missing_above() -> None:
    lines = printed()
    records = {line for line in lines if re.fullmatch(r"record --name \w+", line)}
    assert len(records) > 10
    for line in records:
        assert meant(line) == {"name": line.split()[-1]}
    assert lines.keys() - records == PRINTED.keys()


def test_command_lines_are_found_in_blocks_and_in_spans(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text(
        "# See `llm-course record\n# --list` and `other`.\n# ```\n"
        "# llm-course predict \\\n#     --text a\n# ```\n"
    )
    assert list(command_lines(page)) == ["record --list", "predict --text a"]


def test_one_seed_and_one_vocabulary_reach_every_setting_that_has_them() -> None:
    _, arguments = parse(["pretrain", "gpt", "--seed", "3", "--vocab-size", "900"])
    chosen = find_preset("gpt", "cpu").with_options(arguments["options"])
    assert (chosen.data.seed, chosen.train.seed) == (3, 3)
    assert chosen.data.vocab_size == 900
    assert DataConfig(seed=3).seed == 3  # both stay fields of their own in Python
    assert GPTConfig(vocab_size=900).vocab_size == 900


def test_what_follows_from_an_option_follows() -> None:
    chosen = find_preset("bert", "cpu").with_options(
        {"d_model": 64, "context": 32, "max_steps": 9, "lr": 1e-5, "dataset": "a/b"}
    )
    assert (chosen.model.d_ff, chosen.model.n_positions) == (256, 32)
    assert (chosen.train.warmup_steps, chosen.train.min_lr) == (9, 1e-5)
    assert (chosen.data.data, chosen.data.dataset) == ("hub", "a/b")
    assert isinstance(chosen.data, BERTDataConfig)
    given = {"d_ff": 96, "n_positions": 40, "warmup_steps": 2, "min_lr": 0.0}
    said = find_preset("bert", "cpu").with_options(
        {"d_model": 64, "context": 32, "max_steps": 9, "lr": 1e-5} | given
    )
    found = vars(said.model) | vars(said.train)
    assert {name: found[name] for name in given} == given  # what was said is not overruled
    with pytest.raises(ConfigError, match="unknown options: n_layer"):
        find_preset("bert", "cpu").with_options({"n_layer": 3})


@pytest.mark.parametrize("words", [["--d-ff", "512"], ["--d_ff=512"]])
def test_an_option_with_the_presets_own_value_counts_as_given(words: list[str]) -> None:
    """--d-ff 512 is the preset's value, yet it must win over what --d-model would make it."""
    _, arguments = parse(["pretrain", "bert", "--d-model", "64", *words])
    assert arguments["options"] == {"d_model": 64, "d_ff": 512}
    _, arguments = parse(["pretrain", "bert", "--d-model", "64"])
    assert arguments["options"] == {"d_model": 64}
