"""Pretrain a GPT: text, tokenizer, rows, model, training, score; `llm-course pretrain gpt`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_course.batches.blocks import Blocks, Windows
from llm_course.batches.documents import PackedDocuments, SingleDocuments
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import DataConfig, GPTConfig, TrainConfig
from llm_course.data import corpora
from llm_course.errors import ConfigError
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.gpt import GPT
from llm_course.recipes.run import (
    EVALUATION_ROWS,
    Data,
    Run,
    Start,
    begin,
    pretrain_command,
    shared,
)
from llm_course.recipes.texts import (
    TOKENIZER_DOCUMENTS,
    TOWN_VALIDATION,
    check_sizes,
    is_plain_text,
    read_texts,
)
from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size
from llm_course.tokenizers.library import Tokenizer
from llm_town import generate_documents


def prepare_gpt(
    model: GPTConfig,
    data: DataConfig,
    train_config: TrainConfig,
    *,
    start: Start = "auto",
    out: Path | None = None,
) -> Run:
    """Data, tokenizer and a fresh model whose vocabulary is the tokenizer's.

    Raises `ConfigError` when a row is longer than the model's table of positions.
    """
    check_sizes(data, model.n_positions)
    made = _data(data)
    ids = made.tokenizer
    config = dataclasses.replace(
        model, vocab_size=len(ids), bos_token_id=ids.bos_id, eos_token_id=ids.eos_id
    )
    # Stories of Town repeat their names; elsewhere the paper's start is better.
    usual = "lab" if data.data == "town" else "paper"
    network, begun = begin(GPT, config, train_config.seed, start, lab="copying", usual=usual)
    return Run(
        model=network,
        data=made,
        loss_fn=causal_loss_fn,
        train_config=train_config,
        out=out,
        settings=shared(begun, data),
    )


def _data(config: DataConfig) -> Data:
    """Batches of one continuous text, that of plain text files, or of whole documents."""
    check_vocab_size(config.tokenizer, config.vocab_size)
    if config.data == "files" and is_plain_text(config.data_files):
        return _continuous(config)
    if not {"<bos>", "<eos>"} <= set(SPECIAL_TOKENS[config.tokenizer]):
        raise ConfigError(
            f"documents need a tokenizer with a bos and an eos token: bpe, word or char, "
            f"got {config.tokenizer!r}"
        )
    return _stories(config) if config.data == "town" else _documents(config)


def _continuous(config: DataConfig) -> Data:
    """One long row of ids, of which the last part is for validation."""
    text = "\n".join(corpora.read_documents(config.data_files, document="file"))
    parts = corpora.split_text(text, config.validation)
    tokenizer = _tokenizer(config, parts[0].splitlines(keepends=True))
    ids, held_out = (torch.tensor(tokenizer.encode(part)) for part in parts)
    return Data(
        tokenizer=tokenizer,
        train=Batches(Blocks(ids, config.context), config.batch_size, seed=config.seed),
        validation=Evaluation(Windows(held_out, config.context), EVALUATION_ROWS),
        characters=len(parts[1]),
    )


def _documents(config: DataConfig) -> Data:
    """Those of tables and of the hub, cut where they are longer than the context."""
    texts, held_out = read_texts(config)
    tokenizer = _tokenizer(config, texts)
    rows = [row[: config.context] for row in tokenizer.encode_documents(held_out)]
    return Data(
        tokenizer=tokenizer,
        train=_packed(config, tokenizer, texts),
        validation=Evaluation(SingleDocuments(rows, tokenizer.pad_id), EVALUATION_ROWS),
        characters=sum(len(tokenizer.decode(row)) for row in rows),
    )


def _stories(config: DataConfig) -> Data:
    """Those of Town. Their floor is that of whole stories: longer ones do not validate."""
    texts = [d.text for d in generate_documents(config.documents, config.seed, "train")]
    tokenizer = _tokenizer(config, texts[:TOKENIZER_DOCUMENTS])
    held_out = list(generate_documents(TOWN_VALIDATION, 0, "validation"))
    rows = tokenizer.encode_documents([d.text for d in held_out])
    kept = {i: row for i, row in enumerate(rows) if len(row) <= config.context}
    if not kept:
        raise ConfigError(
            f"context must hold a whole story for floor_ratio, at least {min(map(len, rows))} "
            f"tokens with this tokenizer, got {config.context}"
        )
    singles = SingleDocuments(list(kept.values()), tokenizer.pad_id)
    return Data(
        tokenizer=tokenizer,
        train=_packed(config, tokenizer, texts),
        validation=Evaluation(singles, EVALUATION_ROWS),
        characters=sum(len(held_out[i].text) for i in kept),
        floor=sum(-held_out[i].log_prob for i in kept),
    )


def _tokenizer(config: DataConfig, texts: Sequence[str]) -> Tokenizer:
    return Tokenizer.train(texts, kind=config.tokenizer, vocab_size=config.vocab_size)


def _packed(config: DataConfig, tokenizer: Tokenizer, texts: Sequence[str]) -> Batches:
    rows = [row[: config.context] for row in tokenizer.encode_documents(texts)]
    packed = PackedDocuments(rows, config.context, tokenizer.pad_id)
    return Batches(packed, config.batch_size, seed=config.seed)


def pretrain_gpt_command(**run: Any) -> None:
    """What the command line does."""
    then = "generate --model {model} --temperature 0.7"
    pretrain_command("gpt", prepare_gpt, then, **run)
