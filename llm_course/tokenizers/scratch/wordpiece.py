"""WordPiece from scratch, as BERT uses it (Devlin et al. 2019, §3; Wu et al. 2016, §4.1).

A piece that continues a word is written with "##" before it. Encoding needs the vocabulary alone:
it takes the longest piece that fits, again and again. How the vocabulary is learned is another
question. The `tokenizers` library learns it by BPE, on characters with "##", and so does this
file, with equal ids. Schuster and Nakajima (2012) instead join the pair that raises the likelihood
most. This is often written as the score count(ab) / (count(a) count(b)), which leaves out how many
pairs there are: the gain is about count(ab) log(N score), for a text of N pieces (chapter 03).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llm_course.tokenizers.kinds import SPECIAL_TOKENS, check_vocab_size, untrained
from llm_course.tokenizers.scratch.bpe import Pair, learn_merges
from llm_course.tokenizers.words import check_ids, check_texts, count_words, word_cutter

SPECIAL = SPECIAL_TOKENS["wordpiece"]
PREFIX = "##"
UNKNOWN = "[UNK]"


def join_wordpieces(left: str, right: str) -> str:
    """play, ##ing gives playing; ##in, ##g gives ##ing."""
    return left + right.removeprefix(PREFIX)


def common_characters(counts: Counter[str], limit: int) -> list[str]:
    """The `limit` most frequent characters; a word with a rarer one becomes [UNK]."""
    return sorted(counts, key=lambda c: (-counts[c], c))[:limit]


def first_split(word: str, alphabet: set[str]) -> list[str]:
    """A word in characters, "##" before all but the first; characters not in the alphabet go."""
    return [c if i == 0 else PREFIX + c for i, c in enumerate(word) if c in alphabet]


class WordPiece:
    """WordPiece: `vocab` maps pieces to ids; `merges` are the joins that made the vocabulary."""

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair] = ()) -> None:
        self.vocab, self.merges = vocab, list(merges)
        self.max_word = 100  # longer words become [UNK]
        self.pieces = sorted(vocab, key=vocab.__getitem__)
        self._cut = word_cutter("wordpiece")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> WordPiece:
        """Ids: special tokens, characters with "##", characters without, one piece for each join.

        At most half of the vocabulary goes to characters. The encoder does not use the joins.
        """
        check_vocab_size("wordpiece", vocab_size)
        texts = check_texts(texts)
        counts = count_words(texts, word_cutter("wordpiece"))
        limit = max(1, (vocab_size - len(SPECIAL)) // 4)
        cutter = untrained("wordpiece")
        split = cutter.pre_tokenizer.pre_tokenize_str
        characters = Counter(c for text in texts for c in cutter.normalizer.normalize_str(text))
        common = common_characters(characters, limit)
        alphabet = sorted(c for c in common if split(c))  # a space is in no word
        inside = [c for c in alphabet if len(split("a" + c)) == 1]  # signs never continue a word
        first = [*SPECIAL, *(PREFIX + c for c in inside), *alphabet]
        vocab = {piece: i for i, piece in enumerate(first)}
        known = set(alphabet)
        splits = [first_split(word, known) for word in counts]
        frequencies = list(counts.values())
        merges = learn_merges(splits, frequencies, vocab, vocab_size, join_wordpieces)
        return cls(vocab, merges)

    def split_word(self, word: str) -> list[str]:
        """Take the longest piece that fits, from left to right; one gap makes the word [UNK]."""
        pieces: list[str] = []
        start = 0
        if len(word) > self.max_word:
            return [UNKNOWN]
        while start < len(word):
            prefix = PREFIX if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self.vocab:
                    break
            else:
                return [UNKNOWN]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return [piece for word in self._cut(text) for piece in self.split_word(word)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `DataError` for half a surrogate pair."""
        return [self.vocab[piece] for piece in self.tokenize(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by spaces, none before . , ! ?: how the text was spaced is lost.

        Special tokens are left out, [UNK] stays visible. The library's decoder does the same.
        """
        pieces = [self.pieces[i] for i in check_ids(ids, len(self.vocab))]
        hidden = set(SPECIAL) - {UNKNOWN}
        text = " ".join(piece for piece in pieces if piece not in hidden)
        return re.sub(r" ([.,!?])", r"\1", text.replace(" " + PREFIX, ""))
