"""The errors of this package; each message names the field, the value and the allowed range."""

from __future__ import annotations

from llm_town.errors import ConfigError, DataError  # of the corpus and of the package alike

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HeldOutError",
    "RunInUseError",
    "WeightsError",
]


class WeightsError(ValueError):
    """A weight file does not fit the model: missing, extra or misshapen tensors are all listed."""


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete or damaged, or belongs to another run."""


class RunInUseError(RuntimeError):
    """Another process holds the run directory."""


class HeldOutError(RuntimeError):
    """The test set was asked for a second time, or before the work on the development set."""
