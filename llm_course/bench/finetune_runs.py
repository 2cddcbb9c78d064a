"""The recorded run of the fine-tuning lab on Town: three tasks, five ways, five seeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm_course.bench import results
from llm_course.bench.baselines import bag_of_words, bare_scores, dictionary, question_rule
from llm_course.bench.record import Place, RecordedRun, part_of, say
from llm_course.configs import TrainConfig
from llm_course.corpus.labelled import town_examples, town_splits
from llm_course.corpus.town.tasks import SHIFTS, entities, questions, sentiment
from llm_course.runs.finetune import FineTuneRun, prepare_finetune

CHECKPOINT = "bert_town_cpu"
SEEDS = (0, 1, 2, 3, 4)
HELD_OUT = 500  # examples of the development set, and of each test set
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"train_blocks": 0},
    "last block": {"train_blocks": 1},
    "everything": {},
    "from scratch": {"from_scratch": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How one task is learnt: its examples, its updates, the rates that are tried on dev."""

    n_train: int
    max_steps: int
    score: str  # the one that is reported
    rates: dict[str, tuple[float, ...]]
    best: Callable[..., float]
    batch_size: int = 16


def _rates(frozen: Sequence[float], others: Sequence[float]) -> dict[str, tuple[float, ...]]:
    return {way: tuple(frozen if way == "frozen" else others) for way in WAYS}


PLANS = {
    "classify": Plan(
        n_train=200,
        max_steps=100,
        score="accuracy",
        rates=_rates((3e-3, 1e-2), (3e-4, 1e-3)),
        best=sentiment.best_score,
    ),
    "tag": Plan(
        n_train=50,
        max_steps=100,
        score="f1",
        rates=_rates((3e-3, 1e-2), (3e-4, 1e-3)),
        best=entities.best_score,
    ),
    "qa": Plan(
        n_train=500,
        max_steps=250,
        score="exact_match",
        rates=_rates((3e-3, 1e-2), (3e-4, 1e-3)),
        best=questions.best_score,
    ),
}
NUMBERS = (50, 100, 200, 400, 800)  # of labelled stories, for the curve of the first task


def settings(max_steps: int, lr: float, seed: int) -> TrainConfig:
    """The same for all ways: a tenth of the updates warms up, then the rate falls to 0."""
    return TrainConfig(
        max_steps=max_steps,
        lr=lr,
        warmup_steps=max_steps // 10,
        schedule="linear",
        weight_decay=0.01,
        beta2=0.999,
        device="cpu",
        precision="fp32",
        seed=seed,
    )


def finetune_town_cpu(place: Place) -> dict[str, Any]:
    """Each task, way and seed from one checkpoint; rates by dev, test sets opened once a run."""
    checkpoint = results.load_checkpoint(CHECKPOINT)
    seeds = SEEDS[:2] if place.tiny else SEEDS
    n_held_out = 20 if place.tiny else HELD_OUT
    tasks = {}
    for task, plan in PLANS.items():
        if place.tiny:
            plan = dataclasses.replace(plan, n_train=30, max_steps=2, batch_size=4)
        ways = {}
        for way in WAYS:
            tried = partial(_tried, task, plan, way, checkpoint, n_held_out)
            ways[way] = {"dev_by_rate": part_of(place, f"{task}-{way}-rates", tried)}
            best = max(ways[way]["dev_by_rate"].items(), key=lambda item: item[1])
            ways[way]["rate"] = float(best[0])
            made = partial(_run, task, plan, way, checkpoint, n_held_out, float(best[0]))
            ways[way]["runs"] = [
                part_of(place, f"{task}-{way}-{seed}", partial(made, seed)) for seed in seeds
            ]
            say(f"{task}, {way}: " + str([run["test"]["none"] for run in ways[way]["runs"]]))
        ways["baseline"] = {"runs": [_baseline(task, plan, n_held_out, seed) for seed in seeds]}
        best_scores = {shift: plan.best(n_held_out, 0, "test", shift) for shift in SHIFTS}
        tasks[task] = {"plan": _plan(plan), "best": best_scores, "ways": ways}
    numbers = (30, 40) if place.tiny else NUMBERS
    labels = part_of(
        place, "labels", partial(_by_number, numbers, checkpoint, n_held_out, tasks, place)
    )
    return {
        "seed": list(seeds),
        "checkpoint": CHECKPOINT,
        "held_out": n_held_out,
        "tasks": tasks,
        "labels": labels,
    }


