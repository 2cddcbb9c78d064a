"""Reformatting: from a story to a record, "name: Mara; job: baker; town: Beldale; ..."."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llm_town.document import Derivation
from llm_town.parse import parse
from llm_town.tasks.mentions import drawn
from llm_town.tasks.stories import check_arguments, mean, stories

# The fields of a record in their order, with the slots that fill them.
FIELDS = {"name": "hero", "job": "job", "town": "home", "friend": "friend", "thing": "thing"}
MISSING = "none"


@dataclass(frozen=True, slots=True)
class Example:
    """A story and its record."""

    text: str
    record: str


def record(derivation: Derivation) -> str:
    """The record of a story; what the story does not have is `none`."""
    words = drawn(derivation)
    cells = (
        f"{field}: {words[slot].lemma if slot in words else MISSING}"
        for field, slot in FIELDS.items()
    )
    return "; ".join(cells)


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n stories of a split with their records; the same on every machine."""
    check_arguments(n, split, shift)
    for story in islice(stories(seed, split, shift), n):
        yield Example(story.text, record(story.derivation))


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of exact matches: the mean over n of max_y P(y | derivation).

    The record follows from the derivation, so it is 1.0. It is not asserted but reached: every
    text is parsed, and the record made from what the parser found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(record(parse(e.text)) == e.record) for e in found)
