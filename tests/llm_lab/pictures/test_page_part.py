"""What every view on a page owes: no ids, no other host, its files installed, a clean notebook."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
from attention_cases import HOSTILE, causal_view, hostile_view
from book_tools import ROOT, site_check
from parsed_html import Parsed, notebook_problems

from llm_lab.pictures.masking import masking_view
from llm_lab.pictures.page_part import visible

VIEWS = {
    "attention": (causal_view(), hostile_view()),
    "masking": (
        masking_view(["[CLS]", "the", "baker", "[SEP]"], ["a", "lake"]),
        masking_view(HOSTILE, HOSTILE, title=HOSTILE[3]),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_no_ids_no_other_host_and_nothing_that_ends_a_script_early(name: str) -> None:
    html = VIEWS[name][0]._repr_html_()
    names = {name for _, attributes in Parsed(html).elements for name in attributes}
    assert "id" not in names  # so two views of one page cannot collide
    assert not {name for name in names if name.startswith("on")}
    assert site_check.external_loads(html) == []
    for kind in ("js", "css"):
        path = ROOT / "llm_lab" / "pictures" / f"{name}_view.{kind}"
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"</(script|style)|<!--|https?:|//[a-z]+\.|innerHTML|eval", text)
        assert text in html


@pytest.mark.parametrize("name", VIEWS)
def test_the_script_and_the_style_are_installed_with_the_package(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["llm_lab"]
    for kind in ("js", "css"):
        assert any(fnmatch(f"pictures/{name}_view.{kind}", pattern) for pattern in patterns)


@pytest.mark.parametrize("name", VIEWS)
def test_a_notebook_with_a_view_passes_the_hygiene_check(name: str) -> None:
    hostile: Any = VIEWS[name][1]
    assert notebook_problems(hostile._repr_html_(), repr(hostile)) == []


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("baker", "baker"),
        (" the", "␣the"),
        ("\n\t", "↵⇥"),
        ("", "∅"),
        ("\0", "␀"),
        ("\u2028", "⟨U+2028⟩"),
        ("\u202ea", "⟨U+202E⟩a"),
        ("\ud800", "⟨U+D800⟩"),
        ("\u00a0", "⟨U+00A0⟩"),
        ("\u0301", "◌\u0301"),
        ("👩\u200d🍳", "👩\u200d🍳"),
        ("\u200d", "⟨U+200D⟩"),
        ("面包", "面包"),
        ("<b>", "<b>"),
        ("a" * 40, "a" * 40),
        ("a" * 41, "a" * 39 + "…"),
    ],
)
def test_tokens_are_made_visible(token: str, shown: str) -> None:
    assert visible(token) == shown
    visible(token).encode()
