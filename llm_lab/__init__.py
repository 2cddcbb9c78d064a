"""What the book needs beside the models: checks, pictures, costs, counting, recorded results.

Names are imported when they are first used, so `import llm_lab` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_lab.pictures.attention import attention_maps, attention_view

__all__ = ["attention_maps", "attention_view"]

_HOMES = dict.fromkeys(__all__, "llm_lab.pictures.attention")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llm_lab' has no attribute {name!r}")
