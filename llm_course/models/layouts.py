"""How a file in Hugging Face's layout names settings and tensors, as a table of each family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llm_course.errors import ConfigError, WeightsError

CONFIG_FILE = "config.json"

# Their names of our activations; gelu_new and gelu_pytorch_tanh are one function.
ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
ACTIVATION_KEYS = {ours: theirs for theirs, ours in ACTIVATION_NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """Where the file keeps a tensor of ours."""

    name: str
    transposed: bool = False  # [in, out], where nn.Linear has [out, in]
    part: int = 0  # it is this part of a larger tensor,
    parts: int = 1  # of so many, which lie side by side


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How a published file names what our model holds; each model file owns one.

    In `names` and `heads`, "{}" stands for the number of a block. A name without ".weight" or
    ".bias" is a module and stands for all its tensors; a full name goes before it.
    """

    model_type: str
    architecture: str  # the class of transformers that opens what we save
    settings: Mapping[str, str | tuple[str, ...]]  # our config field: their key, or keys
    names: Mapping[str, str | Stored]  # our module or tensor: theirs
    aliases: Mapping[str, str] = field(default_factory=dict)  # another name of a key: the key
    fixed: Mapping[str, Any] = field(default_factory=dict)  # key: the only value we support
    prefix: str = ""  # files of a bare body leave it out
    heads: tuple[str, ...] = ()  # our modules that `heads="new"` may initialise
    copies: Mapping[str, str] = field(default_factory=dict)  # tensor in the file: what it repeats
    ignored: tuple[str, ...] = ()  # patterns of tensors that hold no weights

    def locate(self, name: str) -> Stored:
        """Where our tensor `name` lies in a file."""
        number = re.search(r"\.(\d+)\.", name)
        index = number.group(1) if number else ""
        general = name.replace(f".{index}.", ".{}.", 1) if number else name
        module, _, kind = general.rpartition(".")
        if general in self.names:
            entry, suffix = self.names[general], ""
        elif module in self.names:
            entry, suffix = self.names[module], f".{kind}"
        else:
            raise WeightsError(f"{name} is not a tensor of {self.architecture}")
        stored = Stored(entry) if isinstance(entry, str) else entry
        return replace(stored, name=stored.name.format(index) + suffix)

    def to_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the file's names, transposed and joined as the file has them."""
        pieces: dict[str, list[tuple[int, int, Tensor]]] = {}
        for name, tensor in state.items():
            stored = self.locate(name)
            piece = tensor.T if stored.transposed and tensor.ndim == 2 else tensor
            dim = -1 if stored.transposed else 0
            pieces.setdefault(stored.name, []).append((stored.part, dim, piece))
        joined = {}
        for name, parts in pieces.items():
            parts.sort(key=lambda part: part[0])
            whole = (
                parts[0][2] if len(parts) == 1 else torch.cat([p[2] for p in parts], parts[0][1])
            )
            joined[name] = whole.contiguous()
        return joined

    def from_file(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors `names` of ours, as views of a file's: the inverse of `to_file`."""
        state = {}
        for name in names:
            stored = self.locate(name)
            tensor = tensors[stored.name]
            dim = -1 if stored.transposed else 0
            tensor = tensor.chunk(stored.parts, dim)[stored.part]
            state[name] = tensor.T if stored.transposed and tensor.ndim == 2 else tensor
        return state


def read_settings(raw: Mapping[str, Any], layout: FileLayout) -> dict[str, Any]:
    """Our config fields from a `config.json`; keys that are absent keep our default."""
    if raw.get("model_type") != layout.model_type:
        raise ConfigError(
            f"{CONFIG_FILE}: model_type must be {layout.model_type!r}, "
            f"got {raw.get('model_type')!r}"
        )
    for key in ("quantization_config", "pruned_heads"):
        if raw.get(key):
            raise ConfigError(f"{CONFIG_FILE}: {key} is not supported, got {raw[key]!r}")
    for key, value in layout.fixed.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"{CONFIG_FILE}: {key} must be {value!r} here, got {raw[key]!r}")
    values = {}
    for name, keys in layout.settings.items():
        keys = (keys,) if isinstance(keys, str) else keys
        keys = (*keys, *(alias for alias, key in layout.aliases.items() if key in keys))
        found = {key: raw[key] for key in keys if raw.get(key) is not None}
        if not found:
            continue
        (key, value), *others = found.items()
        if any(other != value for _, other in others):
            listed = ", ".join(f"{key} = {value}" for key, value in found.items())
            choose = ": choose with from_pretrained(..., dropout=...)" if name == "dropout" else ""
            raise ConfigError(
                f"{CONFIG_FILE}: this model has one {name}, the file several ({listed}){choose}"
            )
        values[name] = _checked(name, key, value)
    return values


def _checked(name: str, key: str, value: Any) -> Any:
    """The value that `key` of a `config.json` has for our field `name`, if its type is right."""
    if name == "activation":
        return activation_from_file(value)
    if name.endswith("_token_id") and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if name == "tied":
        wanted, right = "true or false", isinstance(value, bool)
    elif name.endswith("_token_id"):
        wanted = "one whole number"
        right = isinstance(value, int) and not isinstance(value, bool)
    else:
        wanted = "one number"
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right:
        raise ConfigError(f"{CONFIG_FILE}: {key} must be {wanted}, got {value!r}")
    return value


def write_settings(config: Any, layout: FileLayout) -> dict[str, Any]:
    """The content of a `config.json` that transformers and `read_settings` understand."""
    raw: dict[str, Any] = {"architectures": [layout.architecture], "model_type": layout.model_type}
    for name, keys in layout.settings.items():
        value = getattr(config, name)
        value = ACTIVATION_KEYS[value] if name == "activation" else value
        raw |= dict.fromkeys((keys,) if isinstance(keys, str) else keys, value)
    return raw | dict(layout.fixed)


def activation_from_file(name: Any) -> str:
    """Our name of an activation."""
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{CONFIG_FILE}: the activation must be one of {', '.join(ACTIVATION_NAMES)}, "
            f"got {name!r}"
        )
    return ACTIVATION_NAMES[name]
