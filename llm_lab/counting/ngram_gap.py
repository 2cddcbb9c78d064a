r"""A counted model of one hidden token between its neighbours: the baseline for a masked model.

With the context $c_k$ of the k tokens on the left and the k on the right,

$$p_k(w \mid c_k) = \frac{\max(n(c_k, w) - D_k, 0)}{n(c_k)}
    + \frac{D_k\,N(c_k)}{n(c_k)}\;p_{k-1}(w \mid c_{k-1})$$

N counts the different tokens seen in a context, and $D_k = n_1/(n_1 + 2n_2)$ comes from the numbers
of patterns seen once and twice (absolute discounting). Where the context of one neighbour on each
side has to fall back, each neighbour is asked alone, and $p_0$ is the mean of their two answers;
each of them falls back to the frequencies of the tokens, and these to the uniform distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from llm_course.errors import DataError
from llm_lab.counting.ngram import Discounted

EDGE = None  # stands before the first token of a document and after the last one
Context = tuple[Hashable, ...]


class GapModel:
    """Counts of tokens between up to `width` neighbours on each side; any hashable tokens."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        if width < 1:
            raise DataError(f"width must be at least 1, got {width}")
        if vocabulary_size < 1:
            raise DataError(f"vocabulary_size must be at least 1, got {vocabulary_size}")
        self.width, self.vocabulary_size = width, vocabulary_size
        self._frequency = _counts(Counter())
        self._left = self._right = self._frequency
        self._both: list[Discounted] = []  # of widths 1, 2, ...

    def fit(self, documents: Iterable[Sequence[Hashable]]) -> GapModel:
        """Count every token of every document with its neighbours."""
        w = self.width
        frequency, left, right = Counter[Context](), Counter[Context](), Counter[Context]()
        both = [Counter[Context]() for _ in range(w)]
        for tokens in documents:
            padded = [EDGE] * w + list(tokens) + [EDGE] * w
            n = len(tokens)
            # shifted[i][j] is the token i places after the leftmost neighbour of token j
            shifted = [padded[i : i + n] for i in range(2 * w + 1)]
            middle = shifted[w]
            frequency.update(zip(middle))
            left.update(zip(shifted[w - 1], middle))
            right.update(zip(shifted[w + 1], middle))
            for k, counts in enumerate(both, 1):
                around = shifted[w - k : w] + shifted[w + 1 : w + 1 + k]
                counts.update(zip(*around, middle))
        if not frequency:
            raise DataError("a gap model needs at least one token")
        self._frequency, self._left, self._right = map(_counts, (frequency, left, right))
        self._both = [_counts(seen) for seen in both]
        return self

    def probability(
        self, tokens: Sequence[Hashable], place: int, width: int | None = None
    ) -> float:
        """p of tokens[place] given its neighbours; width 0 is its frequency alone."""
        width = self.width if width is None else width
        if not 0 <= width <= self.width:
            raise DataError(f"width must be from 0 to {self.width}, got {width}")
        if not 0 <= place < len(tokens):
            raise DataError(f"place must be from 0 to {len(tokens) - 1}, got {place}")
        if not self._both:
            raise DataError("fit the gap model before scoring with it")
        token = tokens[place]

        def at(i: int) -> Hashable:
            return tokens[i] if 0 <= i < len(tokens) else EDGE

        p = self._frequency.probability((token,), (), 1 / self.vocabulary_size)
        if width == 0:
            return p
        sides = ((self._left, at(place - 1)), (self._right, at(place + 1)))
        p = math.fsum(side.probability((other, token), (other,), p) for side, other in sides) / 2
        for k in range(1, width + 1):
            around = (*map(at, range(place - k, place)), *map(at, range(place + 1, place + 1 + k)))
            p = self._both[k - 1].probability((*around, token), around, p)
        return p

    def nats(
        self, tokens: Sequence[Hashable], places: Iterable[int], width: int | None = None
    ) -> float:
        """The sum of -log p over some places of a document, each hidden alone."""
        return -math.fsum(math.log(self.probability(tokens, place, width)) for place in places)


def _counts(seen: Counter[Context]) -> Discounted:
    """By context and token: the token stands last in a pattern."""
    return Discounted(seen, lambda pattern: pattern[:-1])
