"""BERT's objectives: what is hidden, the losses F9 to F11, and their famous silent bugs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import differs, perturbed, rng
from torch import Tensor
from torch.testing import assert_close

from llm_course.configs import BERTConfig
from llm_course.errors import ConfigError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import Masking, bert_loss_fn, mlm_loss, nsp_loss
from llm_course.models.bert import BERT

PAD, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 200
SPECIAL = (PAD, CLS, SEP, MASK)
CONFIG = BERTConfig(
    vocab_size=VOCAB, n_layers=2, d_model=16, n_heads=2, d_ff=32, n_positions=24, dropout=0.0
)


IDS = {"cls_id": CLS, "sep_id": SEP, "mask_id": MASK, "pad_id": PAD, "vocab_size": VOCAB}


def masks(input_ids: Tensor, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    return Masking(**IDS, **settings).apply(input_ids, rng(seed))


def within_four_sigma(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def million_tokens() -> Tensor:
    ids = torch.randint(len(SPECIAL), VOCAB, (1000, 1010), generator=rng(1))
    ids[:, 0], ids[:, 500], ids[:, 501:510] = CLS, SEP, PAD
    return ids


def test_15_percent_are_chosen_and_80_10_10_of_them_are_hidden_replaced_and_kept() -> None:
    ids = million_tokens()
    read, labels = masks(ids)
    ordinary, chosen = int((ids >= len(SPECIAL)).sum()), labels != IGNORE
    assert ordinary >= 900_000
    n = int(chosen.sum())
    assert within_four_sigma(n, ordinary, 0.15)
    assert within_four_sigma(int((read[chosen] == MASK).sum()), n, 0.8)
    # A random token is by chance the right one once in V - 4 times.
    same = 0.1 + 0.1 / (VOCAB - len(SPECIAL))
    assert within_four_sigma(int((read[chosen] == ids[chosen]).sum()), n, same)
    assert not within_four_sigma(n, ordinary, 0.16)  # the bound would see one percent


def test_special_tokens_are_never_chosen_and_never_put_in() -> None:
    ids = million_tokens()
    read, labels = masks(ids, replaced=0.2)
    special = ids < len(SPECIAL)
    assert (labels[special] == IGNORE).all()
    assert_close(read[special], ids[special])
    put_in = (read != ids) & (read != MASK)
    assert put_in.any()
    assert (read[put_in] >= len(SPECIAL)).all()
    assert set(read[put_in].tolist()) == set(range(len(SPECIAL), VOCAB))  # and all others are


def test_labels_are_the_tokens_that_were_there() -> None:
    ids = million_tokens()[:20]
    read, labels = masks(ids)
    chosen = labels != IGNORE
    assert_close(labels[chosen], ids[chosen])
    assert_close(read[~chosen], ids[~chosen])
    with pytest.raises(AssertionError):  # the read ids are not the labels
        assert_close(read[chosen], ids[chosen])


def test_whole_words_are_chosen_or_left_as_a_whole() -> None:
    ids = million_tokens()[:200]
    table = torch.rand(VOCAB, generator=rng(2)) < 0.4  # also of special ids: those begin a word
    continues = table[ids] & (ids >= len(SPECIAL))
    continues[:, 1] = False  # what follows [CLS] begins a word
    continues[:, 510] = False
    ids[:, 1] = ids[:, 510] = int((~table[len(SPECIAL) :]).nonzero()[0]) + len(SPECIAL)
    _, labels = masks(ids, continues=tuple(table.tolist()))
    chosen = labels != IGNORE
    later, before = chosen[:, 1:], chosen[:, :-1]
    inside = continues[:, 1:]
    assert (later == before)[inside].all()
    begins = ~continues & (ids > MASK)
    assert within_four_sigma(int(chosen[begins].sum()), int(begins.sum()), 0.15)
    single = masks(ids)[1] != IGNORE
    assert not (single[:, 1:] == single[:, :-1])[inside].all()


def test_the_same_generator_gives_the_same_masks_and_the_next_call_others() -> None:
    ids = million_tokens()[:4]
    assert_close(masks(ids, seed=3), masks(ids, seed=3))
    generator, masking = rng(3), Masking(**IDS)
    calls = [masking.apply(ids, generator) for _ in range(2)]
    assert not torch.equal(calls[0][1], calls[1][1])


def test_with_a_generator_a_row_its_masks_hang_on_no_other_row_and_no_padding() -> None:
    ids, masking = million_tokens()[:6, :80], Masking(**IDS)
    read, labels = masking.apply(ids, [rng(i) for i in range(6)])
    padded = torch.cat([ids, torch.full((6, 30), PAD)], 1)[[4, 2]]
    again, asked = masking.apply(padded, [rng(4), rng(2)])
    assert torch.equal(again[:, :80], read[[4, 2]])
    assert torch.equal(asked[:, :80], labels[[4, 2]])
    assert not torch.equal(masking.apply(ids[:1], [rng(7)])[1], labels[:1])  # the control


def mlm_by_hand(logits: Tensor, labels: Tensor) -> float:
    """F10 transcribed: one chosen position after the other."""
    total = 0.0
    for row, targets in zip(logits.tolist(), labels.tolist()):
        for scores, target in zip(row, targets):
            if target != IGNORE:
                total -= scores[target] - math.log(sum(math.exp(s) for s in scores))
    return total


@pytest.mark.covers("F10", "P1")
def test_the_masked_loss_is_the_sum_over_the_chosen_positions() -> None:
    logits = torch.randn(3, 7, 11, generator=rng(0), dtype=torch.float64)
    labels = torch.randint(11, (3, 7), generator=rng(1))
    labels[torch.rand(3, 7, generator=rng(2)) < 0.7] = IGNORE
    total, count = mlm_loss(logits, labels)
    assert abs(total.item() - mlm_by_hand(logits, labels)) < 1e-10
    assert count == (labels != IGNORE).sum()
    shifted = mlm_by_hand(logits[:, :-1], labels[:, 1:])
    assert abs(total.item() - shifted) > 1e-2  # shifted by one it is another loss


@pytest.mark.covers("F10")
def test_positions_that_were_not_chosen_get_exactly_no_gradient() -> None:
    logits = torch.randn(2, 6, 9, generator=rng(0), requires_grad=True)
    labels = torch.full((2, 6), IGNORE)
    labels[0, 2], labels[1, 5] = 4, 0
    mlm_loss(logits, labels)[0].backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 2], [1, 5]]
    # The famous bug: a mean over all positions, multiplied by the mask, teaches every position.
    logits.grad = None
    everywhere = torch.randint(9, (2, 6), generator=rng(1))
    mean = F.cross_entropy(logits.flatten(0, 1), everywhere.flatten())
    (mean * (labels != IGNORE)).sum().backward()
    assert (logits.grad.abs().sum(-1) > 0).all()


def nsp_by_hand(logits: Tensor, next_sentence_label: Tensor) -> float:
    """F11 transcribed, with y = 1 for a pair that belongs together."""
    total = 0.0
    for (is_next, not_next), label in zip(logits.tolist(), next_sentence_label.tolist()):
        y = 1 - label
        p = math.exp(is_next) / (math.exp(is_next) + math.exp(not_next))
        total += -y * math.log(p) - (1 - y) * math.log(1 - p)
    return total


@pytest.mark.covers("F11", "P2")
def test_the_next_sentence_loss_is_two_class_cross_entropy_with_y_turned_around() -> None:
    logits = torch.randn(9, 2, generator=rng(0), dtype=torch.float64)
    label = torch.randint(2, (9,), generator=rng(1))
    total, count = nsp_loss(logits, label)
    assert abs(total.item() - nsp_by_hand(logits, label)) < 1e-10
    assert count == 9
    assert abs(total.item() - nsp_by_hand(logits, 1 - label)) > 1e-2


@pytest.mark.covers("F11")
def test_a_label_of_zero_is_a_class_and_not_ignored() -> None:
    logits = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    total, count = nsp_loss(logits, torch.tensor([0, 0, 1, IGNORE]))
    assert_close(total.item(), 3 * math.log(2))
    assert count == 3
    total.backward()
    assert logits.grad is not None
    assert (logits.grad[:3] != 0).all()
    ignored = F.cross_entropy(
        logits, torch.tensor([0, 0, 1, 0]), ignore_index=0, reduction="sum"
    )  # the bug: only one of the pairs would teach
    assert_close(ignored.item(), math.log(2))


def batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(len(SPECIAL), VOCAB, (3, 12), generator=rng(seed))
    ids[:, 0] = CLS
    read, labels = masks(ids, seed, chosen=0.3)
    return {
        "input_ids": read,
        "labels": labels,
        "next_sentence_label": torch.tensor([0, 1, 0]),
        "token_type_ids": (torch.arange(12) > 5).long().expand(3, 12),
    }


@pytest.mark.covers("F9")
def test_the_loss_of_bert_is_the_sum_of_both_and_so_is_its_gradient() -> None:
    model = perturbed(BERT(CONFIG).double())
    data = batch()
    terms = bert_loss_fn(model, data)
    inputs = {name: data[name] for name in ("input_ids", "token_type_ids")}
    output = model(**inputs)
    mlm = mlm_by_hand(output.mlm_logits, data["labels"])
    nsp = nsp_by_hand(output.nsp_logits, data["next_sentence_label"])
    assert abs(terms["mlm"][0].item() - mlm) < 1e-9
    assert abs(terms["nsp"][0].item() - nsp) < 1e-9

    def gradient(*names: str) -> Tensor:
        model.zero_grad()
        losses = bert_loss_fn(model, data)
        torch.stack([losses[name][0] / losses[name][1] for name in names]).sum().backward()
        weight = model.token_embedding.weight.grad
        assert weight is not None
        return weight.clone()

    both, parts = gradient("mlm", "nsp"), gradient("mlm") + gradient("nsp")
    assert_close(both, parts, rtol=1e-10, atol=1e-12)
    assert differs(both, gradient("mlm"))


@pytest.mark.covers("B2")
def test_a_fresh_bert_knows_nothing_ln_v_and_ln_2() -> None:
    torch.manual_seed(0)
    terms = bert_loss_fn(BERT(CONFIG).eval(), batch())
    assert abs((terms["mlm"][0] / terms["mlm"][1]).item() - math.log(VOCAB)) < 0.05
    assert abs((terms["nsp"][0] / terms["nsp"][1]).item() - math.log(2)) < 0.02


def test_a_batch_without_chosen_tokens_has_the_sum_0_the_count_0_and_a_gradient() -> None:
    model, data = BERT(CONFIG), batch()
    data["labels"] = torch.full_like(data["labels"], IGNORE)
    terms = bert_loss_fn(model, data)
    assert terms["mlm"][0] == 0
    assert terms["mlm"][1] == 0
    (terms["mlm"][0] + terms["nsp"][0]).backward()
    assert model.token_embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chosen": 1.5}, "chosen must be from 0 to 1, got 1.5"),
        ({"masked": -0.1}, "masked must be from 0 to 1, got -0.1"),
        ({"masked": 0.9, "replaced": 0.2}, "masked \\+ replaced must be at most 1"),
    ],
)
def test_shares_outside_their_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        masks(torch.full((1, 4), 9), **settings)


def test_special_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match="special_ids must be from 0 to 9, got 10"):
        Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=10, vocab_size=10)
    with pytest.raises(ConfigError, match="all 4 ids are special"):
        Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=4)
    with pytest.raises(ConfigError, match="of each of 9 ids, got 2"):
        Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=9, continues=(True, False))


@pytest.mark.parametrize("form", ["a label a row", "a label a pair", "no pairs", "nothing chosen"])
def test_the_counts_before_the_losses_are_those_of_the_losses(form: str) -> None:
    data = batch()
    if form == "a label a pair":
        data["next_sentence_label"] = torch.full((3, 12), IGNORE)
        data["next_sentence_label"][[0, 0, 2], [0, 6, 0]] = torch.tensor([1, 0, 0])
    elif form == "no pairs":
        del data["next_sentence_label"]
    elif form == "nothing chosen":
        data["labels"] = torch.full_like(data["labels"], IGNORE)
    counts = bert_loss_fn.counts(data)  # type: ignore[attr-defined]
    terms = bert_loss_fn(BERT(CONFIG), data)
    assert list(counts) == list(terms)
    assert {k: int(n) for k, n in counts.items()} == {k: int(n) for k, (_, n) in terms.items()}


def test_accumulation_asks_for_counts_and_makes_no_further_forward_pass() -> None:
    from llm_course.training.devices import choose_precision
    from llm_course.training.gradients import LossModule, accumulate

    parts = [batch(seed) for seed in range(4)]
    passes = []
    model = BERT(CONFIG)
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    module = LossModule(model, bert_loss_fn)
    module.register_forward_pre_hook(lambda *_: passes.append(1))
    precision = choose_precision("cpu", "fp32")
    for counts_of, wanted in ((bert_loss_fn.counts, 4), (None, 7)):  # type: ignore[attr-defined]
        passes.clear()
        totals = accumulate(module, parts, precision, precision.scaler(), counts_of)
        assert len(passes) == wanted
        assert totals.counts.tolist() == [
            sum(int((part[name] != IGNORE).sum()) for part in parts)
            for name in ("labels", "next_sentence_label")
        ]
