"""The unigram language model tokenizer from scratch (Kudo 2018, §3.2), as T5 uses it.

Each piece has a probability, and a split of a text the product of its pieces' probabilities.
Encoding takes the most probable split (Viterbi). With equal pieces and scores the ids equal those
of the `tokenizers` library.

Training begins with far too many pieces. EM finds their probabilities: the E step counts how often
each piece is expected under all splits, the M step makes probabilities of these counts. Then the
pieces that are missed the least are dropped. Repeat until the vocabulary has its size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from llm_course.errors import ConfigError
from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size
from llm_course.tokenizers.scratch.lattice import Scores, expected_counts, viterbi
from llm_course.tokenizers.words import check_ids, count_words, word_cutter

SPECIAL = SPECIAL_TOKENS["unigram"]
UNKNOWN = "<unk>"
UNKNOWN_PENALTY = 10.0  # nats below the rarest piece, as in sentencepiece
SPACE = "▁"  # a word carries the space before it as this letter
LONGEST = 16  # characters in a piece
KEEP = 0.75  # share of the pieces that survives a round


class Unigram:
    """Unigram: `scores` are log probabilities in nats; ids follow their order, after `SPECIAL`."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.pieces = [*SPECIAL, *scores]
        self.vocab = {piece: i for i, piece in enumerate(self.pieces)}
        self.unknown_score = min(scores.values()) - UNKNOWN_PENALTY
        self.longest = max(map(len, scores))
        self._cut = word_cutter("unigram")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Unigram:
        """`vocab_size` counts the special tokens and is an upper bound."""
        check_vocab_size("unigram", vocab_size)
        words = count_words(texts, word_cutter("unigram"))
        return cls(learn_pieces(words, vocab_size - len(SPECIAL)))

    def split_word(self, word: str) -> list[str]:
        """The most probable split of one word; unknown neighbours are one piece."""
        result: list[str] = []
        after_unknown = False
        for piece in viterbi(word, self.scores, self.longest, self.unknown_score):
            unknown = piece not in self.scores
            if unknown and after_unknown:
                result[-1] += piece
            else:
                result.append(piece)
            after_unknown = unknown
        return result

    def log_probability(self, text: str) -> float:
        """Of the best split of a text, in nats; divide by -len(text) for nats per character."""
        words = self._cut(text)
        splits = [viterbi(w, self.scores, self.longest, self.unknown_score) for w in words]
        return sum(self.scores.get(p, self.unknown_score) for split in splits for p in split)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text; a piece that the vocabulary does not have stands as it is."""
        return [piece for word in self._cut(text) for piece in self.split_word(word)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `DataError` for half a surrogate pair."""
        unknown = self.vocab[UNKNOWN]
        return [self.vocab.get(piece, unknown) for piece in self.tokenize(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out; <unk> stays visible."""
        pieces = [self.pieces[i] for i in check_ids(ids, len(self.pieces))]
        hidden = set(SPECIAL) - {UNKNOWN}
        text = "".join(piece for piece in pieces if piece not in hidden)
        return text.removeprefix(SPACE).replace(SPACE, " ")


def digamma(x: float) -> float:
    """The derivative of log Γ(x): near log(x - 1/2), by recurrence and the asymptotic series."""
    result = 0.0
    while x < 7:
        result -= 1 / x
        x += 1
    return result + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4)


def maximize(counts: dict[str, float]) -> Scores:
    """M step. With digamma for log (variational Bayes), rare pieces lose more than their share.

    Pieces expected less than half a time go, but a character stays: else words had no split.
    """
    kept = {p: max(c, 0.5) for p, c in counts.items() if c >= 0.5 or len(p) == 1}
    total = digamma(sum(kept.values()))
    return {piece: digamma(count) - total for piece, count in kept.items()}


def prune(words: Counter[str], scores: Scores, size: int) -> Scores:
    """Drop the pieces whose loss costs the likelihood the least, until `size` are left.

    A piece that is dropped is replaced by the best split of itself into other pieces, so its loss
    is its count times (its log probability - the sum of theirs), with counts after the change.
    """
    longest = max(map(len, scores))
    uses: Counter[str] = Counter()
    for word, frequency in words.items():
        for piece in viterbi(word, scores, longest):
            uses[piece] += frequency
    total = sum(uses.values())
    losses: Scores = {}
    for piece in scores:
        if len(piece) == 1 or not uses[piece]:
            continue
        rest = {p: s for p, s in ((q, scores.get(q)) for q in _parts(piece)) if s is not None}
        instead = viterbi(piece, rest, longest)  # without the piece, this would take its place
        new_total = math.log(total + uses[piece] * (len(instead) - 1))
        alone = math.log(uses[piece]) - math.log(total)
        split = sum(math.log(uses[p] + uses[piece]) - new_total for p in instead)
        losses[piece] = uses[piece] * (alone - split)
    characters = [p for p in scores if len(p) == 1]
    best = sorted(losses, key=lambda p: (-losses[p], p))[: max(0, size - len(characters))]
    return {piece: scores[piece] for piece in [*characters, *best]}


def _parts(piece: str) -> set[str]:
    """All shorter pieces of text inside a piece."""
    n = len(piece)
    return {piece[s:e] for s in range(n) for e in range(s + 1, n + 1)} - {piece}


def seed_pieces(words: Counter[str], size: int) -> Scores:
    """All characters, and the parts of words that cover the most text: frequency times length.

    Deviation: the `tokenizers` library looks for parts in the list of distinct words, where each
    word stands once. A frequent word that is part of no other word is then no piece at all, which
    costs it much on a text of few distinct words.
    """
    characters: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for word, frequency in words.items():
        characters.update({c: n * frequency for c, n in Counter(word).items()})
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + LONGEST) + 1):
                parts[word[start:end]] += frequency
    covered = {p: c * len(p) for p, c in parts.items() if c > 1}
    best = sorted(covered, key=lambda p: (-covered[p], p))[:size]
    weights = dict(characters) | {p: covered[p] for p in best}
    total = math.log(sum(weights.values()))
    return {piece: math.log(weight) - total for piece, weight in weights.items()}


def learn_pieces(words: Counter[str], size: int) -> Scores:
    """`size` pieces with their log probabilities: EM twice, prune a quarter, and again."""
    n_characters = len(set().union(*words))
    if n_characters > size:
        raise ConfigError(
            f"vocab_size leaves room for {size} pieces, these texts have {n_characters} characters"
        )
    scores = seed_pieces(words, 10 * size)
    while True:
        for _ in range(2):
            scores = maximize(expected_counts(words, scores))
        if len(scores) <= size * 1.1:
            break
        scores = prune(words, scores, max(int(size * 1.1), int(KEEP * len(scores))))
    best = sorted(scores, key=lambda p: (len(p) > 1, -scores[p], p))[:size]
    return {piece: scores[piece] for piece in sorted(best, key=lambda p: (-scores[p], p))}
