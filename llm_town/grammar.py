"""The story grammar of Town: plots made of beats, beats made of clauses, clauses made of words.

A story follows one plot of `PLOTS`, a sequence of beats. Each beat becomes one sentence: one of
the clauses that `clauses.tsv` lists for it, the r-th with probability proportional to 1 / (r + 1).
A clause draws new words for its slots, or recalls words that the story has used before. So every
choice is an independent draw from a known table, and the probability of a story is their product.

Slots: `{+x}` draws a word of kind x and binds it to the name x; `{+x:kind}` draws from another
kind; `{+x:kind-y}` draws one that differs from the word bound to y; `{x}` recalls. A form may
follow the name: `{x.a}` with its article, `{x.past}`, `{x.s}`, `{x.she}`, `{x.her}`, `{x.him}`.
The grammar is checked when it is loaded: nothing is recalled that may be unbound, and no two
plots can tell the same story. That no sentence belongs to two clauses is proven by a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path

from llm_town.errors import DataError
from llm_town.kinds import kind_table
from llm_town.lexicon import (
    CLOSED_FILE,
    LEXICON_FILE,
    PRONOUNS,
    Entry,
    Table,
    read_lexicon,
)
from llm_town.names import person_table, village_table

CLAUSES_FILE = Path(__file__).with_name("clauses.tsv")

# A plot's weight and its beats; a beat with ? is left out in half of the stories.
PLOTS: dict[str, tuple[int, str]] = {
    "bargain": (6, "who when? want price buy enjoy"),
    "found": (6, "who when? lose seek find thank"),
    "repair": (5, "who when? break helper fix fixed"),
    "feast": (5, "who when? invite cooking tasty after_feast"),
    "gift": (5, "who when? birthday prepare give given"),
    "animal": (5, "who when? meet behave owner reunion"),
    "visit": (4, "who when? plan bring arrive stay? leave"),
    "party": (4, "who when? announce come party after_party"),
    "work": (4, "who when? order task labour pay after_work?"),
    "good_news": (4, "who when? letter read joy_line joy"),
    "garden": (4, "who when? sow pest advice bloom"),
    "journey": (4, "who when? depart stuck rescue reach"),
    "loan": (3, "who when? loan spoil anger peace forgive"),
    "too_dear": (3, "who when? want price miss regret"),
    "gone": (3, "who when? lose seek never mourn"),
    "failure": (3, "who when? invite cooking awful after_awful"),
    "lesson": (3, "who when? flaw offend ask change"),
    "bad_news": (3, "who when? letter read sad_line comfort"),
    "rained_off": (3, "who when? announce come trouble after_trouble"),
}
SKIP = 0.5  # the probability of leaving out a beat marked with ?

# What binding a name says about another one: (subject, relation).
FACTS: dict[str, tuple[str, str]] = {
    "job": ("hero", "job"),
    "home": ("hero", "home"),
    "trait": ("hero", "trait"),
    "flaw": ("hero", "flaw"),
    "virtue": ("hero", "trait"),
    "landmark": ("hero", "lives near"),
    "kin": ("hero", "family"),
    "feel": ("hero", "feeling"),
    "friend": ("hero", "meets"),
    "job2": ("friend", "job"),
    "town2": ("friend", "home"),
    "feel2": ("friend", "feeling"),
    "thing": ("hero", "thing"),
    "colour": ("thing", "colour"),
    "price": ("thing", "price"),
    "bad": ("thing", "damage"),
    "good": ("thing", "quality"),
    "material": ("thing", "material"),
    "shop": ("thing", "shop"),
    "place": ("thing", "place"),
    "room": ("thing", "room"),
    "food": ("hero", "food"),
    "taste": ("food", "taste"),
    "animal": ("hero", "animal"),
    "plant": ("hero", "plant"),
    "vehicle": ("hero", "vehicle"),
    "event": ("hero", "event"),
    "day": ("hero", "day"),
    "month": ("hero", "month"),
}
SLOT = re.compile(r"\{(\+?)(\w+)(?:\.(\w+))?(?::(\w+))?(?:-(\w+))?\}")
ARTICLES = frozenset(("a", "an", "some"))


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a clause that a word fills; `table` is None where the word is recalled."""

    name: str
    form: str  # of the surface; a trailing ^ capitalises
    key: str  # the form that the derivation keeps: "" the lemma, or "she" for a pronoun
    kind: str
    unlike: str  # the name of the word that must not be drawn again
    table: Table | None


