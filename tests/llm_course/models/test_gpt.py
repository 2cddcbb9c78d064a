"""GPT is GPT-2: equal to transformers, causal, cached as uncached, and read and written alike."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import (
    LOGITS_GATE,
    assert_parity,
    assert_relative,
    causal_leak,
    differs,
    gradient_difference,
    opened,
    perturbed,
    random_attention_mask,
    random_ids,
    random_splits,
    random_width,
    reached,
    relative_difference,
    rng,
    saved_twice,
    seeded,
)
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from llm_course.configs import GPTConfig
from llm_course.models.gpt import GPT

TINY = GPTConfig(vocab_size=37, n_layers=2, d_model=24, n_heads=3, n_positions=16)


def tiny(seed: int = 0, **changes: Any) -> GPT:
    """A float64 model: what is equal in exact arithmetic then differs by 1e-12 only."""
    return perturbed(GPT(GPTConfig(**(TINY.to_dict() | changes))).double(), seed)


def random_reference(draw: random.Random) -> GPT2LMHeadModel:
    n_heads, dropout = draw.randint(1, 4), draw.choice([0.1, 0.3])
    config = GPT2Config(
        vocab_size=draw.randint(20, 60),
        n_embd=random_width(n_heads, draw),
        n_layer=draw.randint(1, 3),
        n_head=n_heads,
        n_positions=draw.randint(12, 20),
        n_inner=draw.choice([None, draw.randint(5, 40)]),
        activation_function=draw.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]),
        layer_norm_epsilon=draw.choice([1e-6, 1e-5, 1e-3, 0.1]),
        tie_word_embeddings=draw.random() < 0.5,
        bos_token_id=0,
        eos_token_id=1,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation="eager",  # its formula written out, not the kernel that we call too
    )
    return perturbed(GPT2LMHeadModel(config), draw.randrange(2**32))


def random_inputs(vocab_size: int, draw: random.Random) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments for both models, and which rows of the logits can be compared."""
    shape = (draw.randint(1, 3), draw.randint(2, 12))
    inputs = {"input_ids": random_ids(shape, vocab_size, draw.randrange(2**32))}
    compared = torch.ones(shape, dtype=torch.bool)
    kind = draw.choice(["none", "left", "right", "holes"])
    if kind != "none":
        mask = random_attention_mask(kind, shape, draw)
        inputs["attention_mask"] = mask
        compared = mask.cumsum(1) > 0  # a position that sees nothing is nobody's to define
    if kind == "left" and draw.random() < 0.7:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return inputs, compared


def padding_difference(model: GPT, ids: Tensor, n_padding: int) -> float:
    """Columns of `ids` as padding on the right, or on the left with positions, or cut off."""
    end = ids.shape[1] - n_padding
    mask = torch.ones_like(ids)
    mask[:, end:] = 0
    right = model(ids, attention_mask=mask)[:, :end]
    mask = mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    left = model(ids, attention_mask=mask, position_ids=positions)[:, n_padding:]
    return max(
        relative_difference(right, model(ids[:, :end])),
        relative_difference(left, model(ids[:, n_padding:])),
    )


