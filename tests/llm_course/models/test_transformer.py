"""The Transformer equals torch.nn.Transformer and, sub-layer by sub-layer, the paper's formulas."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import (
    assert_parity,
    assert_relative,
    causal_leak,
    differs,
    gradient_difference,
    perturbed,
    random_attention_mask,
    random_ids,
    random_splits,
    random_width,
    reached,
    relative_difference,
    rng,
    saved_twice,
)
from torch import Tensor, nn
from torch.testing import assert_close

from llm_course.configs import TransformerConfig
from llm_course.errors import ConfigError, WeightsError
from llm_course.models.transformer import Transformer, sinusoids

TINY = TransformerConfig(
    vocab_size=37, n_layers=2, n_decoder_layers=3, d_model=24, n_heads=3, d_ff=20, n_positions=32
)


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    """The position table is made in the default dtype: here float64, to compare at 1e-10."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with default_float64():
        yield


INPUTS = ("input_ids", "decoder_input_ids", "attention_mask")
# A function: torch's layers lose an activation that is a module when a stack copies them.
TANH = functools.partial(nn.functional.gelu, approximate="tanh")
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": TANH}


def tiny(seed: int = 0, **changes: Any) -> Transformer:
    return perturbed(Transformer(TransformerConfig(**(TINY.to_dict() | changes))), seed)


def close(ours: Tensor, expected: Tensor) -> None:
    assert_close(ours, expected, rtol=1e-10, atol=1e-10)


# The references: PyTorch's own model, and the formulas written out with loops.


def copy_attention(ours: nn.Module, reference: nn.MultiheadAttention) -> None:
    reference.in_proj_weight.data = torch.cat([w.weight for w in (ours.w_q, ours.w_k, ours.w_v)])
    reference.out_proj.weight.data = ours.w_o.weight.data.clone()
    for bias in (reference.in_proj_bias, reference.out_proj.bias):
        bias.data.zero_()  # the paper's projections have no biases
        bias.requires_grad_(False)


def copy_block(ours: nn.Module, reference: nn.Module) -> None:
    copy_attention(ours.attn, reference.self_attn)
    norms = [ours.attn_norm]
    if hasattr(ours, "cross_attn"):
        copy_attention(ours.cross_attn, reference.multihead_attn)
        norms.append(ours.cross_attn_norm)
    reference.linear1.load_state_dict(ours.ff.w_1.state_dict())
    reference.linear2.load_state_dict(ours.ff.w_2.state_dict())
    for i, norm in enumerate([*norms, ours.ff_norm], start=1):
        getattr(reference, f"norm{i}").load_state_dict(norm.state_dict())


def torch_twin(model: Transformer) -> nn.Transformer:
    """torch.nn.Transformer with our weights, and as in the paper without its two last norms."""
    config = model.config
    shape: dict[str, Any] = {
        "d_model": config.d_model,
        "nhead": config.n_heads,
        "dim_feedforward": config.d_ff,
        "activation": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_eps,
        "dropout": 0.0,
        "batch_first": True,
    }
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**shape), config.n_layers, enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), config.n_decoder_layers)
    twin = nn.Transformer(
        config.d_model,
        config.n_heads,
        custom_encoder=encoder,
        custom_decoder=decoder,
        batch_first=True,
    )
    for ours, reference in [
        *zip(model.encoder, encoder.layers),
        *zip(model.decoder, decoder.layers),
    ]:
        copy_block(ours, reference)
    return twin.train()  # without dropout, and not by the fused path of inference


def sinusoid_by_hand(pos: int, column: int, d_model: int) -> float:
    """§3.5: PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same)."""
    i = column // 2
    angle = pos / 10_000 ** (2 * i / d_model)
    return math.sin(angle) if column % 2 == 0 else math.cos(angle)


def embedded_by_hand(embedding: Tensor, ids: Tensor) -> Tensor:
    """§3.4 and §3.5: the embedding times sqrt(d_model), plus the position."""
    d_model = embedding.shape[1]
    rows = []
    for row in ids.tolist():
        vectors = []
        for pos, token in enumerate(row):
            position = [sinusoid_by_hand(pos, column, d_model) for column in range(d_model)]
            vectors.append(math.sqrt(d_model) * embedding[token] + torch.tensor(position))
        rows.append(torch.stack(vectors))
    return torch.stack(rows)


