"""The recorded run of the fine-tuning lab on Town: three tasks, six ways, five seeds."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.script import Place, RecordedRun, part_of, say
from llm_course.data.examples import town_examples, town_splits
from llm_course.models.bert import BERT
from llm_course.recipes.finetune import FineTuneRun, prepare_finetune
from llm_course.tokenizers.library import Tokenizer
from llm_lab import results
from llm_lab.counting.baselines import bare_scores, dictionary, question_rule
from llm_lab.finetune_plans import OWN_START, PLANS, WAYS, Plan, best_bag, settings
from llm_lab.starts import neighbours
from llm_town.tasks import SHIFTS

CHECKPOINT = "bert_town_cpu"
SEEDS = (0, 1, 2, 3, 4)
HELD_OUT = 300  # examples of the development set, and of each test set
NUMBERS = (20, 50, 100, 200)  # of labelled stories, for the curve of the entities


def finetune_town_cpu(place: Place) -> dict[str, Any]:
    """BERT fine-tuned on three tasks of Town, six ways, five seeds.

    All from one checkpoint; rates by dev, test sets opened once a run.
    """
    seeds = SEEDS[:1] if place.tiny else SEEDS
    tasks = {}
    for task, own in PLANS.items():
        plan = _sized(place, own)
        ways: dict[str, Any] = {}
        for way in WAYS:
            rows = [_row(place, task, plan, way, seed) for seed in seeds]
            ways[way] = {"runs": rows}
            say(f"{task}, {way}: {[row['test']['none'] for row in rows]}")
        ways["baseline"] = {"runs": [_baseline(place, task, plan, seed) for seed in seeds]}
        best = {shift: plan.best(_held_out(place), 0, "test", shift) for shift in SHIFTS}
        kept = dataclasses.asdict(plan)
        kept.pop("best")
        tasks[task] = {"plan": kept, "best": best, "ways": ways}
    return {
        "seed": list(seeds),
        "checkpoint_of": CHECKPOINT,
        "held_out": _held_out(place),
        "tasks": tasks,
        "labels": _by_number(place),
    }


def _by_number(place: Place) -> dict[str, dict[str, list[Any]]]:
    """Test scores of the entities for each number of labelled stories."""
    found: dict[str, dict[str, list[Any]]] = {}
    for way in ("everything", "scratch (paper)", "baseline"):
        found[way] = {}
        for n in NUMBERS[:1] if place.tiny else NUMBERS:
            plan = dataclasses.replace(_sized(place, PLANS["tag"]), n_train=n)
            learn = partial(_baseline, place, "tag", plan)
            if way != "baseline":
                learn = partial(_row, place, "tag", plan, way, part=f"labels-{way}-{n}")
            found[way][str(n)] = [learn(seed)["test"] for seed in range(1 if place.tiny else 3)]
        say(f"{way}: {found[way]}")
    return found


def _sized(place: Place, plan: Plan) -> Plan:
    (plan,) = place.sized(plan)
    if not place.tiny:
        return plan
    return dataclasses.replace(plan, rates=plan.rates[:1], frozen_rates=plan.frozen_rates[:1])


def _held_out(place: Place) -> int:
    return 20 if place.tiny else HELD_OUT


@functools.cache
def _test_set(task: str, n: int, shift: str) -> list[Any]:
    """Made once: stories with a held-out combination are rare, so they take long to find."""
    return town_examples(task, n, 0, "test", shift)


def _row(
    place: Place, task: str, plan: Plan, way: str, seed: int, part: str = ""
) -> dict[str, Any]:
    """The best rate by dev, and its scores on dev and on the three test sets; a part of its own."""
    name = re.sub(r"[ ()]", "-", f"{part or f'{task}-{way}'}-{seed}")
    return part_of(place, name, partial(_best_run, place, task, plan, way, seed))


def _best_run(place: Place, task: str, plan: Plan, way: str, seed: int) -> dict[str, Any]:
    begin = time.process_time()
    runs = {rate: _trained(place, task, plan, way, rate, seed) for rate in plan.tried(way)}
    dev = {rate: run.dev_scores()[plan.score] for rate, run in runs.items()}
    rate = max(dev, key=lambda rate: dev[rate])
    run = runs[rate]
    test = {"none": run.test_scores()[plan.score]}
    for shift in SHIFTS[1:]:
        examples = _test_set(task, _held_out(place), shift)
        test[shift] = run.predictor.score(examples, run.predict(examples))[plan.score]
    return {
        "seed": seed,
        "rate": rate,
        "dev": dev[rate],
        "dev_by_rate": {str(rate): score for rate, score in dev.items()},
        "test": test,
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def _trained(place: Place, task: str, plan: Plan, way: str, rate: float, seed: int) -> FineTuneRun:
    """One run to its end."""
    start = results.load_checkpoint(CHECKPOINT)
    if way == OWN_START:
        start = untrained(start, place.out / f"untrained-{seed}", seed)
    run = prepare_finetune(
        task,
        town_splits(task, plan.n_train, _held_out(place), seed),
        checkpoint=start,
        train_config=settings(plan.max_steps, rate, seed),
        batch_size=plan.batch_size,
        **WAYS[way],
    )
    for _ in run.steps():
        pass
    return run


def untrained(checkpoint: Path, folder: Path, seed: int) -> Path:
    """A checkpoint that has read nothing: start weights as pretraining has them, drawn anew.

    Only the text is then the difference to the real one.
    """
    config = BERT.from_pretrained(checkpoint, dtype=torch.float32).config
    torch.manual_seed(seed)
    model = BERT(config)
    neighbours(model)
    model.save_pretrained(folder)
    Tokenizer.load(checkpoint).save(folder)
    return folder


def _baseline(place: Place, task: str, plan: Plan, seed: int) -> dict[str, Any]:
    """The simple method on the same examples; the strength of the bag is chosen on dev."""
    splits = town_splits(task, plan.n_train, _held_out(place), seed)
    predict: Callable[[Sequence[Any]], list[Any]]
    if task == "classify":
        predict = best_bag(splits.train, splits.dev)
    else:
        predict = dictionary(splits.train) if task == "tag" else question_rule(splits.train)

    def score(examples: Sequence[Any]) -> float:
        return bare_scores(task, examples, predict(examples))[plan.score]

    test = {shift: score(_test_set(task, _held_out(place), shift)) for shift in SHIFTS}
    return {"seed": seed, "dev": score(splits.dev), "test": test}


RUNS = [RecordedRun(finetune_town_cpu, 30)]
