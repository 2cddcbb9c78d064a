"""The modules of tools/ for the tests: they are scripts, not a package."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

build_book = import_module("build_book")
colab = import_module("colab")
coverage_map = import_module("coverage_map")
hygiene = import_module("hygiene")
notebooks = import_module("notebooks")
plain_markdown = import_module("plain_markdown")
site_check = import_module("site_check")
student = import_module("student")

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
EXECUTED = sorted((ROOT / "notebooks").glob("*.ipynb"))
