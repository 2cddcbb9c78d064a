"""Pairs of texts from files and from a data set: what is read, and which errors say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_course.data.pair_files import load_hub_pairs, read_pairs
from llm_course.errors import ConfigError, DataError

ROWS = [{"en": "A dog.", "de": "Ein Hund."}, {"en": "A cat.", "de": "Eine Katze."}]
PAIRS = [("A dog.", "Ein Hund."), ("A cat.", "Eine Katze.")]


def lines(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_come_from_json_and_csv_in_either_direction(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ROWS)
    assert read_pairs(path, source="en", target="de") == PAIRS
    assert read_pairs([path, path], source="de", target="en") == [(b, a) for a, b in PAIRS] * 2
    table = tmp_path / "a.csv"
    table.write_text("en,de,note\nA dog.,Ein Hund.,x\nA cat.,Eine Katze.,\n")
    assert read_pairs(str(table), source="en", target="de") == PAIRS


def test_what_is_no_pair_is_refused_with_its_file_and_line(tmp_path: Path) -> None:
    for name, row, message in [
        ("missing", {"en": "x"}, "missing.jsonl: line 3: no column 'de'; there are 'en'"),
        ("empty", {"en": "x", "de": " "}, "empty.jsonl: line 3: column 'de' holds ' '"),
        ("null", {"en": None, "de": "x"}, "null.jsonl: line 3: column 'en' holds nothing"),
        ("number", {"en": 7, "de": "x"}, "number.jsonl: line 3: column 'en' holds 7"),
    ]:
        path = lines(tmp_path / f"{name}.jsonl", [*ROWS, row])
        with pytest.raises(DataError, match=message):
            read_pairs(path, source="en", target="de")
        if name != "missing":
            with pytest.warns(UserWarning, match="left out 1 broken rows, the first: .*line 3"):
                assert read_pairs(path, source="en", target="de", errors="skip") == PAIRS
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl", source="en", target="de")
    (tmp_path / "a.txt").write_text("A dog.\n")
    with pytest.raises(DataError, match=r"a\.txt: the name must end in one of \.csv"):
        read_pairs(tmp_path / "a.txt", source="en", target="de")
    (tmp_path / "nothing.jsonl").write_text("")
    with pytest.raises(DataError, match=r"nothing.jsonl: no pair of texts"):
        read_pairs(tmp_path / "nothing.jsonl", source="en", target="de")
    with pytest.raises(ConfigError, match="two columns, got 'en' twice"):
        read_pairs(lines(tmp_path / "a.jsonl", ROWS), source="en", target="en")


def test_a_hub_data_set_gives_pairs_from_columns_and_from_a_translation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder stands for the hub: the same loader reads both."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    for folder in (flat, nested):
        folder.mkdir()
    lines(flat / "train.jsonl", ROWS)
    lines(nested / "train.jsonl", [{"translation": row} for row in ROWS])
    for folder in (flat, nested):
        assert load_hub_pairs(str(folder), source="en", target="de", split="train") == PAIRS
    with pytest.raises(DataError, match="no column 'fr'; there are 'en', 'de'"):
        load_hub_pairs(str(flat), source="fr", target="de", split="train")


def test_real_pairs_are_read_whole(shared_data: Path) -> None:
    path = shared_data / "multi30k_en_de/test_2016_flickr.jsonl"
    pairs = read_pairs(path, source="en", target="de")
    assert len(pairs) == 1000
    assert len(set(pairs)) == 1000
