"""Byte-level byte-pair encoding from scratch (Sennrich et al. 2016, §3.2; on bytes: GPT-2).

Every text is a row of bytes, and there are only 256 of them: so no text is unknown. Training joins
the most frequent pair of neighbours into a new piece, again and again. Encoding replays the joins
in the order in which they were learned. The ids equal those of the `tokenizers` library.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size
from llm_course.tokenizers.words import byte_letters, check_ids, count_words, word_cutter

Pair = tuple[str, str]
SPECIAL = SPECIAL_TOKENS["bpe"]


def join_pair(pieces: Sequence[str], pair: Pair, joined: str) -> list[str]:
    """The pieces with each occurrence of the pair joined, from left to right: aaa gives aa, a."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] = joined
        else:
            result.append(piece)
    return result


def most_frequent(pair_counts: dict[Pair, int], vocab: dict[str, int]) -> Pair:
    """The pair to join next. Of equally frequent pairs, the one whose ids are the smallest."""
    highest = max(pair_counts.values())
    tied = [pair for pair, count in pair_counts.items() if count == highest]
    return min(tied, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))


def learn_merges(
    splits: list[list[str]],
    frequencies: list[int],
    vocab: dict[str, int],
    vocab_size: int,
    join: Callable[[str, str], str] = str.__add__,
) -> list[Pair]:
    """Join pairs until `vocab`, which grows in place, has `vocab_size` pieces; returns the joins.

    `splits` are the distinct words in pieces, they change in place; `frequencies` say how often
    each word occurs. A join changes few words, and only their pairs are counted again.
    """
    pair_counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that had this pair

    def count_pairs(number: int, sign: int) -> None:
        for pair in pairwise(splits[number]):
            pair_counts[pair] += sign * frequencies[number]
            places[pair].add(number)
            if not pair_counts[pair]:
                del pair_counts[pair]

    for number in range(len(splits)):
        count_pairs(number, +1)
    merges: list[Pair] = []
    while len(vocab) < vocab_size and pair_counts:
        pair = most_frequent(pair_counts, vocab)
        joined = join(*pair)
        vocab.setdefault(joined, len(vocab))
        merges.append(pair)
        for number in places.pop(pair):
            count_pairs(number, -1)
            splits[number] = join_pair(splits[number], pair, joined)
            count_pairs(number, +1)
    return merges


class BPE:
    """Byte-level BPE: `vocab` maps pieces to ids, `merges` are the joins, the oldest first."""

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair], n_special: int = 0) -> None:
        self.vocab, self.merges, self.n_special = vocab, list(merges), n_special
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.pieces = sorted(vocab, key=vocab.__getitem__)
        self.byte_of = {letter: byte for byte, letter in byte_letters().items()}
        self._cut = word_cutter("bpe")

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL
    ) -> BPE:
        """Special tokens get the first ids, then the 256 bytes, then one piece for each join."""
        check_vocab_size("bpe", vocab_size, len(special_tokens))
        counts = count_words(texts, word_cutter("bpe"))
        first = [*special_tokens, *sorted(byte_letters().values())]
        vocab = {piece: i for i, piece in enumerate(first)}
        splits = [list(word) for word in counts]
        merges = learn_merges(splits, list(counts.values()), vocab, vocab_size)
        return cls(vocab, merges, len(special_tokens))

    def split_word(self, word: str) -> list[str]:
        """Replay the joins on one word: always the oldest that is possible."""
        pieces = list(word)
        while pairs := self.ranks.keys() & set(pairwise(pieces)):
            pair = min(pairs, key=self.ranks.__getitem__)
            pieces = join_pair(pieces, pair, pair[0] + pair[1])
        return pieces

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, in letters for bytes."""
        return [piece for word in self._cut(text) for piece in self.split_word(word)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `DataError` for half a surrogate pair."""
        return [self.vocab[piece] for piece in self.tokenize(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out; a cut character gives U+FFFD."""
        listed = check_ids(ids, len(self.vocab))
        letters = "".join(self.pieces[i] for i in listed if i >= self.n_special)
        return bytes(self.byte_of[c] for c in letters).decode("utf-8", errors="replace")
