"""From a `DataConfig` to a tokenizer, training batches and validation batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_course.batches.blocks import Blocks, Windows
from llm_course.batches.documents import PackedDocuments, SingleDocuments
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import DataConfig
from llm_course.data import sources
from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size
from llm_course.tokenizers.library import Tokenizer
from llm_town import Document, generate_documents

# Validation stories of Town: enough for a standard error of the floor ratio below 0.5 %.
TOWN_VALIDATION = 500
TOKENIZER_DOCUMENTS = 20_000  # pieces of more stories are the same
EVALUATION_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What a causal language model needs from its data."""

    tokenizer: Tokenizer
    train: Batches
    validation: Evaluation
    characters: int  # of the validation text
    town: tuple[Document, ...] = ()  # the validation documents, when they come from Town


def prepare(config: DataConfig, tokenizer: Tokenizer | None = None) -> PreparedData:
    """Read or generate the text, train the tokenizer unless one is given, and make the batches."""
    check_files(config)
    continuous = config.data == "files" and is_plain_text(config.data_files)
    if tokenizer is None:
        check_vocab_size(config.tokenizer, config.vocab_size)
        if not continuous and not {"<bos>", "<eos>"} <= set(SPECIAL_TOKENS[config.tokenizer]):
            raise ConfigError(
                f"documents need a tokenizer with a bos and an eos token: bpe, word or char, "
                f"got {config.tokenizer!r}"
            )
    if config.data == "town":
        return _town(config, tokenizer)
    return _continuous(config, tokenizer) if continuous else _documents(config, tokenizer)


def check_files(config: DataConfig) -> None:
    """Refuse a file named twice: its end would be validation, and be in the training text too."""
    seen: set[Path] = set()
    for file in config.data_files:
        if (path := Path(file).resolve()) in seen:
            raise ConfigError(f"data_files must be different files, got {file!r} twice")
        seen.add(path)


def is_plain_text(files: Iterable[str]) -> bool:
    """Whether the files are text, and not tables; a mixture is refused."""
    endings = {Path(file).suffix.lower() for file in files}
    plain = endings <= set(sources.TEXT_SUFFIXES)
    if not plain and endings & set(sources.TEXT_SUFFIXES):
        raise DataError(f"data_files must be all text or all tables, got {sorted(endings)}")
    return plain


def train_tokenizer(config: DataConfig, texts: Iterable[str], given: Tokenizer | None) -> Tokenizer:
    """The given tokenizer, or one of the kind and size that the settings say."""
    if given is not None:
        return given
    return Tokenizer.train(texts, kind=config.tokenizer, vocab_size=config.vocab_size)


def _town(config: DataConfig, given: Tokenizer | None) -> PreparedData:
    texts = [d.text for d in generate_documents(config.documents, config.seed, "train")]
    tokenizer = train_tokenizer(config, texts[:TOKENIZER_DOCUMENTS], given)
    held_out = list(generate_documents(TOWN_VALIDATION, 0, "validation"))
    rows = tokenizer.encode_documents([d.text for d in held_out])
    # floor_ratio is defined on whole documents, no longer than the context.
    kept = [i for i, row in enumerate(rows) if len(row) <= config.context]
    if not kept:
        raise ConfigError(
            f"context must hold a whole story for floor_ratio, at least {min(map(len, rows))} "
            f"tokens with this tokenizer, got {config.context}"
        )
    return PreparedData(
        tokenizer=tokenizer,
        train=_document_batches(config, tokenizer, texts),
        validation=Evaluation(
            SingleDocuments([rows[i] for i in kept], tokenizer.pad_id), EVALUATION_ROWS
        ),
        characters=sum(len(held_out[i].text) for i in kept),
        town=tuple(held_out[i] for i in kept),
    )


def _documents(config: DataConfig, given: Tokenizer | None) -> PreparedData:
    if config.data == "hub":
        assert config.dataset is not None  # DataConfig has seen to it
        documents = list(sources.load_hub(config.dataset, column=config.column))
    else:
        documents = list(sources.read_documents(config.data_files, column=config.column))
    train, validation = sources.split_documents(documents, config.validation, config.seed)
    tokenizer = train_tokenizer(config, train, given)
    rows = [row[: config.context] for row in tokenizer.encode_documents(validation)]
    return PreparedData(
        tokenizer=tokenizer,
        train=_document_batches(config, tokenizer, train),
        validation=Evaluation(SingleDocuments(rows, tokenizer.pad_id), EVALUATION_ROWS),
        characters=sum(len(tokenizer.decode(row)) for row in rows),
    )


def _continuous(config: DataConfig, given: Tokenizer | None) -> PreparedData:
    """Plain text: one long row of ids, of which the last part is for validation."""
    files = list(sources.read_documents(config.data_files, document="file"))
    train, validation = sources.split_text("\n".join(files), config.validation)
    tokenizer = train_tokenizer(config, train.splitlines(keepends=True), given)
    ids = [torch.tensor(tokenizer.encode(part)) for part in (train, validation)]
    return PreparedData(
        tokenizer=tokenizer,
        train=Batches(Blocks(ids[0], config.context), config.batch_size, seed=config.seed),
        validation=Evaluation(Windows(ids[1], config.context), EVALUATION_ROWS),
        characters=len(validation),
    )


def _document_batches(config: DataConfig, tokenizer: Tokenizer, texts: Sequence[str]) -> Batches:
    rows = [row[: config.context] for row in tokenizer.encode_documents(texts)]
    packed = PackedDocuments(rows, config.context, tokenizer.pad_id)
    return Batches(packed, config.batch_size, seed=config.seed)
