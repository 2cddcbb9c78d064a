"""`llm-course pretrain bert`: documents in sentences, WordPiece, masks, pairs, a run directory."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.configs import BERTConfig, BERTDataConfig, TrainConfig
from llm_course.data import corpora
from llm_course.data.sentences import split_sentences
from llm_course.errors import ConfigError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import INPUTS, Masking, bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.presets import find_preset
from llm_course.recipes.pretrain_gpt import pretrain_command, whole_model
from llm_course.recipes.texts import (
    EVALUATION_ROWS,
    TOKENIZER_DOCUMENTS,
    TOWN_VALIDATION,
    check_files,
    is_plain_text,
    train_tokenizer,
)
from llm_course.tokenizers.kinds import check_vocab_size
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import evaluating, loss_sums, to_device
from llm_course.training.loop import Step, train
from llm_town import generate_documents

Sentences = list[list[str]]  # documents, their sentences


@dataclass(frozen=True, kw_only=True)
class BERTData:
    """What BERT needs from its data."""

    tokenizer: Tokenizer
    masking: Masking
    train: Batches
    validation: Evaluation


@dataclass(frozen=True, kw_only=True)
class BERTRun:
    """Everything that a pretraining run is made of."""

    model: BERT
    data: BERTData
    train_config: TrainConfig
    out: Path | None

    def steps(self, *, resume: bool = False) -> Iterator[Step]:
        """Train; yields after every update."""
        return train(
            self.model,
            self.data.train,
            bert_loss_fn,
            self.train_config,
            out=self.out,
            resume=resume,
            validation=self.data.validation,
            tokenizer=self.data.tokenizer,
        )

    def summary(self, seconds: float, tokens_per_second: float) -> dict[str, Any]:
        """The keys of summary.json; `val_loss` is that of a masked token."""
        model = whole_model(self.model, self.train_config, self.out)
        sums = loss_sums(model, self.data.validation, bert_loss_fn)
        nats, count = sums["mlm"]
        scores = accuracies(model, self.data.validation)
        if "nsp" in sums:
            scores["nsp_loss"] = sums["nsp"][0] / sums["nsp"][1]
        return {
            "val_loss": nats / count,
            "val_nats_per_char": None,  # a masked model gives no probability to a whole text
            "floor_ratio": None,
            "test": scores,
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in model.parameters()),
        }


def accuracies(model: BERT, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """The share of chosen tokens, and of pairs, whose likeliest class is the right one."""
    right, counted = {"mlm_accuracy": 0, "nsp_accuracy": 0}, {"mlm_accuracy": 0, "nsp_accuracy": 0}
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            batch = to_device(batch, device)
            hidden = model.hidden(**{name: batch[name] for name in INPUTS if name in batch})
            heads: list[tuple[str, Tensor, Any]] = [
                ("mlm_accuracy", batch["labels"], model.mlm_head)
            ]
            if "next_sentence_label" in batch:
                labels = batch["next_sentence_label"]
                heads.append(("nsp_accuracy", labels, lambda rows: _pair_logits(model, rows)))
            for name, labels, head in heads:
                chosen = labels != IGNORE
                found = head(hidden[chosen]).argmax(-1)
                right[name] += int((found == labels[chosen]).sum())
                counted[name] += int(chosen.sum())
    return {name: right[name] / n for name, n in counted.items() if n}


def _pair_logits(model: BERT, first: Tensor) -> Tensor:
    """The next-sentence logits from the hidden states of [CLS]."""
    return model.nsp_head(model.pooler(first[:, None]))


def prepare_bert(
    model: BERTConfig,
    data: BERTDataConfig,
    train_config: TrainConfig,
    *,
    out: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> BERTRun:
    """Data, tokenizer and a fresh model whose vocabulary is the tokenizer's.

    Raises `ConfigError` when a row is longer than the model's table of positions, or for a
    tokenizer without [CLS], [SEP], [MASK].
    """
    if data.context > model.n_positions:
        raise ConfigError(
            f"context must be at most n_positions = {model.n_positions}, got {data.context}"
        )
    prepared = prepare(data, tokenizer)
    tokens = prepared.tokenizer
    pad_id = prepared.masking.pad_id
    config = dataclasses.replace(model, vocab_size=len(tokens), pad_token_id=pad_id)
    torch.manual_seed(train_config.seed)
    network = BERT(config)
    from llm_lab.starts import neighbours  # of the course, not of the paper: see .importlinter

    neighbours(network)
    return BERTRun(model=network, data=prepared, train_config=train_config, out=out)


def prepare(config: BERTDataConfig, tokenizer: Tokenizer | None) -> BERTData:
    """Read or generate the documents, train WordPiece unless a tokenizer is given, make batches."""
    check_files(config)
    if tokenizer is None:
        check_vocab_size(config.tokenizer, config.vocab_size)
    training, held_out = _documents(config)
    if tokenizer is None:
        texts = (" ".join(document) for document in training[:TOKENIZER_DOCUMENTS])
        tokenizer = train_tokenizer(config, texts, None)
    masking = masking_of(tokenizer, whole_words=config.whole_words)
    paired = partial(
        SentencePairs, context=config.context, masking=masking, next_sentence=config.next_sentence
    )
    rows, held_out_rows = (paired(encoded(tokenizer, each)) for each in (training, held_out))
    return BERTData(
        tokenizer=tokenizer,
        masking=masking,
        train=Batches(rows, config.batch_size, seed=config.seed),
        validation=Evaluation(FixedPairs(held_out_rows), EVALUATION_ROWS),
    )


def masking_of(tokenizer: Tokenizer, *, whole_words: bool = False) -> Masking:
    """The ids of BERT's special tokens; `ConfigError` for a tokenizer that has not all of them."""
    roles = {f"{r}_id": getattr(tokenizer, f"{r}_id") for r in ("cls", "sep", "mask", "pad")}
    if absent := [name for name, i in roles.items() if i is None]:
        raise ConfigError(
            f"BERT needs a tokenizer with [CLS], [SEP], [MASK] and [PAD]; this one has no "
            f"{', '.join(absent)}"
        )
    continues = None
    if whole_words:
        continues = tuple(tokenizer.token(i).startswith("##") for i in range(len(tokenizer)))
    return Masking(vocab_size=len(tokenizer), continues=continues, **roles)


