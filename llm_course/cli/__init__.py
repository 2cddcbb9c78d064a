"""`llm-course ...`: the commands (`commands.py`), and the words that call them (`parsing.py`).

tyro turns the dataclasses into a command line. On a machine without tyro a plain argparse parser
with the same options does, so that a training run needs nothing but torch and the tokenizers.
Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from llm_course.cli.commands import COMMANDS
from llm_course.cli.parsing import parse, parse_plainly

__all__ = ["COMMANDS", "main", "parse", "parse_plainly"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of ours are one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        return _run(words)


def _run(words: list[str]) -> int:
    """Parse a command and run it; its exit status."""
    try:
        if chosen := parse(words):
            chosen.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # `llm-course ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not _explains_itself(error):
            raise
        notes = " ".join(getattr(error, "__notes__", ()))
        _say(f"{type(error).__name__}: {error} {notes}".rstrip())
        return 2
    return 0


def _explains_itself(error: Exception) -> bool:
    """Whether the message is all that a user needs; of a fault in the course he sees the place."""
    from llm_course.errors import CheckpointError, HeldOutError, RunInUseError

    known = (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError)
    ours = isinstance(error, (*known, CheckpointError, HeldOutError, RunInUseError))
    return ours or type(error).__name__ == "OutOfMemoryError"  # torch's, which may not be imported


def _say(message: str) -> None:
    print(f"llm-course: {message}", file=sys.stderr)


def _say_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as one line, without the place in the source that gave it."""
    _say(f"{category.__name__}: {message}")
