"""One class for every tokenizer of the course, around the `tokenizers` library.

Text never turns into special tokens by being typed: the text "<eos>" is encoded like any other
text unless the caller asks otherwise. Saved files open in `transformers.PreTrainedTokenizerFast`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import tokenizers
from tokenizers import AddedToken

from llm_course.errors import ConfigError, DataError
from llm_course.tokenizers import kinds
from llm_course.tokenizers.kinds import SPECIAL_TOKENS, Kind
from llm_course.tokenizers.words import check_ids, check_text, check_texts, texts_with_text

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
PADDING = 128  # a model's vocabulary may be rounded up to a multiple of this

# Which special token plays which role, where tokenizer_config.json does not say.
_NAMES = {
    name: "eos" if name == "</s>" else name[1:-1].lower()
    for name in (
        *("<bos>", "<eos>", "</s>", "<pad>", "[PAD]", "<unk>", "[UNK]"),
        *("[CLS]", "[SEP]", "[MASK]"),
    )
}


class Tokenizer:
    """Text to ids and back; make one by `Tokenizer.train` or `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: str, roles: dict[str, str]) -> None:
        """The ids of the roles, `bos_id` and so on, are None where no token plays the role."""
        self.backend, self.kind, self._roles = backend, kind, roles
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        ids = [self.token_id(roles[role]) if role in roles else None for role in ROLES]
        self.bos_id, self.eos_id, self.pad_id, self.unk_id, *bert = ids
        self.cls_id, self.sep_id, self.mask_id = bert

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Kind = "bpe",
        vocab_size: int = 4096,
        special_tokens: Sequence[str] = (),
        *,
        sentinels: int = 0,
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
        very end. `ConfigError`: unknown kind, vocabulary too small (needed and given). `DataError`:
        no text at all, half a surrogate pair in a text.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if sentinels < 0:
            raise ConfigError(f"sentinels must be at least 0, got {sentinels}")
        special = _special_tokens(kind, special_tokens)
        backend = _train(kind, texts, vocab_size, sentinels, special)
        names = [f"<extra_id_{n}>" for n in reversed(range(sentinels))]
        backend.add_special_tokens([AddedToken(name, special=True) for name in names])
        roles = {_NAMES[token]: token for token in special if token in _NAMES}
        return cls(backend, kind, roles)

    def files(self) -> dict[str, str]:
        """The text of each file that `save` writes; equal texts mean equal tokenizers."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "kind": self.kind,
            "clean_up_tokenization_spaces": False,  # else decoding would change the text
            "split_special_tokens": True,  # text never becomes a special token there either
        }
        config |= {f"{role}_token": self._roles[role] for role in ROLES if role in self._roles}
        self.backend.encode_special_tokens = True
        return {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        }

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which travel with the model."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            (folder / name).write_text(text, encoding="utf-8")

    def fingerprint(self) -> str:
        """SHA-256 of the saved files, equal for tokenizers that encode alike."""
        return hashlib.sha256("".join(self.files().values()).encode()).hexdigest()

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

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        texts = check_texts(texts)
        self.backend.encode_special_tokens = True
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [item.ids for item in encoded]

    def encode_with_offsets(
        self, texts: Sequence[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, and where each piece lies in it: text[start:end], in characters.

        The places are those of the text as it was given, also where the tokenizer lowercases.
        """
        texts = check_texts(texts)
        self.backend.encode_special_tokens = True
        encoded = self.backend.encode_batch(texts, add_special_tokens=False)
        return [(item.ids, item.offsets) for item in encoded]

    def encode_words(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """For each row of words the ids of each word, so that a word can have a label.

        A word is encoded by itself, as after a space. One without a piece, such as a zero-width
        sign, becomes the unknown token where there is one: it has a label like any other.
        """
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

    def decode(self, ids: Iterable[Any]) -> str:
        """The text of ids; special tokens are left out, but an unknown token stays visible.

        Ids of part of a character (bpe) give U+FFFD. `ValueError` names an id that does not exist.
        """
        hidden = self._special - {self.unk_id}
        shown = [i for i in check_ids(ids, len(self)) if i not in hidden]
        return str(self.backend.decode(shown, skip_special_tokens=False))

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
            return kinds.wordpiece_of_vocabulary(text, lowercase=config.get("do_lower_case", True))
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


def _train(
    kind: str, texts: Iterable[str], vocab_size: int, sentinels: int, special: list[str]
) -> tokenizers.Tokenizer:
    texts = texts_with_text(texts)
    try:
        backend = kinds.train_backend(kind, texts, vocab_size - sentinels, special)
    except ConfigError:
        raise
    except Exception as error:  # the library raises nothing more precise
        raise ConfigError(
            f"vocab_size is too small for the characters of these texts, got {vocab_size}: {error}"
        ) from error
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
