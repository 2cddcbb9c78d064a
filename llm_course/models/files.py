"""Weights on disk in Hugging Face's layout: `config.json` and `model.safetensors`.

Every model inherits `from_pretrained` and `save_pretrained` from `PretrainedModel`; its names in a
file stand in `layouts.py`. Only safetensors and JSON are read: nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_course.errors import ConfigError, WeightsError
from llm_course.models.layouts import ACTIVATION_NAMES, FileLayout

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Model = TypeVar("Model", bound="PretrainedModel")  # beartype refuses `Self` on a method


class PretrainedModel(nn.Module):
    """A model that is read from, and written to, a directory in Hugging Face's layout."""

    layout: FileLayout  # of the class; a model whose config asks for another has its own
    config_class: ClassVar[Any]
    config: Any

    @property
    def tied(self) -> dict[str, str]:
        """Names in the state dict that share storage: alias -> the name that files keep."""
        return dict(self.layout.ties) if self.config.tied else {}

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> Any:
        """Our settings from a `config.json`; what we do not support is refused by name."""
        return cls.config_class.from_dict(read_settings(raw, cls.layout))

    @classmethod
    def config_to_file(cls, config: Any) -> dict[str, Any]:
        """The content of `config.json` for our settings."""
        return write_settings(config, cls.layout)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | os.PathLike[str],
        *,
        heads: Literal["new"] | None = None,
        dtype: torch.dtype | None = None,
        dropout: float | None = None,
    ) -> Model:
        """The model in a directory, or on the Hugging Face hub, in evaluation mode.

        Args:
            path: a directory with `config.json` and `model.safetensors`, or a hub id.
            heads: "new" initialises the heads that the file does not have, from the global random
                numbers; otherwise each missing tensor is an error.
            dtype: of the parameters; None: as in the file.
            dropout: replaces the file's, and is needed where that has several rates.

        Raises:
            ConfigError: the file asks for something that this model does not have.
            WeightsError: unreadable, or tensors are missing, extra or misshapen: all are listed.
        """
        if heads not in (None, "new"):
            raise ValueError(f'heads must be None or "new", got {heads!r}')
        directory = find_directory(path)
        raw = read_json(directory / CONFIG_FILE)
        if dropout is not None:
            raw |= dict.fromkeys(_as_tuple(cls.layout.settings["dropout"]), dropout)
        model = cls(cls.config_from_file(raw))
        tensors = read_tensors(directory)
        if raw.get("tie_word_embeddings") and not model.config.tied:
            # A T5 1.1 that transformers 5 made has one matrix in both places, written once.
            for alias, name in model.layout.ties.items():
                file = model.layout.locate(name).name
                if file in tensors:
                    tensors.setdefault(model.layout.locate(alias).name, tensors[file])
        model.to(dtype or _common_dtype(tensors.values()))
        model._load(tensors, heads == "new", directory)
        return model.eval()

    def _load(self, tensors: dict[str, Tensor], new_heads: bool, directory: Path) -> None:
        layout, tied = self.layout, self.tied
        state = {name: tensor for name, tensor in self.state_dict().items() if name not in tied}
        shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in layout.to_file(shapes).items()}
        # What the model holds once may stand in the file under both names.
        copies = dict(layout.copies)
        copies |= {layout.locate(alias).name: layout.locate(tied[alias]).name for alias in tied}
        tensors = rename(tensors, layout, {*expected, *copies, *layout.repeats})
        drop_copies(tensors, copies)
        for repeat, name in layout.repeats.items():
            if repeat in tensors:
                tensors.setdefault(name, tensors.pop(repeat))
        in_heads = {layout.locate(name).name for name in state if name.startswith(layout.heads)}
        compare(tensors, expected, in_heads, new_heads, directory)
        present = [name for name in state if layout.locate(name).name in tensors]
        loaded = {**state, **layout.from_file(tensors, present)}
        self.load_state_dict(loaded | {alias: loaded[name] for alias, name in tied.items()})

    def save_pretrained(
        self, path: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors` into the directory `path`.

        Each file is complete or absent, even where the writing is interrupted. Equal weights give
        equal bytes.

        Args:
            state_dict: what to write, under our names, where the model itself holds only a shard
                of it; None: the model's own.
        """
        directory = Path(path)
        if directory.exists() and not directory.is_dir():
            raise WeightsError(f"{directory} is a file; weights are saved into a directory")
        state = self.state_dict() if state_dict is None else state_dict
        wanted = set(self.state_dict()) - set(self.tied)
        unfit = wanted ^ (set(state) - set(self.tied))
        if unfit:
            raise WeightsError(f"state_dict lacks, or has besides: {', '.join(sorted(unfit))}")
        tensors = self.layout.to_file({n: state[n].detach().cpu() for n in sorted(wanted)})
        tensors |= {copy: tensors[name].clone() for copy, name in self.layout.repeats.items()}
        raw = self.config_to_file(self.config)
        raw["dtype"] = str(_common_dtype(tensors.values())).removeprefix("torch.")
        directory.mkdir(parents=True, exist_ok=True)
        weights = directory / f".{WEIGHTS_FILE}.{os.getpid()}"
        config = directory / f".{CONFIG_FILE}.{os.getpid()}"
        try:
            save_file(tensors, weights, metadata={"format": "pt"})
            config.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(weights, directory / WEIGHTS_FILE)
            os.replace(config, directory / CONFIG_FILE)
        finally:
            weights.unlink(missing_ok=True)
            config.unlink(missing_ok=True)


def find_directory(path: str | os.PathLike[str]) -> Path:
    """`path` itself where it is a directory, else the local copy of that model on the hub."""
    directory = Path(path)
    if directory.is_dir():
        return directory
    if directory.exists():
        raise WeightsError(f"{path} is a file: give the directory that holds {CONFIG_FILE}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", str(path)):
        raise WeightsError(f"there is no directory {str(path)!r}, and a hub id is OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt"]
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except Exception as error:  # its errors have no common ancestor
        raise WeightsError(
            f"there is no directory {str(path)!r} here, and it could not be fetched from the "
            f"Hugging Face hub: {error}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError names the file and the place."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_settings(raw: Mapping[str, Any], layout: FileLayout) -> dict[str, Any]:
    """Our config fields from a `config.json`; keys that are absent keep our default."""
    wanted, kind = layout.model_type, raw.get("model_type")
    if kind != wanted:
        raise ConfigError(f"{CONFIG_FILE}: model_type must be {wanted!r}, got {kind!r}")
    for key, value in layout.fixed.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"{CONFIG_FILE}: {key} must be {value!r} here, got {raw[key]!r}")
    for key in ("quantization_config", "pruned_heads"):
        if raw.get(key):
            raise ConfigError(f"{CONFIG_FILE}: {key} is not supported, got {raw[key]!r}")
    values = {}
    for name, keys in layout.settings.items():
        keys = _as_tuple(keys)
        keys += tuple(alias for alias, key in layout.aliases.items() if key in keys)
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
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            known = ", ".join(ACTIVATION_NAMES)
            raise ConfigError(f"{CONFIG_FILE}: activation must be one of {known}, got {value!r}")
        return ACTIVATION_NAMES[value]
    is_id = name.endswith("_token_id")
    if is_id and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if name == "tied":
        wanted, right = "true or false", isinstance(value, bool)
    else:
        wanted = "one whole number" if is_id else "one number"
        right = isinstance(value, int if is_id else (int, float)) and not isinstance(value, bool)
    if not right:
        raise ConfigError(f"{CONFIG_FILE}: {key} must be {wanted}, got {value!r}")
    return value


def write_settings(config: Any, layout: FileLayout) -> dict[str, Any]:
    """The content of a `config.json` that transformers and `read_settings` understand."""
    raw: dict[str, Any] = {"architectures": [layout.architecture], "model_type": layout.model_type}
    for name, keys in layout.settings.items():
        value = getattr(config, name)
        if name == "activation":
            value = next(theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == value)
        raw |= dict.fromkeys(_as_tuple(keys), value)
    return raw | dict(layout.fixed)


def _as_tuple(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that its index lists."""
    if (directory / WEIGHTS_FILE).exists():
        return _read_file(directory / WEIGHTS_FILE)
    if (directory / INDEX_FILE).exists():
        return _read_shards(directory)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    # What comes from the hub is fetched without its pickled files, so they cannot be named.
    found = f"has only pickled weights ({pickled[0]})" if pickled else "has no safetensors"
    raise WeightsError(
        f"{directory} {found}: neither {WEIGHTS_FILE} nor {INDEX_FILE}. Pickled weights (.bin) may "
        "run code when they are read. Convert them once, where you trust them: transformers."
        "AutoModelForPreTraining.from_pretrained(PATH).save_pretrained(NEW_PATH)"
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _read_shards(directory: Path) -> dict[str, Tensor]:
    index = directory / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index} has no weight_map")
    for name in weight_map.values():
        # Only a plain name: "../x" or "/x" would read outside the directory.
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise WeightsError(f"{index}: {name!r} is not the name of a file beside it")
    shards = {name: _read_file(directory / name) for name in sorted(set(weight_map.values()))}
    absent = [name for name, shard in weight_map.items() if name not in shards[shard]]
    if absent:
        raise WeightsError(f"{index}: not in the file it names: {', '.join(sorted(absent))}")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def rename(tensors: Mapping[str, Tensor], layout: FileLayout, known: set[str]) -> dict[str, Tensor]:
    """Older and shorter names as today's: gamma and beta, no prefix; and no buffers."""
    renamed: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        if any(re.search(pattern, old) for pattern in layout.ignored):
            continue
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", old))
        if name not in known and layout.prefix + name in known:
            name = layout.prefix + name
        if name in renamed:
            raise WeightsError(f"the file holds {name} twice, under an older name too")
        renamed[name] = tensor
    return renamed


def drop_copies(tensors: dict[str, Tensor], copies: Mapping[str, str]) -> None:
    """Keep one of each pair that the model shares; two that differ are an error."""
    for copy, name in copies.items():
        if copy in tensors:
            tensor = tensors.pop(copy)
            if name in tensors and not torch.equal(tensor, tensors[name]):
                raise WeightsError(
                    f"{copy} and {name} differ, but this model shares them "
                    '("tie_word_embeddings": true)'
                )
            tensors[name] = tensor


def compare(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    heads: set[str],
    new_heads: bool,
    directory: Path,
) -> None:
    """WeightsError with every missing, extra, misshapen and quantized tensor, or nothing."""
    missing = set(expected) - set(tensors)
    required = missing - heads if new_heads else missing
    misshapen = {
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    }
    problems = {
        "missing": required,
        "extra": set(tensors) - set(expected),
        "misshapen": misshapen,
        "of a type that is not supported": {
            f"{name} {tensor.dtype}"
            for name, tensor in tensors.items()
            if name in expected and tensor.dtype not in DTYPES
        },
    }
    lines = [f"  {kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names]
    if required and required <= heads:
        lines.append('  heads="new" initialises the missing ones, which are all parts of heads')
    if lines:
        raise WeightsError("\n".join([f"the weights in {directory} do not fit:", *lines]))


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The one float type of the tensors; float32 where they have several."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
