r"""Word n-gram models with interpolated Kneser-Ney smoothing, by hand: the baseline for a GPT.

$$p_k(w \mid h) = \frac{\max(c(hw) - D_k, 0)}{c(h)} + \frac{D_k\,N(h)}{c(h)}\;p_{k-1}(w \mid h')$$

h is the context of k - 1 tokens and h' is h without its first token; N(h) counts the different
tokens seen after h, and $D_k = n_1/(n_1 + 2n_2)$ comes from the numbers of k-grams seen once and
twice. The highest order counts occurrences; every lower one counts in how many different contexts
a k-gram continues (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7). Below the unigrams
stands the uniform distribution.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from llm_course.errors import DataError

BOS, EOS, UNKNOWN = 0, 1, 2  # the first codes; BOS is only ever a context


class NgramModel:
    """An n-gram model over any tokens, words or ids; it also scores all lower orders.

    A token that training did not show shares one code with all others of its kind, so give
    `vocabulary_size` (EOS not counted) where the vocabulary is larger than what was seen.
    """

    def __init__(self, order: int, vocabulary_size: int | None = None) -> None:
        if order < 1:
            raise DataError(f"order must be at least 1, got {order}")
        self.order = order
        self.vocabulary_size = vocabulary_size
        self._codes: dict[Hashable, int] = {}
        self._base = 0  # a k-gram is one number, its codes being the digits in this base
        self._raw: list[Discounted] = []  # of orders 1, 2, ...
        self._continued: list[Discounted] = []

    def fit(self, documents: Iterable[Sequence[Hashable]]) -> NgramModel:
        """Count the k-grams of all documents; a document begins with BOS and ends with EOS."""
        codes = self._codes
        stream: list[int] = []
        for tokens in documents:
            stream += [BOS] * (self.order - 1)
            stream += [codes.setdefault(token, len(codes) + 3) for token in tokens]
            stream.append(EOS)
        if not stream:
            raise DataError("an n-gram model needs at least one document")
        self._base = base = len(codes) + 3
        counts: list[dict[int, int]] = []
        grams = stream
        for k in range(1, self.order + 1):
            if k > 1:
                grams = [older * base + token for older, token in zip(grams, stream[k - 1 :])]
            tally = Counter(grams)
            counts.append({gram: n for gram, n in tally.items() if gram % base != BOS})

        def context_of(gram: int) -> int:
            return gram // base  # without the last digit

        self._raw = [Discounted(tally, context_of) for tally in counts]
        self._continued = [
            Discounted(Counter(gram % base**k for gram in longer), context_of)
            for k, longer in enumerate(counts[1:], 1)
        ]
        return self

    def nats(self, tokens: Sequence[Hashable], order: int | None = None) -> float:
        """-log p of one document in nats, EOS included, under the model of the given order."""
        order = order or self.order
        if not 1 <= order <= self.order:
            raise DataError(f"order must be from 1 to {self.order}, got {order}")
        if not self._raw:
            raise DataError("fit the n-gram model before scoring with it")
        levels = [*self._continued[: order - 1], self._raw[order - 1]]
        uniform = 1.0 / ((self.vocabulary_size or len(self._codes) + 1) + 1)  # + 1: EOS
        codes = [self._codes.get(token, UNKNOWN) for token in tokens]
        padded = [BOS] * (order - 1) + codes + [EOS]
        total = 0.0
        for i in range(order - 1, len(padded)):
            p, gram, digit = uniform, 0, 1
            for k, level in enumerate(levels):
                gram += padded[i - k] * digit
                digit *= self._base
                p = level.probability(gram, gram // self._base, p)
            total -= math.log(p)
        return total


class Discounted:
    """Counts of patterns, and the formula above for one of them; a pattern belongs to a context."""

    def __init__(self, counts: dict[Any, int], context_of: Callable[[Any], Hashable]) -> None:
        self.counts = counts
        seen = Counter(counts.values())
        self.discount = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] else 0.5
        self.totals: defaultdict[Hashable, int] = defaultdict(int)
        self.kinds: defaultdict[Hashable, int] = defaultdict(int)
        for pattern, n in counts.items():
            context = context_of(pattern)
            self.totals[context] += n
            self.kinds[context] += 1

    def probability(self, pattern: Hashable, context: Hashable, lower: float) -> float:
        """p of the pattern's last token in its context, given p of the next lower order."""
        total = self.totals.get(context)
        if total is None:
            return lower
        kept = max(self.counts.get(pattern, 0) - self.discount, 0.0)
        return (kept + self.discount * self.kinds[context] * lower) / total
