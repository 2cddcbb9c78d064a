"""The errors of Town; each message names the field, the value and the allowed range."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class DataError(ValueError):
    """A text, a file or a data set cannot be used; names the file, the line and the byte."""
