"""Right and wrong answers to the exercises of chapter 03, and the formulas of the chapter."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from check_answers import Right, Wrong

from llm_course.tokenizers.library import Tokenizer
from llm_course.tokenizers.scratch.bpe import join_pair, learn_merges
from llm_course.tokenizers.scratch.lattice import arcs_into, expected_counts, log_add, viterbi
from llm_course.tokenizers.scratch.wordpiece import WordPiece
from llm_lab.checks import ch03
from llm_town import generate_documents

Words = dict[tuple[str, ...], int]


def pairs(words: Words, weighted: bool = True, once: bool = False) -> dict[Any, int]:
    counts: Counter[Any] = Counter()
    for pieces, count in words.items():
        found = list(pairwise(pieces))
        for pair in set(found) if once else found:
            counts[pair] += count if weighted else 1
    return dict(counts)


def across(words: Words) -> dict[Any, int]:
    text = [piece for pieces, count in words.items() for _ in range(count) for piece in pieces]
    return dict(Counter(pairwise(text)))


def merge(pieces: list[str], pair: Any) -> list[str]:
    return join_pair(pieces, pair, pair[0] + pair[1])


def first_only(pieces: list[str], pair: Any) -> list[str]:
    for i, found in enumerate(pairwise(pieces)):
        if found == pair:
            return [*pieces[:i], pair[0] + pair[1], *pieces[i + 2 :]]
    return list(pieces)


def backwards(pieces: list[str], pair: Any) -> list[str]:
    turned = merge([p[::-1] for p in pieces[::-1]], (pair[1][::-1], pair[0][::-1]))
    return [p[::-1] for p in turned[::-1]]


def by_replace(pieces: list[str], pair: Any) -> list[str]:
    joined = pair[0] + pair[1]
    return [p for p in "|".join(pieces).replace("|".join(pair), joined).split("|") if p]


def in_place(pieces: list[str], pair: Any) -> list[str]:
    pieces[:] = merge(pieces, pair)
    return pieces


def longest(word: str, vocab: set[str]) -> list[str]:
    return WordPiece({p: i for i, p in enumerate(["[UNK]", *sorted(vocab)])}).split_word(word)


def match(
    word: str, vocab: set[str], prefix: str = "##", short: bool = False, whole: bool = True
) -> list[str]:
    pieces: list[str] = []
    begin = 0
    while begin < len(word):
        ends = range(begin + 1, len(word) + 1)
        for end in ends if short else reversed(ends):
            piece = (prefix if begin else "") + word[begin:end]
            if piece in vocab:
                break
        else:
            return ["[UNK]"] if whole else [*pieces, "[UNK]"]
        pieces.append(piece)
        begin = end
    return pieces


def goes_back(word: str, vocab: set[str], prefix: str = "") -> list[str]:
    for end in range(len(word), 0, -1):
        if prefix + word[:end] in vocab:
            rest = goes_back(word[end:], vocab, "##") if word[end:] else []
            if rest != ["[UNK]"]:
                return [prefix + word[:end], *rest]
    return ["[UNK]"]


def best(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
    pieces = viterbi(word, log_p, max(map(len, log_p)))
    return pieces, sum(log_p[p] for p in pieces)


def greedy(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
    pieces, begin = [], 0
    while begin < len(word):
        end = next(e for e in range(len(word), begin, -1) if word[begin:e] in log_p)
        pieces.append(word[begin:end])
        begin = end
    return pieces, sum(log_p[p] for p in pieces)


def fewest(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
    pieces = viterbi(word, dict.fromkeys(log_p, -1.0), max(map(len, log_p)))
    return pieces, sum(log_p[p] for p in pieces)


def summed(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
    before = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        for begin, score in arcs_into(word, end, log_p, len(word)):
            before[end] = log_add(before[end], before[begin] + score)
    return best(word, log_p)[0], before[-1]


def turned(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
    pieces, value = best(word, log_p)
    return pieces[::-1], value


def overwritten(words: dict[tuple[str, ...], int]) -> dict[tuple[str, str], int]:
    return {pair: n for word, n in words.items() for pair in pairwise(word)}


def not_overlapping(words: Words) -> dict[Any, int]:
    counts: Counter[Any] = Counter()
    for pieces, count in words.items():
        for pair in set(pairwise(pieces)):
            counts[pair] += count * (len(pieces) - len(merge(list(pieces), pair)))
    return dict(counts)


def with_spaces(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    return " ".join(pieces).replace(" ".join(pair), "".join(pair)).split()


def either_form(word: str, vocab: set[str]) -> list[str]:
    bare = {piece.removeprefix("##") for piece in vocab}
    return match(word, {form for piece in bare for form in (piece, "##" + piece)})


WRONG: Wrong = [
    (ch03.check_count_pairs, lambda w: pairs(w, weighted=False), "counted once: multiply"),
    (ch03.check_count_pairs, lambda w: pairs(w, once=True), "counts twice"),
    (ch03.check_count_pairs, not_overlapping, "in o o o the pair"),
    (ch03.check_count_pairs, across, "cross the border"),
    (ch03.check_count_pairs, lambda w: list(pairs(w)), "must return a dictionary, got list"),
    (ch03.check_count_pairs, lambda w: None, "is None"),
    (ch03.check_count_pairs, overwritten, "add with"),
    (ch03.check_count_pairs, lambda w: {a + b: n for (a, b), n in pairs(w).items()}, "keys are"),
    (ch03.check_merge_pair, with_spaces, "only ends or begins"),
    (ch03.check_merge_pair, lambda pieces, pair: merge(pieces, pair)[:-1], "should be"),
    (ch03.check_merge_pair, first_only, "only the first occurrence"),
    (ch03.check_merge_pair, backwards, "left to right"),
    (ch03.check_merge_pair, lambda pieces, pair: list(pieces), "nothing was joined"),
    (ch03.check_merge_pair, in_place, "changes its argument"),
    (ch03.check_merge_pair, lambda pieces, pair: by_replace(pieces, pair)[::-1], "should be"),
    (ch03.check_longest_match, lambda w, v: match(w, v, short=True), "longest piece"),
    (ch03.check_longest_match, lambda w, v: match(w, v, prefix=""), "written with ## before"),
    (ch03.check_longest_match, lambda w, v: match(w, v, whole=False), "whole word"),
    (ch03.check_longest_match, goes_back, "do not go back"),
    (ch03.check_longest_match, either_form, "together with its ##"),
    (ch03.check_best_split, lambda w, p: best(w, p)[::-1], "list of pieces first"),
    (ch03.check_best_split, lambda w, p: ([w], 0.0), "which is no piece"),
    (ch03.check_nats_per_character, lambda a, n, t: n / len(t), "second factor"),
    (ch03.check_best_split, greedy, "longest piece first"),
    (ch03.check_best_split, fewest, "fewest pieces"),
    (ch03.check_best_split, turned, "backwards"),
    (ch03.check_best_split, lambda w, p: best(w, p)[0], "list of pieces first"),
    (ch03.check_best_split, lambda w, p: (best(w, p)[0], math.exp(best(w, p)[1])), "logarithm"),
    (ch03.check_best_split, summed, "use the maximum"),
    (ch03.check_best_split, lambda w, p: None, "is None"),
    (ch03.check_nats_per_character, lambda a, n, t: a, "still per token"),
    (ch03.check_nats_per_character, lambda a, n, t: a * n / len(t.encode()), "bytes"),
    (ch03.check_nats_per_character, lambda a, n, t: a / len(t), "multiply by the number"),
    (ch03.check_nats_per_character, lambda a, n, t: a * len(t) / n, "turned around"),
]

RIGHT: Right = [
    (ch03.check_count_pairs, pairs),
    (ch03.check_count_pairs, lambda w: Counter(pairs(w)) + Counter()),
    (ch03.check_merge_pair, merge),
    (ch03.check_longest_match, longest),
    (ch03.check_best_split, best),
    (ch03.check_nats_per_character, lambda a, n, t: a * n / len(t)),
]


def test_a_word_of_the_best_path_has_too_many_segmentations_to_list_them() -> None:
    asked: list[tuple[str, dict[str, float]]] = []

    def answer(word: str, log_p: dict[str, float]) -> tuple[list[str], float]:
        asked.append((word, log_p))
        return best(word, log_p)

    ch03.check_best_split(answer)
    ways = [math.exp(summed(word, dict.fromkeys(p, 0.0))[1]) for word, p in asked]
    assert 148e9 < max(ways) < 149e9
    assert min(ways) < 1.5  # the control: "a" has one


# The formulas of the chapter, from transcriptions of their own.

WORDS = {"bake": 3, "baker": 5, "baked": 2, "cake": 4, "lake": 1, "aaa": 2}
P = {"re": 0.02, "rest": 0.01, "store": 0.008, "stored": 0.004, "red": 0.006, "or": 0.01}
P |= {"st": 0.02, "ed": 0.02} | dict.fromkeys("restod", 0.04)
SCORES = {piece: math.log(value) for piece, value in P.items()}


def merges_by_formula(words: dict[str, int], n: int, weighted: bool = True) -> list[Any]:
    """Each merge is the arg max over pairs of the sum of c_w n_ab(w), counted anew."""
    splits = {word: list(word) for word in words}
    ids = {letter: i for i, letter in enumerate(sorted(set("".join(words))))}
    merges = []
    for _ in range(n):
        counts = pairs({tuple(splits[word]): words[word] for word in words}, weighted)
        pair = min(counts, key=lambda p: (-counts[p], ids[p[0]], ids[p[1]]))
        ids[pair[0] + pair[1]] = len(ids)
        merges.append(pair)
        splits = {word: merge(pieces, pair) for word, pieces in splits.items()}
    return merges


def test_a_merge_is_the_pair_with_the_largest_weighted_count() -> None:
    vocab = {letter: i for i, letter in enumerate(sorted(set("".join(WORDS))))}
    splits = [list(word) for word in WORDS]
    learnt = learn_merges(splits, list(WORDS.values()), vocab, len(vocab) + 6)
    assert learnt == merges_by_formula(WORDS, 6)
    assert learnt != merges_by_formula(WORDS, 6, weighted=False)  # the control: without c_w


def splits_of(word: str) -> list[list[str]]:
    """By brute force: every set of borders."""
    n, found = len(word), []
    for borders in itertools.product([False, True], repeat=n - 1):
        places = [0, *(i + 1 for i, cut in enumerate(borders) if cut), n]
        split = [word[a:b] for a, b in pairwise(places)]
        if all(piece in P for piece in split):
            found.append(split)
    return found


def test_viterbi_finds_the_arg_max_over_all_segmentations() -> None:
    for word in ("restored", "stored", "rested", "ss"):
        right = max(splits_of(word), key=lambda s: math.prod(P[x] for x in s))
        assert viterbi(word, SCORES, 6) == right
    assert greedy("restored", SCORES)[0] != viterbi("restored", SCORES, 6)  # the control


def test_the_e_step_weighs_every_segmentation_with_its_probability() -> None:
    words = Counter({"restored": 3, "stored": 2, "rested": 4})
    expected, best_only = Counter[str](), Counter[str]()
    for word, count in words.items():
        weights = [math.prod(P[x] for x in split) for split in splits_of(word)]
        for split, weight in zip(splits_of(word), weights, strict=True):
            for piece in split:
                expected[piece] += count * weight / sum(weights)  # type: ignore[assignment]
        best_only.update({x: count * k for x, k in Counter(best(word, SCORES)[0]).items()})
    got = expected_counts(words, SCORES)
    assert all(abs(got.get(x, 0.0) - expected[x]) < 1e-10 for x in P)
    assert any(abs(got.get(x, 0.0) - best_only[x]) > 0.1 for x in P)  # the control


@pytest.mark.covers("B1")
def test_berts_input_is_cls_a_sep_b_sep_in_wordpieces_with_masks_that_nobody_can_type() -> None:
    texts = [document.text for document in generate_documents(60, 0, "train")]
    tokenizer = Tokenizer.train(texts, "wordpiece", 400)
    own = WordPiece.train(texts, 400)
    a, b = texts[0].split(". ")[:2]
    row = tokenizer.backend.encode(a, b)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert row.ids == [cls, *own.encode(a), sep, *own.encode(b), sep]
    first = len(own.encode(a)) + 2
    assert row.type_ids == [0] * first + [1] * (len(row.ids) - first)
    assert tokenizer.token_id("[MASK]") == tokenizer.mask_id
    special = set(tokenizer.special_ids) - {tokenizer.unk_id}
    assert not special & set(tokenizer.encode("[CLS] a [SEP] [MASK]"))
    assert special & set(tokenizer.encode("[MASK]", parse_special=True))  # the control
