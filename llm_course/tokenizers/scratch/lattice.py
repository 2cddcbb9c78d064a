"""All splits of a word into pieces, as a graph: the best one, and the counts expected over all.

The positions 0..n between the characters of a word are the nodes. A piece that lies between the
positions s and e is an arc from s to e. Each path from 0 to n is then one split of the word.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

Scores = dict[str, float]  # log probability of each piece, in nats


def arcs_into(word: str, end: int, scores: Scores, longest: int) -> list[tuple[int, float]]:
    """Start and score of every piece that ends at `end`; the longest comes first."""
    starts = range(max(0, end - longest), end)
    return [(s, score) for s in starts if (score := scores.get(word[s:end])) is not None]


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)) without overflow."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def expected_counts(words: Counter[str], scores: Scores) -> dict[str, float]:
    r"""E step: how often each piece is expected, $\sum_w c_w\,p(\text{piece at } s..e \mid w)$.

    `before[i]` is the log probability of all splits of the first i characters, `after[i]` of the
    rest; a piece between s and e has the share exp(before[s] + score + after[e] - before[n]).
    """
    counts: dict[str, float] = defaultdict(float)
    longest = max(map(len, scores))
    for word, frequency in words.items():
        n = len(word)
        arcs = [
            (s, e, score)
            for e in range(1, n + 1)
            for s, score in arcs_into(word, e, scores, longest)
        ]
        before, after = [0.0] + [-math.inf] * n, [-math.inf] * n + [0.0]
        for s, e, score in arcs:
            before[e] = log_add(before[e], before[s] + score)
        for s, e, score in arcs[::-1]:
            after[s] = log_add(after[s], after[e] + score)
        for s, e, score in arcs:
            share = math.exp(before[s] + score + after[e] - before[n])
            counts[word[s:e]] += frequency * share
    return counts


def viterbi(word: str, scores: Scores, longest: int, unknown: float = -math.inf) -> list[str]:
    """The most probable split. A character that is no piece has the score `unknown`.

    `best[i]` is the score of the best split of the first i characters; it ends with a piece that
    begins at `came_from[i]`. Of equally good splits, the one with the longest last piece is taken.
    """
    best = [0.0] + [-math.inf] * len(word)
    came_from = [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        arcs = arcs_into(word, end, scores, longest)
        if word[end - 1] not in scores and unknown > -math.inf:
            arcs.append((end - 1, unknown))
        for start, score in arcs:
            if best[start] + score > best[end]:
                best[end], came_from[end] = best[start] + score, start
    pieces: list[str] = []
    end = len(word) if best[-1] > -math.inf else 0
    while end:
        pieces.append(word[came_from[end] : end])
        end = came_from[end]
    return pieces[::-1]
