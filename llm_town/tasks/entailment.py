"""Entailment: is a sentence true of a story, false, or not said? 5 % of the labels are wrong.

A hypothesis claims a job, a home, a colour, a price or a place. Entailed: the story states it.
Contradicted: the story states another value. Neutral: the story says nothing of this kind about
the subject. All three use the same sentences, so a hypothesis alone does not give itself away.
Where it can, a false or neutral claim mostly uses words of the story: the job of somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from llm_town.document import Derivation, facts
from llm_town.lexicon import Table
from llm_town.tasks.mentions import drawn, fill
from llm_town.tasks.stories import check_arguments, label_random, mean, stories

ENTAILED, NEUTRAL, CONTRADICTED = LABELS = (0, 1, 2)
NEAR = 0.75  # how often a claim that is not entailed takes a word of the story where one fits
NOISE = 0.05  # P(label is not the true one | derivation, claim), half for each of the others

# The relation of a fact: its sentence, and the plots that state it in this sense; none: all plots.
CLAIMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "job": ("{subject} was {value.a}.", ()),
    "home": ("{subject} lived in or near {value}.", ()),
    "colour": ("The {subject} was {value}.", ()),
    "price": ("The {subject} cost {value} coins.", ("bargain", "too_dear")),
    "place": ("The {subject} was lost near the {value}.", ("found", "gone")),
}


class Claim(NamedTuple):
    """What a hypothesis says: (Mara, job, baker); it may be true of a story or not."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True, slots=True)
class Example:
    """A story, a hypothesis and its label; derivation and claim tell its probability."""

    premise: str
    hypothesis: str
    label: int  # 0 entailed, 1 neutral, 2 contradicted, as in the MNLI data
    derivation: Derivation
    claim: Claim


def stated(derivation: Derivation) -> list[Claim]:
    """The claims that a story entails."""
    return [
        Claim(fact.subject, fact.relation, fact.object)
        for fact in facts(derivation)
        if fact.relation in CLAIMS
        and (not CLAIMS[fact.relation][1] or derivation.plot in CLAIMS[fact.relation][1])
    ]


def true_label(derivation: Derivation, claim: Claim) -> int:
    """Entailed, contradicted by another value, or neutral."""
    known = {(c.subject, c.relation): c.value for c in stated(derivation)}
    value = known.get((claim.subject, claim.relation))
    return NEUTRAL if value is None else ENTAILED if value == claim.value else CONTRADICTED


def label_distribution(derivation: Derivation, claim: Claim) -> tuple[float, float, float]:
    """P(entailed), P(neutral), P(contradicted), given the derivation and the claim."""
    true = true_label(derivation, claim)
    p = [1.0 - NOISE if label == true else NOISE / 2 for label in LABELS]
    return p[0], p[1], p[2]


def hypothesis(claim: Claim) -> str:
    """The sentence that makes a claim."""
    words = {"subject": claim.subject, "value": claim.value}
    return fill(CLAIMS[claim.relation][0], words)


def _another(table: Table, taken: set[str], rng: Random) -> str:
    """A word of a table, by its probability there, that is not taken."""
    while (lemma := table.entries[table.draw(rng.random())].lemma) in taken:
        pass
    return lemma


def make_claim(derivation: Derivation, kind: int, rng: Random) -> Claim:
    """A claim about a story that is entailed, neutral or contradicted, as asked."""
    true = rng.choice(stated(derivation))
    words = drawn(derivation)
    tables = {word.lemma: word.table for word in words.values()}
    said = {word.lemma for word in words.values()}
    if kind == ENTAILED:
        return true
    # A word that fits and that the story uses elsewhere, such as the job of the friend.
    fitting = [lemma for lemma in tables if lemma in tables[true.value].index]
    if kind == CONTRADICTED:
        others = [lemma for lemma in fitting if lemma != true.value]
        if others and rng.random() < NEAR:
            return true._replace(value=rng.choice(others))
        return true._replace(value=_another(tables[true.value], {true.value}, rng))
    subject = _silent_person(derivation, true.relation) if rng.random() < NEAR else ""
    subject = subject or _another(tables[true.subject], said, rng)
    if rng.random() < NEAR:
        return Claim(subject, true.relation, rng.choice(fitting))
    return Claim(subject, true.relation, _another(tables[true.value], set(), rng))


def _silent_person(derivation: Derivation, relation: str) -> str:
    """The friend, where the story says neither job nor home of the friend."""
    words = drawn(derivation)
    if relation not in ("job", "home") or "friend" not in words:
        return ""
    friend = words["friend"].lemma
    known = {(claim.subject, claim.relation) for claim in stated(derivation)}
    return "" if (friend, relation) in known else friend


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n pairs of a split; the three true labels come equally often, before the noise."""
    check_arguments(n, split, shift)
    rng = label_random("entailment", seed)
    documents = stories(seed, split, shift)
    for _ in range(n):
        story = next(documents)
        claim = make_claim(story.derivation, rng.choice(LABELS), rng)
        label = true_label(story.derivation, claim)
        if rng.random() < NOISE:
            label = rng.choice([other for other in LABELS if other != label])
        yield Example(story.text, hypothesis(claim), label, story.derivation, claim)


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible expected accuracy: the mean over n of max_y P(y | derivation, claim).

    Text and hypothesis determine derivation and claim, and the noise is the same everywhere, so
    this is 1 - NOISE. The labels drawn for a finite sample may allow a little more or less.
    """
    found = examples(n, seed, split, shift)
    return mean(max(label_distribution(e.derivation, e.claim)) for e in found)
