"""Town's figures: `python -m experiments.town_report [--out results/town.json]`.

Vocabulary, words generated a second, the floor, the share of stories that the parser reads back
to the same derivation and probability, and n-gram models of order 1 to 5 as multiples of the floor.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro

from experiments.script import provenance, write
from llm_lab.counting.ngram import NgramModel
from llm_town import tasks, tokenize, town
from llm_town.english import generate_documents, log_probability
from llm_town.floor import entropy_floor
from llm_town.parse import ParseError, parse
from llm_town.vocabulary import vocabulary

NGRAM_ORDERS = (1, 2, 3, 4, 5)


def speed_figures(documents: int) -> dict[str, float]:
    """Words generated and documents parsed, a second of processor time on one core."""
    town()
    start = time.process_time()
    stories = list(generate_documents(documents, seed=2))
    middle = time.process_time()
    for story in stories:
        parse(story.text)
    end = time.process_time()
    words = sum(len(story.words) for story in stories)
    return {
        "words_per_second": round(words / (middle - start)),
        "documents_parsed_per_second": round(documents / (end - middle)),
    }


def reparsed(documents: int) -> float:
    """The share of stories with the same derivation and log-probability, read from the text."""
    same = 0
    for story in generate_documents(documents, seed=3):
        with suppress(ParseError):
            read = parse(story.text)
            same += read == story.derivation and log_probability(read) == story.log_prob
    return same / documents


def ngram_figures(training: int, validation: int) -> dict[str, float]:
    """Validation nats of the n-gram models divided by the floor on the same stories."""
    grammar = town()
    # Every token that a story may hold: words with and without a capital, names, punctuation.
    size = 2 * len(vocabulary().words) + vocabulary().names + len('.,?!"')
    model = NgramModel(max(NGRAM_ORDERS), size)
    model.fit(tokenize(story.text) for story in generate_documents(training, 0, grammar=grammar))
    held_out = list(generate_documents(validation, 0, "validation"))
    floor = -math.fsum(story.log_prob for story in held_out)
    return {
        str(order): math.fsum(model.nats(tokenize(s.text), order) for s in held_out) / floor
        for order in NGRAM_ORDERS
    }


def task_figures(n: int) -> dict[str, float]:
    """The best possible score of each labelled task; for next_sentence a rule's, a lower bound."""
    exact = (tasks.entities, tasks.questions, tasks.summary, tasks.translation, tasks.reformatting)
    scored = (tasks.sentiment, tasks.entailment, *exact)
    found = {m.__name__.rpartition(".")[2]: m.best_score(n) for m in scored}
    bound = {"next_sentence_lower_bound": tasks.next_sentence.lower_bound(n)}
    return {name: round(score, 4) for name, score in (found | bound).items()}


def report(documents: int = 10_000, training: int = 20_000) -> dict[str, Any]:
    """All figures; `documents` are re-parsed, `training` are what the n-gram models see."""
    words, grammar = vocabulary(), town()
    return {
        "vocabulary": {
            "stems_in_lexicon": words.stems,
            "stems_used": words.stems_used,
            "printed_words": len(words.words),
            "names": words.names,
            "plots": len(grammar.plots),
            "clauses": len(grammar.clauses),
        },
        "speed": speed_figures(min(documents, 5_000)),
        "floor": asdict(entropy_floor(min(documents, 5_000))),
        "reparsed": {"documents": documents, "share": reparsed(documents)},
        "ngram_over_floor": ngram_figures(training, max(documents // 10, 10)),
        "tasks_best_possible": task_figures(max(documents // 5, 10)),
    }


def main(documents: int = 10_000, training: int = 20_000, out: Path | None = None) -> None:
    """Print the figures and, with --out, write them with their provenance.

    Args:
        documents: stories to parse again.
        training: stories for the n-grams.
        out: a JSON file for the figures.
    """
    figures = report(documents, training)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        command = "python -m experiments.town_report"
        write(out, {"name": "town", "command": command, **provenance(), **figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
