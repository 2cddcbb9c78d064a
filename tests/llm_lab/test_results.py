"""Stored results are read by name, and say how they were made."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from book_tools import colab

from llm_course.errors import DataError
from llm_course.models.bert import BERT, BERTConfig
from llm_course.tokenizers.library import Tokenizer
from llm_lab import results
from llm_lab.results import load_checkpoint, load_result

NAMES = sorted(path.stem for path in results.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_result_names_command_commit_device_and_versions(name: str) -> None:
    result = load_result(name)
    assert result["name"] == name
    assert {"command", "commit", "device", "versions", "threads"} <= result.keys()


def test_a_result_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"no stored result 'none'.*record --name none"):
        load_result("none")
    with pytest.raises(DataError, match=r"got '\.\./secret'"):
        load_result("../secret")


def test_without_a_clone_the_result_comes_from_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Answer:
        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def read(self) -> bytes:
            return json.dumps({"name": "town"}).encode()

    def urlopen(address: str, timeout: float) -> Answer:
        asked.append(address)
        return Answer()

    monkeypatch.setattr(results, "RESULTS", tmp_path / "absent")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load_result("town") == {"name": "town"}
    place = colab.REPOSITORY
    assert asked == [f"https://raw.githubusercontent.com/{place}/main/results/town.json"]

    def no_network(address: str, timeout: float) -> Answer:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match="no network"):
        load_result("town")


# ---- checkpoints --------------------------------------------------------------------------------

CHECKPOINTS = [name for name in NAMES if "checkpoint" in load_result(name)]
FILES = {"config.json": b"{}\n", "model.safetensors": bytes(range(200))}


def stored(folder: Path, files: dict[str, bytes]) -> Path:
    """A results directory with one run, whose checkpoint has these files."""
    (folder / "mine").mkdir(parents=True)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "mine.json").write_text(json.dumps({"name": "mine", "checkpoint": hashes}))
    for name, content in files.items():
        (folder / "mine" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("origin", "commit"),
    [
        ({"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}, "c" * 40),
        ({"url": "file:///x", "dir_info": {"editable": True}}, "main"),
        (None, "main"),
    ],
)
def test_results_are_those_of_the_commit_that_was_installed(
    origin: Any, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "llm_course-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-course\nVersion: 9\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert results.installed_commit() == commit


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a web server would serve to someone without a clone, whose cache is a new one."""
    served = stored(tmp_path / "served", FILES)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "absent")
    monkeypatch.setattr(results, "ADDRESS", served.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return served


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_stored_checkpoint_gives_a_model_in_float32_with_its_tokenizer(name: str) -> None:
    directory = load_checkpoint(name)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 3_000_000
    model = BERT.from_pretrained(directory, dtype=torch.float32)
    tokenizer = Tokenizer.load(directory)
    assert model.token_embedding.weight.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    # A record keeps the settings of its day: one that came later has its default there.
    assert BERTConfig.from_dict(load_result(name)["model"]) == model.config


def test_a_checkpoint_of_a_clone_is_used_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path / "results", FILES)
    monkeypatch.setattr(results, "RESULTS", folder)
    assert load_checkpoint("mine") == folder / "mine"
    (folder / "mine" / "model.safetensors").write_bytes(bytes(200))
    with pytest.raises(DataError, match=r"model\.safetensors.*not the file.*record --name mine"):
        load_checkpoint("mine")
    (folder / "mine" / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json.*cannot be read"):
        load_checkpoint("mine")


def test_without_a_clone_a_checkpoint_is_fetched_once(host: Path, tmp_path: Path) -> None:
    directory = load_checkpoint("mine")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == FILES
    assert directory.parent == tmp_path / "cache" / "llm_course"
    for name in FILES:
        (host / "mine" / name).unlink()  # the second time, only the result is read
    assert load_checkpoint("mine") == directory
    assert list(directory.parent.iterdir()) == [directory]
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json.*delete .* and try again"):
        load_checkpoint("mine")


def test_a_fetched_file_that_is_another_one_is_refused_and_not_kept(
    host: Path, tmp_path: Path
) -> None:
    (host / "mine" / "model.safetensors").write_bytes(bytes(200))
    with pytest.raises(DataError, match=r"model\.safetensors.*'mine'.*invalid hash"):
        load_checkpoint("mine")
    (host / "mine" / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"'mine' could not be fetched.*record --name mine"):
        load_checkpoint("mine")
    (kept,) = (tmp_path / "cache" / "llm_course").iterdir()
    assert [path.name for path in kept.iterdir()] == ["config.json"]  # no part of the other
    (host / "mine" / "model.safetensors").write_bytes(FILES["model.safetensors"])
    assert load_checkpoint("mine") == kept  # it goes on from there


def test_a_run_without_a_checkpoint_and_a_name_with_a_path_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="'town' has kept no checkpoint"):
        load_checkpoint("town")
    (tmp_path / "mine.json").write_text(json.dumps({"checkpoint": {"../mine.txt": "0"}}))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(DataError, match=r"plain file names, got '\.\./mine\.txt'"):
        load_checkpoint("mine")
