"""Next sentence: does the second half belong to the first? 0 = yes, as in next_sentence_label.

Half of the pairs, by a fair coin, are the two halves of one story. In the others the second half
comes from another story of the same split and shift. A story serves one example only. The best
possible score is not known: `rule_oracle` is a rule, and its accuracy a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_town.document import Document
from llm_town.english import facts_hold
from llm_town.tasks.stories import check_arguments, label_random, mean, stories

IS_NEXT, NOT_NEXT = 0, 1


@dataclass(frozen=True, slots=True)
class Example:
    """Two segments, whether the second follows the first, and the stories they come from."""

    first: str
    second: str
    label: int  # 0 the second follows the first, 1 it is of another story
    sources: tuple[str, str]


def halves(document: Document) -> tuple[str, str]:
    """The sentences of a story in two segments; the second has the one more, if one is."""
    sentences = document.sentences
    middle = len(sentences) // 2
    return " ".join(sentences[:middle]), " ".join(sentences[middle:])


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n pairs of a split; the same seed gives the same on every machine."""
    check_arguments(n, split, shift)
    choice = label_random("next_sentence", seed).choice
    documents = stories(seed, split, shift)
    for _ in range(n):
        story = next(documents)
        label = choice((IS_NEXT, NOT_NEXT))
        other = story
        while label == NOT_NEXT and other.text == story.text:
            other = next(documents)
        yield Example(halves(story)[0], halves(other)[1], label, (story.text, other.text))


def rule_oracle(example: Example) -> int:
    """The label by consistency, read from the two segments through the parser.

    They belong together if one plot tells both, and every name, pronoun, thing, colour and price
    that the second recalls is the one that the first has drawn.
    """
    return IS_NEXT if facts_hold(f"{example.first} {example.second}") else NOT_NEXT


def lower_bound(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The accuracy of `rule_oracle` on n examples: the best possible score is at least this.

    The rule accepts every true pair; it errs where two stories fit together by chance.
    """
    found = examples(n, seed, split, shift)
    return mean(float(rule_oracle(example) == example.label) for example in found)
