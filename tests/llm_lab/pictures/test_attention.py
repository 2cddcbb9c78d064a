"""Attention maps: those of transformers, rows that sum to one, hooks that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from parity import differs, perturbed
from torch import Tensor, nn
from torch.testing import assert_close

mpl.use("Agg")
import matplotlib.pyplot as plt

from llm_course import BERT, GPT, T5, Transformer, TransformerConfig
from llm_lab.pictures.attention import PARTS, attention_maps, plot_attention

VOCAB = 17
IDS = torch.tensor([[3, 5, 7, 9, 11], [2, 4, 6, 8, 10]])
TARGETS = torch.tensor([[0, 4, 6, 1], [0, 2, 2, 16]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def pair(family: str, directory: Path) -> tuple[nn.Module, Any]:
    """Our model and theirs with the same random weights."""
    import transformers as hf

    theirs: Any
    ours: Any
    if family == "gpt":
        config: Any = hf.GPT2Config(
            vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=2, n_positions=8, bos_token_id=0,
            eos_token_id=1, attn_implementation="eager",
        )  # fmt: skip
        ours, theirs = GPT, hf.GPT2LMHeadModel(config)
    elif family == "bert":
        config = hf.BertConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=8, attn_implementation="eager",
        )  # fmt: skip
        ours, theirs = BERT, hf.BertForPreTraining(config)
    else:
        config = hf.T5Config(
            vocab_size=VOCAB, d_model=16, d_kv=6, d_ff=32, num_layers=3, num_decoder_layers=2,
            num_heads=2, relative_attention_num_buckets=8, relative_attention_max_distance=16,
            attn_implementation="eager",
        )  # fmt: skip
        ours, theirs = T5, hf.T5ForConditionalGeneration(config)
    perturbed(theirs).save_pretrained(directory)
    return ours.from_pretrained(directory), theirs


def assert_same(found: list[Tensor], expected: tuple[Tensor, ...], rows: Tensor) -> None:
    """Equal where the query is a token; what padding attends to has no meaning."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.shape == theirs.shape
        queries = rows[:, None, :, None]
        assert_close(ours * queries, theirs * queries, atol=2e-6, rtol=1e-5)


@pytest.mark.covers("F1")
@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_maps_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    ours, theirs = pair(family, tmp_path)
    found = attention_maps(ours, IDS, attention_mask=MASK)
    expected = theirs(IDS, attention_mask=MASK, output_attentions=True).attentions
    assert_same(found, expected, MASK)
    assert differs(found[-1][0], expected[0][0])  # layers are not alike: a wrong order shows


@pytest.mark.covers("F1", "F8")
def test_maps_of_all_parts_of_t5_equal_those_of_transformers(tmp_path: Path) -> None:
    ours, theirs = pair("t5", tmp_path)
    inputs = {"attention_mask": MASK, "decoder_input_ids": TARGETS}
    expected = theirs(IDS, **inputs, output_attentions=True)
    everywhere = torch.ones_like(TARGETS)
    for part, theirs_of_part, rows in (
        ("encoder", expected.encoder_attentions, MASK),
        ("decoder", expected.decoder_attentions, everywhere),
        ("cross", expected.cross_attentions, everywhere),
    ):
        assert_same(attention_maps(ours, IDS, part=part, **inputs), theirs_of_part, rows)


def transformer() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB, n_layers=2, n_decoder_layers=3, d_model=16, n_heads=4, d_ff=32,
        n_positions=8,
    )  # fmt: skip
    return Transformer(config)


@pytest.mark.covers("F1")
def test_rows_sum_to_one_and_forbidden_weights_are_exactly_zero() -> None:
    model = transformer()
    inputs = {"attention_mask": MASK, "decoder_input_ids": TARGETS}
    for part, n_layers, shape in (
        ("encoder", 2, (2, 4, 5, 5)),
        ("decoder", 3, (2, 4, 4, 4)),
        ("cross", 3, (2, 4, 4, 5)),
    ):
        maps = attention_maps(model, IDS, part=part, **inputs)
        assert [m.shape for m in maps] == [shape] * n_layers
        for weights in maps:
            assert_close(weights.sum(-1), torch.ones(shape[:3]))
            if part == "decoder":
                assert (weights.triu(1) == 0).all()
                assert (weights.tril() > 0).sum() == 2 * 4 * 10
            else:
                assert (weights[1, :, :, 3:] == 0).all()  # padding of the source


