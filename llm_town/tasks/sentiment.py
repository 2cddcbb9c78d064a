r"""Sentiment: is the story positive? Labels are drawn after the text, from a stated probability.

Of every story, g words of good and b words of bad feeling, character, taste and quality are known.
Kept are stories that have both, in unequal numbers: counting one side is not enough, and nothing
is undecided. $P(\text{label} = \text{the side with more words})$ depends on |g - b| only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llm_town.document import Derivation, polarity
from llm_town.errors import DataError
from llm_town.tasks.stories import check_arguments, label_random, mean, stories

NEGATIVE, POSITIVE = 0, 1
AGREES = {1: 0.85, 2: 0.95, 3: 0.99}  # |g - b|, 3 for all beyond -> P(label follows the majority)


@dataclass(frozen=True, slots=True)
class Example:
    """A story and its label; the derivation tells with what probability it was drawn."""

    text: str
    label: int  # 1 positive, 0 negative
    derivation: Derivation


def label_distribution(derivation: Derivation) -> tuple[float, float]:
    """P(negative | derivation), P(positive | derivation); DataError for a story without a label."""
    good, bad = polarity(derivation)
    if min(good, bad) == 0 or good == bad:
        raise DataError(
            f"a labelled story has good and bad words in unequal numbers, got {good} and {bad}"
        )
    p = AGREES[min(abs(good - bad), max(AGREES))]
    return (1.0 - p, p) if good > bad else (p, 1.0 - p)


def labelled(derivation: Derivation) -> bool:
    """Whether a story has both good and bad words, and more of one than of the other."""
    good, bad = polarity(derivation)
    return min(good, bad) > 0 and good != bad


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n labelled stories of a split; the same seed gives the same on every machine."""
    check_arguments(n, split, shift)
    uniform = label_random("sentiment", seed).random
    kept = (story for story in stories(seed, split, shift) if labelled(story.derivation))
    for story in islice(kept, n):
        label = POSITIVE if uniform() < label_distribution(story.derivation)[1] else NEGATIVE
        yield Example(story.text, label, story.derivation)


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible expected accuracy: the mean over n examples of max_y P(y | derivation).

    The text determines the derivation, so nobody who sees only the text can expect more. The
    labels drawn for a finite sample may allow a little more or less.
    """
    found = examples(n, seed, split, shift)
    return mean(max(label_distribution(example.derivation)) for example in found)
