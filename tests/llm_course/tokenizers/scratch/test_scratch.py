"""The tokenizers written from scratch are the library's: merges, vocabulary, ids; with controls."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers.kinds import untrained
from llm_course.tokenizers.library import Tokenizer
from llm_course.tokenizers.scratch import bpe, lattice, unigram
from llm_course.tokenizers.scratch.bpe import BPE
from llm_course.tokenizers.scratch.unigram import Unigram
from llm_course.tokenizers.scratch.wordpiece import WordPiece
from llm_course.tokenizers.words import check_text
from llm_town import generate_documents

OWN: dict[str, Any] = {"bpe": BPE, "wordpiece": WordPiece, "unigram": Unigram}
KINDS = tuple(OWN)
N_STRINGS = 10_000
SCRIPTS = (
    "abc deEfghiIlnostu", "'’.,;:!?-\"()[]<>/_#Ġ▁",
    "\x00\x01\x07\x1b\x7f\x85\u200b\u200d\ufeff\ufffd",
    " \t\n\r\u00a0\u2003\u3000", "שלוםعربيةمرحبا\u202e", "中文汉字学习，。",
    "e\u0301\u0308o\u0327n\u0303Å",
    "😀👩👨🏽\ufe0f🇩🇪", "0123４٣½", "привет Καλημέρα हिन्दी ไทย",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def unchecked_inner_loops() -> Iterator[None]:
    """These run a million times here: checking their arguments would cost more than they do."""
    inner = ((lattice, "log_add"), (lattice, "arcs_into"), (bpe, "join_pair"))
    with pytest.MonkeyPatch.context() as patch:
        for module, name in inner:
            patch.setattr(module, name, inspect.unwrap(getattr(module, name)))
        yield


@functools.cache
def town(n: int, seed: int = 0) -> list[str]:
    return [document.text for document in generate_documents(n, seed, "train")]


def mixed_strings(n: int, seed: int = 0) -> list[str]:
    """Different strings of mixed scripts, words of Town and special tokens' names."""
    draw = random.Random(seed)
    words = [*" ".join(town(20)).split(), "<unk>", "</s>", "[UNK]", "[MASK]", "<eos>", "##a"]

    def part() -> str:
        if draw.random() < 0.3:
            return draw.choice(words) + draw.choice(["", " "])
        return "".join(draw.choices(draw.choice(SCRIPTS), k=draw.randrange(1, 6)))

    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(part() for _ in range(draw.randrange(0, 7)))] = None
    return list(found)


def pair_of(kind: str, texts: list[str], size: int) -> tuple[Any, Tokenizer]:
    """Ours and the library's; the unigram one of ours has the library's pieces and scores."""
    library = Tokenizer.train(texts, kind, size)  # type: ignore[arg-type]
    if kind == "unigram":
        return librarys_unigram(library), library
    return OWN[kind].train(texts, size), library


def librarys_unigram(library: Tokenizer) -> Unigram:
    """Our encoder with the library's pieces and scores; the first three are special tokens."""
    return Unigram(dict(model_of(library)["vocab"][3:]))


def model_of(library: Tokenizer) -> dict[str, Any]:
    return json.loads(library.backend.to_str())["model"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Any, Tokenizer]]:
    texts = town(500) + mixed_strings(500, seed=1)
    return {kind: pair_of(kind, texts, 1000) for kind in KINDS}


@pytest.fixture(scope="module")
def many_strings(trained: Any) -> tuple[list[str], dict[str, list[list[int]]]]:
    """Ten thousand strings and their ids from our tokenizer of each kind."""
    texts = mixed_strings(N_STRINGS)
    return texts, {kind: [own.encode(t) for t in texts] for kind, (own, _) in trained.items()}


