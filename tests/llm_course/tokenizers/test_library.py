"""One tokenizer class: exact decoding, equal ids everywhere, and text that stays text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers.library import Tokenizer

KINDS = ("bpe", "wordpiece", "unigram", "word", "char")
GPT_KINDS = ("bpe", "word", "char")

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def some_texts(n: int = 300, seed: int = 0) -> list[str]:
    """Sentences of invented words with every sort of sign attached."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choice(SYLLABLES) for _ in range(draw.randrange(1, 4))) for _ in range(90)
    ]
    texts = []
    for _ in range(n):
        line = [draw.choice(words) for _ in range(draw.randrange(4, 12))]
        line[0] = line[0].capitalize()
        line[1] += draw.choice(["'s", ",", ";", '"', "", "", ""])
        line[2] = draw.choice(["(", '"', "", "", ""]) + line[2]
        line[3] = draw.choice([line[3], str(draw.randrange(100)), "well-" + line[3]])
        texts.append(" ".join(line) + draw.choice([".", "!", "?"]))
    return texts


TEXTS = some_texts()
SIZES = {"bpe": 400, "wordpiece": 400, "unigram": 200, "word": 2000, "char": 200}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(TEXTS, kind, SIZES[kind]) for kind in KINDS}


@pytest.mark.covers("G1")
@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_byte_level_bpe_decodes_any_text_exactly(text: str) -> None:
    tokenizer = bpe()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def bpe(cache: dict[str, Tokenizer] = {}) -> Tokenizer:  # noqa: B006
    if "bpe" not in cache:
        cache["bpe"] = Tokenizer.train(TEXTS, "bpe", 400)
    return cache["bpe"]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word", "char"])
def test_a_text_of_known_pieces_decodes_exactly(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    assert all(
        tokenizer.decode(ids) == text for text, ids in zip(TEXTS, map(tokenizer.encode, TEXTS))
    )


def test_wordpiece_does_not_keep_spaces_around_signs(trained: dict[str, Tokenizer]) -> None:
    """A control for the test above: decoding is a property of a kind and not to be had for free."""
    tokenizer = trained["wordpiece"]
    restored = [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS]
    assert restored != TEXTS
    assert ["".join(text.split()) for text in restored] == ["".join(t.split()) for t in TEXTS]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        " leading",
        "tab\tand\nline\r\n",
        'He said: "It\'s 3.50!"',
        "我们去 shop，好。",
    ],
)
def test_words_are_cut_so_that_joining_them_gives_the_text(text: str) -> None:
    tokenizer = Tokenizer.train([text, "x"], "word", 100)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if text.strip():
        assert tokenizer.unk_id not in tokenizer.encode(text)


