"""Entities: the persons, places, jobs and events of a story as BIO tags over its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from llm_town.document import ENTITY_TYPES, Document, spans, tokenize
from llm_town.errors import DataError
from llm_town.parse import parse
from llm_town.tasks.stories import check_arguments, mean, stories

TAGS = ("O", *(f"{b}-{kind}" for kind in sorted(set(ENTITY_TYPES.values())) for b in "BI"))


@dataclass(frozen=True, slots=True)
class Example:
    """A story, its tokens as `tokenize` gives them, and a tag for each token."""

    text: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def token_starts(text: str, tokens: Iterable[str]) -> list[int]:
    """Where each token begins in the text; DataError where they are not the tokens of the text."""
    starts, place = [], 0
    for token in tokens:
        start = text.find(token, place)
        if start < 0 or text[place:start].strip():
            raise DataError(f"the token {token!r} does not follow character {place} of the text")
        starts.append(start)
        place = start + len(token)
    return starts


def bio_tags(document: Document) -> tuple[str, ...]:
    """B- on the first token of a span, I- on its others, O elsewhere; 's belongs to its name."""
    tokens = tokenize(document.text)
    entities = iter([*spans(document), None])
    entity, tags = next(entities), []
    for token, start in zip(tokens, token_starts(document.text, tokens)):
        while entity is not None and entity.end <= start:
            entity = next(entities)
        if entity is None or start + len(token) <= entity.start:
            tags.append("O")
        else:
            tags.append(("B-" if start <= entity.start else "I-") + entity.type)
    return tuple(tags)


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n tagged stories of a split; the same seed gives the same on every machine."""
    check_arguments(n, split, shift)
    for story in islice(stories(seed, split, shift), n):
        yield Example(story.text, tuple(tokenize(story.text)), bio_tags(story))


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of stories with every tag right: the mean of max_y P(y | derivation).

    The tags follow from the derivation, so it is 1.0. It is not asserted but reached: every text is
    parsed, and tagged from what the parser found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(bio_tags(Document(e.text, 0.0, parse(e.text))) == e.tags) for e in found)
