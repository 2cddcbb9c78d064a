"""Checks of chapter 11: labels of pieces, frozen weights, spans, entities, tuning on test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llm_course.training.scores import entity_scores
from llm_lab.checks.grading import CheckFailed, expect_close, expect_equal, passed

IGNORE = -100


def check_label_pieces(answer: Callable[[list[list[int]], list[int]], list[int]]) -> None:
    """One label for each piece of `[CLS] words [SEP]`, at the first piece of a word."""
    words, classes = [[7], [8, 9, 4], [5], [6, 3]], [2, 0, 1, 3]
    inner = [[c, *[IGNORE] * (len(w) - 1)] for w, c in zip(words, classes)]
    pieces = [label for part in inner for label in part]
    everywhere = [c for w, c in zip(words, classes) for _ in w]
    last = [label for w, c in zip(words, classes) for label in [*[IGNORE] * (len(w) - 1), c]]
    zeros = [label if label != IGNORE else 0 for label in pieces]
    expect_equal(
        answer(words, classes),
        [IGNORE, *pieces, IGNORE],
        name="label_pieces",
        hints={
            tuple(pieces): "[CLS] and [SEP] are missing: each of them has the label -100",
            (IGNORE, *everywhere, IGNORE): (
                "every piece has the label of its word: a long word then counts several times"
            ),
            (IGNORE, *last, IGNORE): "the label stands at the last piece of a word, not the first",
            (IGNORE, *zeros, IGNORE): (
                "the other pieces have the label 0: that is a class, and it is learnt; use -100"
            ),
            (0, *zeros, 0): "label 0 is a class; what must not count has the label -100",
            (IGNORE, *classes, IGNORE): (
                "there is one label for each word: the model sees pieces, so count them"
            ),
        },
    )
    expect_equal(answer([], []), [IGNORE, IGNORE], name="label_pieces of no words")
    passed("each word counts once, whatever it is cut into")


class _Parts(nn.Module):
    """A body and a head, with a running count that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.double()


def check_moved(answer: Callable[[nn.Module, Callable[[], None]], list[str]]) -> None:
    """The names of the parameters that an update has changed, however little."""
    for frozen, nudged, size, what in (
        (("body", "norm"), (), 0.0, "a model of which only the head is trained"),
        ((), (), 0.0, "a model of which everything is trained"),
        (("body", "norm"), ("norm.bias",), 1e-12, "a frozen norm that moves by 1e-12"),
        (("body", "norm"), ("body.weight",), 1.0, "a frozen matrix that moves all the same"),
    ):
        model = _Parts()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen) or ("none",)))
        learn = [name for name, p in model.named_parameters() if p.requires_grad]
        update = _Update(model, nudged, size)
        expected = sorted({*learn, *nudged})
        got = answer(model, update)
        if update.calls != 1:
            raise CheckFailed(
                f"moved must call the update once, it was called {update.calls} times"
            )
        got = sorted(got) if isinstance(got, list | tuple | set) else got
        expect_equal(
            got,
            expected,
            name=f"moved, for {what}",
            hints={
                (): "nothing is found: keep copies (`clone`), not the tensors that the update moves"
                if expected
                else "",
                tuple(sorted(learn)): (
                    "these are the parameters with requires_grad: look at the values, "
                    "something may move them all the same"
                ),
            },
        )
    passed("what moved is known from the values, not from the flags")


class _Update:
    """One step that moves what learns, and the named others by `size`; it counts its calls."""

    def __init__(self, model: nn.Module, nudged: Sequence[str], size: float) -> None:
        self.model, self.nudged, self.size, self.calls = model, nudged, size, 0

    def __call__(self) -> None:
        self.calls += 1
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
                elif name in self.nudged:
                    parameter.add_(self.size)


def check_best_span(
    answer: Callable[[Tensor, Tensor, int], tuple[int, int]],
) -> None:
    """The pair with the largest sum of scores, start ≤ end, at most `longest` tokens."""
    start = torch.tensor([0.0, 1.0, 2.0, 9.0, 0.5, 3.0])
    end = torch.tensor([0.2, 8.0, 1.0, 2.0, 2.5, 7.0])
    free = (int(start.argmax()), int(end.argmax()))
    expect_equal(
        answer(start, end, 2),
        (3, 4),
        name="best_span with at most 2 tokens",
        hints={
            free: "the end lies before the beginning: these are the two best scores by themselves",
            (1, 1): "a better pair exists: 9 + 2.5 at the places 3 and 4",
            (3, 5): "places 3 to 5 are three tokens: longest = 2 allows end - start of at most 1",
            (3, 3): "places 3 and 4 are two tokens, so longest = 2 allows them",
            (4, 3): "first the start, then the end",
        },
    )
    expect_equal(answer(start, end, 1), (3, 3), name="best_span with 1 token")
    expect_equal(answer(start, end, 6), (3, 5), name="best_span with at most 6 tokens")
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        a, b = torch.randn(2, 7, generator=generator)
        pairs = [(i, j) for i in range(7) for j in range(i, min(i + 3, 7))]
        right = max(pairs, key=lambda pair: float(a[pair[0]] + b[pair[1]]))
        expect_equal(
            answer(a, b, 3),
            right,
            name="best_span of random scores",
            hints={
                _greedy(a, b, 3): (
                    "the best start was chosen first, and then an end for it: the best pair may "
                    "begin elsewhere"
                )
            },
        )
    passed("the best pair among those that are a stretch of text")


