"""The causal loss (F12), the probability of a text (F13), and the chunked head."""

from __future__ import annotations

import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from llm_course.losses.causal import (
    causal_lm_loss,
    causal_loss_fn,
    sequence_log_probability,
)
from llm_course.losses.chunked import IGNORE, chunked_cross_entropy


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TinyModel(nn.Module):
    """A causal model with real contexts: the state at t is a mean of embeddings up to t."""

    def __init__(self, vocab_size: int, d_model: int = 8, bias: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=bias)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=rng(parameter.numel()))

    def hidden(self, input_ids: Tensor) -> Tensor:
        x = self.token_embedding(input_ids)
        lengths = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
        return x.cumsum(1) / lengths[:, None]

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.hidden(input_ids))


def loss_by_hand(logits: Tensor, labels: Tensor) -> float:
    """F12 transcribed: every factor of the product, one by one."""
    total = 0.0
    for row, ids in zip(logits.tolist(), labels.tolist()):
        for i in range(1, len(ids)):
            if ids[i] != IGNORE:
                scores = row[i - 1]
                total -= scores[ids[i]] - math.log(sum(math.exp(s) for s in scores))
    return total


@pytest.mark.covers("F12")
def test_causal_loss_is_the_sum_over_next_tokens_shifted_exactly_once() -> None:
    logits = torch.randn(3, 6, 7, generator=rng(0), dtype=torch.float64)
    labels = torch.randint(7, (3, 6), generator=rng(1))
    labels[0, 4:] = IGNORE
    total, count = causal_lm_loss(logits, labels)
    assert count.item() == 5 + 5 + 3
    assert total.item() == pytest.approx(loss_by_hand(logits, labels), rel=1e-12)

    twice, _ = causal_lm_loss(logits[:, :-1], labels[:, 1:])
    never = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    for wrong in (twice, never):
        assert abs(wrong.item() - total.item()) > 0.1


@pytest.mark.covers("F12")
def test_a_model_that_copies_its_input_has_no_loss_only_where_labels_are_not_shifted() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    copies = 50.0 * F.one_hot(ids, 6).float()
    knows_next = 50.0 * F.one_hot(ids.roll(-1), 6).float()
    assert causal_lm_loss(knows_next, ids)[0].item() == pytest.approx(0.0, abs=1e-6)
    assert causal_lm_loss(copies, ids)[0].item() == pytest.approx(4 * 50.0, abs=1e-3)


def test_ignored_labels_count_for_nothing_and_get_no_gradient() -> None:
    logits = torch.randn(2, 4, 5, generator=rng(2), requires_grad=True)
    labels = torch.full((2, 4), IGNORE)
    total, count = causal_lm_loss(logits, labels)
    assert total.item() == 0.0
    assert count.item() == 0
    labels[0, 2] = 3
    total, count = causal_lm_loss(logits, labels)
    (gradient,) = torch.autograd.grad(total, logits)
    assert count.item() == 1
    assert gradient.abs().sum(-1).nonzero().tolist() == [[0, 1]]


def test_the_sum_is_in_float32_when_logits_are_not() -> None:
    logits = torch.zeros(4, 513, 2, dtype=torch.bfloat16)
    labels = torch.zeros(4, 513, dtype=torch.int64)
    total, count = causal_lm_loss(logits, labels)
    assert total.dtype == torch.float32
    assert total.item() / count.item() == pytest.approx(math.log(2), rel=1e-5)


def test_one_token_has_nothing_to_predict() -> None:
    total, count = causal_lm_loss(torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.int64))
    assert (total.item(), count.item()) == (0.0, 0)


