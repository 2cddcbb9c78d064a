"""From random numbers to stories: the generator, and the exact log-probability of a story.

log p(story) = log p(plot) + the sum over beats of log p(clause | beat) + the sum over drawn words
of log p(word | kind). Text and derivation are one-to-one, so this is the log-probability of the
text itself, end of document included.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator

from llm_town.document import Derivation, Document, Sentence
from llm_town.errors import DataError
from llm_town.grammar import SKIP, Clause, Grammar, town
from llm_town.lexicon import Entry

# Documents fall into splits by a hash of their text, 8 : 1 : 1. Taking only the documents of one
# split is a rejection that does not look at what they say: every split has the same distribution.
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
LOG_SKIP, LOG_KEEP = math.log(SKIP), math.log(1.0 - SKIP)


def split_of(text: str) -> str:
    """The split that a document belongs to, by the SHA-256 of its text modulo 10."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big") % 10
    return next(name for name, part in SPLITS.items() if digest in part)


def generate_documents(
    n: int, seed: int = 0, split: str = "train", grammar: Grammar | None = None
) -> Iterator[Document]:
    """Yield n documents of a split; the same seed gives the same documents on every machine."""
    if split not in SPLITS:
        raise DataError(f"split must be one of {tuple(SPLITS)}, got {split!r}")
    if n < 0:
        raise DataError(f"n must be at least 0, got {n}")
    grammar = grammar or town()
    uniform = random.Random(seed).random
    while n > 0:
        text, log_prob, plot, told = _story(grammar, uniform)
        if split_of(text) == split:
            n -= 1
            sentences = tuple(Sentence(key, words) for key, words in told)
            yield Document(text, log_prob, Derivation(plot, sentences))


Told = list[tuple[str, tuple[str, ...]]]


def _story(grammar: Grammar, uniform: Callable[[], float]) -> tuple[str, float, str, Told]:
    """One draw from the grammar: the text, its log-probability, its plot, its clauses and words."""
    plots = grammar.plot_table
    i = bisect_right(plots.cumulative, uniform())
    plot = plots.entries[i].lemma
    log_p = plots.log_p[i]
    state: dict[str, Entry] = {}
    texts: list[str] = []
    told: Told = []
    for beat, optional in grammar.plots[plot]:
        if optional:
            if uniform() < SKIP:
                log_p += LOG_SKIP
                continue
            log_p += LOG_KEEP
        clause = beat.clauses[bisect_right(beat.table.cumulative, uniform())]
        log_p += clause.log_p
        words: list[str] = []
        surfaces: list[str] = []
        for slot in clause.slots:
            table = slot.table
            if table is None:
                entry = state[slot.name]
            else:
                i = bisect_right(table.cumulative, uniform())
                if slot.unlike:
                    other = state[slot.unlike].group
                    while table.entries[i].group == other:
                        i = bisect_right(table.cumulative, uniform())
                    log_p -= math.log1p(-table.mass.get(other, 0.0))
                log_p += table.log_p[i]
                entry = state[slot.name] = table.entries[i]
            words.append(entry.forms[slot.key])
            surfaces.append(entry.forms[slot.form])
        texts.append(clause.english % tuple(surfaces))
        told.append((clause.id, tuple(words)))
    return " ".join(texts), log_p, plot, told


def log_probability(derivation: Derivation, grammar: Grammar | None = None) -> float:
    """log p of a derivation in nats; -inf where it is not true to its own facts.

    Adds the same numbers in the same order as the generator, so the two agree to the last bit.
    """
    grammar = grammar or town()
    if derivation.plot not in grammar.plots:
        raise DataError(f"plot must be one of {tuple(grammar.plots)}, got {derivation.plot!r}")
    log_p = grammar.plot_table.log_p[grammar.plot_table.index[derivation.plot]]
    state: dict[str, Entry] = {}
    rest = iter(derivation.sentences)
    sentence = next(rest, None)
    for beat, optional in grammar.plots[derivation.plot]:
        clause = grammar.clauses[sentence.clause] if sentence else None
        told = clause is not None and clause.beat == beat.name
        if optional:
            log_p += LOG_KEEP if told else LOG_SKIP
        elif not told:
            return -math.inf
        if told and clause and sentence:
            log_p = _add_clause(log_p, clause, sentence.fillers, state, grammar)
            if log_p == -math.inf:
                return log_p
            sentence = next(rest, None)
    return -math.inf if sentence else log_p


def _add_clause(
    log_p: float,
    clause: Clause,
    words: tuple[str, ...],
    state: dict[str, Entry],
    grammar: Grammar,
) -> float:
    """Add the logarithms of one clause's choices and bind its words; -inf for a broken fact."""
    log_p += clause.log_p
    for slot, word in zip(clause.slots, words, strict=True):
        table = slot.table
        if table is None:
            if state[slot.name].forms[slot.key] != word:
                return -math.inf
            continue
        i = table.index.get(word)
        if i is None:
            return -math.inf
        if slot.unlike:
            other = state[slot.unlike].group
            if table.entries[i].group == other:
                return -math.inf
            log_p -= math.log1p(-table.mass.get(other, 0.0))
        log_p += table.log_p[i]
        state[slot.name] = table.entries[i]
    return log_p


def facts_hold(derivation: Derivation | str) -> bool:
    """Whether a story is true to its own facts: names, pronouns, owners, colours, prices.

    A text that does not parse is not true to its facts.
    """
    from llm_town.parse import ParseError, parse

    if isinstance(derivation, str):
        try:
            derivation = parse(derivation)
        except ParseError:
            return False
    return log_probability(derivation) > -math.inf