class TorchReference(nn.Module):
    """torch.nn.Transformer with our weights, between embeddings and a head written by hand."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.twin = torch_twin(model)
        self.embedding = nn.Parameter(model.token_embedding.weight.detach().clone())
        self.head = self.embedding
        if not model.config.tied:
            self.head = nn.Parameter(model.lm_head.weight.detach().clone())

    def hidden(self, ids: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        blocked = None if mask is None else mask == 0
        return self.twin(
            embedded_by_hand(self.embedding, ids),
            embedded_by_hand(self.embedding, target),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=blocked,
            memory_key_padding_mask=blocked,
        )

    def forward(self, ids: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.hidden(ids, target, mask) @ self.head.T


def gradients_under_torch_names(model: Transformer) -> dict[str, Tensor]:
    """Ours, with those of queries, keys and values joined as in nn.MultiheadAttention."""
    found = {"embedding": model.token_embedding.weight.grad}
    if not model.config.tied:
        found["head"] = model.lm_head.weight.grad
    for stack in ("encoder", "decoder"):
        for i, block in enumerate(getattr(model, stack)):
            at = f"twin.{stack}.layers.{i}"
            attentions, norms = {"self_attn": block.attn}, [block.attn_norm]
            if stack == "decoder":
                attentions["multihead_attn"] = block.cross_attn
                norms.append(block.cross_attn_norm)
            for name, attn in attentions.items():
                joined = [w.weight.grad for w in (attn.w_q, attn.w_k, attn.w_v)]
                found[f"{at}.{name}.in_proj_weight"] = torch.cat(joined)
                found[f"{at}.{name}.out_proj.weight"] = attn.w_o.weight.grad
            modules = {"linear1": block.ff.w_1, "linear2": block.ff.w_2}
            modules |= {f"norm{j}": n for j, n in enumerate([*norms, block.ff_norm], start=1)}
            for name, module in modules.items():
                found |= {f"{at}.{name}.{k}": p.grad for k, p in module.named_parameters()}
    return found


def multi_head_by_hand(attn: nn.Module, queries: Tensor, source: Tensor) -> Tensor:
    """F1-F3 with a loop over heads: Concat(head_i) W^O, head_i = Attention(Q W_i, K W_i, V W_i)."""
    d_head = attn.d_head
    heads = []
    for i in range(attn.n_heads):
        rows = slice(i * d_head, (i + 1) * d_head)
        q = queries @ attn.w_q.weight[rows].T
        k = source @ attn.w_k.weight[rows].T
        v = source @ attn.w_v.weight[rows].T
        scores = (q @ k.T / math.sqrt(d_head)).exp()
        heads.append(scores / scores.sum(dim=-1, keepdim=True) @ v)
    return torch.cat(heads, dim=-1) @ attn.w_o.weight.T


def norm_by_hand(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def feed_forward_by_hand(ff: nn.Module, x: Tensor) -> Tensor:
    """F7: max(0, x W_1 + b_1) W_2 + b_2."""
    inner = (x @ ff.w_1.weight.T + ff.w_1.bias).clamp(min=0)
    return inner @ ff.w_2.weight.T + ff.w_2.bias


def random_model(draw: random.Random) -> Transformer:
    n_heads = draw.randint(1, 4)
    return tiny(
        draw.randrange(2**32),
        vocab_size=draw.randint(20, 60),
        n_heads=n_heads,
        d_model=random_width(n_heads, draw),
        n_layers=draw.randint(1, 3),
        n_decoder_layers=draw.randint(1, 3),
        d_ff=draw.randint(5, 40),
        activation=draw.choice(["relu", "gelu", "gelu_tanh"]),
        norm_eps=draw.choice([1e-6, 1e-5, 1e-3, 0.1]),
        tied=draw.random() < 0.5,
    )


def random_inputs(n_ids: int, draw: random.Random) -> dict[str, Tensor]:
    rows, n_source, n_target = draw.randint(1, 3), draw.randint(2, 20), draw.randint(1, 20)
    inputs = {
        "input_ids": random_ids((rows, n_source), n_ids, draw.randrange(2**32)),
        "decoder_input_ids": random_ids((rows, n_target), n_ids, draw.randrange(2**32)),
    }
    kind = draw.choice(["none", "left", "right", "holes"])
    if kind != "none":
        inputs["attention_mask"] = random_attention_mask(kind, (rows, n_source), draw)
    return inputs


def cached_difference(model: Transformer, inputs: dict[str, Tensor], draw: random.Random) -> float:
    """Decoding in random pieces against the full pass."""
    rows, length = inputs["decoder_input_ids"].shape
    cache = model.new_cache(rows, length)
    parts = []
    for start, end in random_splits(length, draw):
        piece = inputs["decoder_input_ids"][:, start:end]
        parts.append(model(**(inputs | {"decoder_input_ids": piece}), cache=cache))
    return relative_difference(torch.cat(parts, 1), model(**inputs))


def padding_difference(model: Transformer, inputs: dict[str, Tensor], n_padding: int) -> float:
    """The last columns of the source as padding, or cut off."""
    ids, target = inputs["input_ids"], inputs["decoder_input_ids"]
    mask = torch.ones_like(ids)
    mask[:, ids.shape[1] - n_padding :] = 0
    padded = model(ids, decoder_input_ids=target, attention_mask=mask)
    return relative_difference(padded, model(ids[:, :-n_padding], decoder_input_ids=target))


def parity_case(seed: int, folder: Path | None = None) -> dict[str, float]:
    """Worst relative differences from torch, of one random configuration and input."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name, default_float64():
            return parity_case(seed, Path(name))
    draw = random.Random(seed)
    model = random_model(draw)
    n_ids = model.config.vocab_size
    inputs = random_inputs(n_ids, draw)
    again = Transformer.from_pretrained(saved_twice(model, folder))
    reference = TorchReference(model)
    expected = reference(*(inputs.get(key) for key in INPUTS))
    logits = model(**inputs)
    weights = torch.randn(logits.shape, generator=rng(seed))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    case = {"gradients": gradient_difference(gradients_under_torch_names(model), reference)}

    def logits_of(target: Tensor) -> Tensor:
        return model(**(inputs | {"decoder_input_ids": target}))

    with torch.no_grad():
        assert torch.equal(again(**inputs), logits)
        case |= {
            "cached": cached_difference(model, inputs, draw),
            "padding": padding_difference(
                model, inputs, draw.randint(1, inputs["input_ids"].shape[1] - 1)
            ),
            "leak": causal_leak(logits_of, inputs["decoder_input_ids"], n_ids),
        }
        return {"logits": relative_difference(model.float()(**inputs), expected)} | case


