"""The labelled tasks of Town, one module each, all made from stories and their derivations.

Every module has `Example`, `examples(n, seed, split, shift)` and, but for next_sentence, whose
optimum is only bounded, `best_score(n, seed, split, shift)`.
"""

from llm_town.tasks import (
    entailment,
    entities,
    next_sentence,
    questions,
    reformatting,
    sentiment,
    summary,
    translation,
)
from llm_town.tasks.stories import SHIFTS, held_out_name, held_out_template, stories

__all__ = [
    "SHIFTS",
    "entailment",
    "entities",
    "held_out_name",
    "held_out_template",
    "next_sentence",
    "questions",
    "reformatting",
    "sentiment",
    "stories",
    "summary",
    "translation",
]
