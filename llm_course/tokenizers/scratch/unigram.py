"""The unigram language model tokenizer from scratch (Kudo 2018, §3.2), as T5 uses it.

Each piece has a probability, and a split of a text the product of its pieces' probabilities.
Encoding takes the most probable split (Viterbi). With equal pieces and scores the ids equal those
of the `tokenizers` library. How pieces and scores are learned: `unigram_training.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size
from llm_course.tokenizers.scratch.lattice import Scores, viterbi
from llm_course.tokenizers.scratch.unigram_training import learn_pieces
from llm_course.tokenizers.words import check_ids, count_words, word_cutter

SPECIAL = SPECIAL_TOKENS["unigram"]
UNKNOWN = "<unk>"
UNKNOWN_PENALTY = 10.0  # nats below the rarest piece, as in sentencepiece
SPACE = "▁"  # a word carries the space before it as this letter


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