@pytest.mark.parametrize("seed", range(20))
def test_every_random_model_equals_that_of_torch(seed: int, tmp_path: Path) -> None:
    assert_parity(parity_case(seed, tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_torch_to_the_last_digits(tied: bool) -> None:
    model = tiny(tied=tied)
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0]])
    expected = TorchReference(model)(ids, target, mask)
    close(model(ids, decoder_input_ids=target, attention_mask=mask), expected)
    assert differs(model(ids, decoder_input_ids=target), expected)  # the mask matters


def test_the_random_models_differ_in_all_that_matters() -> None:
    seen: set[Any] = set()
    for seed in range(20):
        draw = random.Random(seed)
        config = random_model(draw).config
        inputs = random_inputs(config.vocab_size, draw)
        mask = inputs.get("attention_mask", torch.ones(1, 2))
        has_gaps, left, right = (mask.diff(dim=1) > 0).any(), mask[:, 0].min(), mask[:, -1].min()
        seen |= {config.activation, ("tied", config.tied)}
        seen |= {("eps", config.norm_eps), ("heads", config.n_heads)}
        seen |= {("left", bool(left == 0)), ("right", bool(right == 0)), ("gaps", bool(has_gaps))}
        seen |= {("depths", config.n_layers == config.n_decoder_layers)}
    assert len(seen) == 3 + 2 + 4 + 4 + 6 + 2, seen


