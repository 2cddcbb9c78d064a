"""BERT is BERT: equal to transformers, blind to padding, and read and written alike."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import (
    assert_parity,
    assert_relative,
    differs,
    gradient_difference,
    opened,
    perturbed,
    random_attention_mask,
    random_ids,
    random_width,
    reached,
    relative_difference,
    rng,
    saved_twice,
    seeded,
)
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForPreTraining, BertConfig, BertForPreTraining

from llm_course.configs import BERTConfig
from llm_course.errors import WeightsError
from llm_course.models.bert import BERT, BERTOutput

TINY = BERTConfig(vocab_size=37, n_layers=2, d_model=24, n_heads=3, d_ff=40, n_positions=16)


def tiny(seed: int = 0) -> BERT:
    return perturbed(BERT(TINY).double(), seed)


def random_reference(draw: random.Random) -> BertForPreTraining:
    n_heads, dropout = draw.randint(1, 4), draw.choice([0.1, 0.3])
    config = BertConfig(
        vocab_size=draw.randint(20, 60),
        hidden_size=random_width(n_heads, draw),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=n_heads,
        intermediate_size=draw.randint(5, 40),
        max_position_embeddings=draw.randint(12, 20),
        type_vocab_size=draw.randint(1, 3),
        hidden_act=draw.choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=draw.choice([1e-12, 1e-5, 1e-3, 0.1]),
        pad_token_id=draw.randint(0, 3),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        tie_word_embeddings=draw.random() < 0.5,
        attn_implementation="eager",  # its formula written out, not the kernel that we call too
    )
    reference = perturbed(BertForPreTraining(config), draw.randrange(2**32))
    if not config.tie_word_embeddings:
        reference.cls.predictions.bias.requires_grad_(False)  # used by nobody: decoder.bias is
    return reference


def random_inputs(config: BertConfig, draw: random.Random) -> dict[str, Tensor]:
    shape = (draw.randint(1, 3), draw.randint(2, 12))
    inputs = {"input_ids": random_ids(shape, config.vocab_size, draw.randrange(2**32))}
    if draw.random() < 0.6:
        seed = draw.randrange(2**32)
        inputs["token_type_ids"] = random_ids(shape, config.type_vocab_size, seed)
    kind = draw.choice(["none", "left", "right", "holes"])
    if kind != "none":
        inputs["attention_mask"] = random_attention_mask(kind, shape, draw)
    if draw.random() < 0.3:
        seed = draw.randrange(2**32)
        inputs["position_ids"] = random_ids(shape, config.max_position_embeddings, seed)
    return inputs


def both(output: Any) -> tuple[Tensor, Tensor]:
    """The logits of both heads, from our model or from theirs."""
    if isinstance(output, BERTOutput):
        return output.mlm_logits, output.nsp_logits
    return output.prediction_logits, output.seq_relationship_logits


def difference_of_both(ours: Any, reference: Any) -> float:
    return max(relative_difference(a, b) for a, b in zip(both(ours), both(reference)))


def padding_difference(model: BERT, ids: Tensor, n_padding: int) -> float:
    """Columns of `ids` as padding on the right, or on the left with positions, or cut off."""
    end = ids.shape[1] - n_padding
    mask = torch.ones_like(ids)
    mask[:, end:] = 0
    right, alone = model(ids, attention_mask=mask), model(ids[:, :end])
    mask = mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    left = model(ids, attention_mask=mask, position_ids=positions).mlm_logits[:, n_padding:]
    return max(
        relative_difference(right.mlm_logits[:, :end], alone.mlm_logits),
        relative_difference(right.nsp_logits, alone.nsp_logits),
        relative_difference(left, model(ids[:, n_padding:]).mlm_logits),
    )


def gradients_case(
    ours: BERT, reference: BertForPreTraining, inputs: dict[str, Tensor], seed: int
) -> dict[str, float]:
    for model in (ours, reference):
        generator = rng(seed)
        loss = torch.zeros((), dtype=torch.float64)
        for logits in both(model(**inputs)):
            weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
            loss = loss + (logits * weights).sum()
        loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {
        "gradients": gradient_difference(ours.layout.to_file(gradients), reference),
        "training": difference_of_both(
            seeded(ours, seed, **inputs), seeded(reference, seed, **inputs)
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
    inputs = random_inputs(reference.config, draw)
    ids = inputs["input_ids"]
    single = BERT.from_pretrained(folder / "theirs")
    ours = BERT.from_pretrained(folder / "theirs", dtype=torch.float64)
    again = opened(AutoModelForPreTraining, saved_twice(single, folder))
    with torch.no_grad():
        expected = reference(**inputs)
        case = {
            "logits": difference_of_both(single(**inputs), expected),
            "saved": difference_of_both(again(**inputs), expected),
            "padding": padding_difference(ours, ids, draw.randint(1, ids.shape[1] - 1)),
        }
    return case | gradients_case(ours, reference.double(), inputs, seed)


@pytest.mark.parametrize("seed", range(20))
def test_every_random_model_equals_that_of_transformers(seed: int, tmp_path: Path) -> None:
    assert_parity(parity_case(seed, tmp_path))


def test_the_random_models_differ_in_all_that_matters() -> None:
    seen: set[Any] = set()
    for seed in range(20):
        draw = random.Random(seed)
        config = random_reference(draw).config
        inputs = random_inputs(config, draw)
        mask = inputs.get("attention_mask", torch.ones(1, 2))
        has_gaps, left, right = (mask.diff(dim=1) > 0).any(), mask[:, 0].min(), mask[:, -1].min()
        seen |= {config.hidden_act, ("segments", config.type_vocab_size)}
        seen |= {("eps", config.layer_norm_eps), ("heads", config.num_attention_heads)}
        seen |= {("left", bool(left == 0)), ("right", bool(right == 0)), ("gaps", bool(has_gaps))}
        seen |= {("positions", "position_ids" in inputs), ("types", "token_type_ids" in inputs)}
        seen |= {("pad", config.pad_token_id), ("tied", config.tie_word_embeddings)}
    assert len(seen) == 3 + 3 + 4 + 4 + 6 + 4 + 4 + 2, seen


def test_a_mask_of_its_own_for_each_query_equals_that_of_transformers(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=16,
    )  # fmt: skip
    reference = perturbed(BertForPreTraining(config))
    reference.save_pretrained(tmp_path)
    ours, ids = BERT.from_pretrained(tmp_path), random_ids((2, 7), 37, 0)
    mask = torch.rand(2, 7, 7, generator=rng(1)) < 0.6
    mask |= torch.eye(7, dtype=torch.bool)
    with torch.no_grad():
        expected = reference(ids, attention_mask=mask[:, None])
        assert_relative(ours(ids, attention_mask=mask).mlm_logits, expected.prediction_logits)
        other = ours(ids, attention_mask=mask.mT).mlm_logits
        assert differs(other, expected.prediction_logits)


def swap_norms(model: BERT) -> None:
    for block in model.encoder:
        block.attn_norm, block.ff_norm = block.ff_norm, block.attn_norm


def other_gelu(model: BERT) -> None:
    for block in model.encoder:
        block.ff.activation = lambda x: torch.nn.functional.gelu(x, approximate="tanh")


def drop_a_bias(model: BERT) -> None:
    with torch.no_grad():
        model.mlm_head.decoder.bias.zero_()


def other_epsilon(model: BERT) -> None:
    model.embedding_norm.eps = 1e-3


def swap_segments(model: BERT) -> None:
    with torch.no_grad():
        model.segment_embedding.weight.copy_(model.segment_embedding.weight.flip(0))


@pytest.mark.parametrize(
    "defect", [swap_norms, other_gelu, drop_a_bias, other_epsilon, swap_segments]
)
def test_parity_notices_a_small_defect(defect: Any, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=16,
    )  # fmt: skip
    reference = perturbed(BertForPreTraining(config))
    reference.save_pretrained(tmp_path)
    ours, ids = BERT.from_pretrained(tmp_path), random_ids((2, 9), 37, 0)
    with torch.no_grad():
        expected = reference(ids).prediction_logits
        assert_relative(ours(ids).mlm_logits, expected)
        defect(ours)
        assert differs(ours(ids).mlm_logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_opens_in_transformers_and_saves_to_the_same_bytes(
    tied: bool, tmp_path: Path
) -> None:
    changes = {"activation": "gelu_tanh", "norm_eps": 1e-3, "n_segments": 3, "pad_token_id": 2}
    changes["tied"] = tied
    config = BERTConfig(**(TINY.to_dict() | changes))
    model = perturbed(BERT(config))
    model.save_pretrained(tmp_path / "a")
    loaded = BERT.from_pretrained(tmp_path / "a")
    assert loaded.config == config
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    decoder = loaded.mlm_head.decoder.weight
    shared = decoder.data_ptr() == loaded.token_embedding.weight.data_ptr()
    assert shared == tied == bool(loaded.tied)
    reference, info = BertForPreTraining.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values())
    ids = random_ids((2, 9), 37, 0)
    with torch.no_grad():
        ours, theirs = loaded(ids), reference(ids)
    assert_relative(ours.mlm_logits, theirs.prediction_logits)
    assert_relative(ours.nsp_logits, theirs.seq_relationship_logits)


@pytest.mark.parametrize("n_padding", [1, 5])
def test_padding_does_not_change_the_logits_of_real_tokens(n_padding: int) -> None:
    model = tiny()
    ids = random_ids((2, 6), 37, 0)
    expected = model(ids)
    padding = random_ids((2, n_padding), 37, n_padding)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(padding)
    right = model(torch.cat([ids, padding], 1), attention_mask=torch.cat([ones, zeros], 1))
    assert_close(right.mlm_logits[:, :6], expected.mlm_logits, rtol=1e-10, atol=1e-10)
    assert_close(right.nsp_logits, expected.nsp_logits, rtol=1e-10, atol=1e-10)
    mask = torch.cat([zeros, ones], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    left_ids = torch.cat([padding, ids], 1)
    left = model(left_ids, attention_mask=mask, position_ids=positions).mlm_logits[:, -6:]
    assert_close(left, expected.mlm_logits, rtol=1e-10, atol=1e-10)
    # The controls: unmasked padding is text, and positions are counted from the padding.
    for wrong in ({"position_ids": positions}, {"attention_mask": mask}):
        assert differs(model(left_ids, **wrong).mlm_logits[:, -6:], left)


def test_every_position_sees_both_sides() -> None:
    model = tiny()
    ids = random_ids((1, 6), 37, 0)
    kept: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(ids).mlm_logits
    for i in range(6):
        (gradient,) = torch.autograd.grad(logits[0, i].square().sum(), kept[0], retain_graph=True)
        assert reached(gradient[0].abs().amax(-1)).all()


def test_a_row_of_padding_stays_finite_and_changes_no_other_row() -> None:
    model = tiny().float()
    ids = random_ids((3, 6), 37, 0)
    mask = torch.ones_like(ids)
    expected = model(ids, attention_mask=mask).mlm_logits
    mask[1] = 0
    output = model(ids, attention_mask=mask)
    (output.mlm_logits.square().mean() + output.nsp_logits.square().mean()).backward()
    assert output.mlm_logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(output.mlm_logits[[0, 2]], expected[[0, 2]])


def test_bert_base_has_as_many_parameters_as_in_transformers() -> None:
    with torch.device("meta"):
        model, reference = BERT(), BertForPreTraining(BertConfig())
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in reference.parameters()) == 110_106_428
    heads = (model.mlm_head, model.nsp_head)
    in_heads = sum(p.numel() for head in heads for p in head.parameters())
    # The body and the pooler, which the paper rounds to 110M.
    assert count - in_heads + model.token_embedding.weight.numel() == 109_482_240


def test_an_untied_head_of_transformers_4_keeps_its_bias(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = perturbed(BERT(BERTConfig(**(TINY.to_dict() | {"tied": False}))))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = "cls.predictions.decoder.bias"
    assert torch.equal(tensors[bias], tensors["cls.predictions.bias"])
    ids = random_ids((2, 6), 37, 0)
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != bias},  # 4 wrote one of them
        tensors | {"cls.predictions.bias": torch.zeros(37)},  # 5 has two, and uses the decoder's
    ):
        save_file(changed, tmp_path / "model.safetensors")
        assert torch.equal(BERT.from_pretrained(tmp_path)(ids).mlm_logits, model(ids).mlm_logits)
    save_file(tensors | {bias: torch.zeros(37)}, tmp_path / "model.safetensors")
    other = BERT.from_pretrained(tmp_path)(ids).mlm_logits
    assert (other - model(ids).mlm_logits).abs().max() > 0.01
    del tensors[bias], tensors["cls.predictions.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: cls\.predictions\.decoder\.bias"):
        BERT.from_pretrained(tmp_path)


def test_heads_on_chosen_rows_are_rows_of_forward() -> None:
    model = tiny()
    ids = random_ids((2, 6), 37, 0)
    output, hidden = model(ids), model.hidden(ids)
    chosen = torch.rand(2, 6, generator=rng(0)) < 0.5
    rows = model.mlm_head(hidden[chosen])
    assert_close(rows, output.mlm_logits[chosen], rtol=1e-12, atol=1e-12)
    assert torch.equal(model.nsp_head(model.pooler(hidden)), output.nsp_logits)
    assert model.blocks() == list(model.encoder)
    assert output._fields == ("mlm_logits", "nsp_logits")


def test_initialisation_is_small_and_normal() -> None:
    torch.manual_seed(0)
    model = BERT(BERTConfig(**(TINY.to_dict() | {"d_model": 192, "vocab_size": 500})))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_one_batch_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = BERT(TINY)
    ids = random_ids((4, 12), 37, 0)
    masked = torch.rand(4, 12, generator=rng(1)) < 0.3
    corrupted = ids.masked_fill(masked, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        logits = model.mlm_head(model.hidden(corrupted)[masked])
        loss = torch.nn.functional.cross_entropy(logits, ids[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert (model(corrupted).mlm_logits[masked].argmax(-1) == ids[masked]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((2, 5), -3)}, "input_ids must be from 0 to 36, got -3 at row 0"),
        ({"input_ids": torch.full((2, 17), 0)}, "at most 16 positions fit the model, got 17"),
        ({"token_type_ids": torch.full((2, 5), 2)}, "token_type_ids must be from 0 to 1, got 2"),
        ({"token_type_ids": torch.zeros(2, 6).long()}, r"shape \(2, 5\), got \(2, 6\)"),
        ({"attention_mask": torch.ones(5).long()}, r"\(2, 5\) or \(2, 5, 5\), got \(5,\)"),
        ({"attention_mask": torch.full((2, 5), -1)}, "only 0 and 1, got -1"),
        ({"position_ids": torch.full((2, 5), 16)}, "position_ids must be from 0 to 15, got 16"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    change: dict[str, Tensor], message: str
) -> None:
    model = tiny()
    model.encoder[0].register_forward_hook(lambda *call: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        model(**({"input_ids": torch.zeros(2, 5).long()} | change))
    with pytest.raises(TypeError, match="int or bool"):
        model(torch.zeros(2, 5).long(), attention_mask=torch.ones(2, 5))
