"""Summary: one sentence that tells the outcome of a story, a pattern for each plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llm_town.document import Derivation
from llm_town.parse import parse
from llm_town.tasks.mentions import drawn, fill
from llm_town.tasks.stories import check_arguments, mean, stories

# Only words that every story of the plot has drawn.
SUMMARIES: dict[str, str] = {
    "bargain": "{hero} from {home} bought {colour.a} {thing} from {friend} for {price} coins.",
    "found": "{hero} from {home} lost {colour.a} {thing}, and {friend} found it.",
    "repair": "{friend} repaired the {colour} {thing} of {hero} from {home} for {price} coins.",
    "feast": "{hero} from {home} made {food.a} for {friend}, and it was {taste}.",
    "gift": "{hero} from {home} gave {friend} {colour.a} {thing}.",
    "animal": "{hero} from {home} met {colour.a} {animal}, which belonged to {friend}.",
    "visit": "{hero} from {home} visited {hero.her} {kin} in {town2} with {colour.a} {thing}.",
    "party": "{hero} and {friend} enjoyed {event.a} in {home}.",
    "work": "{hero}, {job.a} from {home}, worked for {friend} and earned {price} coins.",
    "good_news": "{hero} from {home} got good news from {friend} in {town2}.",
    "garden": "{hero} from {home} grew {colour.a} {plant} with the help of {friend}.",
    "journey": "{hero} travelled from {home} to {town2}, and {friend} helped on the way.",
    "loan": "{friend} borrowed the {colour} {thing} of {hero} from {home}, and soon it was {bad}.",
    "too_dear": "{hero} from {home} did not get {colour.a} {thing}, which cost {price} coins.",
    "gone": "{hero} from {home} lost {colour.a} {thing} and never found it.",
    "failure": "{hero} from {home} made {food.a} for {friend}, but it was {taste}.",
    "lesson": "{hero} from {home} was {flaw}, hurt {friend} and changed.",
    "bad_news": "{hero} from {home} got bad news from {friend} in {town2}.",
    "rained_off": "{event.a^} in {home} went wrong for {hero} and {friend}.",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A story and its summary."""

    text: str
    summary: str


def summarise(derivation: Derivation) -> str:
    """The summary of a story."""
    words = {name: word.lemma for name, word in drawn(derivation).items()}
    return fill(SUMMARIES[derivation.plot], words)


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n stories of a split with their summaries; the same on every machine."""
    check_arguments(n, split, shift)
    for story in islice(stories(seed, split, shift), n):
        yield Example(story.text, summarise(story.derivation))


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of exact matches: the mean over n of max_y P(y | derivation).

    The summary follows from the derivation, so it is 1.0. It is not asserted but reached: every
    text is parsed, and summarised from what the parser found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(summarise(parse(e.text)) == e.summary) for e in found)