@dataclass(frozen=True, slots=True)
class Clause:
    """A sentence pattern: `english` with %s for each slot; `log_p` is that of choosing it."""

    id: str
    beat: str
    english: str
    chinese: str
    slots: tuple[Slot, ...]
    log_p: float
    source: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Beat:
    """A place in a plot, and the clauses that may fill it."""

    name: str
    clauses: tuple[Clause, ...]
    table: Table  # over the clauses


def tokens(text: str) -> list[str]:
    """Lower-case words, with their apostrophe, and punctuation marks; a slot's % stays."""
    return re.findall(r"[a-z%']+|[^\sa-z%']", text.lower())


class Grammar:
    """Lexicon, kinds, clauses and plots together; build it once with `town()`."""

    def __init__(self, lexicon: dict[str, tuple[Entry, ...]], clauses: Path) -> None:
        self.lexicon = lexicon
        self.tables: dict[str, Table] = {
            "person": person_table(lexicon),
            "village": village_table(lexicon),
        }
        self.beats = {name: self._beat(name, rows) for name, rows in _read_clauses(clauses)}
        self.clauses = {c.id: c for beat in self.beats.values() for c in beat.clauses}
        names = [_label(plot) for plot in PLOTS]
        self.plot_table = Table(names, [weight for weight, _ in PLOTS.values()])
        self.plots: dict[str, tuple[tuple[Beat, bool], ...]] = {
            plot: tuple((self._named(plot, b.rstrip("?")), b.endswith("?")) for b in beats.split())
            for plot, (_, beats) in PLOTS.items()
        }
        self.kinds_of = self._kinds_of_names()
        _check_bindings(self)
        _check_plots(self)

    def table(self, kind: str) -> Table:
        if kind not in self.tables:
            self.tables[kind] = kind_table(kind, self.lexicon)
        return self.tables[kind]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every word and name by its lemma."""
        found = {e.lemma: e for entries in self.lexicon.values() for e in entries}
        for kind in ("person", "village"):
            found |= {e.lemma: e for e in self.tables[kind].entries}
        return found

    def _named(self, plot: str, beat: str) -> Beat:
        if beat not in self.beats:
            raise DataError(f"plot {plot!r} names the beat {beat!r}, which has no clause")
        return self.beats[beat]

    def _beat(self, name: str, rows: list[tuple[str, str]]) -> Beat:
        names = [_label(f"{name}.{i}") for i in range(1, len(rows) + 1)]
        table = Table(names, [1.0 / (rank + 1) for rank in range(1, len(rows) + 1)])
        clauses = tuple(
            self._clause(f"{name}.{i}", name, english, chinese, table.log_p[i - 1])
            for i, (english, chinese) in enumerate(rows, 1)
        )
        return Beat(name, clauses, table)

    def _clause(self, key: str, beat: str, english: str, chinese: str, log_p: float) -> Clause:
        slots = []
        for match in SLOT.finditer(english):
            new, name, form, kind, unlike = match.groups(default="")
            first = match.start() == 0 or english[: match.start()].endswith('"')
            slots.append(
                Slot(
                    name=name,
                    form=form + "^" if first else form,
                    key="she" if form in PRONOUNS else "",
                    kind=(kind or name) if new else "",
                    unlike=unlike,
                    table=self.table(kind or name) if new else None,
                )
            )
        pattern = SLOT.sub("%s", english)
        if "{" in pattern or pattern.count("%") != len(slots):
            raise DataError(f"clause {key}: cannot read the slots of {english!r}")
        return Clause(key, beat, pattern, chinese, tuple(slots), log_p, english)

    def _kinds_of_names(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, set[str]] = {}
        for clause in self.clauses.values():
            for slot in clause.slots:
                if slot.kind:
                    found.setdefault(slot.name, set()).add(slot.kind)
        return {name: tuple(sorted(kinds)) for name, kinds in found.items()}

    def fillers(self, slot: Slot) -> dict[str, str]:
        """Lower-case surface -> what the derivation keeps, for all words that fit the slot."""
        form = slot.form.rstrip("^")
        kinds = (slot.kind,) if slot.kind else self.kinds_of[slot.name]
        return self._index(kinds, form)

    def _index(self, kinds: tuple[str, ...], form: str) -> dict[str, str]:
        if form in PRONOUNS:
            kinds = ()
        cached = self._indices.get((kinds, form))
        if cached is None:
            genders = ("f", "m") if form in PRONOUNS else ()
            cached = {PRONOUNS[form][g]: PRONOUNS["she"][g] for g in genders}
            for kind in kinds:
                for entry in self.table(kind).entries:
                    surface = entry.forms["" if form in ("a", "the") else form].lower()
                    if cached.setdefault(surface, entry.lemma) != entry.lemma:
                        raise DataError(f"{surface!r} is a form of two words in {kinds}")
            self._indices[kinds, form] = cached
        return cached

    @cached_property
    def _indices(self) -> dict[tuple[tuple[str, ...], str], dict[str, str]]:
        return {}


def _label(name: str) -> Entry:
    return Entry(name, "name", "grammar", "")


def _read_clauses(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The beats in the order of the file, each with its (English, Chinese) patterns."""
    beats: dict[str, list[tuple[str, str]]] = {}
    last = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        where = f"{path.name}, line {number}"
        if len(cells) != 3 or not all(cells):
            raise DataError(f"{where}: expected beat, English and Chinese, tab-separated")
        if cells[0] != last and cells[0] in beats:
            raise DataError(f"{where}: the clauses of beat {cells[0]!r} must stand together")
        last = cells[0]
        beats.setdefault(last, []).append((cells[1], cells[2]))
    yield from beats.items()


