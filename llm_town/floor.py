r"""The entropy of Town: the loss in nats below which no language model can go.

The cross-entropy of any model on Town's documents is at least their entropy
$H = -\sum_x p(x)\log p(x)$, and the generator itself reaches it. All choices are independent
draws given the plot, so H is a finite sum over the grammar; the mean of -log p over generated
documents estimates the same number and gives it per word and per character.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from llm_town.english import generate_documents
from llm_town.errors import DataError
from llm_town.grammar import SKIP, Clause, Grammar, Slot, town
from llm_town.lexicon import Table

# What is known of a bound name: the tables it may come from, with their probabilities.
Sources = list[tuple[float, Table]]


@dataclass(frozen=True)
class Floor:
    """The floor in nats, end of document included; the error is one standard error of the mean."""

    nats_per_document: float
    nats_per_word: float
    nats_per_character: float
    standard_error: float
    exact_nats_per_document: float
    words_per_document: float
    documents: int


def entropy_floor(n: int = 10_000, seed: int = 0, split: str = "validation") -> Floor:
    """The floor estimated on n documents, beside the exact entropy of a document."""
    if n < 2:
        raise DataError(f"n must be at least 2, got {n}")
    nats, words, characters = [], 0, 0
    for document in islice(generate_documents(n, seed, split), n):
        nats.append(-document.log_prob)
        words += len(document.words)
        characters += len(document.text)
    mean = math.fsum(nats) / n
    variance = math.fsum((x - mean) ** 2 for x in nats) / (n - 1)
    return Floor(
        nats_per_document=mean,
        nats_per_word=mean * n / words,
        nats_per_character=mean * n / characters,
        standard_error=math.sqrt(variance / n),
        exact_nats_per_document=document_entropy(),
        words_per_document=words / n,
        documents=n,
    )


def document_entropy() -> float:
    """The exact entropy of a document in nats: of the plot, plus the mean over the plots."""
    grammar = town()
    plots = zip(grammar.plot_table.entries, grammar.plot_table.p)
    return grammar.plot_table.entropy() + math.fsum(
        p * _plot_entropy(grammar, entry.lemma) for entry, p in plots
    )


def _plot_entropy(grammar: Grammar, plot: str) -> float:
    skip = -(SKIP * math.log(SKIP) + (1 - SKIP) * math.log(1 - SKIP))
    bound: dict[str, Sources] = {}
    total = 0.0
    for beat, optional in grammar.plots[plot]:
        inside = beat.table.entropy()
        binds: dict[str, Sources] = {}
        for clause, p in zip(beat.clauses, beat.table.p):
            inside += p * _clause_entropy(clause, bound)
            for name, table in _bound_by(clause).items():
                binds.setdefault(name, []).append((p, table))
        bound |= binds
        total += skip + (1 - SKIP) * inside if optional else inside
    return total


def _bound_by(clause: Clause) -> dict[str, Table]:
    return {slot.name: slot.table for slot in clause.slots if slot.table is not None}


def _clause_entropy(clause: Clause, bound: dict[str, Sources]) -> float:
    own: dict[str, Sources] = {n: [(1.0, table)] for n, table in _bound_by(clause).items()}
    return math.fsum(_slot_entropy(slot, bound | own) for slot in clause.slots)


def _slot_entropy(slot: Slot, bound: dict[str, Sources]) -> float:
    """The entropy of one draw, averaged over the word that it must differ from."""
    if slot.table is None:
        return 0.0
    if not slot.unlike:
        return slot.table.entropy()
    sources = bound[slot.unlike]
    groups: dict[str, float] = {}
    for share, table in sources:
        for group, mass in table.mass.items():
            groups[group] = groups.get(group, 0.0) + share * mass
    total = math.fsum(groups.values())
    known = {g: slot.table.entropy(g) for g in groups if g in slot.table.mass}
    return math.fsum(
        mass / total * (known[g] if g in known else slot.table.entropy())
        for g, mass in groups.items()
    )
