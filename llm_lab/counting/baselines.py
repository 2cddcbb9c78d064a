"""What simple methods make of labelled examples: the lines that a fine-tuned BERT has to beat.

They see the same training examples. `bag_of_words` and `common_words` need scikit-learn.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from llm_course.data.examples import QuestionExample, TaggedExample, TextExample
from llm_course.data.sentences import split_sentences
from llm_course.training.scores import accuracy, answer_scores, entity_scores, macro_f1

WORD = re.compile(r"\w+")
OPENING = 3  # words of a question that say what kind it is


def bag_of_words(
    training: Sequence[TextExample], strength: float = 0.1
) -> Callable[[Sequence[TextExample]], list[str]]:
    """Logistic regression on the counts of words; `strength` is scikit-learn's C.

    The order of the words is lost.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counter = CountVectorizer()
    model = LogisticRegression(C=strength, max_iter=2000)
    model.fit(counter.fit_transform([e.text for e in training]), [e.label for e in training])

    def predict(examples: Sequence[TextExample]) -> list[str]:
        return [str(c) for c in model.predict(counter.transform([e.text for e in examples]))]

    return predict


def common_words(
    training: Sequence[TextExample],
) -> Callable[[Sequence[TextExample]], list[str]]:
    """Logistic regression on how much two texts share, and on how their lengths differ."""
    from sklearn.linear_model import LogisticRegression

    def features(example: TextExample) -> list[float]:
        a, b = (set(WORD.findall(t.lower())) for t in (example.text, example.pair or ""))
        return [len(a & b) / max(len(a | b), 1), abs(len(a) - len(b)) / max(len(a), len(b), 1)]

    model = LogisticRegression()
    model.fit([features(e) for e in training], [e.label for e in training])
    return lambda examples: [str(c) for c in model.predict([features(e) for e in examples])]


def dictionary(
    training: Sequence[TaggedExample],
) -> Callable[[Sequence[TaggedExample]], list[tuple[str, ...]]]:
    """Each word gets the tag that it had most often in training; a new word gets O."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in training:
        for word, tag in zip(example.words, example.tags or ()):
            counts[word][tag] += 1
    best = {word: seen.most_common(1)[0][0] for word, seen in counts.items()}
    return lambda examples: [tuple(best.get(w, "O") for w in e.words) for e in examples]


def question_rule(
    training: Sequence[QuestionExample],
) -> Callable[[Sequence[QuestionExample]], list[str]]:
    """The sentence with most words of the question, and in it an answer seen with such a question.

    Two questions are of one kind where they begin with the same three words. Where no known answer
    stands in the text: the longest run of capitals or digits that the question does not have, in
    the best sentence that has one.
    """
    known: dict[str, set[str]] = defaultdict(set)
    for example in training:
        known[_kind(example)].update(answer.text for answer in example.answers)
    return lambda examples: [ruled_answer(example, known[_kind(example)]) for example in examples]


def _kind(example: QuestionExample) -> str:
    return " ".join(example.question.split()[:OPENING])


def ruled_answer(example: QuestionExample, known: set[str]) -> str:
    """The best candidate: a known answer before a run of capitals, then most words of the question.

    A candidate is a tuple, and Python compares tuples from the left: (known, shared words,
    earlier sentence, length, text).
    """
    asked = set(WORD.findall(example.question))
    best: tuple[Any, ...] = ()
    for number, sentence in enumerate(split_sentences(example.context)):
        shared = len(asked & set(WORD.findall(sentence)))
        words = f" {' '.join(WORD.findall(sentence))} "
        for answer in known:
            plain = " ".join(WORD.findall(answer))
            if f" {plain} " in words and plain not in example.question:
                best = max(best, (1, shared, -number, len(answer), answer))
        for run in re.findall(r"(?:[A-Z0-9][\w'-]*[ ,]*)+", sentence):
            if not asked & set(WORD.findall(run)):
                best = max(best, (0, shared, -number, len(run), run.strip(" ,")))
    return str(best[-1]) if best else ""


def bare_scores(task: str, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """The scores of a task, of class names, of tags, or of the texts of answers."""
    if task == "tag":
        return entity_scores(predicted, [e.tags for e in examples])
    if task == "qa":
        return answer_scores(predicted, [[answer.text for answer in e.answers] for e in examples])
    true = [e.label for e in examples]
    return {"accuracy": accuracy(predicted, true), "macro_f1": macro_f1(predicted, true)}
