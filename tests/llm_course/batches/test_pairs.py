"""Pairs: what the decoder reads, that the loss hangs on no padding, and what is refused."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_course.batches.pairs import Pairs, shift_right
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import TrainConfig, TransformerConfig
from llm_course.errors import ConfigError, DataError
from llm_course.losses.seq2seq import seq2seq_loss_fn
from llm_course.models.transformer import Transformer
from llm_course.training.evaluate import loss_sums
from llm_course.training.loop import train

PAD, BOS, EOS, IGNORE = 0, 1, 2, -100
Rows = list[list[int]]


def some_pairs(n: int, seed: int = 0, longest: int = 20) -> tuple[Rows, Rows]:
    """Pairs of about one length whose ids tell which pair they are; a target ends with EOS."""
    draw = random.Random(seed)
    lengths = [draw.randrange(2, longest - 1) for _ in range(n)]
    sources = [[10 + i] * (length + draw.randrange(-1, 2)) for i, length in enumerate(lengths)]
    targets = [[10 + i] * (length - 1) + [EOS] for i, length in enumerate(lengths)]
    return sources, targets


def batches_of(n: int, batch_size: int = 4, seed: int = 0) -> Batches:
    return Batches(Pairs(*some_pairs(n), pad_id=PAD, start_id=BOS), batch_size, seed=seed)


def numbers(batch: dict[str, Tensor]) -> list[int]:
    """Which pairs a batch holds."""
    found: list[int] = (batch["input_ids"][:, 0] - 10).tolist()
    return found


@pytest.mark.covers("F14")
def test_a_batch_is_the_pairs_padded_and_the_decoder_reads_the_labels_shifted() -> None:
    sources, targets = some_pairs(40)
    for batch in islice(batches_of(40, seed=5), 8):
        for row, i in enumerate(numbers(batch)):
            source, target = sources[i], targets[i]
            spare = batch["input_ids"].shape[1] - len(source)
            assert batch["input_ids"][row].tolist() == source + [PAD] * spare
            assert batch["attention_mask"][row].tolist() == [1] * len(source) + [0] * spare
            spare = batch["labels"].shape[1] - len(target)
            assert batch["labels"][row].tolist() == target + [IGNORE] * spare
            read = ([BOS] + target + [PAD] * spare)[: len(target) + spare]
            assert batch["decoder_input_ids"][row].tolist() == read
            # The control: a decoder that reads what it should predict.
            assert batch["decoder_input_ids"][row].tolist() != target + [PAD] * spare


@pytest.mark.covers("F14")
def test_shift_right_starts_with_the_start_token_and_turns_ignored_labels_into_padding() -> None:
    labels = torch.tensor([[5, 6, 2, IGNORE], [7, 2, IGNORE, IGNORE]])
    assert shift_right(labels, start_id=9, pad_id=0).tolist() == [[9, 5, 6, 2], [9, 7, 2, 0]]
    assert labels[0, 3].item() == IGNORE  # the labels stay as they were


def test_the_fingerprint_tells_other_pairs_and_another_start_apart() -> None:
    sources, targets = some_pairs(100)
    one = Pairs(sources, targets, pad_id=PAD, start_id=BOS).fingerprint()
    for other in (
        Pairs(targets, sources, pad_id=PAD, start_id=BOS),  # exchanged
        Pairs(sources, targets, pad_id=PAD, start_id=PAD),
        Pairs(sources[::-1], targets[::-1], pad_id=PAD, start_id=BOS),
    ):
        assert other.fingerprint() != one


def test_a_token_that_moves_from_source_to_target_changes_the_fingerprint() -> None:
    one = Pairs([[5, 6]], [[7]], pad_id=PAD, start_id=BOS)
    other = Pairs([[5]], [[6, 7]], pad_id=PAD, start_id=BOS)
    assert one.fingerprint() != other.fingerprint()


def test_evaluation_has_each_pair_once_and_says_which() -> None:
    rows = Pairs(*some_pairs(23), pad_id=PAD, start_id=BOS)
    for batch_size in (1, 4, 100):
        evaluation = Evaluation(rows, batch_size)
        seen = [i for batch in evaluation for i in numbers(batch)]
        assert seen == evaluation.order
        assert sorted(seen) == list(range(23))


def test_the_loss_does_not_depend_on_how_pairs_share_batches() -> None:
    sources, targets = some_pairs(12, longest=9)
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(
            vocab_size=22, n_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=32
        )
    ).double()
    sums = []
    for batch_size in (1, 5, 12):
        batches = Evaluation(Pairs(sources, targets, pad_id=PAD, start_id=BOS), batch_size)
        total, count = loss_sums(model, batches, seq2seq_loss_fn)["lm"]
        assert count == sum(map(len, targets))
        sums.append(total)
    assert sums[0] == pytest.approx(sums[1], abs=1e-8) == pytest.approx(sums[2], abs=1e-8)
    # The control: with a wrong target it is another number.
    wrong = Evaluation(Pairs(sources, targets[::-1], pad_id=PAD, start_id=BOS), 5)
    assert abs(loss_sums(model, wrong, seq2seq_loss_fn)["lm"][0] - sums[0]) > 0.1


def test_a_resumed_training_equals_one_that_was_never_interrupted(tmp_path: Any) -> None:
    def fresh() -> Transformer:
        torch.manual_seed(0)
        return Transformer(
            TransformerConfig(
                vocab_size=60,
                n_layers=1,
                n_decoder_layers=1,
                d_model=16,
                n_heads=2,
                d_ff=32,
                n_positions=24,
            )
        )

    config = TrainConfig(max_steps=9, warmup_steps=2, device="cpu", precision="fp32", save_every=4)
    whole, part = fresh(), fresh()
    list(train(whole, batches_of(50), seq2seq_loss_fn, config))
    for step in train(part, batches_of(50), seq2seq_loss_fn, config, out=tmp_path):
        if step.step == 6:
            break
    resumed = fresh()
    list(train(resumed, batches_of(50), seq2seq_loss_fn, config, out=tmp_path, resume=True))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_long_pairs_are_refused_or_dropped_and_counted() -> None:
    sources, targets = [[5], [5] * 9, [6]], [[5, EOS], [5, EOS], [5] * 7 + [EOS]]
    special = {"pad_id": PAD, "start_id": BOS}
    with pytest.raises(DataError, match=r"2 of 3 pairs are longer than context = 7 .*9 and 2"):
        Pairs(sources, targets, context=7, **special)
    with pytest.raises(DataError, match=r"3 of 3 .*: raise context$"):
        Pairs(sources, targets, context=1, long_pairs="drop", **special)
    kept = Pairs(sources, targets, context=8, long_pairs="drop", **special)
    assert kept.long == 1
    # Which pair a row is, also behind one that was dropped.
    evaluation = Evaluation(kept, 1)
    assert [kept.keep[i] for i in evaluation.order] == [2, 0]
    assert [batch["input_ids"].item() for batch in evaluation] == [6, 5]


def test_what_makes_no_pairs_is_refused_by_its_value() -> None:
    good: dict[str, Any] = {
        "sources": [[5, 6]] * 4, "targets": [[5, EOS]] * 4, "pad_id": PAD, "start_id": BOS
    }  # fmt: skip
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"sources": [], "targets": []}, DataError, "at least one source, got none"),
        ({"targets": [[EOS]] * 3}, DataError, "got 4 sources and 3 targets"),
        ({"sources": [[5], [5], [], [5]]}, DataError, "source 2 must have at least 1 token"),
        ({"targets": [[]] * 4}, DataError, "target 0 must have at least 1 token"),
        ({"targets": [[-1]] * 4}, DataError, "got -1"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            Pairs(**(good | change))
    with pytest.raises((ConfigError, TypeError), match="long_pairs"):
        Pairs(**good, long_pairs="cut")


def test_after_pairs_are_dropped_the_order_still_names_the_pairs_that_were_given() -> None:
    sources, targets = some_pairs(23)
    for number in (0, 4, 11):
        sources[number] = [10 + number] * 90
    rows = Pairs(sources, targets, pad_id=PAD, start_id=BOS, context=40, long_pairs="drop")
    found = Evaluation(rows, 4)
    given = [int(rows.keep[i]) for i in found.order]
    assert sorted(given) == [i for i in range(23) if i not in (0, 4, 11)]
    answers = [row[row != IGNORE].tolist() for batch in found for row in batch["labels"]]
    assert answers == [targets[i] for i in given]
    assert given != found.order  # the control: places among the pairs that are left