def pre_norm(model: Transformer, patch: pytest.MonkeyPatch) -> None:
    block = type(model.encoder[0])

    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), mask=mask)
        return x + self.ff(self.ff_norm(x))

    patch.setattr(block, "forward", forward)


def unscaled_embeddings(model: Transformer, patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model.position_table.mul_(model.config.d_model**0.5)


def unscaled_scores(model: Transformer, patch: pytest.MonkeyPatch) -> None:
    for block in model.decoder:
        block.cross_attn.scale = 1.0


def positions_from_one(model: Transformer, patch: pytest.MonkeyPatch) -> None:
    model.position_table = model.position_table.roll(-1, 0)


def swapped_norms(model: Transformer, patch: pytest.MonkeyPatch) -> None:
    for block in model.decoder:
        block.cross_attn_norm, block.ff_norm = block.ff_norm, block.cross_attn_norm


@pytest.mark.parametrize(
    "defect", [pre_norm, unscaled_embeddings, unscaled_scores, positions_from_one, swapped_norms]
)
def test_the_comparison_notices_a_small_defect(
    defect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    states = TorchReference(model).hidden(ids, target)
    close(model.hidden(ids, decoder_input_ids=target), states)
    defect(model, monkeypatch)
    assert differs(model.hidden(ids, decoder_input_ids=target), states)


@pytest.mark.covers("X2")
@pytest.mark.parametrize("d_model", [2, 5, 24, 512])
def test_the_position_table_is_the_formula_of_the_paper(d_model: int) -> None:
    table = sinusoids(40, d_model)
    assert table.shape == (40, d_model)
    for pos in range(40):
        for column in range(d_model):
            expected = sinusoid_by_hand(pos, column, d_model)
            assert table[pos, column].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.covers("X2")
def test_the_table_k_positions_on_is_a_rotation_that_does_not_depend_on_the_position() -> None:
    """§3.5 gives this as the reason for sines: PE(pos + k) is a linear function of PE(pos)."""
    table, k, d_model = sinusoids(40, 24), 7, 24
    for i in range(d_model // 2):
        angle = k / 10_000 ** (2 * i / d_model)
        rotation = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        pairs = table[:, 2 * i : 2 * i + 2]
        close(pairs[k:], pairs[:-k] @ rotation.T)


@pytest.mark.covers("F4", "F5", "F6", "X4")
def test_the_first_sublayer_of_the_encoder_is_the_formulas_of_attention() -> None:
    model = tiny()
    block, x = model.encoder[0], torch.randn(5, 24, generator=rng(0))
    kept: list[Tensor] = []
    block.attn_norm.register_forward_hook(lambda module, args, out: kept.append(out))
    result = block(x[None])
    attended = norm_by_hand(block.attn_norm, x + multi_head_by_hand(block.attn, x, x))
    close(kept[0][0], attended)
    close(
        result[0],
        norm_by_hand(block.ff_norm, attended + feed_forward_by_hand(block.ff, attended)),
    )
    without_sum = norm_by_hand(block.attn_norm, multi_head_by_hand(block.attn, x, x))
    assert differs(kept[0][0], without_sum)


@pytest.mark.covers("F7")
def test_the_feed_forward_layer_is_its_formula_at_each_position_alone() -> None:
    ff = tiny().encoder[0].ff
    x, order = torch.randn(2, 6, 24, generator=rng(0)), torch.tensor([3, 0, 5, 1, 4, 2])
    close(ff(x), feed_forward_by_hand(ff, x))
    close(ff(x[:, order]), ff(x)[:, order])
    block = tiny().decoder[0]
    # Causal attention is not position-wise.
    assert differs(block.attn(x[:, order], causal=True), block.attn(x, causal=True)[:, order])


@pytest.mark.covers("F8")
def test_cross_attention_has_queries_of_the_decoder_and_keys_and_values_of_the_encoder() -> None:
    model = tiny()
    calls: list[tuple[Tensor, Tensor]] = []
    block = model.decoder[1]
    block.cross_attn.register_forward_hook(lambda module, args, out: calls.append((args, out)))
    ids, target = random_ids((1, 6), 37, 0), random_ids((1, 4), 37, 1)
    model(ids, decoder_input_ids=target)
    (queries, states), out = calls[0]
    close(states, model.encode(ids))
    close(out[0], multi_head_by_hand(block.cross_attn, queries[0], states[0]))
    assert differs(out[0], multi_head_by_hand(block.cross_attn, queries[0], queries[0]))


@pytest.mark.covers("F8")
def test_the_keys_of_the_encoder_are_computed_once() -> None:
    model = tiny()
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("w_k", "w_v")) and ("cross" in name or "encoder" in name):
            module.register_forward_hook(lambda *call, name=name: calls.append(name))
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 4), 37, 1)
    cache = model.new_cache(2, 4)
    for t in range(4):
        model(ids, decoder_input_ids=target[:, t : t + 1], cache=cache)
    assert len(calls) == len(set(calls)) == 2 * (2 + 3)


