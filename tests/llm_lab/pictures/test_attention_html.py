"""The HTML of the attention view: the same markup everywhere, true numbers, tokens never markup."""

from __future__ import annotations

import base64
import configparser
import json
import re
from typing import Any

import matplotlib as mpl
import pytest
import torch
from attention_cases import (
    HOSTILE,
    SOURCE,
    TARGET,
    WORDS,
    causal_view,
    cross_view,
    hostile_view,
    random_weights,
)
from book_tools import ROOT
from parsed_html import Parsed, notebook_problems
from torch import Tensor

mpl.use("Agg")
import matplotlib.pyplot as plt

from llm_lab.pictures import attention_html, page_part
from llm_lab.pictures.attention import (
    MAX_WEIGHTS,
    AttentionView,
    attention_view,
    plot_attention,
)
from llm_lab.pictures.measured import BEGIN_HTML, END_HTML
from llm_lab.pictures.page_part import visible

MOST_BYTES = 200_000  # of 12 heads, 6 layers, 32 tokens


def html_of(view: AttentionView) -> str:
    return view._repr_html_()


def sanitized(html: str) -> str:
    """What nbval compares."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "tests" / "nbval_sanitize.cfg")
    return re.sub(config["html"]["regex"], config["html"]["replace"], html)


# The markup and the payload


@pytest.mark.parametrize("view", [causal_view, cross_view])
def test_only_the_measured_part_depends_on_the_weights(view: Any) -> None:
    first, second = view(seed=0), view(seed=1)
    assert sanitized(html_of(first)) == sanitized(html_of(second))
    assert repr(first) == repr(second)
    assert html_of(first) != html_of(second)
    assert html_of(first) == html_of(view(seed=0))
    assert html_of(first).count(BEGIN_HTML) == html_of(first).count(END_HTML) == 1


def test_the_text_form_names_the_sizes() -> None:
    assert repr(causal_view()) == "AttentionView(2 layers, 3 heads, 8 tokens)"
    assert repr(cross_view()) == "AttentionView(2 layers, 4 heads, 3 to 5 tokens)"


def test_the_markup_outside_the_measured_block_does_not_say_where_the_view_begins() -> None:
    """So a head that a measure has found may be shown first, though it differs by machine."""
    weights = random_weights(2, 3, len(WORDS), len(WORDS), causal=True)
    first, other = (
        html_of(attention_view(weights, WORDS, **start))
        for start in ({"layer": 0}, {"layer": 1, "head": 2})
    )
    assert sanitized(first) == sanitized(other)
    assert first != other


def test_the_payload_holds_the_weights_of_the_row_in_hundredths() -> None:
    weights = random_weights(2, 3, len(WORDS), len(WORDS), causal=True)
    payload = json.loads(Parsed(html_of(causal_view())).scripts[1])
    codes = torch.frombuffer(bytearray(base64.b64decode(payload["codes"])), dtype=torch.uint8)
    codes = codes.view(2, 3, len(WORDS), len(WORDS)).float()

    def error(row: int) -> float:
        expected = torch.stack([w[row] for w in weights])
        return ((codes - 1).clamp(min=0) / 100 - expected).abs().max().item()

    assert error(1) <= 0.005 + 1e-6
    assert error(0) > 0.3  # the other row of the batch
    assert ((codes == 0) == torch.ones(len(WORDS), len(WORDS)).triu(1).bool()).all()


def test_a_small_weight_is_not_a_masked_one() -> None:
    codes = attention_html.hundredths([torch.tensor([[[0.0, 1e-30, 0.004, 0.006, 1.0]]])])
    shown = [attention_html.number(code) for code in codes.flatten().tolist()]
    assert shown == ["–", "0.00", "0.00", "0.01", "1.00"]


def test_the_table_of_one_head_holds_all_its_numbers() -> None:
    weights = random_weights(2, 3, len(WORDS), len(WORDS), causal=True)
    view = attention_view(weights, WORDS, layer=1, head=2)
    header, *rows = Parsed(html_of(view)).tables[0]
    assert header == ["token", *map(visible, WORDS)]
    assert [row[0] for row in rows] == header[1:]
    for t, row in enumerate(rows):
        expected = [f"{w:.2f}" for w in weights[1][0, 2, t, : t + 1].tolist()]
        assert row[1:] == expected + ["–"] * (len(WORDS) - 1 - t)


def test_the_table_of_all_heads_names_the_strongest_token_of_each() -> None:
    weights = random_weights(2, 4, len(TARGET), len(SOURCE))
    header, *rows = Parsed(html_of(cross_view())).tables[0]
    assert header == ["token", "head 0", "head 1", "head 2", "head 3"]
    assert [row[0] for row in rows] == TARGET
    for t, row in enumerate(rows):
        for head, cell in enumerate(row[1:]):
            mass, key = weights[1][0, head, t].max(-1)
            assert cell == f"{SOURCE[key]} {mass:.2f}"


def test_the_size_is_as_stated() -> None:
    tokens = ["information"] * 32
    for causal in (False, True):
        weights = random_weights(6, 12, 32, 32, causal=causal)
        for head in (None, 3):
            html = html_of(attention_view(weights, tokens, head=head, title="A long title " * 4))
            assert len(html.encode()) <= MOST_BYTES


def test_a_payload_that_does_not_parse_fails_the_hygiene_check() -> None:
    html = html_of(hostile_view()).replace('weights">{', 'weights">{{')
    assert any("does not parse" in problem for problem in notebook_problems(html))


# Tokens are text


def test_hostile_tokens_add_no_element_no_attribute_and_no_comment() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 40
    for head in (None, 1):
        hostile = Parsed(html_of(hostile_view(head=head)))
        harmless = Parsed(html_of(hostile_view(["word"] * 40, head=head)))
        assert hostile.elements == harmless.elements
        assert hostile.comments == harmless.comments == [" measured ", " /measured "]
        assert json.loads(hostile.scripts[0])["queries"] == [visible(t) for t in HOSTILE]
        assert hostile.tables[0][1][0] == visible(HOSTILE[0])


def test_hostile_tokens_would_be_found_without_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_part, "escape", lambda text: text)
    hostile = Parsed(html_of(hostile_view()))
    harmless = Parsed(html_of(hostile_view(["word"] * 40)))
    assert hostile.elements != harmless.elements
    monkeypatch.undo()
    raw = json.dumps(HOSTILE[1])
    monkeypatch.setattr(attention_html, "json_script", lambda name, _: f"<script>{raw}</script>")
    assert Parsed(html_of(hostile_view())).elements != harmless.elements


# Errors, and the twin for print


@pytest.fixture(autouse=True)
def _closed_figures() -> Any:
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", [attention_view, plot_attention])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 2}, "layer must be from 0 to 1, got 2"),
        ({"head": 4}, "head must be from 0 to 3, got 4"),
        ({"head": -1}, "head must be from 0 to 3, got -1"),
        ({"row": 2}, "row must be from 0 to 1, got 2"),
        ({"tokens": WORDS}, "tokens must hold 3 tokens, got 8"),
        ({"key_tokens": None}, "key_tokens must hold 5 tokens, got 3"),
    ],
)
def test_what_is_not_there_is_refused_by_both(
    draw: Any, change: dict[str, Any], message: str
) -> None:
    weights = random_weights(2, 4, len(TARGET), len(SOURCE))
    arguments: dict[str, Any] = {"tokens": TARGET, "key_tokens": SOURCE, "layer": 0}
    draw(weights, **arguments)
    with pytest.raises(ValueError, match=message):
        draw(weights, **(arguments | change))


def changed(layer: int, value: float) -> list[Tensor]:
    weights = random_weights(2, 4, 3, 3)
    weights[layer][0, 1, 2, 0] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed(1, -0.5), "from 0 to 1, got -0.5 to .* in layer 1"),
        (changed(0, 7.0), "from 0 to 1, got .* to 7 in layer 0"),
        (changed(0, float("nan")), "from 0 to 1, got nan to nan in layer 0"),
        (
            [torch.ones(1, 2, 3, 3) / 3, torch.ones(1, 4, 3, 3) / 3],
            r"shape \[1, 2, 3, 3\] of layer 0, got \[1, 4, 3, 3\] in layer 1",
        ),
        ([], "layer must be from 0 to -1, got 0"),
    ],
)
def test_weights_that_no_attention_has_are_refused(weights: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_view(weights, ["a", "b", "c"])


def test_a_view_that_would_fill_the_notebook_is_refused() -> None:
    weights = [torch.full((1, 1, 1024, 1), 0.5).expand(1, 1, 1024, 1024)]
    tokens = ["a"] * 1024
    with pytest.raises(ValueError, match=f"at most {MAX_WEIGHTS} weights, got {1024 * 1024}"):
        attention_view(weights, tokens)


def test_a_model_with_one_head_begins_with_it() -> None:
    assert attention_view(random_weights(1, 1, 3, 3), ["a", "b", "c"]).head == 0


@pytest.mark.parametrize(("head", "panels"), [(None, 4), (2, 1)])
def test_the_twin_for_print_draws_the_same_layer_and_heads(head: int | None, panels: int) -> None:
    weights = random_weights(2, 4, len(TARGET), len(SOURCE))
    view = attention_view(weights, TARGET, key_tokens=SOURCE, layer=1, head=head, row=1)
    figure = view.plot()
    drawn = [axes.images[0] for axes in figure.axes if axes.images and axes.get_title()]
    assert len(drawn) == panels
    expected = weights[1][1, 0 if head is None else head]
    assert torch.equal(torch.tensor(drawn[0].get_array().data), expected)
    assert figure.axes[0].get_title() == f"layer 1, head {head or 0}"


def data_blocks(html: str) -> list[str]:
    """The JSON of each data script as it stands in the page; it must end where the script ends."""
    blocks = []
    for opening in re.finditer(r'<script type="application/json"[^>]*>', html):
        _, end = json.JSONDecoder().raw_decode(html, opening.end())
        assert html[end:].startswith("</script>")
        blocks.append(html[opening.end() : end])
    return blocks


def test_no_sign_of_markup_stands_in_the_data_of_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "<!--<script>" there would hide the end of the script from a browser, not from Python."""
    blocks = data_blocks(html_of(hostile_view()))
    assert len(blocks) == 2
    assert not re.search("[<>&]", "".join(blocks))
    assert json.loads(blocks[0])["queries"] == [visible(t) for t in HOSTILE]
    monkeypatch.setattr(
        attention_html,
        "json_script",
        lambda name, value: f'<script type="application/json">{json.dumps(value)}</script>',
    )
    assert re.search("[<>&]", "".join(data_blocks(html_of(hostile_view()))))
