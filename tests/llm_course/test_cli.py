"""The command line: help without torch, the options of the settings, whole runs, clear errors."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_course.cli import COMMANDS, main, parse
from llm_course.presets import find_preset


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["pretrain", "gpt", "--help"],
        ["finetune", "bert", "--help"],
        ["predict", "--help"],
        ["record", "--help"],
    ],
)
def test_help_needs_no_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom llm_course.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as done:\n    assert not done.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    assert not done.value.code
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_has_the_comments_of_the_settings_and_the_values_of_the_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(capsys, "pretrain", "gpt")
    for phrase in ("Colab's free GPU", "newest verified checkpoint", "continuous text"):
        assert phrase in text
    for preset in ("cpu", "t4", "h200"):
        chosen = find_preset("gpt", preset)
        text = help_of(capsys, "pretrain", "gpt", f"--preset={preset}")
        for name, value in (
            ("--d-model INT", chosen.model.d_model),
            ("--vocab-size INT", chosen.data.vocab_size),
            ("--max-steps INT", chosen.train.max_steps),
        ):
            assert re.search(rf"{name} [^(]*\(default: {value}\)", text), (name, value)


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_every_setting_of_a_preset_is_one_option(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, "pretrain", family)
    options = re.findall(r"--([a-z0-9-]+)[ ,]", text)
    preset = find_preset(family, "cpu")
    names = {f.name for part in vars(preset).values() for f in dataclasses.fields(part)}
    names = {name for name in names if not name.endswith("_token_id")}  # of the tokenizer
    assert {name.replace("_", "-") for name in names} <= set(options)
    for name in ("seed", "vocab-size"):
        assert len(re.findall(rf"--{name} INT", text)) == 1


def test_a_misspelt_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["pretrain", "gpt", "--max-step", "3"])
    assert refused.value.code == 2
    assert "--max-steps" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main(["pretrian", "gpt"])
    assert refused.value.code == 2
    assert "did you mean 'pretrain gpt'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_function_of_each_command_takes_its_options(name: str) -> None:
    own, function, family = COMMANDS[name]
    module, called = function.split(":")
    taken = inspect.signature(getattr(importlib.import_module(f"llm_course.{module}"), called))
    given = {field.name for field in dataclasses.fields(own)} | ({"options"} if family else set())
    taken.bind(**dict.fromkeys(given))


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(SystemExit) as refused:
        parse([*name.split(), "--no-such-option", "1"])
    assert refused.value.code == 2


def test_doctor_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert "--preset" in printed


TINY = ["--n-layers", "1", "--d-model", "16", "--n-heads", "2", "--batch-size", "4"]
TINY += ["--max-steps", "4", "--warmup-steps", "1", "--device", "cpu", "--precision", "fp32"]


def test_pretrain_then_generate_on_town(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["pretrain", "gpt", "--out", str(out), "--documents", "200", "--vocab-size", "600"]
    assert main([*words, *TINY, "--save-every", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["floor_ratio"] > 1
    assert summary["parameters"] > 0
    assert summary["test"] == {}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 4
    capsys.readouterr()

    words = ["generate", "--model", str(out / "model"), "--temperature", "1", "--samples", "2"]
    assert main([*words, "--max-new-tokens", "10"]) == 0
    assert "--- 2 ---" in capsys.readouterr().out

    assert main(["pretrain", "gpt", "--out", str(out), *TINY]) == 2  # would overwrite
    assert "--resume" in capsys.readouterr().err


def test_pretrain_on_a_text_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    out = tmp_path / "run"
    words = ["pretrain", "gpt", "--data-files", str(text), "--out", str(out), "--context", "16"]
    assert main([*words, *TINY, "--tokenizer", "char"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["floor_ratio"] is None  # nobody knows the floor of a real text
    assert 0 < summary["val_nats_per_char"] < 6
    capsys.readouterr()


def test_pretrain_bert_then_fill_the_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["pretrain", "bert", "--out", str(out), "--documents", "200", "--vocab-size", "600"]
    assert main([*words, *TINY, "--save-every", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["floor_ratio"] is None
    assert 0 < summary["val_loss"] < 10
    assert set(summary["test"]) == {"mlm_accuracy", "nsp_accuracy", "nsp_loss"}
    assert 0.3 < summary["test"]["nsp_accuracy"] < 0.8  # after 4 updates it can only guess
    capsys.readouterr()

    words = [
        "fill-mask",
        "--model",
        str(out / "model"),
        "--text",
        "The [MASK] was [MASK].",
        "--top",
    ]
    assert main([*words, "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[MASK]")] == [
        "[MASK] number 1",
        "[MASK] number 2",
    ]
    assert len(lines) == 8
    probabilities = [float(line.split()[0]) for line in lines[1:4]]
    assert probabilities == sorted(probabilities, reverse=True)

    for text, top, phrase in (
        ("no gap", "3", r"[MASK] at least once, got 'no gap'"),
        ("[MASK] " * 400, "3", "at most 160 tokens"),
        ("a [MASK]", "0", "top must be from 1 to"),
    ):
        words = ["fill-mask", "--model", str(out / "model"), "--text", text, "--top", top]
        assert main(words) == 2
        assert phrase in capsys.readouterr().err
    assert main(["generate", "--model", str(out / "model")]) == 2
    assert "needs a GPT" in capsys.readouterr().err


def test_pretrain_bert_on_a_text_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "mine.txt"
    paragraph = "The quick fox, no. {0}, jumps. It lands on dog {0}! Mr. Brown sees it.\n\n"
    text.write_text("".join(paragraph.format(i) for i in range(300)))
    out = tmp_path / "run"
    words = ["pretrain", "bert", "--data-files", str(text), "--out", str(out), "--context", "48"]
    assert main([*words, *TINY, "--vocab-size", "200", "--no-next-sentence"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["test"]) == {"mlm_accuracy"}
    capsys.readouterr()


@pytest.mark.parametrize("preset", ["t4", "h200"])
def test_the_presets_for_gpus_read_files_and_data_sets_in_the_layout_of_the_hub(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"The quick fox jumps {i} times. It lands on dog {i}!" for i in range(60)]
    (tmp_path / "mine.txt").write_text("\n\n".join(texts))
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(rows)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    small = ["--preset", preset, "--context", "48", "--vocab-size", "120", *TINY]
    losses = []
    for name, source in (
        ("files", ["--data-files", str(tmp_path / "mine.txt")]),
        ("hub", ["--dataset", str(folder)]),
    ):
        assert main(["pretrain", "bert", "--out", str(tmp_path / name), *source, *small]) == 0
        losses.append(json.loads((tmp_path / name / "summary.json").read_text())["val_loss"])
    assert losses[0] == losses[1]  # the same texts, wherever they come from


def test_errors_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, phrase in (
        (["pretrain", "gpt", "--d-model", "30", "--n-heads", "4"], "multiple of n_heads"),
        (["pretrain", "gpt", "--data-files", "no/such.txt"], "no/such.txt"),
        (["pretrain", "bert", "--context", "200", "--n-heads", "3"], "multiple of n_heads"),
        (["fill-mask", "--model", "no/such", "--text", "[MASK]"], "holds no model"),
        (["generate", "--model", "no/such"], "holds no model"),
        (["record", "--name", "nothing"], "must be one of"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert phrase in error
        assert "Traceback" not in error
