"""From a text back to its derivation: every sentence by itself, then the plot that they tell.

All clauses are joined in one trie whose edges are words, or slots with the words that may fill
them. A sentence is read along the trie, printed again from what was found, and must be equal:
so articles, capitals and punctuation are checked too. Sentences are judged alone by
`parse_sentence`, documents by `parse`; whether a document is true to its facts says `facts_hold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from llm_town.document import Derivation, Sentence, render, split_sentences
from llm_town.grammar import ARTICLES, Clause, Grammar, tokens, town


class ParseError(ValueError):
    """A text is not in the language of Town; the message names the word and its place."""


@dataclass(slots=True)
class _Node:
    """A place in the trie: edges for fixed words, for an article, and for slots by their words."""

    words: dict[str, _Node] = field(default_factory=dict)
    article: _Node | None = None
    slots: list[tuple[dict[str, str], _Node]] = field(default_factory=list)
    clause: Clause | None = None


_TRIES: WeakKeyDictionary[Grammar, _Node] = WeakKeyDictionary()


def _trie(grammar: Grammar) -> _Node:
    root = _TRIES.get(grammar)
    if root is None:
        root = _Node()
        for clause in grammar.clauses.values():
            _insert(root, clause, grammar)
        _TRIES[grammar] = root
    return root


def _insert(root: _Node, clause: Clause, grammar: Grammar) -> None:
    node = root
    slots = iter(clause.slots)
    for token in tokens(clause.english):
        if token != "%s":
            node = node.words.setdefault(token, _Node())
            continue
        slot = next(slots)
        if slot.form.rstrip("^") == "a":
            node.article = node.article or _Node()
            node = node.article
        fillers = grammar.fillers(slot)
        child = next((c for known, c in node.slots if known is fillers), None)
        if child is None:
            child = _Node()
            node.slots.append((fillers, child))
        if slot.form.rstrip("^") == "the":  # a mass noun has no article: both ways lead on
            node.words.setdefault("the", _Node()).slots.append((fillers, child))
        node = child
    if node.clause is not None:
        raise ValueError(f"{clause.id} and {node.clause.id} are the same pattern")
    node.clause = clause


def _read(root: _Node, words: list[str]) -> tuple[list[tuple[Clause, tuple[str, ...]]], int]:
    """All clauses that a sentence can be, with their words, and where no clause goes on."""
    found: list[tuple[Clause, tuple[str, ...]]] = []
    furthest = 0
    paths: list[tuple[_Node, int, tuple[str, ...]]] = [(root, 0, ())]
    while paths:
        node, place, filled = paths.pop()
        furthest = max(furthest, place)
        if place == len(words):
            if node.clause is not None:
                found.append((node.clause, filled))
            continue
        word = words[place]
        if word in node.words:
            paths.append((node.words[word], place + 1, filled))
        if node.article is not None and word in ARTICLES:
            paths.append((node.article, place + 1, filled))
        for fillers, child in node.slots:
            if word in fillers:
                paths.append((child, place + 1, (*filled, fillers[word])))
    return found, furthest


def parse_sentence(sentence: str, grammar: Grammar | None = None) -> Sentence:
    """The clause and the words of one sentence, whatever the rest of its document says.

    Raises ParseError where no clause gives exactly this sentence.
    """
    grammar = grammar or town()
    words = tokens(sentence)
    found, furthest = _read(_trie(grammar), words)
    candidates = [Sentence(clause.id, filled) for clause, filled in found]
    for candidate in candidates:
        if render(candidate, grammar) == sentence:
            return candidate
    if candidates:
        raise ParseError(f"the grammar writes {render(candidates[0], grammar)!r}, got {sentence!r}")
    if furthest == len(words):
        raise ParseError(f"the sentence breaks off: {sentence!r}")
    word = words[furthest]
    raise ParseError(f"no sentence goes on with {word!r}, word {furthest + 1}: {sentence!r}")


def parse(text: str, grammar: Grammar | None = None) -> Derivation:
    """The derivation of a whole document; ParseError names the sentence and the word, or the plot.

    The result need not be true to its own facts: see `facts_hold`.
    """
    grammar = grammar or town()
    sentences = []
    for number, sentence in enumerate(split_sentences(text), 1):
        try:
            sentences.append(parse_sentence(sentence, grammar))
        except ParseError as error:
            raise ParseError(f"sentence {number}: {error}") from None
    return Derivation(plot_of(sentences, grammar), tuple(sentences))


def plot_of(sentences: Sequence[Sentence], grammar: Grammar | None = None) -> str:
    """The plot that these sentences tell, whatever their words; ParseError where none does."""
    grammar = grammar or town()
    told = [grammar.clauses[sentence.clause].beat for sentence in sentences]
    best = 0
    for plot, beats in grammar.plots.items():
        place = 0
        for beat, optional in beats:
            if place < len(told) and told[place] == beat.name:
                place += 1
            elif not optional:
                break
        else:
            if place == len(told):
                return plot
        best = max(best, place)
    where = f"sentence {best + 1} ({told[best]})" if best < len(told) else "the end"
    raise ParseError(f"no plot goes on with {where} after {told[:best]}")


def clauses_around(
    before: str, after: str, grammar: Grammar | None = None
) -> list[tuple[Clause, tuple[str | None, ...]]]:
    """The clauses that may write `before`, one word, and `after`, and the words of their slots.

    None stands for the slot that the one word fills, where it fills one. Nothing is printed again:
    an article that does not fit, or a missing capital, is not noticed here.
    """
    paths: list[tuple[_Node, tuple[str | None, ...]]] = [(_trie(grammar or town()), ())]
    for word in (*tokens(before), None, *tokens(after)):
        longer: list[tuple[_Node, tuple[str | None, ...]]] = []
        for node, filled in paths:
            if word is None:
                longer += [(child, filled) for child in node.words.values()]
                longer += [(child, (*filled, None)) for _, child in node.slots]
            else:
                if word in node.words:
                    longer.append((node.words[word], filled))
                longer += [(c, (*filled, known[word])) for known, c in node.slots if word in known]
            if node.article is not None and (word is None or word in ARTICLES):
                longer.append((node.article, filled))
        paths = longer
    return [(node.clause, filled) for node, filled in paths if node.clause is not None]


def sentence_parses(sentence: str) -> bool:
    """Whether a single sentence belongs to the language."""
    try:
        parse_sentence(sentence)
    except ParseError:
        return False
    return True
