"""BERT is BERT: equal to transformers, blind to padding, and read and written alike."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import (
    GRADIENTS_GATE,
    LOGITS_GATE,
    assert_relative,
    gradient_difference,
    perturbed,
    random_attention_mask,
    random_ids,
    relative_difference,
    rng,
)
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertForPreTraining

from llm_course.configs import BERTConfig
from llm_course.models.bert import BERT

TINY = BERTConfig(vocab_size=37, n_layers=2, d_model=24, n_heads=3, d_ff=40, n_positions=16)


def tiny(seed: int = 0) -> BERT:
    return perturbed(BERT(TINY).double(), seed)


def random_reference(draw: random.Random) -> BertForPreTraining:
    n_heads = draw.randint(1, 4)
    config = BertConfig(
        vocab_size=draw.randint(20, 60),
        hidden_size=n_heads * draw.randint(3, 9),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=n_heads,
        intermediate_size=draw.randint(5, 40),
        max_position_embeddings=draw.randint(12, 20),
        type_vocab_size=draw.randint(1, 3),
        hidden_act=draw.choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=draw.choice([1e-12, 1e-5, 1e-3, 0.1]),
        pad_token_id=draw.randint(0, 3),
        attn_implementation="eager",  # its formula written out, not the kernel that we call too
    )
    return perturbed(BertForPreTraining(config), draw.randrange(2**32))


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


def parity_case(seed: int) -> dict[str, float]:
    """Worst relative differences from transformers, of one random configuration and input."""
    draw = random.Random(seed)
    reference = random_reference(draw)
    inputs = random_inputs(reference.config, draw)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        single = BERT.from_pretrained(folder)
        ours = BERT.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        output, expected = single(**inputs), reference(**inputs)
    logits = max(
        relative_difference(output.mlm_logits, expected.prediction_logits),
        relative_difference(output.nsp_logits, expected.seq_relationship_logits),
    )
    reference = reference.double()
    (mlm, nsp), theirs = ours(**inputs), reference(**inputs)
    w_mlm, w_nsp = (
        torch.randn(t.shape, generator=rng(seed), dtype=torch.float64) for t in (mlm, nsp)
    )
    ((mlm * w_mlm).sum() + (nsp * w_nsp).sum()).backward()
    loss = (theirs.prediction_logits * w_mlm).sum()
    (loss + (theirs.seq_relationship_logits * w_nsp).sum()).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return {
        "logits": logits,
        "gradients": gradient_difference(ours.layout.to_file(gradients), reference),
    }


@pytest.mark.parametrize("seed", range(20))
def test_logits_and_gradients_equal_those_of_transformers(seed: int) -> None:
    worst = parity_case(seed)
    assert worst["logits"] <= LOGITS_GATE
    assert worst["gradients"] <= GRADIENTS_GATE


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
        with pytest.raises(AssertionError, match="relative"):
            assert_relative(other, expected.prediction_logits)


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
        with pytest.raises(AssertionError, match="relative difference"):
            assert_relative(ours(ids).mlm_logits, expected)


def test_a_saved_model_opens_in_transformers_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    changes = {"activation": "gelu_tanh", "norm_eps": 1e-3, "n_segments": 3, "pad_token_id": 2}
    config = BERTConfig(**(TINY.to_dict() | changes))
    model = perturbed(BERT(config))
    model.save_pretrained(tmp_path / "a")
    loaded = BERT.from_pretrained(tmp_path / "a")
    assert loaded.config == config
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    decoder = loaded.mlm_head.decoder.weight
    assert decoder.data_ptr() == loaded.token_embedding.weight.data_ptr()
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
    with pytest.raises(AssertionError):  # unmasked padding is text
        assert_close(model(left_ids, position_ids=positions).mlm_logits[:, -6:], left)
    with pytest.raises(AssertionError):  # positions are counted from the padding
        assert_close(model(left_ids, attention_mask=mask).mlm_logits[:, -6:], left)


def test_every_position_sees_both_sides() -> None:
    model = tiny()
    ids = random_ids((1, 6), 37, 0)
    kept: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda *call: kept.append(call[-1]))
    logits = model(ids).mlm_logits
    for i in range(6):
        (gradient,) = torch.autograd.grad(logits[0, i].square().sum(), kept[0], retain_graph=True)
        assert gradient[0].abs().amax(-1).gt(0).all()


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
