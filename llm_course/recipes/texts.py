"""What a GPT and a BERT read: the texts of a `DataConfig`, and the tokenizer that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_course.configs import DataConfig
from llm_course.data import corpora
from llm_course.data.readers import TEXT_SUFFIXES
from llm_course.errors import ConfigError, DataError

# Validation stories of Town: enough for a standard error of the floor ratio below 0.5 %.
TOWN_VALIDATION = 500
TOKENIZER_DOCUMENTS = 20_000  # pieces of more stories are the same


def check_sizes(data: DataConfig, positions: int) -> None:
    """Refuse rows that are longer than the model's table of positions, and a file named twice."""
    if data.context > positions:
        raise ConfigError(f"context must be at most n_positions = {positions}, got {data.context}")
    check_different("data_files", data.data_files)


def check_different(names: str, files: Sequence[str]) -> None:
    """Refuse a file that is named twice: what is learnt from would be judged by too."""
    paths = [Path(file).resolve() for file in files]
    if again := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"{names} must differ, got {str(again)!r} twice")


def is_plain_text(files: Iterable[str]) -> bool:
    """Whether the files are text, and not tables; a mixture is refused."""
    endings = {Path(file).suffix.lower() for file in files}
    plain = endings <= set(TEXT_SUFFIXES)
    if not plain and endings & set(TEXT_SUFFIXES):
        raise DataError(f"data_files must be all text or all tables, got {sorted(endings)}")
    return plain


def read_texts(data: DataConfig) -> tuple[list[str], list[str]]:
    """Training and validation documents of files or of a hub data set.

    A document is a row of a table, or a paragraph of a text file.
    """
    if data.data == "hub":
        assert data.dataset is not None  # DataConfig has seen to it
        texts = corpora.load_hub(data.dataset, data.column)
    else:
        texts = corpora.read_documents(data.data_files, column=data.column, document="paragraph")
    return corpora.split_documents(texts, data.validation, data.seed)
