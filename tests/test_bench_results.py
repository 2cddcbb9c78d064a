"""Stored results are read by name, and say how they were made."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from book_tools import colab

from llm_course.bench import results
from llm_course.bench.results import load_result
from llm_course.errors import DataError

NAMES = sorted(path.stem for path in results.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_result_names_command_commit_device_and_versions(name: str) -> None:
    result = load_result(name)
    assert result["name"] == name
    assert {"command", "commit", "device", "versions", "threads"} <= result.keys()


def test_a_result_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no stored result 'none'.*record --name none"):
        load_result("none", tmp_path)
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

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert load_result("town", tmp_path / "absent") == {"name": "town"}
    place = colab.REPOSITORY
    assert asked == [f"https://raw.githubusercontent.com/{place}/{colab.TAG}/results/town.json"]

    def no_network(address: str, timeout: float) -> Answer:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match="no network"):
        load_result("town", tmp_path / "absent")