@pytest.mark.covers("X2")
def test_without_positions_the_encoder_cannot_tell_the_order_of_words() -> None:
    model = tiny()
    ids, order = random_ids((2, 6), 37, 0), torch.tensor([3, 0, 5, 1, 4, 2])
    assert differs(model.encode(ids[:, order]), model.encode(ids)[:, order])
    model.position_table.zero_()
    close(model.encode(ids[:, order]), model.encode(ids)[:, order])


@pytest.mark.parametrize("seed", range(3))
def test_cached_decoding_equals_the_full_pass(seed: int) -> None:
    draw = random.Random(seed)
    model, length = tiny(seed), 17
    ids, target = random_ids((3, 11), 37, seed), random_ids((3, length), 37, seed + 1)
    mask = random_attention_mask(("left", "right", "holes")[seed], (3, 11), draw)
    full = model(ids, decoder_input_ids=target, attention_mask=mask)
    states = model.encode(ids, attention_mask=mask)
    caches = [model.new_cache(3, length + 2) for _ in range(2)]
    start = 0
    while start < length:
        end = min(length, start + draw.randint(1, 4))
        part = target[:, start:end]
        by_decode = model.decode(states, part, attention_mask=mask, cache=caches[0])
        by_forward = model(ids, decoder_input_ids=part, attention_mask=mask, cache=caches[1])
        close(by_decode, full[:, start:end])
        assert torch.equal(by_forward, by_decode)
        states = None  # the cache holds what is needed of them
        start = end


def test_rows_of_a_cache_can_be_repeated() -> None:
    model = tiny()
    first, ids, target = (
        random_ids((2, 1), 37, 2),
        random_ids((2, 6), 37, 0),
        random_ids((4, 3), 37, 1),
    )
    rows = torch.tensor([1, 0, 1, 0])
    cache = model.new_cache(2, 4)
    model(ids, decoder_input_ids=first, cache=cache)
    cache.reorder(rows)
    full = model(ids[rows], decoder_input_ids=torch.cat([first[rows], target], 1))
    close(model.decode(None, target, cache=cache), full[:, 1:])


def test_no_decoder_position_sees_a_later_one() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 9), 37, 1)
    logits = model(ids, decoder_input_ids=target)
    for j in range(9):
        changed = target.clone()
        changed[:, j] = (target[:, j] + 1) % 37
        others = model(ids, decoder_input_ids=changed)
        assert torch.equal(others[:, :j], logits[:, :j])
        assert differs(others[:, j:], logits[:, j:])


def test_the_gradient_of_a_logit_is_zero_at_every_later_token() -> None:
    model = tiny()
    kept: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(random_ids((1, 4), 37, 0), decoder_input_ids=random_ids((1, 7), 37, 1))
    for i in range(7):
        total = logits[0, i].square().sum()
        source, target = torch.autograd.grad(total, kept, retain_graph=True)
        assert reached(target[0].abs().amax(-1)).tolist() == [j <= i for j in range(7)]
        assert reached(source[0].abs().amax(-1)).all()


