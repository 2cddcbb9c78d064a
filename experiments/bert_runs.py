"""The recorded runs of BERT's pretraining, and the course's own checkpoints.

A checkpoint lies beside its result, in a directory of the same name: weights in float16, settings
and tokenizer. The result holds the SHA-256 of each of its files, by which `load_checkpoint` knows
them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.script import Place, RecordedRun, provenance, run_training
from llm_course.batches.sampler import Evaluation
from llm_course.batches.sentence_pairs import IS_NEXT, FixedPairs, Pair, SentencePairs, pair_batch
from llm_course.configs import BERTConfig, BERTDataConfig, TrainConfig
from llm_course.data import corpora
from llm_course.data.sentences import split_sentences
from llm_course.losses.masked import INPUTS, bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.presets import find_preset
from llm_course.recipes.pretrain_bert import accuracies, encoded, masking_of, prepare_bert
from llm_course.recipes.run import EVALUATION_ROWS, Run
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import loss_sums
from llm_lab.counting.ngram_gap import GapModel
from llm_town import generate_documents
from llm_town.conditionals import conditional, given, word_spans
from llm_town.tasks import next_sentence

NOVELS = "great_expectations moby_dick pride_and_prejudice sherlock_holmes tale_of_two_cities"
BOOKS = (*(f"gutenberg_en/{name}.txt" for name in NOVELS.split()), "wikitext2/valid.txt")
SCORED = "wikitext2/test.txt"
Settings = tuple[BERTConfig, BERTDataConfig, TrainConfig]
GROUPS = ("drawn anew", "a name told elsewhere", "else certain")  # of hidden words


def bert_town_cpu(place: Place) -> dict[str, Any]:
    """BERT on Town, cpu preset for longer, and its checkpoint, from which chapter 11 fine-tunes."""
    preset = find_preset("bert", "cpu")
    data = dataclasses.replace(preset.data, documents=60_000)
    training = _longer(preset.train, 5000)
    result = pretrained(place, (preset.model, data, training), keep=True)
    stories, counted = (5, (60, 120)) if place.tiny else (200, (8_000, data.documents))
    return result | {"hidden_words": hidden_words(place.checkpoint, stories, counted)}


def bert_town(place: Place) -> dict[str, Any]:
    """BERT on Town, h200 preset."""
    preset = find_preset("bert", "h200")
    return pretrained(place, (preset.model, preset.data, preset.train))


def bert_books_cpu(place: Place) -> dict[str, Any]:
    """A small BERT on five novels and articles of Wikipedia, and its checkpoint."""
    preset = find_preset("bert", "cpu")
    data = _books(place, dataclasses.replace(preset.data, context=128))
    model = dataclasses.replace(preset.model, n_positions=128)
    settings = (model, data, _longer(preset.train, 2500))
    return pretrained(place, settings, keep=True, scored=SCORED)


def bert_books(place: Place) -> dict[str, Any]:
    """BERT on novels and Wikipedia, t4 preset: 7 million characters are soon known by heart."""
    preset = find_preset("bert", "t4")
    settings = (preset.model, _books(place, preset.data), preset.train)
    return pretrained(place, settings, scored=SCORED)


def pretrained(
    place: Place, settings: Settings, *, keep: bool = False, scored: str | None = None
) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and evaluate.

    `keep` stores the checkpoint beside the result; `scored` is a text file of the data folder.
    """
    model, data, training = place.sized(*settings)
    run = prepare_bert(model, data, training, out=place.out)
    result = run_training(run)
    result |= {"data": _without_folder(place, data), "batch": [data.batch_size, data.context]}
    if scored is not None:
        result["scored"] = {"text": scored, **_scores(run, place.text_file(scored), data.context)}
    if keep:
        result["checkpoint"] = store_checkpoint(run, place.checkpoint)
    return result


def store_checkpoint(run: Run, directory: Path) -> dict[str, str]:
    """Write weights in float16, settings and tokenizer; the SHA-256 of each file by its name."""
    new = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model = BERT(run.model.config)
    model.load_state_dict(run.model.state_dict())
    model.to(torch.float16).save_pretrained(new)
    run.data.tokenizer.save(new)
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _scores(run: Run, path: Path, context: int) -> dict[str, float]:
    """MLM and NSP of a text that is not of the training files, by its paragraphs."""
    texts = corpora.read_documents(path, document="paragraph")
    documents = encoded(run.data.tokenizer, [split_sentences(text) for text in texts])
    rows = SentencePairs(documents, context, masking_of(run.data.tokenizer))
    batches = Evaluation(FixedPairs(rows), EVALUATION_ROWS)
    sums = loss_sums(run.model, batches, bert_loss_fn)
    losses = {f"{name}_loss": float(total / count) for name, (total, count) in sums.items()}
    return losses | accuracies(run.model, batches)


def _longer(training: TrainConfig, steps: int) -> TrainConfig:
    """The same training with more steps, evaluated and saved now and then, on the processor."""
    return dataclasses.replace(
        training,
        max_steps=steps,
        lr=2e-3,
        warmup_steps=200,
        min_lr=5e-5,
        eval_every=500,
        save_every=500,
        keep_checkpoints=1,
        device="cpu",
    )


def _books(place: Place, data: BERTDataConfig) -> BERTDataConfig:
    files = tuple(str(place.text_file(name)) for name in BOOKS)
    return dataclasses.replace(data, data="files", data_files=files, validation=0.02)


def _without_folder(place: Place, data: BERTDataConfig) -> dict[str, Any]:
    """The settings of the data; files are named as in the data folder."""
    names = [Path(f).relative_to(place.data_dir).as_posix() for f in data.data_files]
    return data.to_dict() | {"data_files": names}


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

    The neighbours, two on each side, are counted in so many training stories as `counted` says.
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


RUNS = [
    RecordedRun(bert_town, 8, "cuda"),
    RecordedRun(bert_books, 10, "cuda"),
    RecordedRun(bert_town_cpu, 18),
    RecordedRun(bert_books_cpu, 10),
]
