"""The HTML of the masking view: the package's rule, the same markup everywhere, tokens as text."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from attention_cases import HOSTILE
from parsed_html import Parsed

from llm_lab.pictures import masking
from llm_lab.pictures.masking import MaskingView, masking_view
from llm_lab.pictures.page_part import visible

TOKENS = ["[CLS]", *["the", "baker", "sold", "warm", "bread", "near", "the", "lake"], "[SEP]"]
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(500))]


def spec_of(shown: MaskingView) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(Parsed(shown._repr_html_()).scripts[0])
    return spec


def view(seed: int = 0, tokens: list[str] = TOKENS) -> MaskingView:
    return masking_view(tokens, VOCABULARY, seed=seed, title="Mask it again")


def test_the_markup_is_the_same_every_time_and_another_seed_masks_otherwise() -> None:
    assert view()._repr_html_() == view()._repr_html_()
    assert repr(view()) == "MaskingView(10 tokens)"
    assert len({view(seed)._repr_html_() for seed in range(20)}) == 20
    assert len({json.dumps(spec_of(view(seed))["first"]) for seed in range(20)}) > 10


@pytest.mark.covers("P1")
def test_the_first_masking_follows_the_rule_of_the_package() -> None:
    kinds: Counter[int] = Counter()
    for seed in range(300):
        spec = spec_of(view(seed))
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
        counts, table = Parsed(shown._repr_html_()).tables
        first = spec_of(shown)["first"]
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


def test_hostile_tokens_add_no_element_no_attribute_and_no_comment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elements(tokens: list[str]) -> Counter[tuple[str, tuple[str, ...]]]:
        parsed = Parsed(masking_view(tokens, tokens, title=tokens[3])._repr_html_())
        assert parsed.comments == []
        return parsed.elements

    harmless = [f"word{i}" for i in range(len(HOSTILE))]
    assert elements(HOSTILE) == elements(harmless)
    assert spec_of(masking_view(HOSTILE, HOSTILE))["tokens"] == [visible(t) for t in HOSTILE]
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
