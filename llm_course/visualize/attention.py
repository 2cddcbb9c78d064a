"""What attention looks at: weights read by hooks, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_course.generation.prepare import eval_mode
from llm_course.generation.request import is_encoder_decoder
from llm_course.models.layers import MultiHeadAttention
from llm_course.shapes import Float
from llm_course.visualize.curves import FONT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PARTS = ("encoder", "decoder", "cross")
COLORS = "Blues"  # from white to dark in one hue: also readable in grey
HIDDEN = "#E3E3E3"  # a weight of exactly 0: the mask forbids it
MAX_COLUMNS = 3  # of a grid of heads
MAX_LABELS = 32  # tokens written along an axis; more would be unreadable


def attention_maps(
    model: nn.Module, input_ids: Tensor, *, part: str | None = None, **inputs: Any
) -> list[Float[Tensor, "B H T S"]]:
    r"""The attention weights $\mathrm{softmax}(QK^T/\sqrt{d_k})$ (F1) of each block, first to last.

    Runs the model once, in eval mode and without gradients. The models use a fused kernel that
    never forms these weights, so hooks compute them again from what each attention received.

    Args:
        part: of an encoder-decoder: "encoder", "decoder", or "cross" for the decoder's attention
            to the encoder; None for BERT and GPT, which have one kind.
        inputs: what else the model is called with, such as `attention_mask` or
            `decoder_input_ids`.

    Raises:
        ValueError: a part that the model does not have.
    """
    modules = _attentions(model, part)
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], _: Tensor) -> None:
        assert isinstance(module, MultiHeadAttention)
        found[module] = module.weights(*args, **kwargs)

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad(), eval_mode(model):
            model(input_ids, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[module] for module in modules]


def _attentions(model: Any, part: str | None) -> list[MultiHeadAttention]:
    """The attention modules of one part, in the order of their blocks."""
    if not is_encoder_decoder(model):
        if part is not None:
            raise ValueError(f"part must be None for {type(model).__name__}, got {part!r}")
        return [block.attn for block in model.blocks()]
    if part not in PARTS:
        raise ValueError(
            f"part of {type(model).__name__} must be one of {', '.join(PARTS)}, got {part!r}"
        )
    if part == "cross":
        return [block.cross_attn for block in model.decoder]
    return [block.attn for block in (model.encoder if part == "encoder" else model.decoder)]


def plot_attention(
    weights: Sequence[Float[Tensor, "B H T S"]],
    tokens: Sequence[str],
    *,
    layer: int,
    head: int | None = None,
    row: int = 0,
    key_tokens: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw the weights of one head, or of all heads of a layer in a grid.

    Each line of a picture is a query and sums to 1; grey is exactly 0, which a mask forbids.

    Args:
        weights: what `attention_maps` returned.
        tokens: the text of each query, T of them.
        layer, head: counted from 0; head None: all heads.
        row: which row of the batch.
        key_tokens: the text of each key, S of them, where it is not `tokens` (cross-attention).

    Raises:
        ValueError: a layer, head or row that is not there, or another number of tokens.
    """
    _check_index("layer", layer, len(weights))
    maps = weights[layer]
    n_rows, n_heads, n_queries, n_keys = maps.shape
    _check_index("row", row, n_rows)
    if head is not None:
        _check_index("head", head, n_heads)
    keys = tokens if key_tokens is None else key_tokens
    for name, given, wanted in (("tokens", tokens, n_queries), ("key_tokens", keys, n_keys)):
        if len(given) != wanted:
            raise ValueError(f"{name} must hold {wanted} tokens, got {len(given)}")
    heads = range(n_heads) if head is None else [head]
    panels = [maps[row, h].detach().float().cpu() for h in heads]
    return _grid(panels, [f"layer {layer}, head {h}" for h in heads], tokens, keys, title)


def _check_index(name: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{name} must be from 0 to {count - 1}, got {index}")


def _grid(
    panels: Sequence[Float[Tensor, "T S"]],
    names: Sequence[str],
    queries: Sequence[str],
    keys: Sequence[str],
    title: str,
) -> Figure:
    import matplotlib.pyplot as plt

    columns = min(len(panels), MAX_COLUMNS)
    lines = -(-len(panels) // columns)
    size = 5.0 if len(panels) == 1 else 2.6  # inches a panel
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(size * columns + 1.2, size * lines + 0.6),
        dpi=120,
        layout="constrained",
        squeeze=False,
    )
    small = FONT_SIZE - 2 if len(panels) == 1 else FONT_SIZE - 3
    for i, axes in enumerate(grid.flat):
        if i >= len(panels):
            axes.set_visible(False)
            continue
        image = _heat_map(axes, panels[i], names[i])
        bottom = i + columns >= len(panels)  # nothing stands below this panel
        _label(axes.xaxis, keys if bottom else [], small, rotation=90)
        _label(axes.yaxis, queries if i % columns == 0 else [], small)
    figure.supxlabel("attends to (key)", fontsize=FONT_SIZE)
    figure.supylabel("query", fontsize=FONT_SIZE)
    figure.suptitle(title, fontsize=FONT_SIZE + 1)
    bar = figure.colorbar(image, ax=grid, shrink=0.8)
    bar.set_label("attention weight", fontsize=FONT_SIZE)
    return figure


def _heat_map(axes: Axes, panel: Float[Tensor, "T S"], name: str) -> AxesImage:
    import matplotlib
    import numpy as np

    axes.set_title(name, fontsize=FONT_SIZE - 1)
    colors = matplotlib.colormaps[COLORS].with_extremes(bad=HIDDEN)
    values = np.ma.masked_equal(panel.numpy(), 0.0)
    return axes.imshow(values, cmap=colors, vmin=0.0, vmax=1.0, aspect="equal")


def _label(axis: Any, tokens: Sequence[str], size: float, rotation: float = 0) -> None:
    """Write the tokens along an axis, or nothing where they would not be readable."""
    if len(tokens) > MAX_LABELS:
        tokens = []
    axis.set_ticks(range(len(tokens)), tokens, fontsize=size, rotation=rotation)
