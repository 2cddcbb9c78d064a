"""Curves and bars as the course draws them: labelled axes with units, colours for every eye."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart with every common kind of colour blindness. Black is for lines
# of reference, and their yellow is left out, which is hard to see on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
REFERENCE = "#000000"
GRID = "#DDDDDD"
DASHES = ("-", "--", "-.", ":")  # curves differ in their dashes too, for print in grey
NAMES_IN_A_ROW = 45  # letters that fit below the axes; more are turned
WIDTH, HEIGHT = 6.4, 4.0  # inches; with 12 points the text is readable on a phone's width
FONT_SIZE = 12
LABEL_GAP = 0.06  # of the height of the axes: the height of a line of text


def plot_losses(
    curves: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    floor: float | None = None,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    y_label: str = "loss (nats per token)",
) -> Figure:
    """Draw losses over the updates, with labelled horizontal lines for what they compare to.

    Args:
        curves: one curve or several by name. A curve is an iterable of the steps that `train`
            yields, of dicts with "step" and "loss", or of pairs (step, loss).
        floor: the lowest loss any model can reach, nats per token.
        baselines: the losses of simpler models by name, nats per token.

    Raises:
        ValueError: no curve, or a curve without points.
    """
    named = dict(curves) if isinstance(curves, Mapping) else {"": curves}
    if not named:
        raise ValueError("curves must hold at least one curve, got none")
    figure, axes = _figure(title, "updates", y_label)
    for i, (name, curve) in enumerate(named.items()):
        xs, ys = _points(name, curve)
        dash = DASHES[(i // len(PALETTE) + i) % len(DASHES)]
        marker = "o" if len(xs) == 1 else ""  # a line of one point would be invisible
        axes.plot(xs, ys, dash, marker=marker, color=_color(i), linewidth=2, label=name or None)
    levels = dict(baselines or {})
    if floor is not None:
        levels["floor"] = floor
    axes.margins(x=0.02, y=0.08)
    _draw_levels(axes, levels)
    if any(named):
        axes.legend(frameon=False)
    return figure


def plot_bars(
    values: Mapping[str, float] | Mapping[str, Mapping[str, float]],
    *,
    y_label: str,
    title: str = "",
    references: Mapping[str, float] | None = None,
    digits: int = 2,
) -> Figure:
    """Draw one bar a name, or one group of bars a name, with the value written above each.

    Args:
        values: {name: value}, or {group: {series: value}}; a series has one colour in all groups.
        y_label: what is measured, with its unit.
        references: values by name, drawn as labelled horizontal lines.
        digits: decimals of the written values.

    Raises:
        ValueError: no bars, or groups with different series.
    """
    groups = {
        name: dict(value) if isinstance(value, Mapping) else {"": value}
        for name, value in values.items()
    }
    if not groups:
        raise ValueError("values must hold at least one bar, got none")
    series = list(next(iter(groups.values())))
    for name, group in groups.items():
        if list(group) != series:
            raise ValueError(f"group {name!r} must have the series {series}, got {list(group)}")
    figure, axes = _figure(title, "", y_label)
    width = 0.8 / len(series)
    for i, label in enumerate(series):
        xs = [place + (i - (len(series) - 1) / 2) * width for place in range(len(groups))]
        heights = [group[label] for group in groups.values()]
        bars = axes.bar(xs, heights, width * 0.95, color=_color(i), label=label or None)
        axes.bar_label(bars, fmt=f"%.{digits}f", padding=2, fontsize=FONT_SIZE - 2)
    longest = max(map(len, groups))
    axes.set_xticks(range(len(groups)), list(groups))
    if longest * len(groups) > NAMES_IN_A_ROW:
        axes.tick_params("x", rotation=30)
    axes.margins(y=0.12)
    _draw_levels(axes, references or {}, digits)
    if series != [""]:
        figure.legend(frameon=False, loc="outside upper right", ncols=len(series))
    return figure


def _color(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure of the course's size, without touching matplotlib's global settings."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), dpi=120, layout="constrained")
    axes.set_title(title, fontsize=FONT_SIZE + 1)
    axes.set_xlabel(x_label, fontsize=FONT_SIZE)
    axes.set_ylabel(y_label, fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _points(name: str, curve: Iterable[Any]) -> tuple[list[float], list[float]]:
    """Steps and losses of a curve given as steps of `train`, as dicts or as pairs."""
    pairs = [_point(entry) for entry in curve]
    if not pairs:
        raise ValueError(f"curve {name!r} must hold at least one point, got none")
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _point(entry: Any) -> tuple[float, float]:
    if isinstance(entry, Mapping):
        return entry["step"], entry["loss"]
    if isinstance(entry, Sequence):
        x, y = entry
        return x, y
    return entry.step, entry.loss


def _draw_levels(axes: Axes, levels: Mapping[str, float], digits: int = 2) -> None:
    """Horizontal lines, each with its name and value in the margin to the right."""
    if not levels:
        return
    for name, value in levels.items():
        dash = "-" if name == "floor" else (0, (4, 3))
        axes.axhline(value, color=REFERENCE, linewidth=1.2, linestyle=dash)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)  # no label may move the lines
    names = sorted(levels, key=lambda name: levels[name])
    places = _spread([levels[name] for name in names], LABEL_GAP * (top - bottom))
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            f"{name} {levels[name]:.{digits}f}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=FONT_SIZE - 1,
            annotation_clip=False,
        )


def _spread(values: list[float], gap: float) -> list[float]:
    """Places at least `gap` apart for rising values, each as near to its value as that allows."""
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        while len(clusters) > 1:
            below, above = _around(clusters[-2], gap), _around(clusters[-1], gap)
            if above[0] >= below[-1] + gap:
                break
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [place for cluster in clusters for place in _around(cluster, gap)]


def _around(cluster: list[float], gap: float) -> list[float]:
    """Equally spaced places whose middle is the mean of the values."""
    middle = sum(cluster) / len(cluster)
    return [middle + (i - (len(cluster) - 1) / 2) * gap for i in range(len(cluster))]
