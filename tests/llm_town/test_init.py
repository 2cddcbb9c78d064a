"""Town stands alone: pure Python, without any installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import llm_town
from llm_town import (
    generate_documents,
)

EVERYTHING = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import llm_town
for module in pkgutil.walk_packages(llm_town.__path__, "llm_town."):
    importlib.import_module(module.name)
print(*(document.text for document in llm_town.generate_documents(3, seed=0)), sep="\\n")
"""


def test_town_stands_alone_without_any_installed_package(tmp_path: Path) -> None:
    shutil.copytree(Path(llm_town.__file__).parent, tmp_path / "llm_town")
    alone = [sys.executable, "-I", "-S", "-c"]  # neither this folder nor site-packages
    run = subprocess.run(
        [*alone, EVERYTHING, str(tmp_path)], capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [d.text for d in generate_documents(3, seed=0)]
    control = subprocess.run([*alone, "import numpy"], capture_output=True, text=True)
    assert "No module named 'numpy'" in control.stderr
