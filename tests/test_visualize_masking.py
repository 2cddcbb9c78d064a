"""The HTML of the masking view: the package's rule, the same markup everywhere, tokens as text."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from fnmatch import fnmatch
from html.parser import HTMLParser

import nbformat.v4 as v4
import pytest
from attention_cases import HOSTILE
from book_tools import ROOT, hygiene, site_check

from llm_course.visualize import masking
from llm_course.visualize.attention_html import visible
from llm_course.visualize.masking import MaskingView, masking_view

TOKENS = ["[CLS]", *["the", "baker", "sold", "warm", "bread", "near", "the", "lake"], "[SEP]"]
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(500))]


class Parsed(HTMLParser):
    """Elements with the names of their attributes, the data, and the rows of each table."""

    def __init__(self, view: MaskingView) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.comments: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.spec: dict = {}
        self._tag = ""
        self.feed(view._repr_html_())
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attributes))] += 1
        self._tag = tag if dict(attributes).get("class") != "llm-mk-spec" else "spec"
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if self._tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self._tag == "spec":
            self.spec = json.loads(data)


def view(seed: int = 0, tokens: list[str] = TOKENS) -> MaskingView:
    return masking_view(tokens, VOCABULARY, seed=seed, title="Mask it again")


def test_the_markup_is_the_same_every_time_and_another_seed_masks_otherwise() -> None:
    assert view()._repr_html_() == view()._repr_html_()
    assert repr(view()) == "MaskingView(10 tokens)"
    assert len({view(seed)._repr_html_() for seed in range(20)}) == 20
    assert len({json.dumps(Parsed(view(seed)).spec["first"]) for seed in range(20)}) > 10


@pytest.mark.covers("P1")
def test_the_first_masking_follows_the_rule_of_the_package() -> None:
    kinds: Counter[int] = Counter()
    for seed in range(300):
        spec = Parsed(view(seed)).spec
        for token, special, (reads, how) in zip(TOKENS, spec["special"], spec["first"]):
            kinds[how] += not special
            assert special == token.startswith("[")
            if special or how in (masking.NOT_CHOSEN, masking.AS_IS):
                assert reads == token
            elif how == masking.AS_MASK:
                assert reads == "[MASK]"
            else:
                assert reads != token
                assert reads not in VOCABULARY[:4]
            assert not (special and how)
    n, chosen = kinds.total(), kinds.total() - kinds[masking.NOT_CHOSEN]
    assert abs(chosen - 0.15 * n) < 4 * (n * 0.15 * 0.85) ** 0.5
    assert abs(kinds[masking.AS_MASK] - 0.8 * chosen) < 4 * (chosen * 0.16) ** 0.5
    assert abs(chosen - 0.2 * n) > 4 * (n * 0.2 * 0.8) ** 0.5  # the bound can fail


def test_the_tables_and_the_sentence_tell_the_same_masking() -> None:
    for seed in range(20):
        shown = view(seed)
        parsed = Parsed(shown)
        counts, table = parsed.tables
        first = parsed.spec["first"]
        assert table[0] == ["place", "text", "model reads", "label"]
        for place, (line, token, (reads, how)) in enumerate(zip(table[1:], TOKENS, first)):
            assert line == [str(place), token, reads, token if how else "–"]
        chosen = sum(how > 0 for _, how in first)
        assert counts[1][:2] == ["chosen", f"{chosen} of 8"]
        assert [row[3] for row in counts[1:]] == ["15 %", "80 %", "10 %", "10 %"]
        assert [int(row[1].split()[0]) for row in counts[2:]] == [
            sum(how == kind for _, how in first) for kind in masking.NAMES
        ]
        assert f"Masking 1: {chosen} of 8 tokens chosen:" in shown._repr_html_()
        assert shown._repr_html_().count(">label <") == chosen


def test_no_ids_no_other_host_and_nothing_that_ends_a_script_early() -> None:
    html = view()._repr_html_()
    names = {name for _, attributes in Parsed(view()).elements for name in attributes}
    assert "id" not in names
    assert not {name for name in names if name.startswith("on")}
    assert site_check.external_loads(html) == []
    for name in ("masking_view.js", "masking_view.css"):
        text = (ROOT / "llm_course" / "visualize" / name).read_text(encoding="utf-8")
        assert not re.search(r"</(script|style)|<!--|https?:|//[a-z]+\.|innerHTML|eval", text)


def test_the_script_and_the_style_are_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["llm_course"]
    for name in ("visualize/masking_view.js", "visualize/masking_view.css"):
        assert any(fnmatch(name, pattern) for pattern in patterns)


def test_a_notebook_with_a_view_passes_the_hygiene_check() -> None:
    shown = view(tokens=HOSTILE)
    data = {"text/html": shown._repr_html_(), "text/plain": repr(shown)}
    cell = v4.new_code_cell("view", outputs=[v4.new_output("display_data", data)])
    assert list(hygiene.measured_problems(v4.new_notebook(cells=[cell]))) == []


def test_hostile_tokens_add_no_element_no_attribute_and_no_comment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elements(tokens: list[str]) -> Counter[tuple[str, tuple[str, ...]]]:
        parsed = Parsed(masking_view(tokens, tokens, title=tokens[3]))
        assert parsed.comments == []
        return parsed.elements

    harmless = [f"word{i}" for i in range(len(HOSTILE))]
    assert elements(HOSTILE) == elements(harmless)
    assert Parsed(masking_view(HOSTILE, HOSTILE)).spec["tokens"] == [visible(t) for t in HOSTILE]
    monkeypatch.setattr(masking, "escape", lambda text: text)
    with pytest.raises((AssertionError, IndexError)):
        assert elements(HOSTILE) == elements(harmless)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens must be from 1 to 200, got 0"),
        (["a"] * 201, "tokens must be from 1 to 200, got 201"),
        (["[CLS]", "[SEP]"], "tokens must hold one that is not special"),
    ],
)
def test_texts_that_cannot_be_masked_are_refused(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masking_view(tokens, VOCABULARY)


def test_no_sign_of_markup_stands_in_the_data_of_the_view() -> None:
    """A "<!--<script>" there would hide the end of the script from a browser, not from Python."""
    html = masking_view(HOSTILE, HOSTILE, title=HOSTILE[1])._repr_html_()
    begin = re.search(r'<script type="application/json"[^>]*>', html)
    assert begin is not None
    spec, end = json.JSONDecoder().raw_decode(html, begin.end())
    assert html[end:].startswith("</script>")
    assert not re.search("[<>&]", html[begin.end() : end])
    assert set("<>&") <= set("".join(spec["tokens"]))  # the control: they were there