def test_a_word_is_the_same_token_at_the_beginning_and_inside_of_a_text() -> None:
    tokenizer = Tokenizer.train(["old dog, old cat"], "word", 100)
    ids = tokenizer.encode("old dog, old cat")
    assert [tokenizer.token(i) for i in ids] == [" old", " dog", ",", " old", " cat"]
    assert ids[0] == ids[3]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_text(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    for i in tokenizer.special_ids:
        name = tokenizer.token(i)
        for text in (name, f"before {name} after", f"{name}{name}"):
            assert i not in tokenizer.encode(text) or i == tokenizer.unk_id
            assert i not in tokenizer.encode_batch([text])[0] or i == tokenizer.unk_id
        assert tokenizer.encode(name, parse_special=True) == [i]  # the control: it can be asked for
        assert i not in tokenizer.encode(name) or i == tokenizer.unk_id  # and does not stay so


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_ids_in_another_process(
    trained: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    """The library's own trainers do not promise this: two of them follow a hash map's order."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    code = (
        "import json, sys; from llm_course.tokenizers.library import Tokenizer\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "for _ in range(2): print(Tokenizer.train(iter(texts), sys.argv[2], int(sys.argv[3]))"
        ".fingerprint())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "texts.json"), kind, str(SIZES[kind])]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert set(out.split()) == {trained[kind].fingerprint()}
    other = Tokenizer.train(TEXTS[1:], kind, SIZES[kind] - 1)
    assert other.fingerprint() != trained[kind].fingerprint() or kind in ("word", "char")


def test_another_role_is_another_fingerprint() -> None:
    """A row ends with another token then, though a text has the same ids."""
    t = bpe()
    other = Tokenizer(t.backend, t.kind, {"bos": "<bos>", "eos": "<pad>", "pad": "<pad>"})
    assert (other.eos_id, t.eos_id) == (0, 2)
    assert other.encode("text") == t.encode("text")
    assert other.fingerprint() != t.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_load_here_and_in_transformers_with_equal_ids(
    trained: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = trained[kind]
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.fingerprint() == ours.fingerprint()
    assert (again.kind, len(again)) == (kind, len(ours))
    assert len(theirs) == len(ours)
    names = " ".join(ours.token(i) for i in ours.special_ids)
    for text in [*TEXTS[:40], "Unknown ζ words", names, ""]:
        assert again.encode(text) == ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs(text)["input_ids"] == ours.encode(text, add_special=True)
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert getattr(again, f"{role}_id") == getattr(ours, f"{role}_id")
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_id")
    ids = ours.encode(TEXTS[0])
    assert theirs.decode(ids) == ours.decode(ids)


def test_special_tokens_of_every_kind_have_their_roles_and_ids(
    trained: dict[str, Tokenizer],
) -> None:
    for kind in GPT_KINDS:
        t = trained[kind]
        assert (t.pad_id, t.bos_id, t.eos_id) == (0, 1, 2)
        assert t.encode("A", add_special=True) == [1, *t.encode("A")]
        assert t.encode_documents(["A", "b c"]) == [[1, *t.encode(x), 2] for x in ("A", "b c")]
    assert trained["bpe"].unk_id is None
    assert trained["word"].unk_id == trained["char"].unk_id == 3
    t = trained["wordpiece"]
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert t.bos_id is t.eos_id is None
    assert t.encode("ba", add_special=True) == [2, *t.encode("ba"), 3]
    t = trained["unigram"]
    assert (t.pad_id, t.eos_id, t.unk_id) == (0, 1, 2)
    assert t.encode("ba", add_special=True) == [*t.encode("ba"), 1]
    with pytest.raises(ConfigError, match="documents need a bos and an eos token"):
        t.encode_documents(["a"])


def test_sentinels_come_last_and_count_down_as_in_t5() -> None:
    t = Tokenizer.train(TEXTS, "unigram", 220, sentinels=20)
    assert len(t) == 220
    assert t.sentinel_ids == list(range(219, 199, -1))
    assert t.token(219) == "<extra_id_0>"
    assert not set(t.encode("<extra_id_0> ba")) & set(t.sentinel_ids)
    t = Tokenizer.train(TEXTS, "word", 3000, special_tokens=["<user>", "<eos>"])
    assert t.special_ids == [0, 1, 2, 3, 4]
    assert (t.token(4), t.eos_id, t.sentinel_ids) == ("<user>", 2, [])


def test_decoding_leaves_special_tokens_out_but_not_the_unknown_one(
    trained: dict[str, Tokenizer],
) -> None:
    t = trained["word"]
    ids = [t.bos_id, *t.encode("ζζ Zz"), t.eos_id, t.pad_id]
    assert "<unk>" in t.decode(ids)
    assert "<bos>" not in t.decode(ids)
    some = trained["bpe"].encode("hello")
    assert trained["bpe"].decode(torch.tensor(some)) == "hello"
    assert trained["bpe"].decode(np.asarray(some)) == "hello"
    half = trained["bpe"].encode("é")[:1]
    assert trained["bpe"].decode(half) == "\ufffd"


def test_half_a_surrogate_pair_is_refused_with_its_place(trained: dict[str, Tokenizer]) -> None:
    for kind in KINDS:
        with pytest.raises(DataError, match=r"text: half a surrogate pair \(U\+D800\) at char.* 2"):
            trained[kind].encode("ab\ud800c")
        with pytest.raises(DataError, match="text 1: half"):
            trained[kind].encode_batch(["a", "\udfff"])
        with pytest.raises(DataError, match="text 1: half"):
            Tokenizer.train(["abc", "\udfff"], kind, 400)


def test_settings_and_texts_that_cannot_be_are_refused() -> None:
    for kind in KINDS:
        for nothing in ([], ["", "  "], iter(())):
            with pytest.raises(DataError, match="at least one character, got none"):
                Tokenizer.train(nothing, kind, 400)
    with pytest.raises(ConfigError, match=r"at least 259 for kind 'bpe'.*got 200"):
        Tokenizer.train(TEXTS, "bpe", 200)
    for kind, size in (("wordpiece", 5), ("unigram", 3), ("word", 4), ("char", 0)):
        with pytest.raises(ConfigError, match=rf"at least \d+ for kind '{kind}'.*got {size}"):
            Tokenizer.train(TEXTS, kind, size)
    with pytest.raises(ConfigError, match=r"vocab_size is too small for the characters.*got 10"):
        Tokenizer.train(TEXTS, "unigram", 10)
    with pytest.raises(ConfigError, match="sentinels must be at least 0, got -1"):
        Tokenizer.train(TEXTS, "bpe", 300, sentinels=-1)
    for token in ("user", "<user", "two words", "<a b>"):
        with pytest.raises(ConfigError, match=f"must look like <name> or .*, got '{token}'"):
            Tokenizer.train(TEXTS, "word", 300, [token])
    with pytest.raises(TypeError, match="several texts, got one str"):
        Tokenizer.train("one text", "char", 300)
    with pytest.raises((ConfigError, TypeError)):  # the tests' type checks may come first
        Tokenizer.train(TEXTS, "bytes", 300)  # type: ignore[arg-type]


def test_vocab_size_is_an_upper_bound_for_every_kind(trained: dict[str, Tokenizer]) -> None:
    assert all(len(trained[kind]) <= SIZES[kind] for kind in KINDS)
    assert len(trained["bpe"]) == 400
    assert len(Tokenizer.train(["ab"], "char", 100)) == 4 + 2
    small = Tokenizer.train(TEXTS, "wordpiece", 60)  # characters alone would take more
    assert len(small) <= 60


def test_ids_outside_the_vocabulary_are_refused_with_their_position() -> None:
    t = bpe()
    with pytest.raises(ValueError, match="position 1 must be from 0 to 399, got 400"):
        t.decode([5, 400])
    with pytest.raises(ValueError, match="position 0 must be from 0 to 399, got -1"):
        t.decode([-1])
    for i in (-1, 400):
        with pytest.raises(ValueError, match=f"from 0 to 399, got {i}"):
            t.token(i)
    assert t.token_id("no such piece") is None


def test_a_model_of_another_size_is_refused_with_both_sizes() -> None:
    t = bpe()
    t.check_fits(SimpleNamespace(vocab_size=400))
    t.check_fits(SimpleNamespace(config=SimpleNamespace(vocab_size=400)))  # a model
    for size in (399, 401, 512):
        with pytest.raises(ConfigError, match=f"has 400 tokens, the model's vocab_size is {size}"):
            t.check_fits(SimpleNamespace(vocab_size=size))
    t.check_fits(SimpleNamespace(vocab_size=512), padded=True)
    for size in (399, 513):
        with pytest.raises(ConfigError, match="do not belong together"):
            t.check_fits(SimpleNamespace(vocab_size=size), padded=True)


def test_broken_and_missing_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")
    bpe().save(tmp_path)
    good = (tmp_path / "tokenizer.json").read_bytes()
    for bad in (b"", b"{}", b"[1]", b"\xff\xfe", good[:-100], good.replace(b'"BPE"', b'"XYZ"')):
        (tmp_path / "tokenizer.json").write_bytes(bad)
        with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(good)
    config = tmp_path / "tokenizer_config.json"
    for bad, message in (
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "expected an object, got list"),
        (b'{"bos_token": "<none>"}', "bos_token '<none>' is not in"),
        (b'{"bos_token": 3}', "bos_token 3 is not in"),
    ):
        config.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            Tokenizer.load(tmp_path)
    config.write_text('{"eos_token": {"content": "<eos>"}}')  # as transformers 4 wrote it
    assert Tokenizer.load(tmp_path).eos_id == 2
    config.unlink()
    alone = Tokenizer.load(tmp_path)
    assert (alone.pad_id, alone.bos_id, alone.eos_id) == (0, 1, 2)


def test_random_bytes_never_get_past_the_loader(tmp_path: Path) -> None:
    draw = random.Random(0)
    bpe().save(tmp_path)
    good = (tmp_path / "tokenizer.json").read_bytes()
    refused = 0
    for _ in range(150):
        raw = bytearray(good[: draw.randrange(len(good))] if draw.random() < 0.3 else good)
        for _ in range(draw.randrange(1, 20)):
            if raw:
                raw[draw.randrange(len(raw))] = draw.randrange(256)
        (tmp_path / "tokenizer.json").write_bytes(raw)
        try:
            Tokenizer.load(tmp_path).encode("still a tokenizer")
        except DataError:
            refused += 1
    assert refused > 100


def test_shakespeare_in_512_pieces_is_half_as_long_as_in_characters(shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    text = text[:300_000]
    t = Tokenizer.train(text.splitlines(keepends=True), "bpe", 512)
    ids = t.encode(text)
    assert t.decode(ids) == text
    assert 1.8 < len(text) / len(ids) < 2.1
    assert len(Tokenizer.train([text], "char")) == len(set(text)) + 4
