"""The recorded runs of BERT's pretraining, and the course's own checkpoints.

A checkpoint lies beside its result, in a directory of the same name: weights in float16, settings
and tokenizer. The result holds the SHA-256 of each of its files, by which `load_checkpoint` knows
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.hidden_words import hidden_words
from experiments.packing import packing_cpu
from experiments.record import Place, RecordedRun
from experiments.training import run_training
from llm_course.batches.sampler import Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.configs import BERTConfig, DataConfig, TrainConfig
from llm_course.data import sources
from llm_course.data.sentences import split_sentences
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.presets import bert_preset
from llm_course.recipes.pretrain_bert import BERTRun, accuracies, encoded, prepare_bert
from llm_course.recipes.texts import EVALUATION_ROWS
from llm_course.training.evaluate import loss_sums

BOOKS = (
    "gutenberg_en/great_expectations.txt",
    "gutenberg_en/moby_dick.txt",
    "gutenberg_en/pride_and_prejudice.txt",
    "gutenberg_en/sherlock_holmes.txt",
    "gutenberg_en/tale_of_two_cities.txt",
    "wikitext2/valid.txt",
)
SCORED = "wikitext2/test.txt"


def bert_town_cpu(place: Place) -> dict[str, Any]:
    """The cpu preset on Town for longer, and its checkpoint, from which chapter 11 fine-tunes."""
    preset = bert_preset("cpu")
    data = dataclasses.replace(preset.data, documents=60_000)
    training = _longer(preset.train, 5000)
    result = pretrained(place, preset.model, data, training, keep=True)
    stories, counted = (5, (60, 120)) if place.tiny else (200, (8_000, data.documents))
    return result | {"hidden_words": hidden_words(place.checkpoint, stories, counted)}


def bert_town(place: Place) -> dict[str, Any]:
    """The h200 preset on Town."""
    preset = bert_preset("h200")
    return pretrained(place, preset.model, preset.data, preset.train)


def bert_books_cpu(place: Place) -> dict[str, Any]:
    """The small model on five novels and articles of Wikipedia, and its checkpoint."""
    preset = bert_preset("cpu")
    data = _books(place, dataclasses.replace(preset.data, context=128))
    model = dataclasses.replace(preset.model, n_positions=128)
    return pretrained(place, model, data, _longer(preset.train, 2500), keep=True, scored=SCORED)


def bert_books(place: Place) -> dict[str, Any]:
    """The t4 preset on the same text: 7 million characters are soon known by heart."""
    preset = bert_preset("t4")
    return pretrained(place, preset.model, _books(place, preset.data), preset.train, scored=SCORED)


def pretrained(
    place: Place,
    model: BERTConfig,
    data: DataConfig,
    training: TrainConfig,
    *,
    keep: bool = False,
    scored: str | None = None,
) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and evaluate.

    `keep` stores the checkpoint beside the result; `scored` is a text file of the data folder.
    """
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    run = prepare_bert(model, data, training, out=place.out)
    result = run_training(run)
    result |= {"data": _without_folder(place, data), "batch": [data.batch_size, data.context]}
    if scored is not None:
        result["scored"] = {"text": scored, **_scores(run, place.text_file(scored), data.context)}
    if keep:
        result["checkpoint"] = store_checkpoint(run, place.checkpoint)
    return result


def store_checkpoint(run: BERTRun, directory: Path) -> dict[str, str]:
    """Write weights in float16, settings and tokenizer; the SHA-256 of each file by its name."""
    new = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model = BERT(run.model.config)
    model.load_state_dict(run.model.state_dict())
    model.to(torch.float16).save_pretrained(new)
    run.data.tokenizer.save(new)
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _scores(run: BERTRun, path: Path, context: int) -> dict[str, float]:
    """MLM and NSP of a text that is not of the training files, by its paragraphs."""
    texts = sources.read_documents(path, document="paragraph")
    documents = encoded(run.data.tokenizer, [split_sentences(text) for text in texts])
    rows = SentencePairs(documents, context, run.data.masking)
    batches = Evaluation(FixedPairs(rows), EVALUATION_ROWS)
    sums = loss_sums(run.model, batches, bert_loss_fn)
    losses = {f"{name}_loss": float(total / count) for name, (total, count) in sums.items()}
    return losses | accuracies(run.model, batches)


def _longer(training: TrainConfig, steps: int) -> TrainConfig:
    """The same training with more steps, evaluated and saved now and then, on the processor."""
    return dataclasses.replace(
        training,
        max_steps=steps,
        lr=2e-3,
        warmup_steps=200,
        min_lr=5e-5,
        eval_every=500,
        save_every=500,
        keep_checkpoints=1,
        device="cpu",
    )


def _books(place: Place, data: DataConfig) -> DataConfig:
    files = tuple(str(place.text_file(name)) for name in BOOKS)
    return dataclasses.replace(data, data="files", data_files=files, validation=0.02)


def _without_folder(place: Place, data: DataConfig) -> dict[str, Any]:
    """The settings of the data; files are named as in the data folder."""
    names: Sequence[str] = [Path(f).relative_to(place.data_dir).as_posix() for f in data.data_files]
    return data.to_dict() | {"data_files": list(names)}


def _tiny(
    model: BERTConfig, data: DataConfig, training: TrainConfig
) -> tuple[BERTConfig, DataConfig, TrainConfig]:
    """The same run in seconds: only sizes change."""
    return (
        dataclasses.replace(model, n_layers=1, d_model=16, n_heads=2, d_ff=32, n_positions=160),
        dataclasses.replace(
            data, documents=120, context=160, batch_size=4, vocab_size=400, validation=0.3
        ),
        dataclasses.replace(
            training, max_steps=4, warmup_steps=2, eval_every=2, save_every=2, device="cpu"
        ),
    )


RUNS = {
    "bert_town": RecordedRun(
        title="BERT on Town, h200 preset", device="cuda", minutes=8, make=bert_town
    ),
    "bert_books": RecordedRun(
        title="BERT on novels and Wikipedia, t4 preset", device="cuda", minutes=10, make=bert_books
    ),
    "bert_town_cpu": RecordedRun(
        title="BERT on Town, and its checkpoint", device="cpu", minutes=18, make=bert_town_cpu
    ),
    "bert_books_cpu": RecordedRun(
        title="a small BERT on novels and Wikipedia, and its checkpoint",
        device="cpu",
        minutes=10,
        make=bert_books_cpu,
    ),
    "bert_packing_cpu": RecordedRun(
        title="BERT's rows packed and padded: tokens per second",
        device="cpu",
        minutes=3,
        make=packing_cpu,
    ),
}
