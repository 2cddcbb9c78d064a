"""How each kind of tokenizer cuts text, learns its vocabulary and puts the text together again."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Literal

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llm_course.errors import ConfigError, DataError

Kind = Literal["bpe", "wordpiece", "unigram", "word", "char"]

SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "bpe": ("<pad>", "<bos>", "<eos>"),  # no <unk>: every text consists of the 256 bytes
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "</s>", "<unk>"),
    "word": ("<pad>", "<bos>", "<eos>", "<unk>"),
    "char": ("<pad>", "<bos>", "<eos>", "<unk>"),
}

# What is put around a text, in the notation of `TemplateProcessing`: one text, and a pair.
_TEMPLATES = {
    "bpe": ("<bos> $A", "<bos> $A $B"),
    "word": ("<bos> $A", "<bos> $A $B"),
    "char": ("<bos> $A", "<bos> $A $B"),
    "wordpiece": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "unigram": ("$A </s>", "$A </s> $B </s>"),
}

# A word, a number or one sign, each with the space before it; other white space stands alone.
# A Chinese character is a word. Nothing is lost, so joining the pieces gives the text back.
_LETTER = r"[[\p{L}\p{M}\p{N}_]&&[^\p{Han}]]"
WORDS = rf" ?\p{{Han}}| ?{_LETTER}+(?:['’\-]{_LETTER}+)*| ?[^\s\p{{L}}\p{{M}}\p{{N}}_]|\s"


def train_backend(
    kind: str, texts: list[str], vocab_size: int, special: list[str]
) -> tokenizers.Tokenizer:
    """A trained tokenizer of this kind; equal texts give equal ids, which the library alone does
    not promise: two of its trainers depend on the order in a hash map.

    `ConfigError` when `vocab_size` has no room for any text.
    """
    check_vocab_size(kind, vocab_size, len(special))
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": special,
        "show_progress": False,
    }
    if kind == "bpe":
        backend = _bpe()
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options
        )
        backend.train_from_iterator(texts, trainer)
    elif kind == "wordpiece":
        backend = _wordpiece(lowercase=False)
        _train_wordpiece(backend, texts, vocab_size, special)
    elif kind == "unigram":
        backend = _unigram(special)
        backend.train_from_iterator(texts, trainers.UnigramTrainer(unk_token="<unk>", **options))
        _settle_unigram(backend, special)
    else:
        backend = _words() if kind == "word" else _characters()
        backend.train_from_iterator(texts, trainers.WordLevelTrainer(**options))
    _add_template(backend, kind, special)
    return backend


def _add_template(backend: tokenizers.Tokenizer, kind: str, special: list[str]) -> None:
    """What `add_special` puts around a text."""
    single, pair = _TEMPLATES[kind]
    names = [name for name in special if name in f"{single} {pair}"]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(n, backend.token_to_id(n)) for n in names]
    )


def untrained(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer of a kind with word pieces, without a vocabulary: how it cuts text is settled."""
    if kind == "bpe":
        return _bpe()
    if kind == "wordpiece":
        return _wordpiece(lowercase=False)
    return _unigram(list(SPECIAL_TOKENS["unigram"]))


def wordpiece_of_vocabulary(text: str, *, lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer from its vocab.txt, a piece a line; `DataError` without its special tokens.

    As in the published code, lowercasing takes the accents away too.
    """
    pieces = text.removesuffix("\n").split("\n")
    ids = {piece: number for number, piece in enumerate(pieces)}
    special = [name for name in SPECIAL_TOKENS["wordpiece"] if name in ids]
    if absent := set(SPECIAL_TOKENS["wordpiece"]) - set(special):
        raise DataError(f"a vocabulary of BERT has {', '.join(sorted(absent))}, this one has not")
    if len(ids) < len(pieces):
        raise DataError(f"{len(pieces) - len(ids)} lines of the vocabulary are there twice")
    backend = _wordpiece(lowercase)
    backend.model = models.WordPiece(ids, unk_token="[UNK]")
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    _add_template(backend, "wordpiece", special)
    return backend


def check_vocab_size(kind: str, vocab_size: int, n_special: int | None = None) -> None:
    """Refuse a vocabulary without room for the special tokens and one piece, or for all bytes."""
    n_special = len(SPECIAL_TOKENS[kind]) if n_special is None else n_special
    smallest = n_special + (256 if kind == "bpe" else 1)
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size must be at least {smallest} for kind {kind!r} "
            f"({n_special} special tokens), got {vocab_size}"
        )


def _bpe() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _wordpiece(lowercase: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _unigram(special: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    # Deviation: T5 normalizes by NFKC, which would turn Chinese punctuation into ASCII.
    backend.normalizer = normalizers.NFC()
    # A unigram model holds its special tokens as pieces like others, and would find them in text:
    # so the first letter of what looks like one is parted from the rest.
    names = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in special)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(names), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend


def _words() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    # With a space before the text its first word is the same token as in the middle of a text.
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return backend


def _characters() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _train_wordpiece(
    backend: tokenizers.Tokenizer, texts: list[str], vocab_size: int, special: list[str]
) -> None:
    """Train with the ids of all single characters fixed beforehand, then keep only the model.

    The library numbers the pieces "##x" as its hash map yields words, and breaks ties of merges by
    these numbers. Here they enter as special tokens of a scratch tokenizer, in sorted order. At
    most half of the vocabulary goes to characters; text with rarer ones becomes [UNK].
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(backend.normalizer.normalize_str(text))
    common = sorted(counts, key=lambda c: (-counts[c], c))[
        : max(1, (vocab_size - len(special)) // 4)
    ]
    alphabet = sorted(c for c in common if backend.pre_tokenizer.pre_tokenize_str(c))
    inside = [c for c in alphabet if len(backend.pre_tokenizer.pre_tokenize_str("a" + c)) == 1]
    scratch = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *(f"##{c}" for c in inside)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)
    backend.model = models.WordPiece(scratch.get_vocab(), unk_token="[UNK]")
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])


def _settle_unigram(backend: tokenizers.Tokenizer, special: list[str]) -> None:
    """Give the pieces scores and an order that do not depend on the order of summation.

    The library sums probabilities in the order of a hash map, and ranks the characters that the
    training dropped in that order too: 0.0001 nats apart, a little above the lowest score.
    """
    vocab = json.loads(backend.to_str())["model"]["vocab"]
    pieces = vocab[len(special) :]
    lowest = min(score for _, score in pieces)
    ranked = lowest + 0.0001 * (1 + sum(len(piece) == 1 for piece, _ in pieces))
    settled = [
        (piece, round(lowest if len(piece) == 1 and score <= ranked else score, 3))
        for piece, score in pieces
    ]
    settled.sort(key=lambda item: (-item[1], item[0]))
    unk_id = special.index("<unk>")
    first = [(token, 0.0) for token in special]
    backend.model = models.Unigram(first + settled, unk_id=unk_id, byte_fallback=False)
