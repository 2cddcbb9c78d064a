"""Town's figures: all of them are there, in their order, and written with their provenance."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.town_report import main, report


def test_the_report_has_every_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figures = report(documents=40, training=200)
    assert figures["reparsed"]["share"] == 1.0
    ratios = [figures["ngram_over_floor"][str(k)] for k in (1, 2, 3, 4, 5)]
    assert all(a > b > 1 for a, b in pairwise(ratios[:3]))
    best = figures["tasks_best_possible"]
    assert len(best) == 8
    assert best["questions"] == best["translation"] == 1.0
    assert 0.5 < best["sentiment"] < 1.0  # its labels are noisy
    path = tmp_path / "results" / "town.json"
    main(documents=20, training=50, out=path)
    assert "words_per_second" in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8"))["floor"]["documents"] == 20
