"""T5, 1.0 and 1.1, equals transformers; it is causal, cached as uncached, saved and read alike."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import types
from fractions import Fraction
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
    reached,
    relative_difference,
    rng,
    saved_twice,
    seeded,
)
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers import T5Config as ReferenceConfig
from transformers.models.t5.modeling_t5 import T5LayerNorm

from llm_course.configs import T5Config
from llm_course.errors import ConfigError, WeightsError
from llm_course.models import t5
from llm_course.models.layouts import T5_FEED_FORWARDS
from llm_course.models.t5 import T5

TINY = T5Config(
    vocab_size=37,
    n_layers=2,
    n_decoder_layers=3,
    d_model=24,
    n_heads=3,
    d_head=5,
    d_ff=20,
    n_buckets=8,
    max_distance=12,
)
VERSION_1_1 = {"activation": "gelu_tanh", "gated_ff": True, "tied": False}
VERSIONS = pytest.mark.parametrize("version", [{}, VERSION_1_1], ids=["1.0", "1.1"])


def tiny(seed: int = 0, **changes: Any) -> T5:
    """A float64 model: what is equal in exact arithmetic then differs by 1e-12 only."""
    return perturbed(T5(T5Config(**(TINY.to_dict() | changes))).double(), seed)


def separate_head(reference: T5ForConditionalGeneration) -> None:
    """As published 1.1 weights have it; transformers 5 builds every T5 with a tied one."""
    reference.lm_head.weight = nn.Parameter(reference.shared.weight.detach().clone())


def tiny_reference(kind: str = "relu", **changes: Any) -> T5ForConditionalGeneration:
    values = {
        "vocab_size": 37,
        "d_model": 24,
        "d_kv": 5,
        "d_ff": 20,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "tie_word_embeddings": not kind.startswith("gated"),
        "decoder_start_token_id": 0,
        "attn_implementation": "eager",  # its formula written out, not the kernel that we call too
    }
    config = ReferenceConfig(feed_forward_proj=kind, **(values | changes))
    reference = T5ForConditionalGeneration(config)
    if not config.scale_decoder_outputs:
        separate_head(reference)
    return reference


def random_reference(draw: random.Random) -> T5ForConditionalGeneration:
    n_buckets = draw.choice([4, 8, 12, 16, 32])
    reference = tiny_reference(
        draw.choice(["relu", "gated-gelu", "gated-gelu", "gelu", "gelu_new", "gated-relu"]),
        vocab_size=draw.randint(20, 60),
        d_model=draw.randint(6, 40),
        d_kv=draw.randint(2, 9),
        d_ff=draw.randint(5, 40),
        num_layers=draw.randint(1, 3),
        num_decoder_layers=draw.choice([None, 1, 2, 3]),
        num_heads=draw.randint(1, 4),
        relative_attention_num_buckets=n_buckets,
        relative_attention_max_distance=n_buckets // 2 + draw.randint(1, 20),
        layer_norm_epsilon=draw.choice([1e-6, 1e-5, 1e-3, 0.1]),
        tie_word_embeddings=draw.random() < 0.5,
        dropout_rate=draw.choice([0.1, 0.3]),
    )
    return perturbed(reference, draw.randrange(2**32))


def random_inputs(vocab_size: int, draw: random.Random) -> dict[str, Tensor]:
    rows, n_source, n_target = draw.randint(1, 3), draw.randint(2, 30), draw.randint(1, 30)
    inputs = {
        "input_ids": random_ids((rows, n_source), vocab_size, draw.randrange(2**32)),
        "decoder_input_ids": random_ids((rows, n_target), vocab_size, draw.randrange(2**32)),
    }
    kind = draw.choice(["none", "left", "right", "holes"])
    if kind != "none":
        inputs["attention_mask"] = random_attention_mask(kind, (rows, n_source), draw)
    return inputs


def write_config_as_transformers_4(folder: Path) -> None:
    """The file's own flag says that the head is separate, as in every published 1.1."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["tie_word_embeddings"] = raw.pop("scale_decoder_outputs")
    path.write_text(json.dumps(raw))


