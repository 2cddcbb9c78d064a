"""Names of people and villages, put together from syllables with one Chinese character each.

A person is start + [middle] + end, and the end decides between she and he; a village is start +
place end. Starts and ends have Zipf weights, so a few names are met often, as names are, and most
of them hardly ever. Two people of one story differ in their start, and so do two villages.
"""

from __future__ import annotations

from llm_town.errors import DataError
from llm_town.lexicon import Entry, Table, zipf

MIDDLE = 0.05  # the share of names with three syllables


def _add(entries: dict[str, Entry], entry: Entry, syllables: str) -> None:
    if entry.lemma in entries:
        raise DataError(
            f"the name {entry.lemma!r} can be read in two ways, one of them {syllables}"
        )
    entries[entry.lemma] = entry


def person_table(lexicon: dict[str, tuple[Entry, ...]]) -> Table:
    """All names of people with their probabilities; every name must split in one way only."""
    starts, middles = lexicon["name_start"], lexicon["name_middle"]
    ends = [
        (end, gender, share)
        for gender in ("f", "m")
        for end, share in _weighted(lexicon[f"name_end_{gender}"])
    ]
    entries: dict[str, Entry] = {}
    weights: list[float] = []
    for start, first in _weighted(starts):
        for middle in (None, *middles):
            for end, gender, last in ends:
                parts = [start, end] if middle is None else [start, middle, end]
                entry = Entry(
                    "".join(part.lemma for part in parts).capitalize(),
                    "name",
                    "person",
                    "".join(part.zh for part in parts),
                    "位",
                    {gender: ""},
                    group=start.lemma,
                )
                _add(entries, entry, "-".join(part.lemma for part in parts))
                inner = 1 - MIDDLE if middle is None else MIDDLE / len(middles)
                weights.append(first * inner * last)
    return Table(entries.values(), weights)


def village_table(lexicon: dict[str, tuple[Entry, ...]]) -> Table:
    """All names of villages with their probabilities."""
    entries: dict[str, Entry] = {}
    weights: list[float] = []
    for start, first in _weighted(lexicon["name_start"]):
        for end, last in _weighted(lexicon["place_end"]):
            name = (start.lemma + end.lemma).capitalize()
            entry = Entry(name, "name", "village", start.zh + end.zh, "座", group=start.lemma)
            _add(entries, entry, f"{start.lemma}-{end.lemma}")
            weights.append(first * last)
    return Table(entries.values(), weights)


def _weighted(entries: tuple[Entry, ...]) -> list[tuple[Entry, float]]:
    return list(zip(entries, zipf(len(entries), 0.0)))


def syllables(name: str, lexicon: dict[str, tuple[Entry, ...]]) -> tuple[str, ...]:
    """The syllables of a name as written, the first with its capital: Marina -> Ma, ri, na."""
    ends = ("name_end_f", "name_end_m", "place_end")
    final = [end.lemma for kind in ends for end in lexicon[kind]]
    middles = ["", *(middle.lemma for middle in lexicon["name_middle"])]
    for start in (entry.lemma.capitalize() for entry in lexicon["name_start"]):
        for middle in middles if name.startswith(start) else ():
            if name.removeprefix(start + middle) in final and name.startswith(start + middle):
                return tuple(filter(None, (start, middle, name.removeprefix(start + middle))))
    raise DataError(f"{name!r} is not a name of Town")
