"""Curves and bars: labelled axes, reference lines at their values, labels that do not overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

import matplotlib as mpl
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llm_lab.pictures.curves import FONT_SIZE, LABEL_GAP, PALETTE, plot_bars, plot_losses


@dataclass
class Step:
    step: int
    loss: float


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file)
    return file.getvalue()


def test_steps_dicts_and_pairs_draw_the_same_curve() -> None:
    points = [(1, 5.0), (2, 4.0), (4, 3.5)]
    shapes = [
        points,
        [{"step": x, "loss": y, "lr": 0.1} for x, y in points],
        (Step(x, y) for x, y in points),
    ]
    for curve in shapes:
        line = plot_losses(curve).axes[0].lines[0]
        assert line.get_xydata().tolist() == [[1, 5], [2, 4], [4, 3.5]]


def test_axes_have_labels_and_units_and_nothing_is_small() -> None:
    figure = plot_losses({"a": [(0, 2.0), (1, 1.0)]}, title="A title", floor=0.5)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "loss (nats per token)"
    assert axes.get_xlabel() == "updates"
    assert axes.get_title() == "A title"
    texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()]
    assert min(text.get_fontsize() for text in texts) >= FONT_SIZE - 1
    assert png(figure).startswith(b"\x89PNG")


def test_floor_and_baselines_are_lines_at_their_values_with_their_names() -> None:
    figure = plot_losses([(1, 5.0), (9, 2.2)], floor=1.9, baselines={"2-gram": 3.0, "4-gram": 2.0})
    axes = figure.axes[0]
    levels = {line.get_ydata()[0] for line in axes.lines[1:]}
    assert levels == {1.9, 3.0, 2.0}
    assert [text.get_text() for text in axes.texts] == ["floor 1.90", "4-gram 2.00", "2-gram 3.00"]


def test_labels_of_close_levels_do_not_overlap_and_lone_ones_stay() -> None:
    levels = {"a": 1.0, "b": 1.01, "c": 1.02, "far": 4.0}
    figure = plot_losses([(0, 5.0), (1, 1.0)], baselines=levels)
    axes = figure.axes[0]
    figure.canvas.draw()
    boxes = sorted((t.get_window_extent().y0, t.get_window_extent().y1) for t in axes.texts)
    assert all(above[0] >= below[1] - 0.5 for below, above in pairwise(boxes))
    places = {text.get_text().split()[0]: text.xy[1] for text in axes.texts}
    assert places["far"] == 4.0
    height = axes.get_ylim()[1] - axes.get_ylim()[0]
    assert places["b"] == pytest.approx(1.01)  # the middle of the three
    assert places["c"] - places["b"] == pytest.approx(LABEL_GAP * height)


def test_curves_differ_in_colour_and_in_dashes() -> None:
    curves = {f"curve {i}": [(0, i), (1, i + 1)] for i in range(8)}
    lines = plot_losses(curves).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    assert [line.get_color() for line in lines[: len(PALETTE)]] == list(PALETTE)


def test_palette_is_that_of_okabe_and_ito() -> None:
    published = [
        "#000000",
        "#E69F00",
        "#56B4E9",
        "#009E73",
        "#F0E442",
        "#0072B2",
        "#D55E00",
        "#CC79A7",
    ]
    assert set(PALETTE) == set(published) - {"#000000", "#F0E442"}
    assert len(PALETTE) == 6


def test_bars_have_their_values_written_above() -> None:
    figure = plot_bars(
        {"one": {"x": 1.0, "y": 2.0}, "two": {"x": 3.0, "y": 4.25}},
        y_label="tokens per second",
        references={"target": 3.5},
        digits=1,
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "1.0", "3.0", "2.0", "4.2", "target 3.5",
    ]  # fmt: skip
    assert sorted(patch.get_height() for patch in axes.patches) == [1.0, 2.0, 3.0, 4.25]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two"]
    assert axes.get_ylabel() == "tokens per second"
    assert figure.legends
    assert not plot_bars({"a": 1, "b": 2}, y_label="n").legends


def test_global_settings_of_matplotlib_stay() -> None:
    before = dict(mpl.rcParams)
    png(plot_losses([(0, 1.0)], floor=0.5))
    png(plot_bars({"a": 1.0}, y_label="n"))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_losses({}), "at least one curve"),
        (lambda: plot_losses({"training": []}), "'training' must hold at least one point"),
        (lambda: plot_bars({}, y_label="n"), "at least one bar"),
        (
            lambda: plot_bars({"a": {"x": 1.0}, "b": {"y": 1.0}}, y_label="n"),
            r"group 'b' must have the series \['x'\], got \['y'\]",
        ),
    ],
)
def test_nothing_to_draw_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