def cached_difference(model: GPT, inputs: dict[str, Tensor], draw: random.Random) -> float:
    """Decoding in random pieces against the full pass."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows, length = ids.shape
    cache = model.new_cache(rows, length)
    parts = []
    for start, end in random_splits(length, draw):
        piece = {"input_ids": ids[:, start:end]}
        if "position_ids" in inputs:
            piece["position_ids"] = inputs["position_ids"][:, start:end]
        if mask is not None:
            piece["attention_mask"] = mask[:, :end]
        parts.append(model(**piece, cache=cache))
    return relative_difference(torch.cat(parts, 1), model(**inputs))


def gradients_case(
    ours: GPT, reference: GPT2LMHeadModel, inputs: dict[str, Tensor], compared: Tensor, seed: int
) -> dict[str, float]:
    expected = reference(**inputs).logits[compared]
    weights = torch.randn(expected.shape, generator=rng(seed), dtype=torch.float64)
    (ours(**inputs)[compared] * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {
        "gradients": gradient_difference(ours.layout.to_file(gradients), reference),
        "training": relative_difference(
            seeded(ours, seed, **inputs)[compared],
            seeded(reference, seed, **inputs).logits[compared],
        ),
    }


def parity_case(seed: int, folder: Path | None = None) -> dict[str, float]:
    """Worst relative differences from transformers, of one random configuration and input."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return parity_case(seed, Path(name))
    draw = random.Random(seed)
    reference = random_reference(draw)
    reference.save_pretrained(folder / "theirs")
    n_ids = reference.config.vocab_size
    inputs, compared = random_inputs(n_ids, draw)
    ids = inputs["input_ids"]
    single = GPT.from_pretrained(folder / "theirs")
    ours = GPT.from_pretrained(folder / "theirs", dtype=torch.float64)
    again = opened(AutoModelForCausalLM, saved_twice(single, folder))
    with torch.no_grad():
        expected = reference(**inputs).logits[compared]
        case = {
            "logits": relative_difference(single(**inputs)[compared], expected),
            "saved": relative_difference(again(**inputs).logits[compared], expected),
            "cached": cached_difference(ours, inputs, draw),
            "padding": padding_difference(ours, ids, draw.randint(1, ids.shape[1] - 1)),
            "leak": causal_leak(lambda x: single(**(inputs | {"input_ids": x})), ids, n_ids),
        }
    return case | gradients_case(ours, reference.double(), inputs, compared, seed)


@pytest.mark.parametrize("seed", range(20))
def test_every_random_model_equals_that_of_transformers(seed: int, tmp_path: Path) -> None:
    assert_parity(parity_case(seed, tmp_path))


def test_the_random_models_differ_in_all_that_matters() -> None:
    seen: set[Any] = set()
    for seed in range(20):
        draw = random.Random(seed)
        config = random_reference(draw).config
        inputs, _ = random_inputs(config.vocab_size, draw)
        mask = inputs.get("attention_mask", torch.ones(1, 2))
        has_gaps, left, right = (mask.diff(dim=1) > 0).any(), mask[:, 0].min(), mask[:, -1].min()
        seen |= {config.activation_function, ("tied", config.tie_word_embeddings)}
        seen |= {("eps", config.layer_norm_epsilon), ("heads", config.n_head)}
        seen |= {("left", bool(left == 0)), ("right", bool(right == 0)), ("gaps", bool(has_gaps))}
        seen |= {("positions", "position_ids" in inputs), ("inner", config.n_inner is None)}
    assert len(seen) == 4 + 2 + 4 + 4 + 6 + 4, seen


def swap_norms(model: GPT) -> None:
    for block in model.decoder:
        block.attn_norm, block.ff_norm = block.ff_norm, block.attn_norm


def other_gelu(model: GPT) -> None:
    for block in model.decoder:
        block.ff.activation = torch.nn.functional.gelu


def drop_a_bias(model: GPT) -> None:
    with torch.no_grad():
        model.decoder[0].attn.w_o.bias.zero_()


def other_epsilon(model: GPT) -> None:
    model.norm.eps = 1e-3


def swap_queries_and_keys(model: GPT) -> None:
    attn = model.decoder[0].attn
    attn.w_q, attn.w_k = attn.w_k, attn.w_q


