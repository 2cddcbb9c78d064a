"""Documents that need not fit in memory, and the split of documents or text for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import overload

from llm_course.errors import ConfigError, DataError


class Documents:
    """Documents that are read anew at every pass, so they need not fit in memory."""

    def __init__(self, read: Callable[[], Iterator[str]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[str]:
        return self._read()

    def where(self, keep: Callable[[str], bool]) -> Documents:
        """The documents for which `keep` is true, still read only when asked for."""
        return Documents(lambda: (text for text in self if keep(text)))


def in_validation(text: str, validation: float = 0.1, seed: int = 0) -> bool:
    """Whether a document belongs to the validation part: decided by a hash of its words alone.

    So equal documents (up to white space) are on the same side, and a document never changes sides
    when others are added.
    """
    return _place(text, seed) < validation


@overload
def split_documents(
    documents: Documents, validation: float = ..., seed: int = ...
) -> tuple[Documents, Documents]: ...


@overload
def split_documents(
    documents: Iterable[str], validation: float = ..., seed: int = ...
) -> tuple[list[str], list[str]]: ...


def split_documents(
    documents: Iterable[str] | Documents, validation: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]] | tuple[Documents, Documents]:
    """Training and validation documents without overlap, each with `in_validation`'s rule.

    Streamed `Documents` give streams. In a list both sides get at least one document: where the
    rule leaves one side empty, the document nearest to the border moves. `DataError` when there are
    fewer than two different documents.
    """
    _check_share(validation)
    if isinstance(documents, Documents):
        return (
            documents.where(lambda text: not in_validation(text, validation, seed)),
            documents.where(lambda text: in_validation(text, validation, seed)),
        )
    texts = list(documents)
    places = [_place(text, seed) for text in texts]
    if len(set(places)) < 2:
        raise DataError(f"a split needs at least 2 different documents, got {len(set(places))}")
    border = validation
    if min(places) >= border:
        border = min(place for place in places if place > min(places))
    elif max(places) < border:
        border = max(places)
    return (
        [text for text, place in zip(texts, places) if place >= border],
        [text for text, place in zip(texts, places) if place < border],
    )


def split_text(text: str, validation: float = 0.1) -> tuple[str, str]:
    """A continuous text cut once: the last `validation` of its characters are the second part."""
    _check_share(validation)
    cut = int(len(text) * (1 - validation))
    if not 0 < cut < len(text):
        raise DataError(
            f"a text of {len(text)} characters is too short to keep {validation:.0%} for validation"
        )
    return text[:cut], text[cut:]


def _check_share(validation: float) -> None:
    if not 0 < validation < 1:
        raise ConfigError(f"validation must be between 0 and 1, got {validation}")


def _place(text: str, seed: int) -> float:
    """A document's place in [0, 1), the same on every machine."""
    words = f"{seed}\n{' '.join(text.split())}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=6).digest(), "big") / 2**48
