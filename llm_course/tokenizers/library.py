"""One class for every tokenizer of the course, around the `tokenizers` library.

Text never turns into special tokens by being typed: the text "<eos>" is encoded like any other
text unless the caller asks otherwise. Saved files open in `transformers.PreTrainedTokenizerFast`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import tokenizers
from tokenizers import AddedToken

from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers.kinds import (
    SPECIAL_TOKENS,
    Kind,
    train_backend,
    wordpiece_of_vocabulary,
)
from llm_course.tokenizers.words import check_not_text, check_text, no_text

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
PADDING = 128  # a model's vocabulary may be rounded up to a multiple of this

# Which special token plays which role, where tokenizer_config.json does not say.
_NAMES = {
    "<bos>": "bos",
    "<eos>": "eos",
    "</s>": "eos",
    "<pad>": "pad",
    "[PAD]": "pad",
    "<unk>": "unk",
    "[UNK]": "unk",
    "[CLS]": "cls",
    "[SEP]": "sep",
    "[MASK]": "mask",
}


class Tokenizer:
    """Text to ids and back; make one by `Tokenizer.train` or `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: str, roles: dict[str, str]) -> None:
        self.backend = backend
        self.kind = kind
        self._roles = roles
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Kind = "bpe",
        vocab_size: int = 4096,
        special_tokens: Sequence[str] = (),
        *,
        sentinels: int = 0,
        lowercase: bool = False,
    ) -> Tokenizer:
        """A tokenizer trained on texts; the same texts in the same order give the same ids.

        kind        pieces                                    special tokens, in the order of ids
        bpe         byte-level pieces, as GPT-2; any text     <pad> <bos> <eos>
        wordpiece   as BERT: [CLS] text [SEP]                 [PAD] [UNK] [CLS] [SEP] [MASK]
        unigram     as T5: text </s>                          <pad> </s> <unk>
        word        words, numbers, signs; decodes exactly    <pad> <bos> <eos> <unk>
        char        characters                                <pad> <bos> <eos> <unk>

        `vocab_size` counts special tokens and is an upper bound: a small text has fewer pieces.
        `special_tokens` follow the kind's own, and T5's `sentinels` come last, <extra_id_0> at the
        very end. `lowercase` is for wordpiece. `ConfigError`: unknown kind, vocabulary too small
        (needed and given). `DataError`: no text at all, half a surrogate pair in a text.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if sentinels < 0:
            raise ConfigError(f"sentinels must be at least 0, got {sentinels}")
        if lowercase and kind != "wordpiece":
            raise ConfigError(f"lowercase is for kind 'wordpiece', got kind {kind!r}")
        special = _special_tokens(kind, special_tokens)
        backend = _train(kind, texts, vocab_size, sentinels, special, lowercase)
        names = [f"<extra_id_{n}>" for n in reversed(range(sentinels))]
        backend.add_special_tokens([AddedToken(name, special=True) for name in names])
        roles = {_NAMES[token]: token for token in special if token in _NAMES}
        return cls(backend, kind, roles)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which travel with the model."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "kind": self.kind,
            "clean_up_tokenization_spaces": False,  # else decoding would change the text
            "split_special_tokens": True,  # text never becomes a special token there either
        }
        config |= {f"{role}_token": token for role, token in self._roles.items()}
        self.backend.encode_special_tokens = True
        self.backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read what `save` wrote, or a published tokenizer.json; `DataError` names what is wrong.

        tokenizer_config.json may be missing: then the special tokens are known by their names. A
        BERT that was published with vocab.txt alone is read too. What a published file says of
        padding and of cutting is dropped: both belong to the batch, not to the text.
        """
        folder = Path(directory)
        config_path = folder / "tokenizer_config.json"
        config: Any = {}
        if config_path.is_file():
            try:
                config = json.loads(config_path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{config_path}: not JSON: {error}") from error
        if not isinstance(config, dict):
            raise DataError(f"{config_path}: expected an object, got {type(config).__name__}")
        backend = _read_backend(folder, config)
        return cls(backend, str(config.get("kind", "")), _roles_of(backend, config, config_path))

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """The ids of a text.

        `add_special` adds what the family wants around a text: <bos> before it (GPT's kinds),
        [CLS] and [SEP] (wordpiece) or </s> after it (unigram). With `parse_special` the names of
        special tokens in the text become these tokens: never do this with text of a user.
        `DataError` for half a surrogate pair, which is no character.
        """
        check_text(text, "text")
        self.backend.encode_special_tokens = not parse_special
        # The fast form leaves out where each piece lay in the text: half the time for a long one.
        (encoded,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = encoded.ids
        return ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special: bool = False, parse_special: bool = False
    ) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        check_not_text(texts)
        for number, text in enumerate(texts):
            check_text(text, f"text {number}")
        self.backend.encode_special_tokens = not parse_special
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
        return [item.ids for item in encoded]

    def encode_with_offsets(
        self, texts: Sequence[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, and where each piece lies in it: text[start:end], in characters.

        The places are those of the text as it was given, also where the tokenizer lowercases.
        """
        check_not_text(texts)
        for number, text in enumerate(texts):
            check_text(text, f"text {number}")
        self.backend.encode_special_tokens = True
        encoded = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [(item.ids, item.offsets) for item in encoded]

    def encode_words(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """For each row of words the ids of each word, so that a word can have a label.

        A word is encoded by itself, as after a space. One without a piece, such as a zero-width
        sign, becomes the unknown token where there is one: it has a label like any other.
        """
        check_not_text(rows)
        words = list(dict.fromkeys(word for row in rows for word in row))
        unknown = [] if self.unk_id is None else [self.unk_id]
        ids = dict(zip(words, self.encode_batch(words)))
        return [[list(ids[word] or unknown) for word in row] for row in rows]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole documents for a GPT: <bos>, the text, <eos>; `ConfigError` without these tokens."""
        bos, eos = self.bos_id, self.eos_id
        if bos is None or eos is None:
            raise ConfigError(
                f"documents need a bos and an eos token, this {self.kind} tokenizer has "
                f"{', '.join(self._roles.values()) or 'no special tokens'}"
            )
        return [[bos, *ids, eos] for ids in self.encode_batch(texts)]

    def decode(self, ids: Iterable[Any], *, skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out, but an unknown token stays visible.

        Ids of part of a character (bpe) give U+FFFD. `ValueError` names an id that does not exist.
        """
        listed = [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
        highest = len(self) - 1
        if listed and not 0 <= min(listed) <= max(listed) <= highest:
            place, wrong = next((p, i) for p, i in enumerate(listed) if not 0 <= i <= highest)
            raise ValueError(f"id at position {place} must be from 0 to {highest}, got {wrong}")
        if skip_special:
            hidden = self._special - {self.unk_id}
            listed = [i for i in listed if i not in hidden]
        return str(self.backend.decode(listed, skip_special_tokens=False))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def token(self, i: int) -> str:
        """The piece of one id as the vocabulary spells it (bpe: a letter a byte, Ġ is a space)."""
        piece = self.backend.id_to_token(i) if i >= 0 else None
        if piece is None:
            raise ValueError(f"id must be from 0 to {len(self) - 1}, got {i}")
        return str(piece)

    def token_id(self, piece: str) -> int | None:
        """The id of a piece, None when the vocabulary has no such piece."""
        found: int | None = self.backend.token_to_id(piece)
        return found

    @property
    def special_ids(self) -> list[int]:
        """The ids of all special tokens, sentinels included, in rising order."""
        return sorted(self._special)

    @property
    def sentinel_ids(self) -> list[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ... in this order; empty when there are none."""
        found: list[int] = []
        while (i := self.token_id(f"<extra_id_{len(found)}>")) is not None:
            found.append(i)
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer, equal for tokenizers that encode alike."""
        self.backend.encode_special_tokens = True
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def check_fits(self, config: Any, *, padded: bool = False) -> None:
        """Refuse a model (or its config) whose vocabulary is not this one: both sizes are named.

        `padded` allows a model vocabulary that is rounded up, to the next multiple of 128 at most,
        as published checkpoints have: T5 has 32,128 rows for 32,100 tokens.
        """
        vocab_size = getattr(config, "config", config).vocab_size
        highest = -(-len(self) // PADDING) * PADDING if padded else len(self)
        if not len(self) <= vocab_size <= highest:
            raise ConfigError(
                f"the tokenizer has {len(self)} tokens, the model's vocab_size is {vocab_size}: "
                "they do not belong together"
            )

    def _role_id(self, role: str) -> int | None:
        token = self._roles.get(role)
        return None if token is None else self.token_id(token)

    @property
    def bos_id(self) -> int | None:
        return self._role_id("bos")

    @property
    def eos_id(self) -> int | None:
        return self._role_id("eos")

    @property
    def pad_id(self) -> int | None:
        return self._role_id("pad")

    @property
    def unk_id(self) -> int | None:
        return self._role_id("unk")

    @property
    def cls_id(self) -> int | None:
        return self._role_id("cls")

    @property
    def sep_id(self) -> int | None:
        return self._role_id("sep")

    @property
    def mask_id(self) -> int | None:
        return self._role_id("mask")


def _read_backend(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.json, or of BERT's older vocab.txt."""
    path = folder / "tokenizer.json"
    old = not path.is_file() and (folder / "vocab.txt").is_file()
    path = folder / "vocab.txt" if old else path
    if not path.is_file():
        raise DataError(f"{folder}: no tokenizer.json in this folder")
    try:
        text = path.read_text(encoding="utf-8")
        if old:
            return wordpiece_of_vocabulary(text, lowercase=config.get("do_lower_case", True))
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path}: not a tokenizer: {error}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _special_tokens(kind: str, extra: Sequence[str]) -> list[str]:
    special = list(dict.fromkeys([*SPECIAL_TOKENS[kind], *extra]))
    for token in special:
        if not re.fullmatch(r"<\S+>|\[\S+\]", token):
            raise ConfigError(
                f"special tokens must look like <name> or [NAME], which no kind takes for one "
                f"piece of text, got {token!r}"
            )
    return special


class _Checked:
    """The texts, checked one by one, and how many characters they had."""

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, Iterator):
            texts = list(texts)  # training may read them twice
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        self.characters = 0
        for number, text in enumerate(self._texts):
            check_text(text, f"text {number}")
            self.characters += 0 if text.isspace() else len(text)
            yield text


def _train(
    kind: str,
    texts: Iterable[str],
    vocab_size: int,
    sentinels: int,
    special: list[str],
    lowercase: bool,
) -> tokenizers.Tokenizer:
    check_not_text(texts)
    checked = _Checked(texts)
    try:
        backend = train_backend(kind, checked, vocab_size - sentinels, special, lowercase)
    except (ConfigError, DataError, TypeError):
        raise
    except Exception as error:  # the library raises nothing more precise
        if checked.characters == 0:
            raise no_text() from error
        raise ConfigError(
            f"vocab_size is too small for the characters of these texts, got {vocab_size}: {error}"
        ) from error
    if checked.characters == 0:
        raise no_text()
    if (have := backend.get_vocab_size() + sentinels) > vocab_size:
        raise ConfigError(
            f"vocab_size must be at least {have} for a {kind} vocabulary of these texts, "
            f"got {vocab_size}"
        )
    return backend


def _roles_of(backend: tokenizers.Tokenizer, config: dict[str, Any], path: Path) -> dict[str, str]:
    """Role to special token, from tokenizer_config.json or else by the usual names."""
    roles: dict[str, str] = {}
    for role in ROLES:
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        if not isinstance(token, str) or backend.token_to_id(token) is None:
            raise DataError(f"{path}: {role}_token {token!r} is not in tokenizer.json")
        roles[role] = token
    if not roles:
        roles = {
            role: name for name, role in _NAMES.items() if backend.token_to_id(name) is not None
        }
    return roles
