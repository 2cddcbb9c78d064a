"""The tokenizers written from scratch are the library's: merges, vocabulary, ids; with controls."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.corpus.town import generate_documents
from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers.bpe import BPE
from llm_course.tokenizers.library import Tokenizer
from llm_course.tokenizers.unigram import Unigram
from llm_course.tokenizers.wordpiece import WordPiece

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


def town(n: int, seed: int = 0) -> list[str]:
    return [document.text for document in generate_documents(n, seed, "train")]


def mixed_strings(n: int, seed: int = 0) -> list[str]:
    """Strings of mixed scripts, words of Town and special tokens' names."""
    draw = random.Random(seed)
    words = [*" ".join(town(20)).split(), "<unk>", "</s>", "[UNK]", "[MASK]", "<eos>", "##a"]

    def part() -> str:
        if draw.random() < 0.3:
            return draw.choice(words) + draw.choice(["", " "])
        return "".join(draw.choices(draw.choice(SCRIPTS), k=draw.randrange(1, 6)))

    return ["".join(part() for _ in range(draw.randrange(0, 7))) for _ in range(n)]


def pair_of(kind: str, texts: list[str], size: int) -> tuple[Any, Tokenizer]:
    """Ours and the library's; the unigram one of ours has the library's pieces and scores."""
    library = Tokenizer.train(texts, kind, size)  # type: ignore[arg-type]
    if kind == "unigram":
        return Unigram(dict(model_of(library)["vocab"][3:])), library
    return OWN[kind].train(texts, size), library


def model_of(library: Tokenizer) -> dict[str, Any]:
    return json.loads(library.backend.to_str())["model"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Any, Tokenizer]]:
    texts = town(500) + mixed_strings(500, seed=1)
    return {kind: pair_of(kind, texts, 1000) for kind in KINDS}


def differences(own: Any, library: Tokenizer, texts: list[str]) -> int:
    expected = library.encode_batch(texts)
    return sum(own.encode(t) != ids for t, ids in zip(texts, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_the_librarys_on_ten_thousand_strings(kind: str, trained: Any) -> None:
    own, library = trained[kind]
    assert differences(own, library, mixed_strings(N_STRINGS)) == 0


def check_training(kind: str, texts: list[str], held_out: list[str], size: int = 1000) -> None:
    own, library = pair_of(kind, texts, size)
    assert own.vocab == library.backend.get_vocab()
    if kind == "bpe":
        assert own.merges == [tuple(merge) for merge in model_of(library)["merges"]]
    assert differences(own, library, held_out) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_merges_equal_the_librarys_on_town(kind: str) -> None:
    check_training(kind, town(2000), town(100, seed=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext2/valid.txt"])
def test_vocabulary_and_ids_equal_the_librarys_on_real_text(
    kind: str, name: str, shared_data: Path
) -> None:
    lines = (shared_data / name).read_text(encoding="utf-8")[:200_000].split("\n")
    check_training(kind, lines[200:], lines[:200])


def loss(tokenizer: Unigram, texts: list[str]) -> float:
    """Nats per character under the best split."""
    return -sum(map(tokenizer.log_probability, texts)) / sum(map(len, texts))


def test_unigram_training_is_within_one_percent_of_the_librarys_loss() -> None:
    texts, held_out = town(500), town(100, seed=1)
    theirs, _ = pair_of("unigram", texts, 500)
    ours = Unigram.train(texts, 500)
    assert len(ours.pieces) == len(theirs.pieces)
    assert loss(ours, held_out) <= 1.01 * loss(theirs, held_out)
    characters = Unigram({p: s for p, s in ours.scores.items() if len(p) == 1})
    assert loss(characters, held_out) > 1.01 * loss(theirs, held_out)  # the control


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


def test_bpe_decodes_every_string_exactly(trained: Any) -> None:
    own, _ = trained["bpe"]
    assert [t for t in mixed_strings(N_STRINGS) if own.decode(own.encode(t)) != t] == []


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_bpe_decodes_any_text_exactly(text: str) -> None:
    tokenizer = BPE.train(["the theme"], 265)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(kind: str, trained: Any) -> None:
    own, cls = trained[kind][0], OWN[kind]
    with pytest.raises(DataError, match=r"U\+D800\) at character 2"):
        own.encode("ab\ud800")
    with pytest.raises(TypeError, match="must be a str, got int"):
        own.encode(3)
    with pytest.raises(ValueError, match=r"position 1 must be from 0 to \d+, got -1"):
        own.decode([0, -1])
    with pytest.raises(DataError, match="at least one character"):
        cls.train([], 1000)
    with pytest.raises(TypeError, match="several texts, got one str"):
        cls.train("one text", 1000)
    with pytest.raises(ConfigError, match=r"vocab_size must be at least .* got 2"):
        cls.train(["text"], 2)