def test_padding_on_the_right_changes_nothing() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    logits = model(ids, decoder_input_ids=target)
    for n_padding in (1, 5, 20):
        padding = random_ids((2, n_padding), 37, n_padding)
        mask = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)], 1)
        padded = torch.cat([ids, padding], 1)
        right = model(padded, decoder_input_ids=target, attention_mask=mask)
        close(right, logits)
        other = torch.cat([ids, (padding + 1) % 37], 1)
        assert torch.equal(model(other, decoder_input_ids=target, attention_mask=mask), right)
        # The controls: unmasked padding is read, and positions are counted from that on the left.
        assert differs(model(padded, decoder_input_ids=target), logits)
        left = torch.cat([padding, ids], 1)
        wrong = model(left, decoder_input_ids=target, attention_mask=mask.flip(1))
        assert differs(wrong, logits)


def test_masks_of_two_and_three_dimensions_agree() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]])
    expected = model(ids, decoder_input_ids=target, attention_mask=mask)
    wide = mask[:, None].expand(2, 6, 6).bool()
    close(model(ids, decoder_input_ids=target, attention_mask=wide), expected)
    each = mask[:, None].expand(2, 5, 6)
    close(
        model.decode(model.encode(ids, attention_mask=mask), target, attention_mask=each), expected
    )


def test_the_decoder_sees_what_any_position_of_the_encoder_sees() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[:, :3, :3] = mask[:, 3:, 3:5] = True  # two documents, and the last position is padding
    seen = torch.tensor([[1, 1, 1, 1, 1, 0]] * 2)
    states = model.encode(ids, attention_mask=mask)
    expected = model.decode(states, target, attention_mask=seen)
    close(model(ids, decoder_input_ids=target, attention_mask=mask), expected)


def test_a_row_of_padding_stays_finite_and_changes_no_other_row() -> None:
    model = tiny()
    ids, target = random_ids((3, 6), 37, 0), random_ids((3, 5), 37, 1)
    mask = torch.ones_like(ids)
    expected = model(ids, decoder_input_ids=target, attention_mask=mask)
    mask[1] = 0
    logits = model(ids, decoder_input_ids=target, attention_mask=mask)
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_read_again_and_saves_to_the_same_bytes(
    tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny(tied=tied, activation="gelu_tanh", norm_eps=1e-3, bos_token_id=7).to(dtype)
    model.save_pretrained(tmp_path / "a")
    loaded = Transformer.from_pretrained(tmp_path / "a")
    assert loaded.config == model.config
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shared = loaded.lm_head.weight.data_ptr() == loaded.token_embedding.weight.data_ptr()
    assert shared == tied == bool(loaded.tied)
    ids, target = random_ids((2, 9), 37, 0), random_ids((2, 5), 37, 1)
    assert torch.equal(loaded(ids, decoder_input_ids=target), model(ids, decoder_input_ids=target))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "marian"}, "model_type must be 'llm_course_transformer', got 'marian'"),
        ({"n_layer": 2}, "unknown setting 'n_layer' of TransformerConfig; did you mean 'n_layers'"),
        ({"d_model": 25}, "d_model must be a multiple of n_heads = 3, got 25"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_all_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.1.ff.w_1.bias"]
    tensors["decoder.0.cross_attn.w_q.bias"] = torch.zeros(24)
    tensors["decoder.2.ff_norm.weight"] = torch.zeros(9)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        Transformer.from_pretrained(tmp_path)
    for part in (
        "missing: encoder.1.ff.w_1.bias",
        "extra: decoder.0.cross_attn.w_q.bias",
        "misshapen: decoder.2.ff_norm.weight [9] instead of [24]",
    ):
        assert part in str(error.value)


def test_the_base_model_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = Transformer()
    d, d_ff, vocab_size = 512, 2048, 37_000
    attention, ff, norm = 4 * d * d, 2 * d * d_ff + d_ff + d, 2 * d
    encoder, decoder = attention + ff + 2 * norm, 2 * attention + ff + 3 * norm
    expected = vocab_size * d + 6 * encoder + 6 * decoder
    assert sum(p.numel() for p in model.parameters()) == expected == 63_045_632
    assert abs(expected / 65e6 - 1) < 0.05  # Table 3 says 65 millions, of "about 37,000" tokens


def test_initialisation_is_xavier_uniform_and_the_embeddings_match_the_positions() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**(TINY.to_dict() | {"d_model": 96, "vocab_size": 300})))
    for name, parameter in model.named_parameters():
        if "embedding" in name:
            assert parameter.std().item() == pytest.approx(96**-0.5, rel=0.05)
        elif parameter.ndim == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.98 * bound < parameter.abs().max().item() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
        else:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
    model.encoder[0].ff_norm.weight.data.fill_(7)
    model.token_embedding.weight.data.fill_(7)
    model.reset_parameters()
    assert model.encoder[0].ff_norm.weight.eq(1).all()
    assert model.lm_head.weight.abs().max() < 1


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = tiny().float()
    ids, target = random_ids((2, 9), 37, 0), random_ids((2, 5), 37, 1)
    with torch.no_grad():
        expected = model(ids, decoder_input_ids=target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_relative(model(ids, decoder_input_ids=target).float(), expected, 2e-2)


def test_one_batch_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**(TINY.to_dict() | {"dropout": 0.0})))
    ids, labels = random_ids((4, 7), 37, 0), random_ids((4, 6), 37, 1)
    shifted = torch.cat([torch.ones(4, 1).long(), labels[:, :-1]], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        logits = model(ids, decoder_input_ids=shifted)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(ids, decoder_input_ids=shifted).argmax(-1) == labels).double().mean() > 0.97