def with_float64_norms(reference: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """transformers computes the norm's variance in float32, whatever the model's dtype."""

    def forward(norm: T5LayerNorm, x: Tensor) -> Tensor:
        return norm.weight * (
            x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        )

    reference = reference.double()
    for module in reference.modules():
        if isinstance(module, T5LayerNorm):
            module.forward = types.MethodType(forward, module)
    return reference


def padding_difference(model: T5, inputs: dict[str, Tensor], n_padding: int) -> float:
    """Columns of the source as padding on the right, or on the left, or cut off."""
    ids, target = inputs["input_ids"], inputs["decoder_input_ids"]
    mask = torch.ones_like(ids)
    mask[:, ids.shape[1] - n_padding :] = 0
    right = model(ids, decoder_input_ids=target, attention_mask=mask)
    left = model(ids, decoder_input_ids=target, attention_mask=mask.flip(1))
    return max(
        relative_difference(right, model(ids[:, :-n_padding], decoder_input_ids=target)),
        relative_difference(left, model(ids[:, n_padding:], decoder_input_ids=target)),
    )


def cached_difference(model: T5, inputs: dict[str, Tensor], draw: random.Random) -> float:
    """Decoding in random pieces against the full pass."""
    rows, length = inputs["decoder_input_ids"].shape
    cache = model.new_cache(rows, length)
    parts = []
    for start, end in random_splits(length, draw):
        piece = inputs["decoder_input_ids"][:, start:end]
        parts.append(model(**(inputs | {"decoder_input_ids": piece}), cache=cache))
    return relative_difference(torch.cat(parts, 1), model(**inputs))


def gradients_case(
    ours: T5, reference: T5ForConditionalGeneration, inputs: dict[str, Tensor], seed: int
) -> dict[str, float]:
    expected = reference(**inputs).logits
    weights = torch.randn(expected.shape, generator=rng(seed), dtype=torch.float64)
    (ours(**inputs) * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {
        "gradients": gradient_difference(ours.layout.to_file(gradients), reference),
        "training": relative_difference(
            seeded(ours, seed, **inputs), seeded(reference, seed, **inputs).logits
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
    if seed % 2:
        write_config_as_transformers_4(folder / "theirs")
    n_ids = reference.config.vocab_size
    inputs = random_inputs(n_ids, draw)
    single = T5.from_pretrained(folder / "theirs")
    ours = T5.from_pretrained(folder / "theirs", dtype=torch.float64)
    again = opened(AutoModelForSeq2SeqLM, saved_twice(single, folder))

    def logits_of(target: Tensor) -> Tensor:
        return single(**(inputs | {"decoder_input_ids": target}))

    with torch.no_grad():
        expected = reference(**inputs).logits
        n_source = inputs["input_ids"].shape[1]
        case = {
            "logits": relative_difference(single(**inputs), expected),
            "saved": relative_difference(again(**inputs).logits, expected),
            "cached": cached_difference(ours, inputs, draw),
            "padding": padding_difference(ours, inputs, draw.randint(1, n_source - 1)),
            "leak": causal_leak(logits_of, inputs["decoder_input_ids"], n_ids),
        }
    return case | gradients_case(ours, with_float64_norms(reference), inputs, seed)


@pytest.mark.parametrize("seed", range(24))
def test_every_random_model_equals_that_of_transformers(seed: int, tmp_path: Path) -> None:
    assert_parity(parity_case(seed, tmp_path))


def test_the_random_models_differ_in_all_that_matters() -> None:
    seen: set[Any] = set()
    for seed in range(24):
        draw = random.Random(seed)
        config = random_reference(draw).config
        inputs = random_inputs(config.vocab_size, draw)
        mask = inputs.get("attention_mask", torch.ones(1, 2))
        has_gaps, left, right = (mask.diff(dim=1) > 0).any(), mask[:, 0].min(), mask[:, -1].min()
        seen |= {(config.feed_forward_proj, config.scale_decoder_outputs)}
        seen |= {("eps", config.layer_norm_epsilon), ("heads", config.num_heads)}
        seen |= {("left", bool(left == 0)), ("right", bool(right == 0)), ("gaps", bool(has_gaps))}
        seen |= {("buckets", config.relative_attention_num_buckets)}
        seen |= {("depths", config.num_layers == config.num_decoder_layers)}
        seen |= {("width", config.num_heads * config.d_kv == config.d_model)}
    assert len(seen - {("width", True)}) >= 8 + 4 + 4 + 6 + 5 + 2 + 1, seen
    assert {("relu", True), ("gated-gelu", False)} <= seen  # published as 1.0 and as 1.1
    assert ("width", False) in seen


def scale_the_scores(model: T5, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks():
        block.attn.scale = None


def encoder_buckets_in_the_decoder(model: T5, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(t5, "decoder_buckets", t5.encoder_buckets)


def unscaled_tied_head(model: T5, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(T5, "head", lambda self, x: self.lm_head(x))


def swapped_tables(model: T5, patch: pytest.MonkeyPatch) -> None:
    model.encoder_bias, model.decoder_bias = model.decoder_bias, model.encoder_bias


def norms_that_subtract_the_mean(model: T5, patch: pytest.MonkeyPatch) -> None:
    forward = t5.RMSNorm.forward
    patch.setattr(t5.RMSNorm, "forward", lambda self, x: forward(self, x - x.mean(-1, True)))


def other_epsilon(model: T5, patch: pytest.MonkeyPatch) -> None:
    model.encoder_norm.eps = 1e-3


def swapped_norms(model: T5, patch: pytest.MonkeyPatch) -> None:
    for block in model.decoder:
        block.cross_attn_norm, block.ff_norm = block.ff_norm, block.cross_attn_norm


def other_activation(model: T5, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks():
        block.ff.activation = nn.functional.gelu


def ungated(model: T5, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks():
        block.ff.w_gate, block.ff.w_1 = block.ff.w_1, block.ff.w_gate


DEFECTS_OF_BOTH = [
    scale_the_scores,
    encoder_buckets_in_the_decoder,
    swapped_tables,
    norms_that_subtract_the_mean,
    other_epsilon,
    swapped_norms,
    other_activation,
]
DEFECTS = [("relu", unscaled_tied_head), ("gated-gelu", ungated)]
DEFECTS += [(kind, defect) for kind in ("relu", "gated-gelu") for defect in DEFECTS_OF_BOTH]


@pytest.mark.parametrize(("kind", "defect"), DEFECTS)
def test_parity_notices_a_small_defect(
    kind: str, defect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = perturbed(tiny_reference(kind))
    reference.save_pretrained(tmp_path)
    ours = T5.from_pretrained(tmp_path)
    ids, target = random_ids((2, 9), 37, 0), random_ids((2, 7), 37, 1)
    with torch.no_grad():
        expected = reference(input_ids=ids, decoder_input_ids=target).logits
        assert_relative(ours(ids, decoder_input_ids=target), expected)
        defect(ours, monkeypatch)
        assert differs(ours(ids, decoder_input_ids=target), expected)


def bucket_by_hand(r: int, n: int, m: int) -> int:
    """Raffel et al. 2020, §2.1, for a distance r, n buckets and the largest distance m:

    (1) e = n / 2 buckets hold one distance each: b(r) = r where r < e;
    (2) the others hold growing ranges up to m:
        b(r) = e + floor((n - e) * log(r / e) / log(m / e)) where r >= e;
    (3) and what is farther shares the last one: b(r) <= n - 1.

    (2) without logarithms: the largest k with (r / e)^(n - e) >= (m / e)^k, in exact fractions.
    """
    e = n // 2
    if r < e:
        return r
    k = 0
    while k + 1 < n - e and Fraction(r, e) ** (n - e) >= Fraction(m, e) ** (k + 1):
        k += 1
    return e + k


def neighbours_by_hand(r: int, n: int, m: int) -> set[int]:
    """The bucket; of a distance on the very edge of two both: there a logarithm's last bit tells.

    (As in transformers, with which the random models compare the buckets.)
    """
    bucket, e = bucket_by_hand(r, n, m), n // 2
    on_edge = bucket > e and Fraction(r, e) ** (n - e) == Fraction(m, e) ** (bucket - e)
    return {bucket, bucket - on_edge}


@pytest.mark.parametrize(
    ("n", "m"), [(32, 128), (8, 20), (4, 3), (16, 9), (12, 100), (64, 256), (32, 17)]
)
def test_buckets_are_the_formula_of_the_paper(n: int, m: int) -> None:
    longest = 3 * m
    relative = torch.arange(-longest, longest + 1)
    encoder, decoder = t5.encoder_buckets(relative, n, m), t5.decoder_buckets(relative, n, m)
    for r, of_encoder, of_decoder in zip(relative.tolist(), encoder.tolist(), decoder.tolist()):
        half = (r > 0) * n // 2
        assert of_encoder - half in neighbours_by_hand(abs(r), n // 2, m), r
        assert of_decoder in neighbours_by_hand(max(-r, 0), n, m), r
    assert {0, n - 1} <= set(encoder.tolist()) <= set(range(n))
    assert not torch.equal(encoder, decoder)


@pytest.mark.parametrize(("n_queries", "n_keys", "start"), [(5, 5, 0), (1, 9, 8), (3, 7, 4)])
def test_the_bias_of_a_pair_is_the_table_at_its_bucket(
    n_queries: int, n_keys: int, start: int
) -> None:
    table = torch.randn(8, 3, generator=rng(0))
    relative = t5.relative_positions(n_queries, n_keys, table.device)
    bias = t5.spread(table[t5.encoder_buckets(relative, 8, 12)], n_keys)
    assert bias.shape == (1, 3, n_queries, n_keys)
    for h, i, j in itertools.product(range(3), range(n_queries), range(n_keys)):
        r = j - (i + start)
        assert bias[0, h, i, j] == table[bucket_by_hand(abs(r), 4, 12) + (r > 0) * 4, h]


def test_rms_norm_is_its_formula() -> None:
    x = torch.randn(2, 3, 7, generator=rng(0), dtype=torch.float64)
    norm = perturbed(t5.RMSNorm(7, eps=0.1).double())
    for row, expected in zip(x.flatten(0, 1), norm(x).flatten(0, 1)):
        root = (sum(float(v) ** 2 for v in row) / 7 + 0.1) ** 0.5
        assert_close(row / root * norm.weight, expected, rtol=1e-12, atol=1e-12)
    assert t5.RMSNorm(7, eps=0.1)(torch.full((1, 7), 300.0).half()).isfinite().all()


@VERSIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_opens_in_transformers_and_saves_to_the_same_bytes(
    version: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    config = T5Config(**(TINY.to_dict() | version | {"norm_eps": 1e-3, "pad_token_id": 2}))
    model = perturbed(T5(config)).to(dtype)
    model.save_pretrained(tmp_path / "a")
    loaded = T5.from_pretrained(tmp_path / "a")
    assert loaded.config == config
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shared = loaded.lm_head.weight.data_ptr() == loaded.token_embedding.weight.data_ptr()
    assert shared == config.tied == bool(loaded.tied)
    reference, info = T5ForConditionalGeneration.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not any(info.values())
    assert reference.config.decoder_start_token_id == 2
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    with torch.no_grad():
        # transformers keeps w_2 in float32, so bfloat16 differs by its own rounding.
        gate = LOGITS_GATE if dtype == torch.float32 else 5e-2
        assert_relative(loaded(**inputs), reference(**inputs).logits, gate)
        assert torch.equal(loaded(**inputs), model(**inputs))


@pytest.mark.parametrize("name", sorted(T5_FEED_FORWARDS))
def test_every_feed_forward_layer_is_read_and_written_as_transformers_does(
    name: str, tmp_path: Path
) -> None:
    reference = perturbed(tiny_reference(name))
    reference.save_pretrained(tmp_path / "a")
    T5.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "b")
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    assert_relative(again(**inputs).logits, reference(**inputs).logits)


def test_old_and_new_layouts_of_files_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny().float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    shared = tensors["shared.weight"]
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = shared.clone()
    stray = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[stray] = torch.zeros(8, 3)  # in the files of 2019, and used by nobody
    save_file(tensors, tmp_path / "model.safetensors")
    inputs = random_ids((2, 9), 37, 0), random_ids((2, 5), 37, 1)
    loaded = T5.from_pretrained(tmp_path)
    assert torch.equal(
        loaded(inputs[0], decoder_input_ids=inputs[1]),
        model(inputs[0], decoder_input_ids=inputs[1]),
    )
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lm_head\.weight and shared\.weight differ"):
        T5.from_pretrained(tmp_path)


def test_a_1_1_model_that_transformers_5_trained_from_nothing_is_read(tmp_path: Path) -> None:
    config = tiny_reference("gated-gelu").config
    reference = perturbed(T5ForConditionalGeneration(config))  # one matrix, and yet unscaled
    reference.save_pretrained(tmp_path)
    loaded = T5.from_pretrained(tmp_path)
    assert not loaded.config.tied
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    assert_relative(loaded(**inputs), reference(**inputs).logits)


def test_a_missing_head_is_an_error_unless_a_new_one_is_wanted(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny(**VERSION_1_1).float().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: lm_head\.weight"):
        T5.from_pretrained(tmp_path)
    loaded = T5.from_pretrained(tmp_path, heads="new")
    assert torch.equal(loaded.token_embedding.weight, tensors["shared.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj must be in relu, .* got 'gated-silu'",
        ),
        ({"model_type": "mt5"}, "model_type must be 't5', got 'mt5'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be True here, got False"),
        ({"is_decoder": True}, "is_decoder must be False here, got True"),
        (
            {"decoder_start_token_id": 5},
            "decoder_start_token_id must be pad_token_id = 0 here, got 5",
        ),
        ({"eos_token_id": [1, 2]}, r"eos_token_id must be one whole number, got \[1, 2\]"),
        ({"relative_attention_max_distance": 4}, "max_distance must exceed"),
        ({"relative_attention_num_buckets": 6}, "n_buckets must be a multiple of 4, got 6"),
        (
            {"tie_word_embeddings": False, "scale_decoder_outputs": True},
            "tie_word_embeddings is false, scale_decoder_outputs not",
        ),
    ],
)
def test_what_is_unsupported_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        T5.from_pretrained(tmp_path)


@VERSIONS
@pytest.mark.parametrize("seed", range(3))
def test_cached_decoding_equals_the_full_pass(version: dict[str, Any], seed: int) -> None:
    draw = random.Random(seed)
    model, length = tiny(seed, **version), 17
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
        assert_close(by_decode, full[:, start:end], rtol=1e-10, atol=1e-10)
        assert torch.equal(by_forward, by_decode)
        states = None  # the cache holds what is needed of them
        start = end


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


def test_rows_of_a_cache_can_be_reordered_and_repeated() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((5, 4), 37, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    rows = torch.tensor([1, 0, 0, 1, 1])
    first = random_ids((2, 1), 37, 2)
    cache = model.new_cache(2, 5)
    model.decode(model.encode(ids, attention_mask=mask), first, attention_mask=mask, cache=cache)
    cache.reorder(rows)
    part = model.decode(None, target, cache=cache)
    targets = torch.cat([first[rows], target], 1)
    full = model(ids[rows], decoder_input_ids=targets, attention_mask=mask[rows])
    assert_close(part, full[:, 1:], rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_a_cache_is_refused() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 4), 37, 1)
    cache = model.new_cache(2, 3)
    with pytest.raises(ValueError, match="states may be None only where the cache already holds"):
        model.decode(None, target[:, :1], cache=cache)
    states = model.encode(ids)
    with pytest.raises(ValueError, match="holds 3 positions: 0 are taken, and 4 more do not fit"):
        model.decode(states, target, cache=cache)
    with pytest.raises(ValueError, match="decoder_input_ids has 1 rows, but the cache has 2"):
        model.decode(states, target[:1, :1], cache=cache)
    with pytest.raises(ValueError, match="decoder_input_ids has 1 rows, but states has 2"):
        model.decode(states, target[:1, :1])
    other = tiny(n_decoder_layers=2).new_cache(2, 3)
    with pytest.raises(ValueError, match="the model has 3 blocks, but the cache is for 2"):
        model.decode(states, target[:, :1], cache=other)
    mask = torch.ones(2, 1, 6).long()
    with pytest.raises(
        ValueError, match=r"\[batch, source positions\] with a cache, got \(2, 1, 6"
    ):
        model.decode(states, target[:, :1], attention_mask=mask, cache=model.new_cache(2, 3))


def test_no_decoder_position_sees_a_later_one() -> None:
    model = tiny().float()
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


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side: str) -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    logits = model(ids, decoder_input_ids=target)
    ones = torch.ones_like(ids)
    for n_padding in (1, 5, 20):
        padding = random_ids((2, n_padding), 37, n_padding)
        zeros = torch.zeros_like(padding)
        order = (lambda a, b: [a, b]) if side == "left" else (lambda a, b: [b, a])
        mask = torch.cat(order(zeros, ones), 1)
        padded = model(
            torch.cat(order(padding, ids), 1), decoder_input_ids=target, attention_mask=mask
        )
        assert_close(padded, logits, rtol=1e-10, atol=1e-10)
        other = torch.cat(order((padding + 1) % 37, ids), 1)
        assert torch.equal(model(other, decoder_input_ids=target, attention_mask=mask), padded)
        with pytest.raises(AssertionError):  # unmasked padding is read
            assert_close(model(other, decoder_input_ids=target), logits, rtol=1e-2, atol=1e-2)


def test_masks_of_two_and_three_dimensions_agree() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]])
    expected = model(ids, decoder_input_ids=target, attention_mask=mask)
    wide = mask[:, None].expand(2, 6, 6).bool()
    assert_close(model(ids, decoder_input_ids=target, attention_mask=wide), expected)
    states = model.encode(ids, attention_mask=mask)
    each = mask[:, None].expand(2, 5, 6)
    assert_close(model.decode(states, target, attention_mask=each), expected)


def test_the_decoder_sees_what_any_position_of_the_encoder_sees() -> None:
    model = tiny()
    ids, target = random_ids((2, 6), 37, 0), random_ids((2, 5), 37, 1)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[:, :3, :3] = mask[:, 3:, 3:5] = True  # two documents, and the last position is padding
    seen = torch.tensor([[1, 1, 1, 1, 1, 0]] * 2)
    states = model.encode(ids, attention_mask=mask)
    expected = model.decode(states, target, attention_mask=seen)
    assert_close(model(ids, decoder_input_ids=target, attention_mask=mask), expected)


def test_a_row_of_padding_stays_finite_and_changes_no_other_row() -> None:
    model = tiny().float()
    ids, target = random_ids((3, 6), 37, 0), random_ids((3, 5), 37, 1)
    mask = torch.ones_like(ids)
    expected = model(ids, decoder_input_ids=target, attention_mask=mask)
    mask[1] = 0
    logits = model(ids, decoder_input_ids=target, attention_mask=mask)
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])


SMALL_1_1 = T5Config(n_layers=8, n_decoder_layers=8, n_heads=6, d_ff=1024, **VERSION_1_1)
LARGEST = T5Config(
    n_layers=24, n_decoder_layers=24, d_model=1024, n_heads=128, d_head=128, d_ff=65_536
)


@pytest.mark.parametrize(
    ("config", "published"),
    [(T5Config(), 60_506_624), (SMALL_1_1, 76_961_152), (LARGEST, 11_307_321_344)],
    ids=["small", "v1_1-small", "11B"],
)
def test_the_number_of_parameters_is_the_published_one(config: T5Config, published: int) -> None:
    reference_config = ReferenceConfig(**T5.config_to_file(config))
    with torch.device("meta"):
        model, reference = T5(config), T5ForConditionalGeneration(reference_config)
    if not config.tied:
        separate_head(reference)
    assert sum(p.numel() for p in model.parameters()) == published
    assert sum(p.numel() for p in reference.parameters()) == published


@VERSIONS
def test_initialisation_is_that_of_transformers(version: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 96, "d_ff": 200, "d_head": 24, "n_buckets": 400, "max_distance": 999}
    model = T5(T5Config(**(TINY.to_dict() | sizes | version)))
    expected = {"w_q": (96 * 24) ** -0.5, "w_o": 72**-0.5, "w_2": 200**-0.5, "token_embedding": 1.0}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(1.0).all()
        else:
            std = expected.get(name.split(".")[-2], 96**-0.5)
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
    # The first predictions are nearly uniform: a loss of log V, plus half of the variance 1.
    ids = random_ids((4, 9), 37, 0)
    logits = model.eval()(ids, decoder_input_ids=ids)
    assert logits.std().item() == pytest.approx(1.0, rel=0.4)
    model.token_embedding.weight.data.fill_(7)
    model.decoder_norm.weight.data.fill_(7)
    model.reset_parameters()
    assert model.token_embedding.weight.std() < 2
    assert model.decoder_norm.weight.eq(1).all()


@VERSIONS
def test_float16_stays_finite_where_activations_outgrow_it(
    version: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(**version).float()
    with torch.no_grad():
        for block in model.blocks():
            block.ff.w_1.weight.mul_(2000)
            block.ff.w_2.weight.mul_(100)
    model.half()
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    with torch.no_grad():
        assert model(**inputs).isfinite().all()
        with torch.autocast("cpu", dtype=torch.float16):
            assert model.float()(**inputs).isfinite().all()
        model.half()
        monkeypatch.setattr(t5, "clamp_fp16", lambda x: x)
        assert not model(**inputs).isfinite().all()


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = tiny().float()
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    with torch.no_grad():
        expected = model(**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_relative(model(**inputs).float(), expected, 2e-2)


@pytest.mark.covers("F15")
def test_the_probabilities_of_all_targets_sum_to_one_given_a_source() -> None:
    model = tiny(vocab_size=3, **VERSION_1_1)
    targets = torch.tensor(list(itertools.product(range(3), repeat=4)))
    source = torch.tensor([[2, 0, 1, 1, 2]]).expand(len(targets), -1)
    shifted = torch.cat([torch.zeros(len(targets), 1).long(), targets[:, :-1]], 1)
    logits = model(source, decoder_input_ids=shifted)
    each = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    assert_close(each.sum(1).exp().sum().item(), 1.0, rtol=1e-12, atol=0.0)
    unshifted = model(source, decoder_input_ids=targets).log_softmax(-1)
    wrong = unshifted.gather(-1, targets[..., None]).squeeze(-1).sum(1).exp().sum()
    assert abs(wrong.item() - 1) > 1e-3  # a target that reads itself is no factor of a product
    # Each factor is what the model says when it has read only the tokens before.
    for row, i in ((5, 0), (40, 2), (80, 3)):
        alone = model(source[:1], decoder_input_ids=shifted[row : row + 1, : i + 1])[0, -1]
        assert_close(alone.log_softmax(-1)[targets[row, i]], each[row, i])


@VERSIONS
def test_one_batch_can_be_learned_by_heart(version: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = T5(T5Config(**(TINY.to_dict() | version | {"dropout": 0.0})))
    ids, labels = random_ids((4, 7), 37, 0), random_ids((4, 6), 37, 1)
    shifted = torch.cat([torch.zeros(4, 1).long(), labels[:, :-1]], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        logits = model(ids, decoder_input_ids=shifted)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(ids, decoder_input_ids=shifted).argmax(-1) == labels).float().mean() > 0.97


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
        ({"attention_mask": torch.ones(2, 4).long()}, r"\(2, 5\) or \(2, 5, 5\), got \(2, 4\)"),
        ({"attention_mask": torch.full((2, 5), 3)}, "only 0 and 1, got 3"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Tensor], message: str) -> None:
    inputs = {"input_ids": torch.zeros(2, 5).long(), "decoder_input_ids": torch.zeros(2, 3).long()}
    with pytest.raises(ValueError, match=message):
        tiny()(**(inputs | change))


@pytest.mark.compile
def test_the_compiled_model_equals_the_eager_one() -> None:
    model = tiny(n_layers=1, n_decoder_layers=1).float()
    inputs = {
        "input_ids": random_ids((2, 9), 37, 0),
        "decoder_input_ids": random_ids((2, 5), 37, 1),
    }
    # Traced forwards and backwards; that kernels are right too, the next test shows in seconds.
    compiled = torch.compile(model, backend="aot_eager")
    compiled(**inputs).square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    expected = model(**inputs)
    expected.square().mean().backward()
    assert_relative(compiled(**inputs), expected)
    for gradient, parameter in zip(gradients, model.parameters()):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
