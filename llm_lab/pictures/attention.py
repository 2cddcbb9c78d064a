"""What attention looks at: weights read by hooks, their picture, and a view to explore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_course.generation.request import is_encoder_decoder
from llm_course.generation.stepping import eval_mode
from llm_course.models.layers import MultiHeadAttention
from llm_course.shapes import Float
from llm_lab.pictures.attention_html import attention_part
from llm_lab.pictures.curves import FONT_SIZE
from llm_lab.pictures.page_part import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PARTS = ("encoder", "decoder", "cross")
COLORS = "Blues"  # from white to dark in one hue: also readable in grey
HIDDEN = "#E3E3E3"  # a weight of exactly 0: the mask forbids it
MAX_COLUMNS = 3  # of a grid of heads
MAX_LABELS = 32  # tokens written along an axis; more would be unreadable
MAX_WEIGHTS = 1_000_000  # in one view: each is more than a byte of the notebook


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
        ValueError: a part that the model does not have, or a cache.
    """
    modules = _attentions(model, part)
    if inputs.get("cache") is not None:
        raise ValueError("attention_maps needs the whole text at once: cache must be None")
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], _: Tensor) -> None:
        assert isinstance(module, MultiHeadAttention)
        used = {name: kwargs[name] for name in ("mask", "causal") if name in kwargs}
        found[module] = module.weights(*args, **used)

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
    _check(weights, tokens, key_tokens, row, layer, head)
    maps = weights[layer]
    keys = tokens if key_tokens is None else key_tokens
    heads = range(maps.shape[1]) if head is None else [head]
    panels = [maps[row, h].detach().float().cpu() for h in heads]
    return _grid(panels, [f"layer {layer}, head {h}" for h in heads], tokens, keys, title)


@dataclass(frozen=True, eq=False)
class AttentionView:
    """The attention of one sentence, all layers and heads; notebooks show it as an HTML view."""

    weights: tuple[Float[Tensor, "H T S"], ...]  # a layer each
    tokens: tuple[str, ...]
    key_tokens: tuple[str, ...] | None
    layer: int
    head: int | None
    title: str

    def _repr_html_(self) -> str:
        return attention_part(
            self.weights, self.tokens, self.key_tokens, self.layer, self.head, self.title
        )

    def __repr__(self) -> str:
        """The same on each machine: `--nbval` compares it."""
        n_keys = "" if self.key_tokens is None else f" to {len(self.key_tokens)}"
        sizes = f"{len(self.weights)} layers, {len(self.weights[0])} heads"
        return f"AttentionView({sizes}, {len(self.tokens)}{n_keys} tokens)"

    def plot(self) -> Figure:
        """The static twin for print: `plot_attention` of the layer and head of the start."""
        return plot_attention(
            [w[None] for w in self.weights],
            [visible(token) for token in self.tokens],
            layer=self.layer,
            head=self.head,
            key_tokens=self.key_tokens and [visible(token) for token in self.key_tokens],
            title=self.title,
        )


def attention_view(
    weights: Sequence[Float[Tensor, "B H T S"]],
    tokens: Sequence[str],
    *,
    key_tokens: Sequence[str] | None = None,
    row: int = 0,
    layer: int = 0,
    head: int | None = None,
    title: str = "",
) -> AttentionView:
    """An interactive view of where each token looks; the last line of a cell shows it.

    Weights are shown as hundredths; one of exactly 0 is forbidden by a mask. The arguments are
    those of `plot_attention`; `layer` and `head` are where the view begins, head None with the
    mean of all heads.

    Args:
        key_tokens: the text of each key where queries and keys differ (cross-attention): source
            and target then stand side by side.
        title: also the name of the view for screen readers.

    Raises:
        ValueError: a layer, head or row that is not there, another number of tokens, layers of
            different shapes, weights that are not from 0 to 1, or too many of them.
    """
    _check(weights, tokens, key_tokens, row, layer, head)
    shape = weights[0].shape
    for number, maps in enumerate(weights):
        if maps.shape != shape:
            raise ValueError(
                f"all layers must have the shape {list(shape)} of layer 0, "
                f"got {list(maps.shape)} in layer {number}"
            )
    if (count := len(weights) * shape[1:].numel()) > MAX_WEIGHTS:
        raise ValueError(f"a view holds at most {MAX_WEIGHTS} weights, got {count}: fewer layers?")
    shown = tuple(maps[row].detach().float().cpu() for maps in weights)
    for number, maps in enumerate(shown):
        if not ((maps >= 0) & (maps <= 1 + 1e-3)).all():
            low, high = maps.aminmax()
            raise ValueError(
                f"weights must be from 0 to 1, got {low:.3g} to {high:.3g} in layer {number}"
            )
    return AttentionView(
        weights=shown,
        tokens=tuple(tokens),
        key_tokens=None if key_tokens is None else tuple(key_tokens),
        layer=layer,
        head=0 if shape[1] == 1 else head,
        title=title,
    )


def _check(
    weights: Sequence[Tensor],
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None,
    row: int,
    layer: int,
    head: int | None,
) -> None:
    """Raise ValueError where a picture is asked for that the weights do not have."""
    _check_index("layer", layer, len(weights))
    n_rows, n_heads, n_queries, n_keys = weights[layer].shape
    _check_index("row", row, n_rows)
    if head is not None:
        _check_index("head", head, n_heads)
    keys = tokens if key_tokens is None else key_tokens
    for name, given, wanted in (("tokens", tokens, n_queries), ("key_tokens", keys, n_keys)):
        if len(given) != wanted:
            raise ValueError(f"{name} must hold {wanted} tokens, got {len(given)}")


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