def encoded(tokenizer: Tokenizer, documents: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The ids of each sentence, without special tokens."""
    flat = tokenizer.encode_batch([s for document in documents for s in document])
    sentences = iter(flat)
    return [[next(sentences) for _ in document] for document in documents]


def _documents(config: BERTDataConfig) -> tuple[Sentences, Sentences]:
    """Training and validation documents, in sentences."""
    if config.data == "town":
        stories = generate_documents(config.documents, config.seed, "train")
        others = generate_documents(TOWN_VALIDATION, 0, "validation")
        return [list(d.sentences) for d in stories], [list(d.sentences) for d in others]
    if config.data == "hub":
        assert config.dataset is not None  # DataConfig has seen to it
        texts = corpora.load_hub(config.dataset, column=config.column)
    elif is_plain_text(config.data_files):
        texts = corpora.read_documents(config.data_files, document="paragraph")
    else:
        texts = corpora.read_documents(config.data_files, column=config.column)
    training, held_out = corpora.split_documents(texts, config.validation, config.seed)
    return [split_sentences(t) for t in training], [split_sentences(t) for t in held_out]


def pretrain_bert_command(*, preset: str, out: str, resume: bool, options: dict[str, Any]) -> None:
    """`llm-course pretrain bert`: the preset's settings, with the options that were given."""
    chosen = find_preset("bert", preset).with_options(options)
    directory = pretrain_command("BERT", chosen, prepare_bert, out=out, resume=resume)
    if directory is not None:
        command = f"llm-course fill-mask --model {directory / 'model'}"
        print(f'next: {command} --text "The [MASK] was red."', file=sys.stderr)
