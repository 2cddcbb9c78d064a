"""What the tokenizers written from scratch share: checks, and the cutting of text into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from llm_course.errors import DataError
from llm_course.tokenizers.kinds import untrained

Cut = Callable[[str], list[str]]


def check_text(text: str, name: str) -> None:
    """Refuse what is no text; half a surrogate pair is named with its position."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: half a surrogate pair (U+{ord(text[error.start]):04X}) at character "
            f"{error.start} is no character"
        ) from None


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list; one text is refused, since its characters would count as texts."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be several texts, got one {type(texts).__name__}")
    texts = list(texts)
    for number, text in enumerate(texts):
        check_text(text, f"text {number}")
    return texts


def check_ids(ids: Iterable[Any], size: int) -> list[int]:
    """The ids as a list; `ValueError` names the first one that the vocabulary does not have."""
    listed = [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    for place, i in enumerate(listed):
        if not 0 <= i < size:
            raise ValueError(f"id at position {place} must be from 0 to {size - 1}, got {i}")
    return listed


def texts_with_text(texts: Iterable[str]) -> list[str]:
    """The texts as a list, for a training: at least one character is needed."""
    texts = check_texts(texts)
    if not any(text.strip() for text in texts):
        raise DataError("texts must hold at least one character, got none")
    return texts


def byte_letters() -> dict[int, str]:
    """GPT-2's visible letter for each byte: itself if printable, else one from U+0100 on.

    A space is "Ġ", a line feed "Ċ". With letters for bytes, pieces are plain strings.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    moved = {byte: chr(0x100 + n) for n, byte in enumerate(hidden)}
    return {byte: moved.get(byte, chr(byte)) for byte in range(256)}


def word_cutter(kind: str) -> Cut:
    """The function that normalizes a text and cuts it into the words of this kind.

    This one step is the `tokenizers` library's. It asks of every character whether Unicode calls
    it a letter, a digit or a sign, which Python's `re` cannot ask (GPT-2's pattern has \\p{L}).
    """
    backend = untrained(kind)

    def cut(text: str) -> list[str]:
        check_text(text, "text")
        normalizer = backend.normalizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]

    return cut


def count_words(texts: Iterable[str], cut: Cut) -> Counter[str]:
    """How often each word occurs: a learner that knows this needs to see each word only once."""
    return Counter(word for text in texts_with_text(texts) for word in cut(text))
