"""Translation runs: pairs in, scores with their signatures out; bad settings refused at once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import perturbed

from llm_course.configs import PairConfig, TrainConfig, TransformerConfig
from llm_course.errors import ConfigError, DataError
from llm_course.losses.seq2seq import seq2seq_loss_fn
from llm_course.models.transformer import Transformer
from llm_course.presets import find_preset
from llm_course.recipes.translate import (
    encode_pairs,
    frequent,
    prepare_translation,
    score,
    town_pairs,
    translate_texts,
)
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import evaluate
from llm_town.tasks import translation

MODEL = TransformerConfig(
    n_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=32, n_positions=48, dropout=0.0
)
TRAIN = TrainConfig(max_steps=3, warmup_steps=1, device="cpu", precision="fp32")
TOWN = PairConfig(pairs=200, held_out=6, batch_size=8)


def files(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names = (str(path),)
    return {"data": "files", "data_files": names, "validation_files": names, "test_files": names}


def test_a_run_on_town_has_the_scores_of_all_three_test_sets() -> None:
    run = prepare_translation(MODEL, TOWN, TRAIN)
    assert [step.step for step in run.steps()] == [1, 2, 3]
    summary = run.summary(1.0, 1.0)
    assert list(summary["test"]) == ["none", "unseen_name", "unseen_template"]
    for scores in summary["test"].values():
        assert scores["pairs"] == 6
        assert 0.0 <= scores["exact_match"] <= 1.0
        assert "tok:zh" in scores["bleu_signature"]
        assert "version:" in scores["bleu_signature"]
        assert "nc:6" in scores["chrf_signature"]
    assert summary["val_loss"] > 0
    assert torch.isfinite(torch.tensor(summary["val_loss"]))


def test_files_are_translated_with_one_vocabulary_of_pieces(tmp_path: Path) -> None:
    rows = [{"en": f"A dog number {i}.", "de": f"Ein Hund Nummer {i}."} for i in range(20)]
    data = PairConfig(
        **files(tmp_path, rows), tokenizer="bpe", vocab_size=300, batch_size=4, smoothing=0.1
    )
    run = prepare_translation(MODEL, data, TRAIN)
    list(run.steps())
    scores = run.test_scores(num_beams=2)
    assert list(scores) == ["test"]
    assert "tok:13a" in scores["test"]["bleu_signature"]
    backwards = dataclasses.replace(data, source="de", target="en")
    assert prepare_translation(MODEL, backwards, TRAIN).data.tests["test"][0][0] == rows[0]["de"]


def test_translations_come_in_the_order_of_their_texts() -> None:
    """A model that has learnt three pairs by heart, asked in several orders."""
    pairs = [("one", "一"), ("two two two", "二二"), ("three three", "三三三")]
    tokenizer = Tokenizer.train((t for pair in pairs for t in pair), kind="word", vocab_size=99)
    torch.manual_seed(0)
    model = Transformer(
        dataclasses.replace(
            MODEL,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_id or 0,
            bos_token_id=tokenizer.bos_id or 0,
            eos_token_id=tokenizer.eos_id or 0,
        )
    )
    from llm_course.batches.pairs import Pairs
    from llm_course.batches.sampler import Batches
    from llm_course.losses.seq2seq import seq2seq_loss_fn
    from llm_course.training.loop import train

    special = {"pad_id": tokenizer.pad_id or 0, "start_id": tokenizer.bos_id or 0}
    batches = Batches(Pairs(*encode_pairs(tokenizer, pairs), **special), 3)
    config = dataclasses.replace(TRAIN, max_steps=120, lr=1e-2, warmup_steps=10)
    list(train(model, batches, seq2seq_loss_fn, config))
    for order in ([0, 1, 2], [2, 0, 1, 1], [1]):
        for num_beams in (1, 3):
            texts = [pairs[i][0] for i in order]
            written = translate_texts(model, tokenizer, texts, num_beams=num_beams)
            assert written == [pairs[i][1] for i in order]


def test_frequent_keeps_the_pairs_whose_source_words_are_all_common() -> None:
    pairs = [("a b", "x"), ("a c", "x"), ("b a a", "x")]
    assert frequent(pairs, pairs, 1) == pairs
    assert frequent(pairs, pairs, 2) == [pairs[0], pairs[2]]
    assert frequent(pairs, pairs, 3) == []  # "a a" in one pair is one pair
    town = town_pairs(300, 0, "train")
    assert 0 < len(frequent(town, town, 5)) < 300


def test_exact_match_and_bleu_are_those_of_sacrebleu_and_differ() -> None:
    from sacrebleu import corpus_bleu

    references = ["the cat sat on the mat .", "a dog ran home today ."]
    assert score(references, references, "en")["bleu"] == pytest.approx(100.0)
    written = ["the cat sat on the mat .", "a dog ran home now ."]
    found = score(written, references, "en")
    assert found["exact_match"] == 0.5
    assert found["bleu"] == pytest.approx(corpus_bleu(written, [references]).score, abs=0.01)
    # The control: another tokenization is another score, and its signature says so.
    chinese = ["他有五个面包。"], ["他有三个面包。"]
    by_character, by_space = score(*chinese, "zh"), score(*chinese, "en")
    assert by_character["bleu"] > by_space["bleu"] + 10
    assert by_character["bleu_signature"] != by_space["bleu_signature"]


def test_bad_settings_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rows = [{"en": "A dog.", "de": "Ein Hund."}] * 12
    good = files(tmp_path, rows) | {"tokenizer": "bpe", "vocab_size": 300, "batch_size": 4}
    with pytest.raises(DataError, match=r"pairs.jsonl: line 1: no column 'fr'; there are 'en'"):
        prepare_translation(MODEL, PairConfig(**good, source="fr"), TRAIN)
    with pytest.raises(DataError, match="longer than context = 3 tokens"):
        prepare_translation(dataclasses.replace(MODEL, n_positions=3), PairConfig(**good), TRAIN)
    with pytest.raises(DataError, match="min_count = 100000 leaves none of the 200 pairs"):
        prepare_translation(MODEL, dataclasses.replace(TOWN, min_count=100_000), TRAIN)
    for change, message in [
        ({"source": "de"}, "two columns, got 'de' twice"),
        ({"data_files": ()}, "data_files go with data = 'files'"),
        ({"test_files": ()}, "test_files go with data = 'files'"),
        ({"data": "hub"}, "data_files go with data = 'files' and only with it"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            PairConfig(**(good | change))
    with pytest.raises(ConfigError, match="preset must be one of cpu, t4, h200, got 'a100'"):
        find_preset("transformer", "a100")
    with pytest.raises(ConfigError, match="got 1 texts and 2 references"):
        score(["a"], ["a", "b"], "en")
    tokenizer = Tokenizer.train(["a b"], kind="word", vocab_size=9)
    with pytest.raises(ConfigError, match="texts must hold at least one text, got none"):
        translate_texts(Transformer(MODEL), tokenizer, [])


def pairs_in(batches: Any, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """What the rows of some batches say; a target must end with the end token."""
    found = []
    for batch in batches:
        for source, labels in zip(batch["input_ids"], batch["labels"]):
            target = labels[labels >= 0]
            assert target[-1] == tokenizer.eos_id
            found.append((tokenizer.decode(source), tokenizer.decode(target)))
    return found


def test_town_is_trained_on_judged_by_and_tested_on_pairs_of_different_splits() -> None:
    data = prepare_translation(MODEL, TOWN, TRAIN).data
    split = {
        name: {
            (translation.cut_names(e.english), e.chinese)
            for e in translation.examples(n, 0, *name.split())
        }
        for name, n in [
            ("train", 200), ("validation", 6),
            ("test none", 6), ("test unseen_name", 6), ("test unseen_template", 6),
        ]
    }  # fmt: skip
    epoch = itertools.islice(data.train, data.train.batches_per_epoch)
    trained = set(pairs_in(epoch, data.tokenizer))
    assert trained <= split["train"]
    assert len(trained) > 150
    assert {name: set(pairs) for name, pairs in data.tests.items()} == {
        shift: split[f"test {shift}"] for shift in ("none", "unseen_name", "unseen_template")
    }
    # Words that training never showed cannot be read back: sources and targets of known words can.
    judged = pairs_in(data.validation, data.tokenizer)
    assert len(judged) == 6
    assert set(judged) & split["validation"]
    assert all("<unk>" in "".join(pair) for pair in set(judged) - split["validation"])
    # The control: a few sentences stand in several splits, most stand in one.
    for name in ("validation", "test none"):
        assert len(split[name] - split["train"]) > 3


def test_the_vocabulary_of_a_translator_is_that_of_its_training_pairs(tmp_path: Path) -> None:
    names = {}
    for part, words in (("data", "abc"), ("validation", "xbc"), ("test", "ayc")):
        names[f"{part}_files"] = (str(tmp_path / f"{part}.jsonl"),)
        rows = [{"en": f"a dog {w}{w}", "de": f"ein Hund {w}{w}{w}"} for w in words]
        Path(names[f"{part}_files"][0]).write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = PairConfig(data="files", **names, batch_size=2)
    tokens = prepare_translation(MODEL, data, TRAIN).data.tokenizer
    known = [w for w in ("aa", "bbb", "xx", "xxx", "yy") if tokens.unk_id not in tokens.encode(w)]
    assert known == ["aa", "bbb"]


def test_the_reported_loss_is_that_of_the_text_without_label_smoothing() -> None:
    run = prepare_translation(MODEL, dataclasses.replace(TOWN, smoothing=0.3), TRAIN)
    perturbed(run.model)
    plain, smooth = (
        evaluate(run.model, run.data.validation, partial(seq2seq_loss_fn, smoothing=s))["loss"]
        for s in (0.0, 0.3)
    )
    assert run.summary(1.0, 1.0)["val_loss"] == pytest.approx(plain, rel=1e-5)
    assert abs(smooth - plain) > 1e-2
