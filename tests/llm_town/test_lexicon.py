"""The lexicon, its inflection, tables, kinds of words and names."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from llm_town import (
    town,
)
from llm_town.errors import DataError
from llm_town.kinds import KINDS, kind_table
from llm_town.lexicon import (
    Entry,
    Table,
    inflect,
    read_lexicon,
    zipf,
)
from llm_town.names import syllables
from llm_town.vocabulary import vocabulary

HEADER = "lemma\tpos\tclass\tforms\tzh\tmeasure\n"


def test_the_lexicon_has_over_two_thousand_stems_and_stories_use_them() -> None:
    words = vocabulary()
    assert words.stems >= 2_500
    assert words.stems_used >= 2_500
    assert 2_200 <= len(words.words) <= 3_500
    assert words.names == 20 * 21 * 20 + 20 * 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("kettle\tnoun\ttool\t\t水壶\n", "line 2: 5 cells"),
        ("Kettle\tnoun\ttool\t\t水壶\t把\n", "line 2: the lemma must be letters"),
        ("kettle\tthing\ttool\t\t水壶\t把\n", "line 2: pos must be one of"),
        ("kettle\tnoun\ttool\t\t\t把\n", "line 2: the class and the Chinese"),
        ("kettle\tnoun\ttool\thuge\t水壶\t把\n", "line 2: unknown mark 'huge'"),
        ("ma\tsyllable\tname_start\t\t玛丽\t\n", "line 2: a syllable has exactly one"),
        ("pan\tnoun\tt\t\t锅\t口\npan\tnoun\tt\t\t壶\t口\n", "line 3: 'pan' stands already"),
        ("pan\tnoun\tt\t\t锅\t口\npot\tnoun\tt\t\t锅\t口\n", "line 3: '锅' is taken"),
        ("a\tnoun\tt\t\t甲\t口\nb\tnoun\tu\t\t乙\t口\nc\tnoun\tt\t\t丙\t口\n", "line 4: the rows"),
    ],
)
def test_a_bad_lexicon_is_refused_with_its_line(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "words.tsv"
    path.write_text(HEADER + rows, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_lexicon(path)


def test_a_lexicon_without_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_text("kettle\tnoun\ttool\t\t水壶\t把\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: the header"):
        read_lexicon(path)


@pytest.mark.parametrize(
    ("lemma", "pos", "marks", "form", "expected"),
    [
        ("box", "noun", {}, "plural", "boxes"),
        ("berry", "noun", {}, "plural", "berries"),
        ("mouse", "noun", {"plural": "mice"}, "plural", "mice"),
        ("apple", "noun", {}, "a", "an apple"),
        ("hour", "noun", {"an": ""}, "a", "an hour"),
        ("bread", "noun", {"mass": ""}, "a", "some bread"),
        ("bread", "noun", {"mass": ""}, "the", "bread"),
        ("carve", "verb", {}, "past", "carved"),
        ("carry", "verb", {}, "past", "carried"),
        ("buy", "verb", {"past": "bought"}, "part", "bought"),
        ("fix", "verb", {}, "third", "fixes"),
        ("aunt", "noun", {"f": ""}, "her", "her"),
        ("uncle", "noun", {"m": ""}, "him", "him"),
        ("uncle", "noun", {"m": ""}, "s^", "Uncle's"),
    ],
)
def test_inflection(lemma: str, pos: str, marks: dict[str, str], form: str, expected: str) -> None:
    assert Entry(lemma, pos, "x", "字", marks=marks).forms[form] == expected


def test_a_form_that_a_word_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="no form 'past'"):
        inflect(Entry("pan", "noun", "tool", "锅"), "past")


def test_a_table_draws_with_its_probabilities() -> None:
    entries = [Entry(word, "noun", "x", word) for word in ("one", "two", "three")]
    table = Table(entries, zipf(3, 1.0))
    assert math.isclose(math.fsum(table.p), 1.0)
    assert [round(p / table.p[0], 9) for p in table.p] == [
        round((2 / r) ** 1.5, 9) for r in (2, 3, 4)
    ]
    rng = random.Random(0)
    counts = Counter(table.draw(rng.random()) for _ in range(30_000))
    assert all(abs(counts[i] / 30_000 - p) < 0.01 for i, p in enumerate(table.p))
    without = [p / (1 - table.p[1]) for i, p in enumerate(table.p) if i != 1]
    assert math.isclose(table.entropy("two"), -sum(p * math.log(p) for p in without))


def test_every_word_of_a_kind_is_in_the_lexicon_and_of_one_part_of_speech() -> None:
    grammar = town()
    words = {entry.lemma for entries in grammar.lexicon.values() for entry in entries}
    for kind, selection in KINDS.items():
        picked = [item[1:] for item in selection.split() if item[0] in "+-"]
        assert set(picked) <= words, kind
        assert len({entry.pos for entry in grammar.table(kind).entries}) == 1, kind
    with pytest.raises(DataError, match="there is no class 'unicorns'"):
        kind_table("unicorns", grammar.lexicon)


def test_names_split_into_syllables_in_one_way() -> None:
    lexicon = town().lexicon
    for entry in islice(town().table("person").entries, 0, None, 97):
        assert "".join(syllables(entry.lemma, lexicon)) == entry.lemma
    with pytest.raises(DataError, match="'Rumpel' is not a name"):
        syllables("Rumpel", lexicon)
