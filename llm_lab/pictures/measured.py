"""Marks output that differs from machine to machine.

The numbers of a trained model, sampled text and the payload of an interactive view stand between
markers. The validation of the notebooks replaces what is between them, so a cell that measures
also asserts the band in which the result must lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BEGIN, END = "--- measured ---", "--- end measured ---"
BEGIN_HTML, END_HTML = "<!-- measured -->", "<!-- /measured -->"


@contextmanager
def measured() -> Iterator[None]:
    """Mark what is printed inside: `with measured(): print(sample)`."""
    print(BEGIN)
    try:
        yield
    finally:
        print(END)


def measured_html(payload: str) -> str:
    """Mark a part of an HTML output; raises ValueError when it holds a marker already."""
    if BEGIN_HTML in payload or END_HTML in payload:
        raise ValueError(f"a measured payload must not hold {BEGIN_HTML} or {END_HTML}")
    return f"{BEGIN_HTML}{payload}{END_HTML}"
