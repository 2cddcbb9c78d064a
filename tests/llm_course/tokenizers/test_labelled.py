"""What labelled tasks need of a tokenizer: places in the text, words by themselves, old files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from transformers import BertTokenizer

from llm_course import Tokenizer
from llm_course.errors import DataError

TEXTS = [
    "Mara won. The café was in Øre, near 日本; it's OLD.",
    "Óscar lost 12 coins!",
    "a\tb\n\nc ",
]


@pytest.fixture(scope="module", params=[False, True], ids=["cased", "lowercase"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    write_vocabulary(folder, lowercase=bool(request.param))
    return Tokenizer.load(folder)


def write_vocabulary(folder: Path, *, lowercase: bool) -> None:
    """The files of an older BERT, which lowercases (and drops accents) or not."""
    texts = [unaccented(text.lower()) for text in TEXTS] if lowercase else TEXTS
    made = Tokenizer.train(texts * 3, kind="wordpiece", vocab_size=200)
    pieces = [made.token(i) for i in range(len(made))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))


def unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def test_each_piece_lies_where_its_offsets_say(tokenizer: Tokenizer) -> None:
    for text, (ids, offsets) in zip(TEXTS, tokenizer.encode_with_offsets(TEXTS)):
        assert ids == tokenizer.encode(text)
        assert len(ids) == len(offsets)
        end = 0
        for i, (a, b) in zip(ids, offsets):
            piece = tokenizer.token(i).removeprefix("##")
            if piece != "[UNK]":
                assert tokenizer.backend.normalizer.normalize_str(text[a:b]).strip() == piece
            assert not text[end:a].strip()  # between two pieces there is white space only
            end = b
        assert not text[end:].strip()
    one, other = (offsets for _, offsets in tokenizer.encode_with_offsets(TEXTS[:2]))
    assert one[: len(other)] != other  # another text, other places


def test_special_tokens_in_a_text_are_text_with_a_place(tokenizer: Tokenizer) -> None:
    ((ids, offsets),) = tokenizer.encode_with_offsets(["a [SEP] b"])
    assert tokenizer.sep_id not in ids
    assert offsets[0] == (0, 1)
    assert offsets[-1] == (8, 9)


def test_words_are_encoded_one_by_one_and_none_is_without_a_piece(tokenizer: Tokenizer) -> None:
    rows = [["Mara", "won", "."], ["\u200b", "it's"], []]
    found = tokenizer.encode_words(rows)
    assert [len(row) for row in found] == [3, 2, 0]
    assert found[0] == [tokenizer.encode(word) for word in rows[0]]
    assert [i for word in found[0] for i in word] == tokenizer.encode("Mara won.")
    assert found[1][0] == [tokenizer.unk_id]
    assert found[1][1] == tokenizer.encode("it's")
    found[0][0].append(7)  # the caller's own lists
    assert tokenizer.encode_words([["Mara"]])[0][0] == tokenizer.encode("Mara")
    with pytest.raises(DataError, match="half a surrogate pair"):
        tokenizer.encode_words([["a", "\ud800"]])
    with pytest.raises(DataError, match="text 1: half a surrogate pair"):
        tokenizer.encode_with_offsets(["a", "\ud800"])
    with pytest.raises(TypeError, match="several texts, got one str"):
        tokenizer.encode_with_offsets("abc")


def test_padding_and_cutting_of_a_published_file_are_dropped(tmp_path: Path) -> None:
    made = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=120)
    long = TEXTS[0] * 20
    whole = made.encode(long, add_special=True)
    made.save(tmp_path)
    made.backend.enable_padding(length=16)
    made.backend.enable_truncation(16)
    made.backend.save(str(tmp_path / "tokenizer.json"))
    assert len(made.encode(long, add_special=True)) == 16
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(long, add_special=True) == whole
    assert len(loaded.encode("a")) == 1


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_vocabulary_file_is_read_as_transformers_reads_it(
    lowercase: bool, tmp_path: Path
) -> None:
    write_vocabulary(tmp_path, lowercase=lowercase)
    loaded = Tokenizer.load(tmp_path)
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    for text in TEXTS:
        assert loaded.encode(text, add_special=True) == theirs(text)["input_ids"]
    assert (loaded.encode(TEXTS[0]) == loaded.encode(TEXTS[0].lower())) == lowercase
    assert (loaded.pad_id, loaded.cls_id, loaded.mask_id) == (0, 2, 4)
    loaded.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode(TEXTS[0]) == loaded.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\nb\n", r"vocab\.txt: not a tokenizer: .*\[CLS\]"), ("a\na\n[PAD]\n", "has not")],
)
def test_a_vocabulary_that_is_none_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)
