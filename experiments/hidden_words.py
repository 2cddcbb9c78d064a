"""One hidden word of a story: the best possible answer, a checkpoint's, and those of counts."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.record import provenance
from llm_course.batches.sentence_pairs import IS_NEXT, Pair, pair_batch
from llm_course.losses.masked import INPUTS
from llm_course.models.bert import BERT
from llm_course.recipes.pretrain_bert import encoded, masking_of
from llm_course.recipes.texts import EVALUATION_ROWS
from llm_course.tokenizers.library import Tokenizer
from llm_lab.counting.ngram_gap import GapModel
from llm_town import generate_documents
from llm_town.conditionals import conditional, given, word_spans
from llm_town.tasks import next_sentence

GROUPS = ("drawn anew", "a name told elsewhere", "else certain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenWord:
    """A word of a held-out story that is a single piece; all other words are seen."""

    pair: Pair  # the story, divided in its middle
    place: int  # of the piece in the story
    target: int  # the piece
    floor: float  # nats of the best possible answer
    best: float  # the probability that the best possible guess is right
    group: str  # one of GROUPS


def hidden_words(checkpoint: Path, stories: int, counted: Sequence[int]) -> dict[str, Any]:
    """Nats of one hidden word, by group: the floor, the checkpoint, and counts of neighbours.

    `counted` are the numbers of training stories that the counts of two neighbours on each side
    are made of.
    """
    tokenizer = Tokenizer.load(checkpoint)
    model = BERT.from_pretrained(checkpoint, dtype=torch.float32)
    asked = list(_asked(tokenizer, model.config.n_positions, stories))
    bert, right = _answered(model, tokenizer, asked)
    nats = {"floor": [word.floor for word in asked], "BERT": bert}
    for number in counted:
        documents = [list(d.sentences) for d in generate_documents(number, 0, "train")]
        flat = ([i for s in ids for i in s] for ids in encoded(tokenizer, documents))
        gaps = GapModel(2, len(tokenizer)).fit(flat)
        nats[f"counting, {number} stories"] = [
            -math.log(gaps.probability([*w.pair.first, *(w.pair.second or ())], w.place))
            for w in asked
        ]
    members = {"all": list(range(len(asked)))}
    for group in GROUPS:
        members[group] = [i for i, word in enumerate(asked) if word.group == group]
    return {
        **{key: provenance()[key] for key in ("date", "commit")},
        "stories": stories,
        "words": {group: len(numbers) for group, numbers in members.items()},
        "right": {"BERT": right, "best possible": sum(w.best for w in asked) / len(asked)},
        "nats": {
            name: {g: sum(values[i] for i in m) / max(len(m), 1) for g, m in members.items()}
            for name, values in nats.items()
        },
    }


def _asked(tokenizer: Tokenizer, context: int, stories: int, each: int = 8) -> Iterator[HiddenWord]:
    """Some words of each of the first held-out stories that fit into a row."""
    tokens = map(tokenizer.token, range(len(tokenizer)))
    words, draw = {token for token in tokens if token.isalpha()}, random.Random(0)
    held_out = generate_documents(2 * stories, 0, "validation")
    fit = (d for d in held_out if len(tokenizer.encode(d.text)) < context - 8)
    for document, _ in zip(fit, range(stories)):
        text = document.text
        pieces = tokenizer.backend.encode(text, add_special_tokens=False)
        middle = len(tokenizer.encode(next_sentence.halves(document)[0]))
        pair = Pair(pieces.ids[:middle], pieces.ids[middle:], IS_NEXT, (0, 0))
        begins = {a: number for number, (a, _) in enumerate(pieces.offsets)}
        single = [(a, b) for a, b in word_spans(text) if text[a:b] in words]
        for a, b in draw.sample(single, min(each, len(single))):
            exact = given(conditional(document, a, b), words)
            target, floor = pieces.ids[begins[a]], -math.log(exact[text[a:b]])
            told = pieces.ids.count(target) > 1 and text[a:b].istitle() and b - a > 3
            group = GROUPS[0] if floor > 0.01 else GROUPS[1] if told else GROUPS[2]
            best = max(exact.values())
            yield HiddenWord(
                pair=pair, place=begins[a], target=target, floor=floor, best=best, group=group
            )


def _answered(
    model: BERT, tokenizer: Tokenizer, asked: Sequence[HiddenWord]
) -> tuple[list[float], float]:
    """The nats of each hidden word, each alone in its row, and the share that is guessed right."""
    silent = dataclasses.replace(masking_of(tokenizer), chosen=0.0)
    nats: list[float] = []
    right = 0
    for begin in range(0, len(asked), EVALUATION_ROWS):
        some = asked[begin : begin + EVALUATION_ROWS]
        width = max(len(word.pair.ids(silent)) for word in some)
        batch = pair_batch([[word.pair] for word in some], width, silent)
        rows, targets = torch.arange(len(some)), torch.tensor([word.target for word in some])
        # behind [CLS], and in the second segment behind [SEP] too
        places = torch.tensor([w.place + 1 + (w.place >= len(w.pair.first)) for w in some])
        batch["input_ids"][rows, places] = silent.mask_id
        with torch.no_grad():
            hidden = model.hidden(**{name: batch[name] for name in INPUTS})
            log_p = model.mlm_head(hidden[rows, places]).log_softmax(dim=-1)
        nats += (-log_p[rows, targets]).tolist()
        right += int((log_p.argmax(dim=-1) == targets).sum())
    return nats, right / len(asked)