def test_shapes_that_do_not_agree_are_refused_with_both_shapes() -> None:
    for function in map(inspect.unwrap, (causal_lm_loss, sequence_log_probability)):
        with pytest.raises(ValueError, match=r"\[2, 3, 4\].*\[2, 4\]"):
            function(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"must be \[B, T, V\]"):
            function(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    batch = {"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 4).long()}
    with pytest.raises(ValueError, match=r"\[2, 3\], got \[2, 4\]"):
        causal_loss_fn(TinyModel(4), batch)


@pytest.mark.covers("F13")
def test_probability_of_a_text_is_the_product_of_its_conditionals() -> None:
    model = TinyModel(6).double()
    ids = torch.randint(1, 6, (4, 5), generator=rng(3))
    found = sequence_log_probability(model(ids), ids)
    for row, log_probability in zip(ids, found):
        product = 1.0
        for i in range(1, len(row)):
            product *= model(row[None, :i])[0, -1].softmax(-1)[row[i]].item()
        assert log_probability.exp().item() == pytest.approx(product, rel=1e-12)
    total, _ = causal_lm_loss(model(ids), ids)
    assert_close(found.sum(), -total)  # exp(-n * loss) is the product


@pytest.mark.covers("F13")
def test_probabilities_sum_to_one_over_all_strings_of_a_tiny_vocabulary() -> None:
    """Every string that ends with EOS, and every one cut at the longest length, is one outcome."""
    bos, eos, letters, longest = 0, 1, (2, 3), 5
    model = TinyModel(4).double()
    rows = []
    for length in range(longest):
        for word in itertools.product(letters, repeat=length):
            rows.append([bos, *word, eos])
    cut = [[bos, *word] for word in itertools.product(letters, repeat=longest)]
    width = longest + 1
    ids = torch.tensor([row + [IGNORE] * (width - len(row)) for row in rows + cut])

    def probability(shift: int) -> float:
        logits = model(ids.clamp(min=0))
        logits[..., bos] = -math.inf  # BOS is never an outcome
        if shift == 1:
            return sequence_log_probability(logits, ids).exp().sum().item()
        if shift == 2:  # somebody has shifted the labels before
            return sequence_log_probability(logits[:, :-1], ids[:, 1:]).exp().sum().item()
        padded = F.pad(ids, (1, 0), value=eos)  # nobody shifts
        return sequence_log_probability(F.pad(logits, (0, 0, 0, 1)), padded).exp().sum().item()

    assert probability(1) == pytest.approx(1.0, abs=1e-12)
    for wrong in (0, 2):
        with pytest.raises(AssertionError):
            assert probability(wrong) == pytest.approx(1.0, abs=1e-2)


def both_losses(
    bias: bool, rows: int, ignored: int
) -> list[tuple[Tensor, tuple[Tensor | None, ...]]]:
    n, d_model, vocab_size = 50, 6, 11
    g = rng(4)
    leaves = [
        torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
        for shape in ((n, d_model), (vocab_size, d_model), (vocab_size,))
    ][: 3 if bias else 2]
    labels = torch.randint(vocab_size, (n,), generator=g)
    labels[:ignored] = IGNORE
    hidden, weight, b = leaves[0], leaves[1], leaves[2] if bias else None
    ours = chunked_cross_entropy(hidden, weight, labels, bias=b, rows=rows)
    plain = F.cross_entropy(F.linear(hidden, weight, b), labels, reduction="sum")
    return [(loss, torch.autograd.grad(3 * loss, leaves)) for loss in (ours, plain)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "ignored"), [(50, 0), (7, 9), (1, 30), (1000, 1), (16, 50)])
def test_chunked_cross_entropy_equals_the_plain_one(bias: bool, rows: int, ignored: int) -> None:
    (ours, gradients), (plain, expected) = both_losses(bias, rows, ignored)
    assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(gradients, expected):
        assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_chunked_cross_entropy_is_finite_for_extreme_logits() -> None:
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1e4], [-1e4]])
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([2, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(4e4)
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_chunked_cross_entropy_follows_autocast_and_refuses_float16() -> None:
    hidden = torch.randn(64, 16, generator=rng(5), requires_grad=True)
    weight = torch.randn(32, 16, generator=rng(6), requires_grad=True)
    labels = torch.randint(32, (64,), generator=rng(7))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, labels, rows=20)
    gradient = torch.autograd.grad(loss, weight)[0]
    plain = F.cross_entropy(hidden @ weight.mT, labels, reduction="sum")
    expected = torch.autograd.grad(plain, weight)[0]
    assert loss.dtype == gradient.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-2)
    assert loss.item() != pytest.approx(plain.item(), rel=1e-4)  # the products were in bfloat16
    assert_close(gradient, expected, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="float16"):
        chunked_cross_entropy(hidden.half(), weight.half(), labels)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        chunked_cross_entropy(hidden, weight, labels, rows=0)


@pytest.mark.parametrize("vocab_size", [50, 2100])  # the plain way, and the chunked way
def test_loss_of_a_model_is_the_same_with_and_without_chunks(vocab_size: int) -> None:
    model = TinyModel(vocab_size, bias=True).double()
    ids = torch.randint(vocab_size, (10, 60), generator=rng(8))
    labels = ids.clone()
    labels[:, 0] = IGNORE
    labels[3, 40:] = IGNORE
    total, count = causal_loss_fn(model, {"input_ids": ids, "labels": labels})["lm"]
    expected, expected_count = causal_lm_loss(model(ids), labels)
    assert count.item() == expected_count.item() == 10 * 59 - 20
    assert_close(total, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    for gradient, wanted in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)
    ):
        assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_an_adapted_head_is_asked_for_its_own_logits() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = TinyModel(2100)
    model.lm_head = Doubled(8, 2100)
    ids = torch.randint(2100, (10, 60), generator=rng(9))
    total, _ = causal_loss_fn(model, {"input_ids": ids, "labels": ids})["lm"]
    assert_close(total, causal_lm_loss(model(ids), ids)[0], rtol=1e-5, atol=0)