def _plan(plan: Plan) -> dict[str, Any]:
    kept = dataclasses.asdict(plan)
    return {key: kept[key] for key in ("n_train", "max_steps", "score", "batch_size")}


def _trained(
    task: str,
    plan: Plan,
    way: str,
    checkpoint: Path,
    n_held_out: int,
    rate: float,
    seed: int,
) -> FineTuneRun:
    run = prepare_finetune(
        task,
        town_splits(task, plan.n_train, n_held_out, seed),
        checkpoint=checkpoint,
        train_config=settings(plan.max_steps, rate, seed),
        batch_size=plan.batch_size,
        **WAYS[way],
    )
    for _ in run.steps():
        pass
    return run


def _tried(task: str, plan: Plan, way: str, checkpoint: Path, n_held_out: int) -> dict[str, float]:
    """The dev score of the first seed at each rate."""
    return {
        str(rate): _trained(task, plan, way, checkpoint, n_held_out, rate, 0).dev_scores()[
            plan.score
        ]
        for rate in plan.rates[way]
    }


def _run(
    task: str,
    plan: Plan,
    way: str,
    checkpoint: Path,
    n_held_out: int,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """One run with its scores on dev and on the three test sets."""
    begin = time.process_time()
    run = _trained(task, plan, way, checkpoint, n_held_out, rate, seed)
    seconds = time.process_time() - begin
    dev = run.dev_scores()
    test = {"none": run.test_scores()[plan.score]}
    for shift in SHIFTS[1:]:
        examples = town_examples(task, n_held_out, 0, "test", shift)
        test[shift] = run.predictor.score(examples, run.predict(examples))[plan.score]
    return {
        "seed": seed,
        "dev": dev[plan.score],
        "test": test,
        "train_cpu_seconds": round(seconds, 1),
    }


def _baseline(task: str, plan: Plan, n_held_out: int, seed: int) -> dict[str, Any]:
    """The simple method on the same examples; the strength of the first is chosen on dev."""
    splits = town_splits(task, plan.n_train, n_held_out, seed)
    predict: Callable[[Sequence[Any]], list[Any]]
    if task == "classify":
        fitted = [bag_of_words(splits.train, strength) for strength in (0.01, 0.1, 1.0)]
        dev = [bare_scores(task, splits.dev, each(splits.dev))[plan.score] for each in fitted]
        predict = fitted[dev.index(max(dev))]
    else:
        predict = {"tag": dictionary, "qa": question_rule}[task](splits.train)  # type: ignore[operator]
    test = {}
    for shift in SHIFTS:
        examples = town_examples(task, n_held_out, 0, "test", shift)
        test[shift] = bare_scores(task, examples, predict(examples))[plan.score]
    on_dev = bare_scores(task, splits.dev, predict(splits.dev))[plan.score]
    return {"seed": seed, "dev": on_dev, "test": test}


def _by_number(
    numbers: Sequence[int],
    checkpoint: Path,
    n_held_out: int,
    tasks: dict[str, Any],
    place: Place,
) -> dict[str, dict[str, list[float]]]:
    """Test scores for each number of labelled examples, with the rates chosen above."""
    found: dict[str, dict[str, list[float]]] = {}
    for way in ("everything", "from scratch", "baseline"):
        rows = found.setdefault(way, {})
        for n in numbers:
            plan = dataclasses.replace(PLANS["classify"], n_train=n)
            if place.tiny:
                plan = dataclasses.replace(plan, max_steps=2, batch_size=4)
            rows[str(n)] = []
            for seed in range(2 if place.tiny else 3):
                if way == "baseline":
                    row = _baseline("classify", plan, n_held_out, seed)
                else:
                    rate = tasks["classify"]["ways"][way]["rate"]
                    row = _run("classify", plan, way, checkpoint, n_held_out, rate, seed)
                rows[str(n)].append(row["test"]["none"])
            say(f"{way}, {n} labelled stories: {rows[str(n)]}")
    return found


RUNS = {
    "finetune_town_cpu": RecordedRun(
        title="BERT fine-tuned on three tasks of Town, five ways, five seeds",
        device="cpu",
        minutes=10,
        make=finetune_town_cpu,
    ),
}
