"""The errors of this package; each message names the field, the value and the allowed range."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class DataError(ValueError):
    """A text, a file or a data set cannot be used; names the file, the line and the byte."""


class WeightsError(ValueError):
    """A weight file does not fit the model: missing, extra or misshapen tensors are all listed."""


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete or damaged, or belongs to another run."""


class RunInUseError(RuntimeError):
    """Another process holds the run directory."""


class HeldOutError(RuntimeError):
    """The test set was asked for a second time, or before the work on the development set."""
