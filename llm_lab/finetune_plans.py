"""The plan of the fine-tuning lab, which its notebook and its recorded run share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from llm_course.configs import TrainConfig
from llm_lab.counting.baselines import bag_of_words, bare_scores
from llm_town.tasks import entities, questions, sentiment

OWN_START = "scratch (ours)"
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"train_blocks": 0},
    "last block": {"train_blocks": 1},
    "everything": {},
    "scratch (paper)": {"from_scratch": True},
    OWN_START: {},  # everything, from `untrained`
}
STRENGTHS = (0.01, 0.1, 1.0)  # of the bag of words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How one task is learnt: its examples, its updates, the rates that are tried on dev."""

    n_train: int
    max_steps: int
    batch_size: int
    score: str  # the one that is reported
    best: Callable[..., float]
    rates: tuple[float, ...] = (1e-3, 2e-3)
    frozen_rates: tuple[float, ...] = (3e-3, 1e-2)

    def tried(self, way: str) -> tuple[float, ...]:
        """The learning rates that a way may choose from; a frozen BERT bears high ones."""
        return self.frozen_rates if way == "frozen" else self.rates


PLANS = {
    "classify": Plan(
        n_train=200,
        max_steps=100,
        batch_size=8,
        score="accuracy",
        best=sentiment.best_score,
        rates=(5e-4, 1e-3),
    ),
    "tag": Plan(n_train=50, max_steps=60, batch_size=8, score="f1", best=entities.best_score),
    "qa": Plan(
        n_train=300, max_steps=160, batch_size=8, score="exact_match", best=questions.best_score
    ),
}


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


def best_bag(training: Sequence[Any], dev: Sequence[Any]) -> Callable[[Sequence[Any]], list[str]]:
    """The bag of words whose strength is the best on dev."""
    bags = [bag_of_words(training, strength) for strength in STRENGTHS]
    scores = [bare_scores("classify", dev, bag(dev))["accuracy"] for bag in bags]
    return bags[scores.index(max(scores))]