def test_dropout_is_only_where_the_paper_has_it() -> None:
    model = tiny(dropout=0.5)
    dropped = {name for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    blocks = {f"encoder.{i}.dropout" for i in range(2)} | {f"decoder.{i}.dropout" for i in range(3)}
    assert dropped == {"dropout"} | blocks
    assert all(block.attn.dropout == 0.0 for block in model.blocks())


def test_dropping_every_sublayer_leaves_the_norms_of_the_residual_path() -> None:
    model = tiny(dropout=1.0).train()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    x = torch.zeros(2, 6, 24)  # and of the embeddings with their positions nothing
    for block in model.encoder:
        x = block.ff_norm(block.attn_norm(x))
    close(model.encode(ids), x)
    y = torch.zeros(2, 5, 24)
    for block in model.decoder:
        y = block.ff_norm(block.cross_attn_norm(block.attn_norm(y)))
    close(model.hidden(ids, decoder_input_ids=target), y)


def test_hidden_and_head_make_up_forward_and_blocks_are_both_stacks() -> None:
    model = tiny()
    ids, target = random_ids((2, 5), 37, 0), random_ids((2, 4), 37, 1)
    hidden = model.hidden(ids, decoder_input_ids=target)
    logits = model(ids, decoder_input_ids=target)
    assert hidden.shape == (2, 4, 24)
    assert torch.equal(model.head(hidden), logits)
    assert torch.equal(model.decode(model.encode(ids), target), logits)
    assert model.blocks() == [*model.encoder, *model.decoder]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((2, 5), 37)}, "input_ids must be from 0 to 36, got 37 at row 0"),
        ({"decoder_input_ids": torch.full((2, 3), -1)}, "decoder_input_ids must be from 0 to 36"),
        ({"input_ids": torch.zeros(2, 33).long()}, "at most 32 positions fit the model, got 33"),
        ({"decoder_input_ids": torch.zeros(2, 33).long()}, "at most 32 positions .* got 33"),
        ({"attention_mask": torch.ones(2, 4).long()}, r"\(2, 5\) or \(2, 5, 5\), got \(2, 4\)"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Tensor], message: str) -> None:
    inputs = {"input_ids": torch.zeros(2, 5).long(), "decoder_input_ids": torch.zeros(2, 3).long()}
    with pytest.raises(ValueError, match=message):
        tiny()(**(inputs | change))
    with pytest.raises(ValueError, match="at most 32 positions fit the model, got 33"):
        tiny().new_cache(2, 33)
