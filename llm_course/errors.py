"""The errors of this package; each message names the field, the value and the allowed range."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

from llm_town.errors import ConfigError, DataError  # of the corpus and of the package alike

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HeldOutError",
    "RunInUseError",
    "WeightsError",
    "did_you_mean",
]


class WeightsError(ValueError):
    """A weight file does not fit the model: missing, extra or misshapen tensors are all listed."""


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete or damaged, or belongs to another run."""


class RunInUseError(RuntimeError):
    """Another process holds the run directory."""


class HeldOutError(RuntimeError):
    """The test set was asked for a second time, or before the work on the development set."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none: the known one that is nearest, or nothing."""
    near = difflib.get_close_matches(name[:100], islice(known, 1000), n=1)  # else it takes long
    return f"; did you mean {near[0]!r}?" if near else ""
