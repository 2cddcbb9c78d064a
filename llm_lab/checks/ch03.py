"""Checks of chapter 03: pairs, one merge, the longest match, the best path, nats per character."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from llm_course.tokenizers.scratch.bpe import join_pair
from llm_course.tokenizers.scratch.lattice import arcs_into, log_add, viterbi
from llm_course.tokenizers.scratch.wordpiece import WordPiece
from llm_lab.checks.grading import (
    CheckFailed,
    expect_close,
    expect_equal,
    expect_given,
    expect_parts,
    passed,
)

Pair = tuple[str, str]


def _pairs(words: Iterable[tuple[tuple[str, ...], int]]) -> dict[Pair, int]:
    counts: Counter[Pair] = Counter()
    for pieces, count in words:
        for pair in pairwise(pieces):
            counts[pair] += count
    return dict(counts)


WORDS: dict[tuple[str, ...], int] = {
    ("l", "ow"): 5,
    ("l", "ow", "er"): 2,
    ("n", "a", "n", "a"): 3,
    ("o", "o", "o"): 4,
    ("a",): 9,
}


def check_count_pairs(answer: Callable[[dict[tuple[str, ...], int]], Any]) -> None:
    """The sum in the formula of a merge, for every pair."""
    words = WORDS
    right = _pairs(words.items())
    once = {
        pair: sum(count for word, count in words.items() if pair in set(pairwise(word)))
        for pair in right
    }
    overall: Counter[Pair] = Counter()
    for pieces, count in words.items():
        for left in pieces:
            for other in pieces:
                if left != other:
                    overall[left, other] += count
    across = Counter(pairwise([p for word, c in words.items() for _ in range(c) for p in word]))
    expect_equal(
        _as_counts(answer(dict(words)), "count_pairs"),
        right,
        name="count_pairs",
        hints={
            _Items(_pairs((word, 1) for word in words)): (
                "each word is counted once: multiply by the count of the word"
            ),
            _Items(once): "a pair that occurs twice in a word, as n a in nana, counts twice",
            _Items(_apart(words)): "in o o o the pair o, o occurs twice",
            _Items(dict(overall)): "only neighbours form a pair, in their order",
            _Items(dict(across)): "pairs must not cross the border of two words",
            _Items(_last_only(words)): "the words before are overwritten: add with +=",
            _Items({left + other: n for (left, other), n in right.items()}): (
                "the keys are pairs, (left, right), and not the two pieces joined"
            ),
            _Items(_pairs((tuple("".join(word)), count) for word, count in words.items())): (
                "these are pairs of letters: the elements of the tuple are the pieces"
            ),
        },
    )
    passed("every pair is counted, with the counts of the words")


def _apart(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    """What a count of joins gives: a piece is in one pair of its kind."""
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += count * (len(word) - len(join_pair(list(word), pair, "".join(pair))))
    return dict(counts)


def _last_only(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    """What `pairs[pair] = count` gives."""
    return {pair: count for word, count in words.items() for pair in pairwise(word)}


class _Items(dict[Any, int]):
    """A dictionary that can be the key of a hint."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _as_counts(value: Any, name: str) -> Any:
    expect_given(value, name)
    if not isinstance(value, dict):
        raise CheckFailed(f"{name} must return a dictionary, got {type(value).__name__}")
    return {pair: count for pair, count in value.items() if count}


def _joined_once(pieces: list[str], pair: Pair) -> tuple[str, ...]:
    for i, found in enumerate(pairwise(pieces)):
        if found == pair:
            return (*pieces[:i], "".join(pair), *pieces[i + 2 :])
    return tuple(pieces)


def _from_the_right(pieces: list[str], pair: Pair) -> tuple[str, ...]:
    result, i = [], len(pieces) - 1
    while i >= 0:
        step = 2 if i and (pieces[i - 1], pieces[i]) == pair else 1
        result.append("".join(pieces[i + 1 - step : i + 1]))
        i -= step
    return tuple(result[::-1])


def _overlapping(pieces: list[str], pair: Pair) -> tuple[str, ...]:
    """What a loop gives that moves on by one place after a join."""
    result, i = [], 0
    while i < len(pieces):
        join = i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair
        result.append("".join(pair) if join else pieces[i])
        i += 1
    return tuple(result)