def _greedy(start: Tensor, end: Tensor, longest: int) -> tuple[int, int]:
    first = int(start.argmax())
    return first, first + int(end[first : first + longest].argmax())


Tags = list[list[str]]


def check_entity_f1(answer: Callable[[Tags, Tags], float]) -> None:
    """F1 of whole entities over all rows."""
    true = [
        ["B-PERSON", "I-PERSON", "O", "O", "B-JOB", "O"],
        ["O", "B-PLACE", "O", "O", "O", "O"],
        ["B-PERSON", "B-PERSON", "O", "O", "O", "O"],
    ]
    predicted = [
        ["B-PERSON", "O", "O", "O", "B-JOB", "O"],
        ["O", "B-PERSON", "O", "O", "O", "B-JOB"],
        ["B-PERSON", "B-PERSON", "O", "O", "O", "O"],
    ]
    scores = entity_scores(predicted, true)
    flat = [(p, t) for ps, ts in zip(predicted, true) for p, t in zip(ps, ts)]
    hits = sum(p == t != "O" for p, t in flat)
    said, wanted = sum(p != "O" for p, _ in flat), sum(t != "O" for _, t in flat)
    by_row = [entity_scores([p], [t])["f1"] for p, t in zip(predicted, true)]
    expect_close(
        answer(predicted, true),
        scores["f1"],
        name="entity_f1",
        hints={
            sum(p == t for p, t in flat) / len(flat): "this is the accuracy of tokens; most are O",
            2 * hits / (said + wanted): "this counts tokens: half of a name should be wrong",
            scores["precision"]: "this is the precision: entities that are missed count too",
            scores["recall"]: "this is the recall: entities that are not there count too",
            sum(by_row) / len(by_row): "this is a mean of F1: count over all rows, divide last",
        },
    )
    _check_edges_of_entity_f1(answer)
    passed("an entity is right or wrong as a whole")


def _check_edges_of_entity_f1(answer: Callable[[Tags, Tags], float]) -> None:
    """Nothing found, an entity at the wrong place, and one in the wrong row."""
    nothing = [["O"] * 4]
    expect_close(
        answer(nothing, [["B-JOB", "O", "O", "O"]]), 0.0, name="entity_f1 of nothing but O"
    )
    moved = answer([["O", "B-JOB", "O"]], [["B-JOB", "O", "O"]])
    expect_close(
        moved,
        0.0,
        name="entity_f1 of an entity at the wrong place",
        hints={1.0: "the place counts too: compare (type, first, last), not only the type"},
    )
    rows = [["O", "B-JOB"], ["B-JOB", "O"]]
    expect_close(
        answer(rows, rows[::-1]),
        0.0,
        name="entity_f1 of two rows that are exchanged",
        hints={1.0: "the row counts too: an entity of one row is no entity of another"},
    )


def check_best_of(
    answer: Callable[[int, int, float, int, torch.Generator], float],
) -> None:
    """The mean of the best score among equally good models."""
    for k, n, p in ((1, 200, 0.8), (20, 200, 0.8), (20, 50, 0.6)):
        trials = 2000
        mean, sd = _best_of(k, n, p)
        got = answer(k, n, p, trials, torch.Generator().manual_seed(k))
        tolerance = 6 * sd / math.sqrt(trials)
        expect_close(
            got,
            mean,
            name=f"best_of({k}, {n}, {p})",
            tolerance=tolerance,
            hints={
                p: "this is the mean of all scores: take the best of the k first, then the mean",
                n * mean: "this is a number of right answers: divide by n",
                _best_of(k * trials, n, p)[0]: (
                    "this is the best of all trials: take the best of each trial, then the mean"
                ),
                _best_of(n, k, p)[0]: "k is the number of models, n that of examples",
            },
        )
    passed("the best of many equal models looks better than it is")


def _best_of(k: int, n: int, p: float) -> tuple[float, float]:
    """Mean and standard deviation of the largest of k binomial shares, exactly."""
    below = first = second = 0.0
    for x in range(n + 1):
        log_p = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
        log_p += x * math.log(p) + (n - x) * math.log(1 - p)
        upto = min(below + math.exp(log_p), 1.0)
        mass = upto**k - below**k
        first += mass * x / n
        second += mass * (x / n) ** 2
        below = upto
    return first, math.sqrt(max(second - first**2, 0.0))
