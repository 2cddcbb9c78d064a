"""Right and wrong answers to the exercises of chapter 11, for `test_contract`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from check_answers import Right, Wrong
from torch import Tensor, nn

from llm_course.training.scores import entities
from llm_lab.checks import ch11


def label_pieces(
    words: list[list[int]], classes: list[int], rest: int = -100, outside: int = -100
) -> list[int]:
    labels = [outside]
    for word, chosen in zip(words, classes):
        labels += [chosen, *[rest] * (len(word) - 1)]
    return [*labels, outside]


def every_piece(words: list[list[int]], classes: list[int]) -> list[int]:
    return [-100, *(c for w, c in zip(words, classes) for _ in w), -100]


def last_piece(words: list[list[int]], classes: list[int]) -> list[int]:
    pairs = zip(words, classes)
    return [-100, *(label for w, c in pairs for label in [*[-100] * (len(w) - 1), c]), -100]


def moved(model: nn.Module, update: Callable[[], None]) -> list[str]:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update()
    return [name for name, p in model.named_parameters() if (p != before[name]).any()]


def without_copies(model: nn.Module, update: Callable[[], None]) -> list[str]:
    before = {name: p.detach() for name, p in model.named_parameters()}
    update()
    return [name for name, p in model.named_parameters() if (p != before[name]).any()]


def by_flags(model: nn.Module, update: Callable[[], None]) -> list[str]:
    update()
    return [name for name, p in model.named_parameters() if p.requires_grad]


def about(model: nn.Module, update: Callable[[], None]) -> list[str]:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update()
    return [n for n, p in model.named_parameters() if not torch.allclose(p, before[n])]


def no_update(model: nn.Module, update: Callable[[], None]) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def best_span(start: Tensor, end: Tensor, longest: int) -> tuple[int, int]:
    n = len(start)
    pairs = [(i, j) for i in range(n) for j in range(i, min(i + longest, n))]
    return max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))


def greedy(start: Tensor, end: Tensor, longest: int) -> tuple[int, int]:
    first = int(start.argmax())
    return first, first + int(end[first : first + longest].argmax())


def independent(start: Tensor, end: Tensor, longest: int) -> tuple[int, int]:
    return int(start.argmax()), int(end.argmax())


Tags = list[list[str]]


def entity_f1(predicted: Tags, true: Tags) -> float:
    found = {(n, *e) for n, tags in enumerate(predicted) for e in entities(tags)}
    wanted = {(n, *e) for n, tags in enumerate(true) for e in entities(tags)}
    return 2 * len(found & wanted) / max(len(found) + len(wanted), 1)


def without_rows(predicted: Tags, true: Tags) -> float:
    found = {(*e,) for tags in predicted for e in entities(tags)}
    wanted = {(*e,) for tags in true for e in entities(tags)}
    return 2 * len(found & wanted) / max(len(found) + len(wanted), 1)


def token_accuracy(predicted: Tags, true: Tags) -> float:
    pairs = [(p, t) for ps, ts in zip(predicted, true) for p, t in zip(ps, ts)]
    return sum(p == t for p, t in pairs) / len(pairs)


def token_f1(predicted: Tags, true: Tags) -> float:
    pairs = [(p, t) for ps, ts in zip(predicted, true) for p, t in zip(ps, ts)]
    right = sum(p == t != "O" for p, t in pairs)
    return 2 * right / max(sum((p != "O") + (t != "O") for p, t in pairs), 1)


def recall(predicted: Tags, true: Tags) -> float:
    found = {(n, *e) for n, tags in enumerate(predicted) for e in entities(tags)}
    wanted = {(n, *e) for n, tags in enumerate(true) for e in entities(tags)}
    return len(found & wanted) / len(wanted)


def best_of(k: int, n: int, p: float, trials: int, generator: torch.Generator) -> float:
    right = torch.rand(trials, k, n, generator=generator) < p
    return right.float().mean(dim=-1).max(dim=1).values.mean().item()


def mean_of(k: int, n: int, p: float, trials: int, generator: torch.Generator) -> float:
    return (torch.rand(trials, k, n, generator=generator) < p).float().mean().item()


def exchanged(k: int, n: int, p: float, trials: int, generator: torch.Generator) -> float:
    return best_of(n, k, p, trials, generator)


def counted(k: int, n: int, p: float, trials: int, generator: torch.Generator) -> float:
    return n * best_of(k, n, p, trials, generator)


WRONG: Wrong = [
    (ch11.check_label_pieces, every_piece, "counts several times"),
    (ch11.check_label_pieces, last_piece, "the last piece"),
    (ch11.check_label_pieces, lambda w, c: label_pieces(w, c, 0), "that is a class"),
    (ch11.check_label_pieces, lambda w, c: label_pieces(w, c, 0, 0), "label 0 is a class"),
    (ch11.check_label_pieces, lambda w, c: label_pieces(w, c)[1:-1], r"\[SEP\] are missing"),
    (ch11.check_label_pieces, lambda w, c: [-100, *c, -100], "count them"),
    (ch11.check_moved, without_copies, "keep copies"),
    (ch11.check_moved, by_flags, "look at the values"),
    (ch11.check_moved, about, "moves by 1e-12"),
    (ch11.check_moved, no_update, "call the update once"),
    (ch11.check_best_span, independent, "before the beginning"),
    (ch11.check_best_span, lambda s, e, n: best_span(s, e, n + 1), "three tokens"),
    (ch11.check_best_span, lambda s, e, n: best_span(s, e, max(n - 1, 1)), "two tokens"),
    (ch11.check_best_span, greedy, "best start was chosen first"),
    (ch11.check_entity_f1, token_accuracy, "accuracy of tokens"),
    (ch11.check_entity_f1, token_f1, "counts tokens"),
    (ch11.check_entity_f1, recall, "this is the recall"),
    (ch11.check_entity_f1, without_rows, "entity_f1"),
    (ch11.check_best_of, mean_of, "mean of all scores"),
    (ch11.check_best_of, exchanged, "number of models"),
    (ch11.check_best_of, counted, "divide by n"),
]

RIGHT: Right = [
    (ch11.check_label_pieces, label_pieces),
    (ch11.check_moved, moved),
    (ch11.check_best_span, best_span),
    (ch11.check_entity_f1, entity_f1),
    (ch11.check_best_of, best_of),
]
