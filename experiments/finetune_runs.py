"""The recorded run of the fine-tuning lab on Town: three tasks, six ways, five seeds."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.record import Place, RecordedRun, part_of, say
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """What all runs of this record share."""

    checkpoint: Path
    place: Place
    n_held_out: int

    def trained(self, task: str, plan: Plan, way: str, rate: float, seed: int) -> FineTuneRun:
        """One run to its end."""
        start = self.checkpoint
        if way == OWN_START:
            start = untrained(start, self.place.out / f"untrained-{seed}", seed)
        run = prepare_finetune(
            task,
            town_splits(task, plan.n_train, self.n_held_out, seed),
            checkpoint=start,
            train_config=settings(plan.max_steps, rate, seed),
            batch_size=plan.batch_size,
            **WAYS[way],
        )
        for _ in run.steps():
            pass
        return run

    def row(self, task: str, plan: Plan, way: str, seed: int) -> dict[str, Any]:
        """The best rate by dev, and its scores on dev and on the three test sets."""
        begin = time.process_time()
        runs = {rate: self.trained(task, plan, way, rate, seed) for rate in plan.tried(way)}
        dev = {rate: run.dev_scores()[plan.score] for rate, run in runs.items()}
        rate = max(dev, key=lambda rate: dev[rate])
        run = runs[rate]
        test = {"none": run.test_scores()[plan.score]}
        for shift in SHIFTS[1:]:
            examples = _test_set(task, self.n_held_out, shift)
            test[shift] = run.predictor.score(examples, run.predict(examples))[plan.score]
        return {
            "seed": seed,
            "rate": rate,
            "dev": dev[rate],
            "dev_by_rate": {str(rate): score for rate, score in dev.items()},
            "test": test,
            "cpu_seconds": round(time.process_time() - begin, 1),
        }

    def baseline(self, task: str, plan: Plan, seed: int) -> dict[str, Any]:
        """The simple method on the same examples; the strength of the bag is chosen on dev."""
        splits = town_splits(task, plan.n_train, self.n_held_out, seed)
        predict: Callable[[Sequence[Any]], list[Any]]
        if task == "classify":
            predict = best_bag(splits.train, splits.dev)
        else:
            predict = dictionary(splits.train) if task == "tag" else question_rule(splits.train)
        test = {}
        for shift in SHIFTS:
            examples = _test_set(task, self.n_held_out, shift)
            test[shift] = bare_scores(task, examples, predict(examples))[plan.score]
        on_dev = bare_scores(task, splits.dev, predict(splits.dev))[plan.score]
        return {"seed": seed, "dev": on_dev, "test": test}


@functools.cache
def _test_set(task: str, n: int, shift: str) -> list[Any]:
    """Made once: stories with a held-out combination are rare, so they take long to find."""
    return town_examples(task, n, 0, "test", shift)


def finetune_town_cpu(place: Place) -> dict[str, Any]:
    """Each task, way and seed from one checkpoint; rates by dev, test sets opened once a run."""
    n_held_out = 20 if place.tiny else HELD_OUT
    lab = Lab(checkpoint=results.load_checkpoint(CHECKPOINT), place=place, n_held_out=n_held_out)
    seeds = SEEDS[:1] if place.tiny else SEEDS
    tasks = {}
    for task, plan in PLANS.items():
        plan = _small(plan) if place.tiny else plan
        ways: dict[str, Any] = {}
        for way in WAYS:
            rows = []
            for seed in seeds:
                made = partial(lab.row, task, plan, way, seed)
                rows.append(part_of(place, f"{task}-{_plain(way)}-{seed}", made))
            ways[way] = {"runs": rows}
            say(f"{task}, {way}: {[row['test']['none'] for row in rows]}")
        ways["baseline"] = {"runs": [lab.baseline(task, plan, seed) for seed in seeds]}
        best = {shift: plan.best(n_held_out, 0, "test", shift) for shift in SHIFTS}
        kept = dataclasses.asdict(plan)
        kept.pop("best")
        tasks[task] = {"plan": kept, "best": best, "ways": ways}
    return {
        "seed": list(seeds),
        "checkpoint_of": CHECKPOINT,
        "held_out": n_held_out,
        "tasks": tasks,
        "labels": _by_number(lab),
    }


def _by_number(lab: Lab) -> dict[str, dict[str, list[Any]]]:
    """Test scores of the entities for each number of labelled stories."""
    tiny = lab.place.tiny
    found: dict[str, dict[str, list[Any]]] = {}
    for way in ("everything", "scratch (paper)", "baseline"):
        for n in (20,) if tiny else NUMBERS:
            plan = dataclasses.replace(_small(PLANS["tag"]) if tiny else PLANS["tag"], n_train=n)
            rows = []
            for seed in range(1 if tiny else 3):
                if way == "baseline":
                    rows.append(lab.baseline("tag", plan, seed)["test"])
                    continue
                made = partial(lab.row, "tag", plan, way, seed)
                name = f"labels-{_plain(way)}-{n}-{seed}"
                rows.append(part_of(lab.place, name, made)["test"])
            found.setdefault(way, {})[str(n)] = rows
        say(f"{way}: {found[way]}")
    return found


def _plain(way: str) -> str:
    return "".join(c if c.isalpha() else "-" for c in way)


def _small(plan: Plan) -> Plan:
    return dataclasses.replace(
        plan, n_train=30, max_steps=2, batch_size=4, rates=(1e-3,), frozen_rates=(1e-3,)
    )


RUNS = {
    "finetune_town_cpu": RecordedRun(
        title="BERT fine-tuned on three tasks of Town, six ways, five seeds",
        device="cpu",
        minutes=30,
        make=finetune_town_cpu,
    ),
}