def differences(own: Any, library: Tokenizer, texts: list[str]) -> int:
    expected = library.encode_batch(texts)
    return sum(own.encode(t) != ids for t, ids in zip(texts, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_the_librarys_on_ten_thousand_strings(
    kind: str, trained: Any, many_strings: Any
) -> None:
    texts, ids = many_strings
    theirs = trained[kind][1].encode_batch(texts)
    assert len(set(texts)) == N_STRINGS
    assert sum(a != b for a, b in zip(ids[kind], theirs, strict=True)) == 0


def check_training(kind: str, texts: list[str], held_out: list[str], size: int = 1000) -> None:
    own, library = pair_of(kind, texts, size)
    assert own.vocab == library.backend.get_vocab()
    if kind == "bpe":
        assert own.merges == [tuple(merge) for merge in model_of(library)["merges"]]
    assert differences(own, library, held_out) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_merges_equal_the_librarys_on_town(kind: str) -> None:
    check_training(kind, town(1000), town(100, seed=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext2/valid.txt"])
def test_vocabulary_and_ids_equal_the_librarys_on_real_text(
    kind: str, name: str, shared_data: Path
) -> None:
    if not (path := shared_data / name).is_file():
        pytest.skip(f"{path} is absent")
    lines = path.read_text(encoding="utf-8")[:100_000].split("\n")
    check_training(kind, lines[200:], lines[:200], 700)


def test_merges_depend_on_how_ties_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above, and few letters give many ties."""
    draw = random.Random(0)
    for letters in ("a", "ab ", "abc ", "ab中 ", "aé ") * 4:
        texts = ["".join(draw.choices(letters, k=draw.randrange(1, 60))) for _ in range(9)] + ["a"]
        held_out = ["".join(draw.choices(letters, k=60)) for _ in range(20)]
        check_training("bpe", texts, held_out, 259 + draw.randrange(1, 60))
        check_training("wordpiece", texts, held_out, draw.randrange(30, 80))

    def last_pair(pair_counts: Counter[bpe.Pair], vocab: dict[str, int]) -> bpe.Pair:
        highest = max(pair_counts.values())
        return max(pair for pair, count in pair_counts.items() if count == highest)

    monkeypatch.setattr(bpe, "most_frequent", last_pair)
    for kind in ("bpe", "wordpiece"):
        with pytest.raises(AssertionError):
            check_training(kind, town(50), [], 400)


# Unigram: the lattice and the training

SCORES = {"a": -2.0, "b": -2.5, "c": -1.0, "ab": -3.0, "bc": -3.25, "abc": -6.0, "ca": -2.0}


def all_splits(word: str) -> list[tuple[str, ...]]:
    """Every split of the word into pieces of `SCORES`, by trying each set of cuts."""
    splits = []
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        split = tuple(word[s:e] for s, e in itertools.pairwise(places))
        if all(piece in SCORES for piece in split):
            splits.append(split)
    return splits


def test_the_lattice_gives_what_all_splits_one_by_one_give() -> None:
    words = Counter({"abc": 3, "abcab": 1, "cabca": 2})
    expected: Counter[str] = Counter()
    for word, frequency in words.items():
        splits = all_splits(word)
        weights = [math.exp(sum(SCORES[p] for p in split)) for split in splits]
        best = splits[weights.index(max(weights))]
        assert tuple(lattice.viterbi(word, SCORES, 3)) == best
        for split, weight in zip(splits, weights, strict=True):
            for piece in split:
                expected[piece] += frequency * weight / sum(weights)  # type: ignore[assignment]
    counts = lattice.expected_counts(words, SCORES)
    assert counts == pytest.approx(dict(expected), abs=1e-12)
    assert counts != pytest.approx(Counter(lattice.viterbi("abc", SCORES, 3)), abs=1e-2)


def test_unigram_breaks_ties_and_takes_unknown_characters_as_the_library_does() -> None:
    """Whole numbers as scores give exact ties; many pieces lack a piece for their characters."""
    draw = random.Random(0)
    library = untrained("unigram")
    parts = ["".join(p) for n in (1, 2, 3) for p in itertools.product("▁abc", repeat=n)]
    unknown = 0
    for _ in range(100):
        scores = {piece: -float(draw.randrange(1, 6)) for piece in draw.sample(parts, 20)}
        own = Unigram(scores)
        vocab = [(piece, scores.get(piece, 0.0)) for piece in own.pieces]
        library.model = models.Unigram(vocab, unk_id=own.vocab["<unk>"])
        for text in ("".join(draw.choices("abc ", k=12)) for _ in range(20)):
            ids = own.encode(text)
            assert ids == library.encode(text).ids
            unknown += own.vocab["<unk>"] in ids
    assert unknown > 100


def loss(tokenizer: Unigram, texts: list[str]) -> float:
    """Nats per character under the best split."""
    return -sum(map(tokenizer.log_probability, texts)) / sum(map(len, texts))


def compared(texts: list[str], held_out: list[str], size: int) -> tuple[float, float]:
    """Our loss and that of the library, both trained on the same texts."""
    theirs = librarys_unigram(Tokenizer.train(texts, "unigram", size))
    ours = Unigram.train(texts, size)
    assert len(ours.pieces) == len(theirs.pieces) == size
    return loss(ours, held_out), loss(theirs, held_out)


def test_unigram_training_is_within_one_percent_of_the_librarys_loss_on_town(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, held_out, size = town(200), town(60, seed=1), 1000
    ours, theirs = compared(texts, held_out, size)
    assert ours <= 1.01 * theirs

    with monkeypatch.context() as patch:  # the control: scores stay as they were in the beginning
        patch.setattr(unigram, "expected_counts", lambda words, scores: scores)
        patch.setattr(unigram, "maximize", lambda scores: scores)
        assert loss(Unigram.train(texts, size), held_out) > 1.15 * ours

    def prune_the_best(words: Counter[str], scores: lattice.Scores, size: int) -> lattice.Scores:
        best = [p for p in prune(words, scores, len(scores)) if len(p) > 1]
        kept = [p for p in scores if len(p) == 1]
        return {p: scores[p] for p in (kept + best[::-1])[:size]}

    prune = unigram.prune
    monkeypatch.setattr(unigram, "prune", prune_the_best)
    assert loss(Unigram.train(texts, size), held_out) > 1.3 * theirs > 1.3 * ours


@pytest.mark.slow
def test_unigram_training_is_within_one_percent_of_the_librarys_loss_on_shakespeare(
    shared_data: Path,
) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    ours, theirs = compared(text[:300_000].split("\n"), text[300_000:340_000].split("\n"), 1000)
    assert ours <= 1.01 * theirs


def test_the_library_makes_no_piece_of_a_word_that_is_part_of_no_other() -> None:
    """Why its loss on Town is higher: its first pieces are parts of two distinct words or more."""
    frequent = ["lived near town"] * 200 + ["abcdefgh nmlk rtow"]
    once_more = [*frequent, "lived. near, towns"]
    wanted = {"▁lived", "▁near", "▁town"}
    assert not wanted & Tokenizer.train(frequent, "unigram", 40).backend.get_vocab().keys()
    assert wanted <= Tokenizer.train(once_more, "unigram", 40).backend.get_vocab().keys()
    assert wanted <= Unigram.train(frequent, 40).vocab.keys()


# Controls, decoding, bad input


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_decoding_gives_the_librarys_text(kind: str, trained: Any) -> None:
    own, library = trained[kind]
    texts = [*town(100, seed=1), *mixed_strings(1000), "Well , no ! ? . 's n't"]
    for ids in (library.encode(text, add_special=True) for text in texts):
        assert own.decode(ids) == library.decode(ids)
        assert own.decode(ids[3:]) == library.decode(ids[3:])  # may begin inside of a word
    if kind == "wordpiece":
        assert own.decode(own.encode("old town, no!")) == "old town, no!"


def test_controls_other_algorithms_give_other_ids(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = mixed_strings(300)
    own, library = trained["bpe"]
    assert differences(BPE(own.vocab, own.merges[::-1], 3), library, texts) > 0

    def shortest(self: WordPiece, word: str) -> list[str]:
        pieces = [c if i == 0 else "##" + c for i, c in enumerate(word)]
        return pieces if all(p in self.vocab for p in pieces) else ["[UNK]"]

    def greedy(self: Unigram, word: str) -> list[str]:
        pieces: list[str] = []
        while word:
            ends = range(len(word), 0, -1)
            end = next((e for e in ends if word[:e] in self.scores), 1)
            pieces, word = [*pieces, word[:end]], word[end:]
        return pieces

    monkeypatch.setattr(WordPiece, "split_word", shortest)
    monkeypatch.setattr(Unigram, "split_word", greedy)
    assert differences(*trained["wordpiece"], texts) > 0
    assert differences(*trained["unigram"], texts) > 0


def test_bpe_decodes_every_string_exactly(trained: Any, many_strings: Any) -> None:
    own, (texts, ids) = trained["bpe"][0], many_strings
    assert [t for t, i in zip(texts, ids["bpe"], strict=True) if own.decode(i) != t] == []


@functools.cache
def small_bpe() -> BPE:
    return BPE.train(["the theme"], 265)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_bpe_decodes_any_text_exactly(text: str) -> None:
    tokenizer = small_bpe()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(kind: str, trained: Any) -> None:
    own, cls = trained[kind][0], OWN[kind]
    with pytest.raises(DataError, match=r"U\+D800\) at character 2"):
        own.encode("ab\ud800")
    with pytest.raises(TypeError):  # the tests' type checks come first
        own.encode(3)
    with pytest.raises(ValueError, match=r"position 1 must be from 0 to \d+, got -1"):
        own.decode([0, -1])
    with pytest.raises(DataError, match="at least one character"):
        cls.train([], 1000)
    with pytest.raises(TypeError, match="several texts, got one str"):
        cls.train("one text", 1000)
    with pytest.raises(ConfigError, match=r"vocab_size must be at least .* got 2"):
        cls.train(["text"], 2)
    with pytest.raises(DataError, match=r"text 1: half a surrogate pair \(U\+DFFF\)"):
        cls.train(["text", "\udfff"], 1000)


def test_a_number_is_no_text_and_unigram_needs_room_for_every_character() -> None:
    with pytest.raises(TypeError, match="text must be a str, got int"):
        inspect.unwrap(check_text)(3, "text")
    with pytest.raises(ConfigError, match="room for 2 pieces, these texts have 4 characters"):
        Unigram.train(["abc"], 5)


def test_texts_without_a_word_give_wordpiece_its_special_tokens_alone() -> None:
    own, library = pair_of("wordpiece", ["\x00", "\u200b"], 100)
    assert own.vocab == library.backend.get_vocab()
    assert own.encode("new") == library.encode("new")