@pytest.mark.parametrize(
    "defect", [swap_norms, other_gelu, drop_a_bias, other_epsilon, swap_queries_and_keys]
)
def test_parity_notices_a_small_defect(defect: Any, tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=37,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    reference = perturbed(GPT2LMHeadModel(config))
    reference.save_pretrained(tmp_path)
    ours, ids = GPT.from_pretrained(tmp_path), random_ids((2, 9), 37, 0)
    with torch.no_grad():
        assert_relative(ours(ids), reference(ids).logits)
        defect(ours)
        assert differs(ours(ids), reference(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_opens_in_transformers_and_saves_to_the_same_bytes(
    tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = GPTConfig(**(TINY.to_dict() | {"tied": tied, "activation": "gelu", "norm_eps": 1e-3}))
    model = perturbed(GPT(config)).to(dtype)
    model.save_pretrained(tmp_path / "a")
    loaded = GPT.from_pretrained(tmp_path / "a")
    assert loaded.config == config
    assert not loaded.training
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    shared = loaded.lm_head.weight.data_ptr() == loaded.token_embedding.weight.data_ptr()
    assert shared == tied == bool(loaded.tied)
    reference, info = GPT2LMHeadModel.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values())
    assert reference.dtype == loaded.norm.weight.dtype == dtype
    ids = random_ids((2, 9), 37, 0)
    with torch.no_grad():
        gate = LOGITS_GATE if dtype == torch.float32 else 2e-2
        assert_relative(loaded(ids), reference(ids).logits, gate)
        assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("seed", range(4))
def test_cached_decoding_equals_the_full_pass(seed: int) -> None:
    draw = random.Random(seed)
    model, length = tiny(seed), 13
    ids = random_ids((3, length), 37, seed)
    mask = random_attention_mask("left", (3, length), draw) if seed % 2 else None
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp_min(0)
    full = model(ids, attention_mask=mask, position_ids=positions)
    cache = model.new_cache(3, length + 2)
    start = 0
    while start < length:
        end = min(length, start + draw.randint(1, 4))
        part = model(
            ids[:, start:end],
            attention_mask=None if mask is None else mask[:, :end],
            position_ids=None if positions is None else positions[:, start:end],
            cache=cache,
        )
        assert_close(part, full[:, start:end], rtol=1e-10, atol=1e-10)
        start = end
    assert not cache.keys.requires_grad


def test_a_cache_that_is_full_or_too_long_is_refused() -> None:
    model = tiny()
    cache = model.new_cache(1, 4)
    model(random_ids((1, 3), 37, 0), cache=cache)
    before = cache.keys.clone()
    with pytest.raises(ValueError, match="holds 4 positions: 3 are taken, and 2 more"):
        model(random_ids((1, 2), 37, 0), cache=cache)
    assert torch.equal(cache.keys, before)
    with pytest.raises(ValueError, match="at most 16 positions fit the model, got 17"):
        model.new_cache(1, 17)
    with pytest.raises(ValueError, match="input_ids has 2 rows, but the cache has 1"):
        model(random_ids((2, 1), 37, 0), cache=cache)
    for n_layers in (1, 3):
        other = tiny(n_layers=n_layers).new_cache(1, 4)
        with pytest.raises(ValueError, match=f"has 2 blocks, but the cache is for {n_layers}"):
            model(random_ids((1, 1), 37, 0), cache=other)


@pytest.mark.parametrize("masked", [False, True])
def test_no_position_sees_a_later_one(masked: bool) -> None:
    model = tiny().float()
    ids = random_ids((2, 9), 37, 0)
    options = {"attention_mask": torch.ones_like(ids)} if masked else {}
    logits = model(ids, **options)
    for j in range(9):
        changed = ids.clone()
        changed[:, j] = (ids[:, j] + 1) % 37
        others = model(changed, **options)
        assert torch.equal(others[:, :j], logits[:, :j])
        assert differs(others[:, j:], logits[:, j:])


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_a_logit_is_zero_at_every_later_token(masked: bool) -> None:
    model = tiny()
    ids = random_ids((1, 7), 37, 0)
    options = {"attention_mask": torch.ones_like(ids)} if masked else {}
    kept: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(ids, **options)
    for i in range(7):
        (gradient,) = torch.autograd.grad(logits[0, i].square().sum(), kept[0], retain_graph=True)
        assert reached(gradient[0].abs().amax(-1)).tolist() == [j <= i for j in range(7)]


def test_padding_does_not_change_the_logits_of_real_tokens() -> None:
    model = tiny()
    ids = random_ids((2, 6), 37, 0)
    logits = model(ids)
    ones = torch.ones_like(ids)
    for n_padding in (1, 5):
        padding = random_ids((2, n_padding), 37, n_padding)
        zeros = torch.zeros_like(padding)
        right = model(torch.cat([ids, padding], 1), attention_mask=torch.cat([ones, zeros], 1))
        assert_close(right[:, :6], logits, rtol=1e-10, atol=1e-10)
        mask = torch.cat([zeros, ones], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        left_ids = torch.cat([padding, ids], 1)
        left = model(left_ids, attention_mask=mask, position_ids=positions)
        assert_close(left[:, -6:], logits, rtol=1e-10, atol=1e-10)
        with pytest.raises(AssertionError):  # positions are counted from the padding
            assert_close(model(left_ids, attention_mask=mask)[:, -6:], logits, rtol=1e-2, atol=1e-2)
        other = torch.cat([(padding + 1) % 37, ids], 1)
        again = model(other, attention_mask=mask, position_ids=positions)
        assert torch.equal(again[:, -6:], left[:, -6:])


def test_a_packed_row_equals_its_documents_alone() -> None:
    model = tiny()
    ids = random_ids((1, 9), 37, 0)
    document = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    mask = (document[:, None] == document)[None]
    packed = model(ids, attention_mask=mask, position_ids=positions)
    alone = torch.cat([model(ids[:, :4]), model(ids[:, 4:])], 1)
    assert_close(packed, alone, rtol=1e-10, atol=1e-10)


def test_a_row_of_padding_stays_finite_and_changes_no_other_row() -> None:
    model = tiny().float()
    ids = random_ids((3, 6), 37, 0)
    mask = torch.ones_like(ids)
    expected = model(ids, attention_mask=mask)
    mask[1] = 0
    logits = model(ids, attention_mask=mask)
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])


def test_gpt2_has_124439808_parameters() -> None:
    with torch.device("meta"):
        model, reference = GPT(), GPT2LMHeadModel(GPT2Config())
    assert model.config == GPTConfig()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert sum(p.numel() for p in reference.parameters()) == 124_439_808


def test_initialisation_is_that_of_the_papers() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(TINY.to_dict() | {"d_model": 192, "n_layers": 8, "vocab_size": 500})))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
        else:
            ends_sublayer = "w_o" in name or "w_2" in name
            expected = 0.02 / 16**0.5 if ends_sublayer else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    model.token_embedding.weight.data.fill_(7)
    model.norm.weight.data.fill_(7)
    model.reset_parameters()
    assert model.token_embedding.weight.abs().max() < 1
    assert model.norm.weight.eq(1).all()


