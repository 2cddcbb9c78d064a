"""What scripts share: rehearsals change sizes only, parts are kept, and no script is imported."""

from __future__ import annotations

import ast
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from experiments import script
from experiments.record import recorded_runs
from llm_course.configs import DataConfig, GPTConfig, TrainConfig


def place(folder: Path, *, tiny: bool) -> script.Place:
    return script.Place(out=folder, data_dir=folder, tiny=tiny, checkpoint=folder / "kept")


def test_a_rehearsal_changes_sizes_and_nothing_else(tmp_path: Path) -> None:
    configs = (GPTConfig(), DataConfig(context=64), TrainConfig(lr=0.5, compile=True, seed=3))
    assert place(tmp_path, tiny=False).sized(*configs) == configs
    changed: dict[str, Any] = {}
    for before, after in zip(configs, place(tmp_path, tiny=True).sized(*configs), strict=True):
        assert type(before) is type(after)
        changed |= {k: v for k, v in asdict(after).items() if v != getattr(before, k)}
    assert changed.items() <= script.TINY.items()
    assert {"n_layers", "documents", "max_steps", "compile"} <= changed.keys()
    assert "context" not in changed  # 64 is small already


def test_a_part_is_made_once_and_anew_for_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"number": made[-1]}

    here = place(tmp_path, tiny=True)
    assert script.part_of(here, "one", make) == script.part_of(here, "one", make) == {"number": 0}
    assert script.part_of(here, "two", make) == {"number": 1}
    now = script.provenance()
    monkeypatch.setattr(script, "provenance", lambda: now | {"commit": "another"})
    assert script.part_of(here, "one", make) == {"number": 2}


def test_every_script_has_its_runs_and_none_is_imported_by_another() -> None:
    folder = Path(script.__file__).parent
    scripts = {path.stem: ast.parse(path.read_text()) for path in folder.glob("*.py")}
    names = [name for name in scripts if name.endswith("_runs")]
    runs = [run for name in names for run in import_module(f"experiments.{name}").RUNS]
    assert {run.name: run.title for run in runs} == {
        name: run.title for name, run in recorded_runs().items()
    }
    assert len(runs) == len(recorded_runs())  # no name twice
    for name, module in scripts.items():
        imported = {n.module for n in ast.walk(module) if isinstance(n, ast.ImportFrom)}
        own = {m for m in imported if m and m.startswith("experiments")}
        assert own <= (set() if name == "script" else {"experiments.script"}), name