def _check_bindings(grammar: Grammar) -> None:
    """Every recalled name is bound on every path that leads to it."""
    for plot, beats in grammar.plots.items():
        bound: set[str] = set()
        for beat, optional in beats:
            after: list[set[str]] = []
            for clause in beat.clauses:
                names = set(bound)
                for slot in clause.slots:
                    missing = {slot.unlike} - {""} - names
                    missing |= set() if slot.table else {slot.name} - names
                    if missing:
                        raise DataError(f"plot {plot}, clause {clause.id}: {missing} not bound")
                    names.add(slot.name)
                after.append(names)
            if not optional:
                bound = set.intersection(*after)


def _check_plots(grammar: Grammar) -> None:
    """Any two plots differ in a beat that one must have and the other cannot have."""
    for plot, beats in grammar.plots.items():
        if len({beat.name for beat, _ in beats}) != len(beats):
            raise DataError(f"plot {plot!r} has a beat twice")
    for one, two in combinations(grammar.plots, 2):
        has = [{beat.name for beat, _ in grammar.plots[plot]} for plot in (one, two)]
        must = [{b.name for b, optional in grammar.plots[p] if not optional} for p in (one, two)]
        if not (must[0] - has[1] or must[1] - has[0]):
            raise DataError(f"the plots {one!r} and {two!r} can tell the same story")


@cache
def town(
    lexicon: tuple[Path, ...] = (LEXICON_FILE, CLOSED_FILE), clauses: Path = CLAUSES_FILE
) -> Grammar:
    """The grammar of Town, read and checked once a process."""
    return Grammar(read_lexicon(*lexicon), clauses)
