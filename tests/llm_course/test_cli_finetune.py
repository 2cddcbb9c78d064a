"""`finetune bert` and `predict` as a user calls them: Town, own files, wrong files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from llm_course import BERT, BERTConfig, Tokenizer
from llm_course.cli import main
from llm_town import generate_documents

FAST = ["--max-steps", "2", "--device", "cpu", "--precision", "fp32", "--batch-size", "8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    texts = [d.text for d in generate_documents(100, 0, "train")]
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocab_size=300)
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32, "n_positions": 96}
    torch.manual_seed(0)
    BERT(
        BERTConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_id, **sizes)
    ).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def reviews(folder: Path, name: str = "train.csv", n: int = 40) -> Path:
    path = folder / name
    rows = [
        f"{name} {i} was {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}" for i in range(n)
    ]
    path.write_text("\n".join(["review,good", *rows]) + "\n")
    return path


def finetune(checkpoint: Path, out: Path, *more: str) -> int:
    words = ["finetune", "bert", "--checkpoint", str(checkpoint), "--out", str(out), *FAST]
    return main([*words, *more])


@pytest.mark.parametrize(
    ("task", "question", "keys"),
    [
        ("classify", ["--text", "Mara was sad."], {"text", "label", "probabilities"}),
        ("pair", ["--text", "A b.", "--pair", "C"], {"text", "pair", "label", "probabilities"}),
        ("tag", ["--text", "Mara's cat won."], {"tokens", "tags", "entities"}),
        (
            "qa",
            ["--question", "Who won?", "--context", "Mara won."],
            {"question", "answer", "start", "end", "score"},
        ),
    ],
)
def test_each_task_of_town_is_one_command_and_predicts(
    task: str,
    question: list[str],
    keys: set[str],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert finetune(checkpoint, out, "--task", task, "--examples", "30") == 0
    captured = capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text())
    assert json.loads(captured.out) == summary
    assert summary["test"]["examples"] == summary["test"]["dev"]["examples"] == 100
    assert "Town, 30 to train, 100 to develop, 100 to test" in captured.err
    assert "of which" in captured.err
    model = ["predict", "--model", str(out / "model")]
    assert main([*model, *question]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row) == keys
    if task == "tag":
        assert row["tokens"] == ["Mara's", "cat", "won", "."]
    if task == "qa":
        assert row["answer"] == "Mara won."[row["start"] : row["end"]]
    assert main(model) == 2
    assert "or --data-files), got none of them" in capsys.readouterr().err

    # The test set was opened: the same command again shows what is known, or is refused.
    again = ("--task", task, "--examples", "30")
    before = (out / "summary.json").read_bytes()
    assert finetune(checkpoint, out, *again) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert finetune(checkpoint, out, *again, "--resume") == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert (out / "summary.json").read_bytes() == before
    (out / "summary.json").write_text("{")
    assert finetune(checkpoint, out, *again, "--resume") == 2
    assert "summary.json is not JSON" in capsys.readouterr().err


def test_own_files_are_learnt_and_predicted(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = reviews(tmp_path), reviews(tmp_path, "test.csv", 10)
    columns = ["--text-column", "review", "--label-column", "good"]
    files = ["--data-files", str(train), "--test-files", str(test)]
    out = tmp_path / "run"
    frozen = ["--train-blocks", "0", "--epochs", "1", "--warmup-steps", "1"]
    words = ["finetune", "bert", "--checkpoint", str(checkpoint), "--out", str(out)]
    assert main([*words, *FAST[2:], *files, *columns, *frozen, "--keep-best"]) == 0
    said = capsys.readouterr().err
    assert "development: 10% split off" in said
    assert "labels: no, yes" in said
    assert "of which 34 are trained" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test"]["examples"] == 10
    raw = json.loads((out / "model" / "config.json").read_text())
    assert raw["id2label"] == {"0": "no", "1": "yes"}

    target = tmp_path / "found.jsonl"
    predict = ["predict", "--model", str(out / "model"), "--data-files", str(test)]
    predict += ["--text-column", "review", "--out", str(target)]
    assert main(predict) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows[0]["text"] == "test.csv 0 was bad"
    assert len(rows) == 10
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    right = sum(row["label"] == ("yes" if i % 2 else "no") for i, row in enumerate(rows))
    assert right / 10 == summary["test"]["accuracy"]  # as it was scored
    before = target.read_bytes()
    assert main(predict) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*predict, "--overwrite"]) == 0
    assert target.read_bytes() == before


def test_what_cannot_be_is_one_line_and_leaves_no_directory(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    train = str(reviews(tmp_path))
    other = tmp_path / "dev.csv"
    other.write_text("review,good\nnew,maybe\n")
    one = tmp_path / "one.csv"
    one.write_text("text,label\n" + "".join(f"text {i},x\n" for i in range(9)))
    named = ["--text-column", "review", "--label-column", "good"]
    for words, phrase in (
        (["--data-files", train], "there are 'review', 'good': name one with --text-column"),
        (["--data-files", train, "--text-column", "revue"], "did you mean 'review'?"),
        (["--data-files", train, train], "must differ"),
        (["--data-files", train, *named, "--dev-files", str(other)], "line 2: the label 'maybe'"),
        (["--data-files", str(one)], "all 9 examples have the label 'x'"),
        (["--data-files", str(tmp_path / "none.csv")], "no such file; did you mean 'one.csv'?"),
        (["--data-files", train, *named, "--dev-share", "1"], "dev_share must be between 0 and 1"),
        (["--test-files", train], "go with data_files"),
        (["--examples", "0"], "examples must be at least 1, got 0"),
        (["--epochs", "2"], "give epochs or max_steps, not both: 2 and 2"),
        (["--examples", "9", "--train-blocks", "2"], "n_blocks must be from 0 to 1, got 2"),
        (["--examples", "9", "--context", "97"], "n_positions = 96, got 97"),
        (["--examples", "9", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--checkpoint", str(tmp_path)], "holds no model"),
    ):
        out = tmp_path / "run"
        assert finetune(checkpoint, out, *words) == 2, words
        lines = capsys.readouterr().err.strip().splitlines()
        assert phrase in lines[-1]
        assert "Traceback" not in lines[-1]
        assert not out.exists(), words
    assert main(["finetune", "bert", "--out", str(tmp_path / "new")]) == 2
    assert "there is no runs/bert/model" in capsys.readouterr().err


def test_the_scores_of_one_test_set_are_not_shown_for_another(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: str(reviews(tmp_path, f"{name}.csv", 20)) for name in ("train", "dev", "test")}
    columns = ["--text-column", "review", "--label-column", "good"]
    out = tmp_path / "run"

    def resumed(**changed: str) -> int:
        now = files | changed
        words = [f"--{name}-files={now[name]}" for name in ("dev", "test")]
        return finetune(
            checkpoint, out, f"--data-files={now['train']}", *words, *columns, "--resume"
        )

    assert resumed() == 0
    other = str(reviews(tmp_path, "other.csv", 20))
    before = (out / "summary.json").read_bytes()
    for name in ("train", "dev", "test"):
        capsys.readouterr()
        assert resumed(**{name: other}) == 2, name
        assert "belongs to another run: data was" in capsys.readouterr().err
    moved = tmp_path / "moved.csv"
    moved.write_bytes(Path(files["test"]).read_bytes())
    assert resumed(test=str(moved)) == 0  # the same examples
    assert (out / "summary.json").read_bytes() == before


def test_a_model_without_checkpoints_is_not_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "run" / "model"
    shutil.copytree(checkpoint, model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for more in ([], ["--resume"]):
        assert finetune(model, tmp_path / "run", "--examples", "9", *more) == 2
        assert "holds a model, and no checkpoint to resume from" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
        assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_model_without_the_names_of_its_classes_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(checkpoint, tmp_path / "run", "--examples", "9") == 0
    config = tmp_path / "run" / "model" / "config.json"
    raw = json.loads(config.read_text())
    del raw["id2label"]
    config.write_text(json.dumps(raw))
    assert main(["predict", "--model", str(config.parent), "--text", "a"]) == 2
    assert "config.json: no id2label, so the classes have no names" in capsys.readouterr().err


def test_predictions_that_cannot_be_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert finetune(checkpoint, out, "--task", "qa", "--examples", "9") == 0
    train = str(reviews(tmp_path))
    model = ["--model", str(out / "model")]
    os.mkfifo(tmp_path / "pipe")
    given = [*model, "--data-files", train, "--overwrite", "--out"]
    for words, phrase in (
        ([*model, "--text", "a"], "needs --question and --context (or --data-files), got --text"),
        ([*model, "--question", "a"], "got --question"),
        ([*model, "--question", " ", "--context", "b"], "--question must hold text, got ' '"),
        ([*model, "--data-files", train], "no column 'context'"),
        ([*model, "--data-files", train, "--text", "a"], "not both"),
        ([*model, "--data-files", train, "--out", str(tmp_path)], "is a directory"),
        ([*given, train], "one of the data files"),
        ([*given, str(tmp_path / "pipe")], "is a device or a pipe"),
        ([*given, str(out / "model" / "config.json")], "must not be a file of the model"),
        ([*model, "--data-files", train, "--out", "/no/x"], "a directory that exists"),
        (["--model", str(out), "--text", "a"], "did you mean"),
        (["--model", str(checkpoint), "--text", "a"], "no fine-tuned model"),
    ):
        capsys.readouterr()
        assert main(["predict", *words]) == 2, words
        assert phrase in capsys.readouterr().err.strip().splitlines()[-1]


def test_labels_and_texts_cannot_steer_a_terminal(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.jsonl"
    rows = [{"text": f"😀 \u200b עברית {i}", "label": f"\x1b[31m{i % 2}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    assert finetune(checkpoint, out, "--data-files", str(path)) == 0
    assert main(["predict", "--model", str(out / "model"), "--text", "\x1b[2J [MASK] \u202e"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\u202e" not in captured.out
