"""The loss of encoder-decoders (F14), with and without label smoothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_course.batches.pairs import shift_right
from llm_course.configs import T5Config, TrainConfig, TransformerConfig
from llm_course.losses.seq2seq import seq2seq_loss, seq2seq_loss_fn
from llm_course.models.t5 import T5
from llm_course.models.transformer import Transformer
from llm_course.training.loop import train

IGNORE, PAD, BOS, EOS, VOCAB = -100, 0, 1, 2, 11


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_transformer() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB,
        n_layers=1,
        n_decoder_layers=1,
        d_model=16,
        n_heads=2,
        d_ff=32,
        n_positions=12,
        dropout=0.0,
    )
    return Transformer(config)


def some_batch(lengths: tuple[int, ...] = (5, 2, 4), seed: int = 0) -> dict[str, Tensor]:
    """Rows of these numbers of labels, the rest -100."""
    generator = rng(seed)
    width = max(lengths)
    labels = torch.randint(3, VOCAB, (len(lengths), width), generator=generator)
    for row, length in enumerate(lengths):
        labels[row, length - 1] = EOS
        labels[row, length:] = IGNORE
    return {
        "input_ids": torch.randint(3, VOCAB, (len(lengths), 6), generator=generator),
        "attention_mask": torch.ones(len(lengths), 6, dtype=torch.int64),
        "decoder_input_ids": shift_right(labels, BOS, PAD),
        "labels": labels,
    }


def loss_by_hand(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    """F14 and the smoothed target of Vaswani et al. 2017, §5.4, transcribed as three loops."""
    total = 0.0
    for row, ids in zip(logits.tolist(), labels.tolist()):
        for scores, label in zip(row, ids):
            if label == IGNORE:
                continue
            normaliser = math.log(sum(math.exp(s) for s in scores))
            for token, score in enumerate(scores):
                target = smoothing / len(scores) + (1.0 - smoothing) * (token == label)
                total -= target * (score - normaliser)
    return total


@pytest.mark.covers("F14")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_f14_of_the_labels_in_their_own_places(smoothing: float) -> None:
    logits = torch.randn(3, 5, 7, generator=rng(0), dtype=torch.float64)
    labels = torch.randint(7, (3, 5), generator=rng(1))
    labels[1, 2:] = IGNORE
    total, count = seq2seq_loss(logits, labels, smoothing=smoothing)
    expected = loss_by_hand(logits, labels, smoothing)
    assert count.item() == 5 + 2 + 5
    assert total.item() == pytest.approx(expected, abs=1e-10)
    # The controls: shifted once more, as a causal model would; and another amount of smoothing.
    shifted, _ = seq2seq_loss(logits[:, :-1], labels[:, 1:], smoothing=smoothing)
    assert abs(shifted.item() - expected) > 0.1
    other, _ = seq2seq_loss(logits, labels, smoothing=smoothing + 0.1)
    assert abs(other.item() - expected) > 1e-3


@pytest.mark.covers("F14")
def test_labels_are_shifted_exactly_once_on_the_way_through_the_decoder() -> None:
    """The probability of y_i given x and y_<i, asked for one prefix at a time."""
    model = tiny_transformer().double().eval()
    batch = some_batch((5,))
    source, target = batch["input_ids"], batch["labels"]
    by_prefix = 0.0
    with torch.no_grad():
        for i, token in enumerate(target[0].tolist()):
            prefix = torch.cat([torch.tensor([[BOS]]), target[:, :i]], dim=1)
            logits = model(source, decoder_input_ids=prefix)[0, -1]
            by_prefix -= logits.log_softmax(-1)[token].item()
        total, count = seq2seq_loss_fn(model, batch)["lm"]
        # The control: the decoder reads the token that it should predict.
        unshifted = batch | {"decoder_input_ids": target}
        leaky, _ = seq2seq_loss_fn(model, unshifted)["lm"]
    assert count.item() == 5
    assert total.item() == pytest.approx(by_prefix, abs=1e-10)
    assert abs(leaky.item() - by_prefix) > 0.1


def test_the_lowest_smoothed_loss_is_the_entropy_of_the_target() -> None:
    labels = torch.tensor([[3]])
    target = torch.full((VOCAB,), 0.1 / VOCAB, dtype=torch.float64)
    target[3] += 0.9
    entropy = -(target * target.log()).sum().item()
    best, _ = seq2seq_loss(target.log()[None, None], labels, smoothing=0.1)
    assert best.item() == pytest.approx(entropy, abs=1e-12)
    certain = torch.zeros(1, 1, VOCAB, dtype=torch.float64)
    certain[..., 3] = 50.0
    smoothed, _ = seq2seq_loss(certain, labels, smoothing=0.1)
    assert smoothed.item() > entropy + 1.0  # to be certain is punished
    plain, _ = seq2seq_loss(certain, labels)
    assert plain.item() == pytest.approx(0.0, abs=1e-9)  # and without smoothing it is the best


def test_ignored_labels_count_for_nothing_and_get_no_gradient() -> None:
    for smoothing in (0.0, 0.1):
        logits = torch.randn(2, 4, 5, generator=rng(2), requires_grad=True)
        labels = torch.full((2, 4), IGNORE)
        total, count = seq2seq_loss(logits, labels, smoothing=smoothing)
        assert (total.item(), count.item()) == (0.0, 0)
        labels[0, 2] = 3
        total, count = seq2seq_loss(logits, labels, smoothing=smoothing)
        (gradient,) = torch.autograd.grad(total, logits)
        assert count.item() == 1
        assert gradient.abs().sum(-1).nonzero().tolist() == [[0, 2]]


def test_the_sum_is_in_float32_when_logits_are_not() -> None:
    logits = torch.zeros(4, 513, 2, dtype=torch.bfloat16)
    labels = torch.zeros(4, 513, dtype=torch.int64)
    total, count = seq2seq_loss(logits, labels)
    assert total.dtype == torch.float32
    assert total.item() / count.item() == pytest.approx(math.log(2), rel=1e-5)


class Two:
    """Batches of very different numbers of labels, again and again."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.batches)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulation_takes_the_mean_over_counted_labels(smoothing: float) -> None:
    parts = [some_batch((9, 9), seed=1), some_batch((1, 2), seed=2)]
    settings = {"max_steps": 1, "warmup_steps": 0, "device": "cpu", "precision": "fp32"}
    loss_fn = partial(seq2seq_loss_fn, smoothing=smoothing)
    model = tiny_transformer()
    sums = [seq2seq_loss_fn(model, part, smoothing=smoothing)["lm"] for part in parts]
    (step,) = train(model, Two(parts), loss_fn, TrainConfig(accumulation=2, **settings))  # type: ignore[arg-type]
    assert step.loss == pytest.approx(
        sum(s.item() for s, _ in sums) / sum(n.item() for _, n in sums), rel=1e-5
    )
    # The control: the mean of the means is another number.
    means = [(s / n).item() for s, n in sums]
    assert abs(sum(means) / 2 - step.loss) > 0.01


