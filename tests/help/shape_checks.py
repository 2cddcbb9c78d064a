"""The checker behind the shape annotations: beartype, with an int where a float is annotated."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # PEP 484: an int is fine for a float
