"""The words of Town: `lexicon.tsv` read and checked, inflected, and given Zipf weights.

A row of the file is one stem with its class, its irregular forms and its Chinese word. The rows of
a class stand together, the most frequent first. The word of rank r (from 1) is drawn with
probability proportional to 1 / (r + 1)^1.5, Mandelbrot's form of Zipf's law: a few words of a class
are met again and again, and most of them now and then.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from llm_town.errors import DataError

LEXICON_FILE = Path(__file__).with_name("lexicon.tsv")
CLOSED_FILE = Path(__file__).with_name("closed.tsv")  # numbers, ends of village names
HEADER = ["lemma", "pos", "class", "forms", "zh", "measure"]
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv", "number", "syllable")
FLAGS = ("mass", "f", "m", "good", "bad", "a", "an")
KEYS = ("plural", "past", "part", "third", "ing")
ZIPF_SHIFT = 1.0
# English writes months with a capital, but not the seasons, which share their class.
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
PRONOUNS = {
    "she": {"f": "she", "m": "he"},
    "her": {"f": "her", "m": "his"},
    "him": {"f": "her", "m": "him"},
}


class Forms(dict[str, str]):
    """The surface forms of one entry, inflected on first use; a form ending in ^ is capitalised."""

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry

    def __missing__(self, form: str) -> str:
        if form.endswith("^"):
            plain = self[form[:-1]]
            surface = plain[0].upper() + plain[1:]
        else:
            surface = inflect(self.entry, form)
        self[form] = surface
        return surface


@dataclass(slots=True, eq=False)
class Entry:
    """One stem, or one name, with all it takes to print it in English and in Chinese."""

    lemma: str
    pos: str
    kind: str  # the class column: food, job, colour ...
    zh: str
    measure: str = ""
    marks: dict[str, str] = field(default_factory=dict)
    group: str = ""  # two people of one story differ in their group: the first syllable
    forms: Forms = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.group = self.group or self.lemma
        self.forms = Forms(self)

    @property
    def gender(self) -> str:
        """f or m for people; empty for everything else."""
        return "f" if "f" in self.marks else "m" if "m" in self.marks else ""


def plural(noun: str) -> str:
    """The regular plural; also the regular third person of a verb."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """The regular past tense; doubled consonants and strong verbs are marked in the file."""
    if verb.endswith("e"):
        return verb + "d"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied"
    return verb + "ed"


def article(entry: Entry) -> str:
    """a, an or (before a mass noun) some."""
    if "mass" in entry.marks:
        return "some"
    if "an" in entry.marks or "a" in entry.marks:
        return "an" if "an" in entry.marks else "a"
    return "an" if entry.lemma[0] in "aeiou" else "a"


def inflect(entry: Entry, form: str) -> str:
    """The surface of an entry: "" the word itself, a, the, s, past, part ..."""
    marks = entry.marks
    if form == "":
        return entry.lemma
    if form == "the":
        return entry.forms[""] if "mass" in marks else f"the {entry.forms['']}"
    if form == "a":
        return f"{article(entry)} {entry.forms['']}"
    if form == "s":
        return entry.forms[""] + "'s"
    if form in PRONOUNS and entry.gender:
        return PRONOUNS[form][entry.gender]
    if entry.pos == "noun" and form == "plural" and "mass" not in marks:
        return marks.get("plural") or plural(entry.lemma)
    if entry.pos == "verb" and form == "past":
        return marks.get("past") or past(entry.lemma)
    if entry.pos == "verb" and form == "part":
        return marks.get("part") or entry.forms["past"]
    if entry.pos == "verb" and form == "third":
        return marks.get("third") or plural(entry.lemma)
    raise DataError(f"{entry.pos} {entry.lemma!r} of class {entry.kind} has no form {form!r}")


class Table:
    """A distribution over entries, ready for drawing by bisection; all logarithms are natural."""

    def __init__(self, entries: Iterable[Entry], weights: Iterable[float]) -> None:
        self.entries = tuple(entries)
        # accumulate adds from left to right in every version of Python; sum() does not.
        totals = list(accumulate(weights))
        if not totals or totals[-1] <= 0 or len(totals) != len(self.entries):
            raise DataError(
                f"a table needs one positive weight an entry, got {len(totals)} weights"
            )
        steps = [b - a for a, b in zip([0.0, *totals], totals)]
        self.p = [step / totals[-1] for step in steps]
        self.log_p = [math.log(p) for p in self.p]
        self.cumulative = [t / totals[-1] for t in totals[:-1]]  # bisect never passes the end
        self.index = {entry.lemma: i for i, entry in enumerate(self.entries)}
        self.mass: dict[str, float] = {}  # probability of each group, for draws that exclude one
        for entry, p in zip(self.entries, self.p):
            self.mass[entry.group] = self.mass.get(entry.group, 0.0) + p
        self._entropies: dict[str, float] = {}

    def draw(self, uniform: float) -> int:
        """The index that a uniform number in [0, 1) selects."""
        return bisect_right(self.cumulative, uniform)

    def entropy(self, without: str = "") -> float:
        """Entropy in nats, where wanted under the condition that a group is not drawn."""
        if without not in self._entropies:
            rest = 1.0 - self.mass.get(without, 0.0)
            kept = [p for entry, p in zip(self.entries, self.p) if entry.group != without]
            self._entropies[without] = -math.fsum(p / rest * math.log(p / rest) for p in kept)
        return self._entropies[without]


def zipf(n: int, shift: float = ZIPF_SHIFT) -> list[float]:
    """The weights (r + shift)^(-3/2) of the ranks 1 to n; every machine rounds a root alike."""
    return [1.0 / ((rank + shift) * math.sqrt(rank + shift)) for rank in range(1, n + 1)]


def read_lexicon(*paths: Path) -> dict[str, tuple[Entry, ...]]:
    """The entries of each class in their order of frequency; errors name the file and the line.

    Without paths: Town's own two files. Later files may only add classes.
    """
    classes: dict[str, list[Entry]] = {}
    lemmas: dict[str, str] = {}
    translations: dict[tuple[str, str], str] = {}
    last = ""
    rows = (row for path in paths or (LEXICON_FILE, CLOSED_FILE) for row in _rows(path))
    for where, cells in rows:
        entry = _entry(where, cells)
        if entry.kind != last and entry.kind in classes:
            raise DataError(f"{where}: the rows of class {entry.kind!r} must stand together")
        if entry.pos != "syllable" and entry.lemma in lemmas:
            raise DataError(f"{where}: {entry.lemma!r} stands already in {lemmas[entry.lemma]}")
        if (entry.kind, entry.zh) in translations:
            first = translations[entry.kind, entry.zh]
            raise DataError(f"{where}: {entry.zh!r} is taken in this class by {first}")
        lemmas.setdefault(entry.lemma, where)
        translations[entry.kind, entry.zh] = where
        classes.setdefault(entry.kind, []).append(entry)
        last = entry.kind
    return {kind: tuple(entries) for kind, entries in classes.items()}


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0].split("\t") != HEADER:
        raise DataError(f"{path}, line 1: the header must be {HEADER}, tab-separated")
    for number, line in enumerate(lines[1:], 2):
        if line.strip() and not line.startswith("#"):
            yield f"{path.name}, line {number}", line.split("\t")


def _entry(where: str, cells: list[str]) -> Entry:
    if len(cells) != len(HEADER):
        raise DataError(f"{where}: {len(cells)} cells, expected {len(HEADER)}")
    lemma, pos, kind, forms, zh, measure = cells
    if not re.fullmatch(r"[a-z]+", lemma):
        raise DataError(f"{where}: the lemma must be letters a-z, got {lemma!r}")
    if pos not in PARTS_OF_SPEECH:
        raise DataError(f"{where}: pos must be one of {PARTS_OF_SPEECH}, got {pos!r}")
    if not kind or not zh:
        raise DataError(f"{where}: the class and the Chinese word must not be empty")
    if pos == "syllable" and len(zh) != 1:
        raise DataError(f"{where}: a syllable has exactly one character, got {zh!r}")
    marks: dict[str, str] = {}
    for mark in filter(None, (part.strip() for part in forms.split(","))):
        key, _, value = mark.partition("=")
        if (value and key not in KEYS) or (not value and key not in FLAGS):
            raise DataError(f"{where}: unknown mark {mark!r}; flags {FLAGS}, keys {KEYS}")
        marks[key] = value
    written = lemma.capitalize() if lemma in MONTHS or kind == "day" else lemma
    return Entry(written, pos, kind, zh, measure, marks)
