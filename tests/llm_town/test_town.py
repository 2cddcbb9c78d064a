"""Town: the lexicon, the grammar's own checks, the generator, splits and the floor."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from itertools import combinations, islice
from pathlib import Path

import pytest

import llm_town
from llm_town import (
    SPLITS,
    Grammar,
    document_entropy,
    entropy_floor,
    facts,
    generate_documents,
    polarity,
    spans,
    split_of,
    split_sentences,
    town,
)
from llm_town.errors import DataError
from llm_town.grammar import ARTICLES, CLAUSES_FILE, PLOTS, Clause, tokens
from llm_town.kinds import KINDS, kind_table
from llm_town.lexicon import (
    CLOSED_FILE,
    LEXICON_FILE,
    Entry,
    Table,
    inflect,
    read_lexicon,
    zipf,
)
from llm_town.names import syllables
from llm_town.vocabulary import vocabulary

HEADER = "lemma\tpos\tclass\tforms\tzh\tmeasure\n"
SAMPLE_SHA256 = "eec2e0ca5a25eb86d31b3d9d34ad15621aef04bc8a96340e5710626eedcb6b4d"


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


def changed_grammar(folder: Path, old: str, new: str) -> Grammar:
    text = CLAUSES_FILE.read_text(encoding="utf-8")
    assert old in text
    path = folder / "clauses.tsv"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return Grammar(read_lexicon(LEXICON_FILE, CLOSED_FILE), path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("paid the {price} coins", "paid the {cost} coins", "{'cost'} not bound"),
        ("{+job2:job-job}", "{+job2:job-hobby}", "{'hobby'} not bound"),
        ("{+trait.a:trait_good}", "{+trait.a:trait_great}", "no class 'trait_great'"),
        ("{+hero:person}", "{+hero person}", "cannot read the slots"),
        ('buy\t"{price}', 'enjoy\t"{price}', "the clauses of beat 'buy' must stand together"),
        ("buy\t{hero}", "buy {hero}", "expected beat, English and Chinese"),
    ],
)
def test_a_bad_grammar_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        changed_grammar(tmp_path, old, new)


def test_plots_that_can_tell_the_same_story_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLOTS, "copy", PLOTS["repair"])
    with pytest.raises(DataError, match="'repair' and 'copy' can tell the same story"):
        Grammar(read_lexicon(), CLAUSES_FILE)


def possible_words(clause: Clause, grammar: Grammar) -> list[list[frozenset[str]]]:
    """For each way to write a clause, the words that may stand at each place."""
    ways: list[list[frozenset[str]]] = [[]]
    slots = iter(clause.slots)
    for token in tokens(clause.english):
        if token != "%s":
            ways = [[*way, frozenset([token])] for way in ways]
            continue
        slot = next(slots)
        fill = frozenset(grammar.fillers(slot))
        if slot.form.rstrip("^") == "a":
            ways = [[*way, ARTICLES, fill] for way in ways]
        elif slot.form.rstrip("^") == "the":
            ways = [[*way, *more, fill] for way in ways for more in ([], [frozenset(["the"])])]
        else:
            ways = [[*way, fill] for way in ways]
    return ways


def test_no_sentence_belongs_to_two_clauses() -> None:
    grammar = town()
    ways = [(c.id, w) for c in grammar.clauses.values() for w in possible_words(c, grammar)]
    by_length: dict[int, list[tuple[str, list[frozenset[str]]]]] = {}
    for key, way in ways:
        by_length.setdefault(len(way), []).append((key, way))
    for group in by_length.values():
        for (one, a), (two, b) in combinations(group, 2):
            same = all(not x.isdisjoint(y) for x, y in zip(a, b))
            assert not same or one == two, (one, two)


def test_the_same_seed_gives_the_same_stories_on_every_machine() -> None:
    def text_sample(seed: int) -> str:
        return "".join(f"{document.text}\n" for document in generate_documents(200, seed))

    sample = text_sample(0)
    assert sample == text_sample(0)
    assert sample != text_sample(1)
    assert hashlib.sha256(sample.encode()).hexdigest() == SAMPLE_SHA256


def test_splits_are_disjoint_and_decided_by_the_text() -> None:
    texts = {s: {d.text for d in generate_documents(300, seed=0, split=s)} for s in SPLITS}
    for split, found in texts.items():
        assert all(split_of(text) == split for text in found)
    for one, two in combinations(texts.values(), 2):
        assert not one & two
    with pytest.raises(DataError, match="split must be one of"):
        next(generate_documents(1, split="dev"))
    with pytest.raises(DataError, match="n must be at least 0"):
        next(generate_documents(-1))


def test_stories_have_the_promised_length() -> None:
    for story in generate_documents(500, seed=5):
        assert " ".join(story.sentences) == story.text
        assert story.sentences == tuple(split_sentences(story.text))
        assert 5 <= len(story.sentences) <= 9
        assert 40 <= len(story.words) <= 110


def test_the_floor_estimated_from_stories_is_the_exact_entropy() -> None:
    floor = entropy_floor(4_000, seed=11, split="train")
    assert math.isclose(floor.exact_nats_per_document, document_entropy())
    error = abs(floor.nats_per_document - floor.exact_nats_per_document)
    assert error < 4 * floor.standard_error
    assert floor.standard_error < 0.25
    words = floor.nats_per_document / floor.words_per_document
    assert math.isclose(floor.nats_per_word, words)
    with pytest.raises(DataError, match="n must be at least 2"):
        entropy_floor(1)


def test_plots_come_as_often_as_they_should() -> None:
    grammar, n = town(), 6_000
    counts = Counter(d.derivation.plot for d in generate_documents(n, seed=4))
    for entry, p in zip(grammar.plot_table.entries, grammar.plot_table.p):
        assert abs(counts[entry.lemma] / n - p) < 5 * math.sqrt(p / n)


def test_spans_facts_and_polarity_describe_the_text() -> None:
    kinds: Counter[str] = Counter()
    signs: Counter[int] = Counter()
    for story in generate_documents(300, seed=6):
        for span in spans(story):
            assert story.text[span.start : span.end].lower() == span.lemma.lower()
            kinds[span.type] += 1
        stated = facts(story.derivation)
        relations = {fact.relation for fact in stated}
        assert {"job", "home"} <= relations
        for fact in stated:
            assert fact.object.lower() in story.sentences[fact.sentence].lower()
        good, bad = polarity(story.derivation)
        signs[(good > bad) - (good < bad)] += 1
    assert {"PERSON", "PLACE", "JOB", "EVENT"} <= set(kinds)
    assert min(signs[1], signs[-1]) > 30


EVERYTHING = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import llm_town
for module in pkgutil.walk_packages(llm_town.__path__, "llm_town."):
    importlib.import_module(module.name)
print(*(document.text for document in llm_town.generate_documents(3, seed=0)), sep="\\n")
"""


def test_town_stands_alone_without_any_installed_package(tmp_path: Path) -> None:
    shutil.copytree(Path(llm_town.__file__).parent, tmp_path / "llm_town")
    alone = [sys.executable, "-I", "-S", "-c"]  # neither this folder nor site-packages
    run = subprocess.run(
        [*alone, EVERYTHING, str(tmp_path)], capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [d.text for d in generate_documents(3, seed=0)]
    control = subprocess.run([*alone, "import numpy"], capture_output=True, text=True)
    assert "No module named 'numpy'" in control.stderr
