"""The stories that a task is made of, without the combinations held out for the shift splits.

Without a shift, every split leaves out every held-out name and template, so training, validation
and test have one distribution, and one training set serves all three evaluations:

- `unseen_name`: the hero's name is a held-out combination of a start and an end;
- `unseen_template`: the clauses after the opening are a held-out combination.

Each holds out about one combination in eight, by a hash. The syllables and the clauses themselves
all occur in training. Pretraining on `generate_documents` sees every combination: a model that is
to be tested on a shift must not be pretrained on those stories, or the score must say so.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections.abc import Iterable, Iterator

from llm_town.document import Derivation, Document
from llm_town.english import SPLITS, generate_documents
from llm_town.errors import DataError
from llm_town.grammar import Grammar, town
from llm_town.names import syllables

SHIFTS = ("none", "unseen_name", "unseen_template")
ONE_IN = 8  # combinations, held out for a shift
OPENING = ("who", "when")  # every plot begins with them, so they are no part of its template


def held_out(parts: tuple[str, ...]) -> bool:
    """Whether a combination is one of those that training never shows, by a hash."""
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return int.from_bytes(digest[-8:], "big") % ONE_IN == 0


def held_out_name(name: str, grammar: Grammar | None = None) -> bool:
    """Whether a name's start and end are a combination that training never shows together."""
    parts = syllables(name, (grammar or town()).lexicon)
    return held_out((parts[0], parts[-1]))


def template(derivation: Derivation) -> tuple[str, ...]:
    """The ids of the clauses after the opening: ("break.1", "helper.3", "fix.1", "fixed.2")."""
    ids = (sentence.clause for sentence in derivation.sentences)
    return tuple(key for key in ids if key.partition(".")[0] not in OPENING)


def held_out_template(derivation: Derivation) -> bool:
    """Whether the story's clauses are a combination that training never shows together."""
    return held_out(template(derivation))


def check_arguments(n: int, split: str, shift: str) -> None:
    """Refuse a number, a split or a shift outside its range; training has no shift."""
    if n < 0:
        raise DataError(f"n must be at least 0, got {n}")
    if split not in SPLITS:
        raise DataError(f"split must be one of {tuple(SPLITS)}, got {split!r}")
    if shift not in SHIFTS:
        raise DataError(f"shift must be one of {SHIFTS}, got {shift!r}")
    if split == "train" and shift != "none":
        raise DataError(
            f"shift must be 'none' for the split 'train', got {shift!r}: "
            "training never shows what is held out"
        )


def stories(seed: int, split: str, shift: str = "none") -> Iterator[Document]:
    """Stories of a split without end; under a shift, those with the held-out combination.

    A story with an unseen name may hold other unseen names, but never an unseen template, and a
    story with an unseen template holds no unseen name.
    """
    check_arguments(0, split, shift)
    grammar = town()
    for document in generate_documents(sys.maxsize, seed, split, grammar):
        people = _names(document.derivation, grammar)
        names = [held_out_name(name, grammar) for name in people]
        unseen = held_out_template(document.derivation)
        wanted = {
            "none": not unseen and not any(names),
            "unseen_name": not unseen and names[0],
            "unseen_template": unseen and not any(names),
        }
        if wanted[shift]:
            yield document


def _names(derivation: Derivation, grammar: Grammar) -> list[str]:
    """The names of people and villages, each once, the hero's first."""
    drawn = {
        slot.name: word
        for sentence in derivation.sentences
        for slot, word in zip(grammar.clauses[sentence.clause].slots, sentence.fillers)
        if slot.table is not None and slot.kind in ("person", "village")
    }
    return [drawn.pop("hero"), *drawn.values()]


def label_random(task: str, seed: int) -> random.Random:
    """Random numbers for labels and choices, independent of those that made the stories."""
    digest = hashlib.sha256(f"{task} {seed}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def mean(values: Iterable[float]) -> float:
    """The mean of the scores of single examples; DataError where there are none."""
    scores = list(values)
    if not scores:
        raise DataError("n must be at least 1 for a mean, got 0")
    return math.fsum(scores) / len(scores)