def test_hidden_and_head_make_up_forward_and_blocks_are_the_stack() -> None:
    model = tiny()
    ids = random_ids((2, 5), 37, 0)
    hidden = model.hidden(ids)
    assert hidden.shape == (2, 5, 24)
    assert torch.equal(model.head(hidden), model(ids))
    assert torch.equal(model.head(hidden)[:, -1], model.lm_head(hidden)[:, -1])
    assert model.blocks() == list(model.decoder)


def test_one_batch_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = GPT(TINY)
    ids = random_ids((4, 12), 37, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert (model(ids[:, :-1]).argmax(-1) == ids[:, 1:]).float().mean() > 0.97


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = tiny().float()
    ids = random_ids((2, 9), 37, 0)
    with torch.no_grad():
        expected = model(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_relative(model(ids).float(), expected, 2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((2, 5), 37)}, "input_ids must be from 0 to 36, got 37 at row 0"),
        ({"input_ids": torch.full((2, 17), 0)}, "at most 16 positions fit the model, got 17"),
        ({"attention_mask": torch.ones(2, 4).long()}, r"\(2, 5\) or \(2, 5, 5\), got \(2, 4\)"),
        ({"attention_mask": torch.full((2, 5), 3)}, "only 0 and 1, got 3"),
        ({"position_ids": torch.full((2, 5), 16)}, "position_ids must be from 0 to 15, got 16"),
        ({"position_ids": torch.zeros(2, 4).long()}, r"shape \(2, 5\), got \(2, 4\)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    change: dict[str, Tensor], message: str
) -> None:
    model = tiny()
    model.token_embedding.register_forward_hook(lambda *call: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        model(**({"input_ids": torch.zeros(2, 5).long()} | change))
    with pytest.raises(TypeError):
        model(torch.zeros(2, 5))


@pytest.mark.compile
def test_the_compiled_model_equals_the_eager_one() -> None:
    model = perturbed(GPT(TINY))
    ids = random_ids((2, 9), 37, 0)
    compiled = torch.compile(model)
    compiled(ids).square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    expected = model(ids)
    expected.square().mean().backward()
    assert_relative(compiled(ids), expected)
    for gradient, parameter in zip(gradients, model.parameters()):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