def test_transformer_and_t5_have_the_same_loss_function_and_learn_from_it() -> None:
    torch.manual_seed(0)
    t5 = T5(
        T5Config(
            vocab_size=VOCAB,
            n_layers=1,
            n_decoder_layers=1,
            d_model=16,
            n_heads=2,
            d_head=8,
            d_ff=32,
            dropout=0.0,
        )
    )
    models: list[tuple[nn.Module, int]] = [(tiny_transformer(), BOS), (t5, PAD)]
    for model, start in models:
        batch = some_batch()
        batch["decoder_input_ids"] = shift_right(batch["labels"], start, PAD)
        config = TrainConfig(max_steps=60, lr=1e-2, warmup_steps=5, device="cpu")
        steps = list(train(model, Two([batch]), seq2seq_loss_fn, config))
        assert steps[-1].loss < 0.5 < steps[0].loss
        assert steps[0].losses.keys() == {"lm"}


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_an_impossible_smoothing_is_refused_by_its_value(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"smoothing must be .* below 1, got {smoothing}"):
        seq2seq_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), smoothing=smoothing)


def test_shapes_that_do_not_agree_are_refused_with_both_shapes() -> None:
    plain: Any = inspect.unwrap(seq2seq_loss)
    with pytest.raises(ValueError, match=r"\[2, 3, 4\].*\[2, 4\]"):
        plain(torch.zeros(2, 3, 4), torch.zeros(2, 4).long())
    with pytest.raises(ValueError, match=r"must be \[B, T, V\]"):
        plain(torch.zeros(3, 4), torch.zeros(3).long())
    batch = some_batch()
    batch["labels"] = batch["labels"][:, :-1]
    with pytest.raises(ValueError, match=r"decoder_input_ids \[3, 5\], got \[3, 4\]"):
        seq2seq_loss_fn(tiny_transformer(), batch)
