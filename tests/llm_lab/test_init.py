"""`import llm_lab` costs nothing; its top names are there when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from book_tools import ROOT

import llm_lab
from llm_lab.pictures import attention


def test_the_top_names_are_those_of_their_files() -> None:
    assert llm_lab.attention_maps is attention.attention_maps
    assert llm_lab.attention_view is attention.attention_view
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llm_lab.nothing  # noqa: B018


def test_importing_the_folder_imports_neither_torch_nor_matplotlib() -> None:
    for name, expected in (("llm_lab", "[]"), ("llm_lab.pictures.attention", "['torch']")):
        code = f"import sys, {name}; print(sorted({{'torch', 'matplotlib'}} & set(sys.modules)))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert (run.stdout.strip(), run.stderr) == (expected, "")