def test_weights_times_values_are_what_the_fast_path_computed() -> None:
    model = transformer().eval()
    attn = model.encoder[0].attn
    seen: list[tuple[Tensor, Tensor]] = []
    hook = attn.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    weights = attention_maps(model, IDS, part="encoder", decoder_input_ids=TARGETS)[0]
    hook.remove()
    x, out = seen[0]
    with torch.no_grad():
        heads = weights @ attn.keys_values(x)[1]
        assert_close(attn.w_o(heads.transpose(1, 2).flatten(2)), out)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_and_modes_leave_no_trace_also_after_an_error() -> None:
    model = transformer().train()
    model.encoder[0].eval()
    modes = [module.training for module in model.modules()]
    maps = attention_maps(model, IDS, part="cross", decoder_input_ids=TARGETS)
    assert not maps[0].requires_grad
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="16"):
        attention_maps(model, IDS + VOCAB, part="cross", decoder_input_ids=TARGETS)
    assert hooks_of(model) == 0
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off() -> None:
    model = transformer().eval()
    expected = maps_of("cross", model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    for found, wanted in zip(maps_of("cross", model.train()), expected):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("part", [None, "both"])
def test_unknown_part_is_refused_with_the_choices(part: str | None) -> None:
    with pytest.raises(ValueError, match="Transformer must be one of encoder, decoder, cross"):
        attention_maps(transformer(), IDS, part=part, decoder_input_ids=TARGETS)


def test_part_of_a_model_with_one_stack_is_refused() -> None:
    from llm_course import GPTConfig

    gpt = GPT(GPTConfig(vocab_size=VOCAB, n_layers=1, d_model=8, n_heads=2, n_positions=8))
    with pytest.raises(ValueError, match="part must be None for GPT, got 'encoder'"):
        attention_maps(gpt, IDS, part="encoder")


WORDS = ["the", "baker", "sold", "warm", "bread"]
TARGET_WORDS = ["<s>", "she", "was", "glad"]


def maps_of(part: str, model: nn.Module | None = None) -> list[Tensor]:
    return attention_maps(model or transformer(), IDS, part=part, decoder_input_ids=TARGETS)


def test_picture_shows_the_weights_with_their_tokens() -> None:
    maps = maps_of("cross")
    figure = plot_attention(maps, TARGET_WORDS, key_tokens=WORDS, layer=1, head=2, row=1)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert_close(torch.tensor(shown.filled(0.0)), maps[1][1, 2])
    assert [label.get_text() for label in axes.get_xticklabels()] == WORDS
    assert [label.get_text() for label in axes.get_yticklabels()] == TARGET_WORDS
    assert axes.images[0].get_clim() == (0.0, 1.0)
    assert axes.get_title() == "layer 1, head 2"
    figure.canvas.draw()


def test_grid_shows_every_head_and_masks_are_grey() -> None:
    maps = maps_of("decoder")
    figure = plot_attention(maps, TARGET_WORDS, layer=0, title="Self-attention")
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"layer 0, head {h}" for h in range(4)]
    for head, axes in enumerate(panels):
        shown = axes.images[0].get_array()
        assert torch.equal(torch.tensor(shown.mask), maps[0][0, head] == 0)
    figure.canvas.draw()


@pytest.mark.parametrize("n_heads", [1, 3, 5, 12])
def test_any_number_of_heads_makes_a_grid(n_heads: int) -> None:
    weights = torch.softmax(torch.randn(1, n_heads, 2, 2), dim=-1)
    figure = plot_attention([weights], ["a", "b"], layer=0)
    visible = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert len(visible) == n_heads
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, "layer must be from 0 to 2, got 3"),
        ({"layer": 0, "head": 4}, "head must be from 0 to 3, got 4"),
        ({"layer": 0, "row": 2}, "row must be from 0 to 1, got 2"),
        ({"layer": 0, "tokens": WORDS}, "tokens must hold 4 tokens, got 5"),
        ({"layer": 0, "key_tokens": TARGET_WORDS}, "key_tokens must hold 5 tokens, got 4"),
    ],
)
def test_what_is_not_there_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"tokens": TARGET_WORDS, "key_tokens": WORDS} | arguments
    with pytest.raises(ValueError, match=message):
        plot_attention(maps_of("cross"), **arguments)


def test_parts_are_those_of_an_encoder_decoder() -> None:
    assert all(maps_of(part) for part in PARTS)
