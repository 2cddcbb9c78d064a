"""Batches of pairs: what the decoder reads, little padding, exact resume, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_course.batches.pairs import PairBatches, PairEvaluation
from llm_course.configs import TrainConfig, TransformerConfig
from llm_course.errors import CheckpointError, ConfigError, DataError
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


def batches_of(n: int, batch_size: int = 4, **options: Any) -> PairBatches:
    return PairBatches(*some_pairs(n), batch_size, pad_id=PAD, start_id=BOS, **options)


def take(batches: Any, n: int) -> list[dict[str, Tensor]]:
    return [batch for _, batch in zip(range(n), batches)]  # range first: it takes no batch more


def numbers(batch: dict[str, Tensor]) -> list[int]:
    """Which pairs a batch holds."""
    found: list[int] = (batch["input_ids"][:, 0] - 10).tolist()
    return found


@pytest.mark.covers("F14")
def test_a_batch_is_the_pairs_padded_and_the_decoder_reads_the_labels_shifted() -> None:
    sources, targets = some_pairs(40)
    for batch in take(batches_of(40, seed=5), 8):
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


def test_an_epoch_has_each_pair_at_most_once_and_leaves_out_less_than_a_batch() -> None:
    batches = batches_of(203, batch_size=8, seed=1)
    first, second = [
        [i for batch in take(batches, batches.batches_per_epoch) for i in numbers(batch)]
        for _ in range(2)
    ]
    for epoch in (first, second):
        assert len(epoch) == len(set(epoch)) == 200
    assert first != second


def test_pairs_of_one_length_share_a_batch_so_little_is_padded() -> None:
    batches = batches_of(6400, batch_size=32)
    assert batches.fill > 0.95
    real = places = 0
    for batch in take(batches, batches.batches_per_epoch):
        for name, padding in (("input_ids", PAD), ("labels", IGNORE)):
            real += int((batch[name] != padding).sum())
            places += batch[name].numel()
    assert real / places == pytest.approx(batches.fill)
    # The control: pairs in the order of the shuffle alone.
    sources, targets = some_pairs(6400)
    longest = [
        max(map(len, rows[i : i + 32])) for rows in (sources, targets) for i in range(0, 6400, 32)
    ]
    assert (sum(map(len, sources)) + sum(map(len, targets))) / (32 * sum(longest)) < 0.65
    # And batches of one epoch do not come in the order of their lengths.
    widths = [batch["labels"].shape[1] for batch in take(batches, 20)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_a_small_pool_mixes_lengths_and_pads_more() -> None:
    def spread(batches: PairBatches) -> float:
        """How far apart the lengths of the answers in one batch are, on average."""
        found = take(batches, batches.batches_per_epoch)
        inside = [(batch["labels"] != IGNORE).sum(1) for batch in found]
        return sum(int(n.max() - n.min()) for n in inside) / len(inside)

    large, small, one = (batches_of(3200, batch_size=32, pool=pool) for pool in (50, 4, 1))
    fills = [batches.fill for batches in (large, small, one)]
    assert fills == sorted(fills, reverse=True)
    assert fills[0] > 0.95
    assert fills[2] < 0.65
    assert 3 * spread(large) < spread(small) < spread(one)
    # The control: 50 is what a reader gets who says nothing.
    assert batches_of(3200, batch_size=32).fingerprint() == large.fingerprint()
    assert large.fingerprint() != small.fingerprint()


def test_resume_goes_on_with_the_very_next_batch() -> None:
    for stop in (0, 3, 24, 25, 60):  # an epoch has 25 batches
        whole = batches_of(103, seed=7)
        expected = take(whole, stop + 10)[stop:]
        before = batches_of(103, seed=7)
        take(before, stop)
        state = json.loads(json.dumps(before.state_dict()))
        after = batches_of(103, seed=7)
        after.load_state_dict(state)
        for a, b in zip(expected, take(after, 10), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_state_of_other_pairs_or_settings_is_refused() -> None:
    state = batches_of(100).state_dict()
    sources, targets = some_pairs(100)
    exchanged = PairBatches(targets, sources, 4, pad_id=PAD, start_id=BOS)
    started = PairBatches(sources, targets, 4, pad_id=PAD, start_id=PAD)
    for other in (exchanged, started, batches_of(100, seed=1), batches_of(100, batch_size=2)):
        with pytest.raises(CheckpointError, match="when this state was saved"):
            other.load_state_dict(state)
    batches_of(100).load_state_dict(state)


def test_a_token_that_moves_from_source_to_target_changes_the_fingerprint() -> None:
    options = {"pad_id": PAD, "start_id": BOS}
    one = PairEvaluation([[5, 6]], [[7]], 1, **options)
    other = PairEvaluation([[5]], [[6, 7]], 1, **options)
    assert one.fingerprint() != other.fingerprint()


def test_the_ranks_share_the_batches_of_one_process() -> None:
    whole = take(batches_of(64, batch_size=8, seed=2), 8)
    ranks = [batches_of(64, batch_size=4, seed=2, rank=r, world_size=2) for r in range(2)]
    for batch, *parts in zip(whole, *(take(part, 8) for part in ranks), strict=True):
        assert sorted(numbers(batch)) == sorted(i for part in parts for i in numbers(part))
    assert ranks[0].fingerprint() == ranks[1].fingerprint()


def test_evaluation_has_each_pair_once_and_says_which() -> None:
    sources, targets = some_pairs(23)
    for batch_size in (1, 4, 100):
        evaluation = PairEvaluation(sources, targets, batch_size, pad_id=PAD, start_id=BOS)
        seen = [i for batch in evaluation for i in numbers(batch)]
        assert seen == evaluation.order
        assert sorted(seen) == list(range(23))
        assert len(list(evaluation)) == len(evaluation)
        assert evaluation.tokens == sum(map(len, targets))
    parts = [
        PairEvaluation(sources, targets, 4, pad_id=PAD, start_id=BOS, rank=r, world_size=3)
        for r in range(3)
    ]
    assert sorted(i for part in parts for i in part.order) == list(range(23))


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
        batches = PairEvaluation(sources, targets, batch_size, pad_id=PAD, start_id=BOS)
        total, count = loss_sums(model, batches, seq2seq_loss_fn)["lm"]
        assert count == sum(map(len, targets))
        sums.append(total)
    assert sums[0] == pytest.approx(sums[1], abs=1e-8) == pytest.approx(sums[2], abs=1e-8)
    # The control: with a wrong target it is another number.
    wrong = PairEvaluation(sources, targets[::-1], 5, pad_id=PAD, start_id=BOS)
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
    sources, targets = [[5], [5] * 9, [5]], [[5, EOS], [5, EOS], [5] * 7 + [EOS]]
    for kind in (PairBatches, PairEvaluation):
        with pytest.raises(DataError, match=r"2 of 3 pairs are longer than context = 7 tokens.*9"):
            kind(sources, targets, 1, pad_id=PAD, start_id=BOS, context=7)
        with pytest.raises(DataError, match=r"3 of 3 .*: raise context$"):
            kind(sources, targets, 1, pad_id=PAD, start_id=BOS, context=1, long_pairs="drop")
        kept = kind(sources, targets, 1, pad_id=PAD, start_id=BOS, context=7, long_pairs="drop")
        assert kept.long == 2
    assert isinstance(kept, PairEvaluation)
    assert kept.order == [0]


def test_what_makes_no_pairs_is_refused_by_its_value() -> None:
    good: dict[str, Any] = {
        "sources": [[5, 6]] * 4,
        "targets": [[5, EOS]] * 4,
        "batch_size": 2,
        "pad_id": PAD,
        "start_id": BOS,
    }
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"sources": [], "targets": []}, DataError, "at least one source, got none"),
        ({"targets": [[EOS]] * 3}, DataError, "got 4 sources and 3 targets"),
        ({"sources": [[5], [5], [], [5]]}, DataError, "source 2 must have at least 1 token"),
        ({"targets": [[]] * 4}, DataError, "target 0 must have at least 1 token"),
        ({"vocab_size": 6}, DataError, "from 0 to 5 .*got 6"),
        ({"targets": [[-1]] * 4}, DataError, "got -1"),
        ({"batch_size": 0}, ConfigError, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank must be from 0 to 1, got 2"),
    ]
    for change, error, message in cases:
        for kind in (PairBatches, PairEvaluation):
            with pytest.raises(error, match=message):
                kind(**(good | change))
    with pytest.raises(DataError, match="needs batch_size \\* world_size = 5 rows"):
        PairBatches(**(good | {"batch_size": 5}))
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        PairBatches(**(good | {"seed": -1}))
    with pytest.raises(ConfigError, match="pool must be at least 1, got 0"):
        PairBatches(**(good | {"pool": 0}))


def test_after_pairs_are_dropped_the_order_still_names_the_pairs_that_were_given() -> None:
    sources, targets = some_pairs(23)
    for number in (0, 4, 11):
        sources[number] = [10 + number] * 90
    found = PairEvaluation(
        sources, targets, 4, pad_id=PAD, start_id=BOS, context=40, long_pairs="drop"
    )
    seen = [i for batch in found for i in numbers(batch)]
    assert seen == found.order
    assert sorted(seen) == [i for i in range(23) if i not in (0, 4, 11)]
    answers = [row[row != IGNORE].tolist() for batch in found for row in batch["labels"]]
    assert answers == [targets[i] for i in found.order]
    # The control: the places among the pairs that are left are other numbers.
    assert found.order != PairEvaluation(
        [sources[i] for i in sorted(seen)], [targets[i] for i in sorted(seen)], 4,
        pad_id=PAD, start_id=BOS,
    ).order  # fmt: skip