def _last_lost(pieces: list[str], pair: Pair) -> tuple[str, ...]:
    right = join_pair(pieces, pair, "".join(pair))
    return tuple(right[:-1]) if right and right[-1] == pieces[-1] else tuple(right)


def _by_spelling(pieces: list[str], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    for piece in pieces:
        if result and result[-1] + piece == "".join(pair):
            result[-1] += piece
        else:
            result.append(piece)
    return tuple(result)


def check_merge_pair(answer: Callable[[list[str], Pair], list[str]]) -> None:
    """One pair joined everywhere, from left to right."""
    cases: list[tuple[list[str], Pair]] = [
        (["b", "a", "k", "e", "b", "a"], ("b", "a")),
        (["a", "a", "a"], ("a", "a")),
        (["a", "a", "a", "a", "b"], ("a", "a")),
        (["t", "he", "th", "e"], ("th", "e")),
        (["sa", "he", "n"], ("a", "he")),
        (["e", "th"], ("th", "e")),
        ([], ("a", "b")),
    ]
    for pieces, pair in cases:
        given = list(pieces)
        got = answer(given, pair)
        name = f"merge_pair({pieces}, {pair})"
        expect_equal(
            got,
            join_pair(pieces, pair, pair[0] + pair[1]),
            name=name,
            hints={
                tuple(pieces): "nothing was joined",
                _joined_once(pieces, pair): "only the first occurrence was joined",
                _from_the_right(pieces, pair): "go from left to right: aaa gives aa, a",
                _overlapping(pieces, pair): "after a join, both of its pieces are used up",
                _last_lost(pieces, pair): "the last piece is lost where it is not joined",
                _by_spelling(pieces, pair): (
                    "two pieces are a pair if both are equal to it: t + he is not th + e, though "
                    "it spells the same"
                ),
                tuple(" ".join(pieces).replace(" ".join(pair), "".join(pair)).split()): (
                    "a piece that only ends or begins like one of the pair is no part of it"
                ),
            },
        )
        if given != pieces:
            raise CheckFailed(f"{name} changes its argument: build a new list")
    passed("one pair joined, from left to right, and nothing twice")


WORDPIECES = "un unw unwi ##wise ##wi ##se ##ly wise w ##r wis ly lyr ##rs"
MISTAKES: dict[str, dict[tuple[str, ...], str]] = {
    "unwise": {
        ("un", "##wise"): "always take the longest piece: unwi is longer than un",
        ("un", "##wi", "##se"): "always take the longest piece: unwi is longer than un",
        ("unwi", "se"): "a piece inside a word is written with ## before it",
        ("[UNK]",): "it has pieces: one inside a word is written with ## before it",
    },
    "wisely": {
        ("wise", "ly"): "a piece inside a word is written with ## before it",
        ("wis",): "the pieces must cover the whole word",
    },
    "wiser": {("wise", "r"): "a piece inside a word is written with ## before it"},
    "wisest": {
        ("wise", "[UNK]"): "one gap makes the whole word [UNK]",
        ("wise",): "the rest has no piece, and one gap makes the whole word [UNK]",
    },
    "zebra": {(): "no piece fits at the beginning: the word is [UNK]"},
    "unwiz": {
        ("un", "##w", "##i", "##z"): "##w, ##i and ##z are not in the vocabulary",
        ("unwi",): "one gap makes the whole word [UNK]",
        ("unwi", "[UNK]"): "one gap makes the whole word [UNK]",
    },
    "rise": {("##r", "##i", "##se"): "the first piece has no ##"},
    "wwis": {
        ("w", "##wis"): "##wis is not in the vocabulary: inside a word, look up the piece "
        "together with its ##",
    },
    "lyrs": {
        ("ly", "##rs"): "do not go back: the longest piece, lyr, stays, and a gap after it "
        "makes the word [UNK]",
    },
    "sely": {("se", "##ly"): "se is not in the vocabulary: at the beginning, without ##"},
}


def check_longest_match(answer: Callable[[str, set[str]], list[str]]) -> None:
    """WordPiece's encoder for one word."""
    vocab = set(WORDPIECES.split())
    own = WordPiece({piece: i for i, piece in enumerate(["[UNK]", *sorted(vocab)])})
    for word, mistakes in MISTAKES.items():
        expect_equal(
            answer(word, set(vocab)),
            own.split_word(word),
            name=f"longest_match({word!r})",
            hints=mistakes,
        )
    passed("the longest piece, again and again, or [UNK]")


def _greedy(word: str, log_p: dict[str, float]) -> tuple[str, ...]:
    pieces: list[str] = []
    while word:
        end = next(end for end in range(len(word), 0, -1) if word[:end] in log_p)
        pieces, word = [*pieces, word[:end]], word[end:]
    return tuple(pieces)


def _fewest(word: str, log_p: dict[str, float]) -> tuple[str, ...]:
    return tuple(viterbi(word, {p: -1000 + s for p, s in log_p.items()}, len(word)))


def _least(word: str, log_p: dict[str, float]) -> tuple[str, ...]:
    return tuple(viterbi(word, {p: -s for p, s in log_p.items()}, len(word)))


def _log_sum(word: str, log_p: dict[str, float]) -> float:
    """The logarithm of the sum over all segmentations, which is not what is asked for."""
    before = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        for begin, score in arcs_into(word, end, log_p, len(word)):
            before[end] = log_add(before[end], before[begin] + score)
    return before[-1]


def _pieces_and_value(got: Any, word: str, log_p: dict[str, float]) -> tuple[Any, Any]:
    """The two things that an answer returned; `CheckFailed` for anything else."""
    expect_given(got, "best_split")
    expect_parts(got, 2, "best_split must return two things: the pieces and their value")
    pieces, value = got
    if not isinstance(pieces, list | tuple):
        raise CheckFailed(
            "best_split must return a list of pieces first, and then its value; the first one "
            f"is {type(pieces).__name__}"
        )
    if absent := [piece for piece in pieces if piece not in log_p]:
        raise CheckFailed(
            f"the pieces of {word!r} hold {absent[0]!r}, which is no piece. Is -inf the best "
            "value of a place that no piece has reached yet, and 0 only that of the beginning?"
        )
    return pieces, value


def check_best_split(answer: Callable[[str, dict[str, float]], Any]) -> None:
    """Viterbi: pieces and value."""
    p = {"re": 0.02, "rest": 0.01, "store": 0.008, "stored": 0.004, "red": 0.006, "ored": 1e-12}
    p |= dict.fromkeys("restodab", 0.04) | {"ab": 0.03, "aba": 0.0001, "bab": 0.0008}
    log_p = {piece: math.log(value) for piece, value in p.items()}
    for word in ("restored", "stored", "ababab", "a", "ab" * 25):
        got = answer(word, dict(log_p))
        pieces, value = _pieces_and_value(got, word, log_p)
        right = viterbi(word, log_p, max(map(len, log_p)))
        expect_equal(
            pieces,
            right,
            name=f"the pieces of {word!r}",
            hints={
                tuple(right[::-1]): "the pieces come out backwards: turn the list around",
                _greedy(word, log_p): "the longest piece first; the sum of logarithms decides",
                _least(word, log_p): "this is the least probable way: take the larger sum",
                _fewest(word, log_p): "the fewest pieces are not always the most probable ones",
                tuple(word): "single letters are possible, but another way has a larger sum",
            },
        )
        total = sum(log_p[piece] for piece in right)
        expect_close(
            value,
            total,
            name=f"the value of {word!r}",
            hints={
                math.exp(total): "this is the probability: return its logarithm",
                total / len(right): "this is the mean: the logarithms are summed",
                _log_sum(word, log_p): "this sums over all segmentations: use the maximum",
            },
        )
    passed("the best path, without listing all of them")


def check_nats_per_character(answer: Callable[[float, int, str], float]) -> None:
    """Nats per token to nats per character."""
    text, nats, tokens = "名字 and café, 12 words", 2.31, 16
    size = len(text.encode())
    expect_close(
        answer(nats, tokens, text),
        nats * tokens / len(text),
        name="nats_per_character",
        hints={
            nats * tokens / size: f"divided by {size} bytes: the text has {len(text)} characters",
            nats: "this is still per token",
            nats / len(text): "multiply by the number of tokens: the loss is a mean over them",
            nats * len(text) / tokens: "turned around: tokens per character, not the opposite",
            nats * tokens: "this is the loss of the whole text: divide by its characters",
            nats * tokens / math.log(2) / len(text): "these are bits; no logarithm is needed",
            nats * tokens / len(text.split()): "divided by words: use the characters",
            nats * tokens / len(text.replace(" ", "")): "spaces are characters too",
            tokens / len(text): "this is the second factor alone: tokens per character",
        },
    )
    passed("the same unit for every vocabulary")
