"""Scores against scikit-learn, hand-made cases of conlleval, and the script of SQuAD."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score

from llm_course.errors import DataError
from llm_course.training.scores import (
    accuracy,
    answer_scores,
    calibration_bins,
    calibration_error,
    entities,
    entity_scores,
    macro_f1,
    normal_answer,
)


@pytest.mark.parametrize("seed", range(10))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    classes = "abcde"[: draw.randint(2, 5)]
    true = draw.choices(classes, k=40)
    predicted = [t if draw.random() < 0.6 else draw.choice(classes) for t in true]
    assert accuracy(predicted, true) == pytest.approx(accuracy_score(true, predicted))
    expected = f1_score(true, predicted, average="macro", zero_division=0.0)
    assert macro_f1(predicted, true) == pytest.approx(expected)


def test_macro_f1_sees_a_class_that_accuracy_overlooks() -> None:
    true = ["common"] * 98 + ["rare"] * 2
    assert accuracy(["common"] * 100, true) == 0.98
    assert macro_f1(["common"] * 100, true) < 0.5


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-P I-P O", {("P", 0, 1)}),
        ("B-P B-P", {("P", 0, 0), ("P", 1, 1)}),
        ("B-P I-Q", {("P", 0, 0), ("Q", 1, 1)}),
        ("I-P I-P", {("P", 0, 1)}),  # an I- without its B- begins one
        ("O I-P B-P", {("P", 1, 1), ("P", 2, 2)}),
        ("B-P O I-P", {("P", 0, 0), ("P", 2, 2)}),
        ("B-P I-P I-P", {("P", 0, 2)}),
        ("", set()),
    ],
)
def test_entities_are_read_from_tags_by_the_rules_of_conlleval(tags: str, found: set) -> None:
    assert entities(tags.split()) == found


def test_an_entity_counts_only_with_its_type_and_both_ends() -> None:
    true = [["B-P", "I-P", "O", "B-Q"]]
    assert entity_scores(true, true) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert entity_scores([["B-P", "O", "O", "B-Q"]], true)["f1"] == 0.5
    assert entity_scores([["B-Q", "I-Q", "O", "B-Q"]], true)["f1"] == 0.5
    assert entity_scores([["O", "O", "O", "O"]], true) == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
    }
    mixed = entity_scores([["B-P", "I-P", "B-Q", "B-Q"]], true)
    assert mixed == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8})


def test_answers_are_compared_as_the_script_of_squad_does() -> None:
    assert normal_answer("  The Blue, kettle!") == "blue kettle"
    scores = answer_scores(["the blue kettle", "a red cup", ""], [["Blue kettle."], ["cup"], ["x"]])
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert answer_scores(["cup"], [["kettle", "cup"]]) == {"exact_match": 1.0, "f1": 1.0}


def test_calibration_is_the_weighted_gap_between_confidence_and_share_right() -> None:
    confidence = [0.55, 0.6, 0.95, 0.95, 1.0]
    right = [True, False, True, True, False]
    bins = calibration_bins(confidence, right)
    assert [b.n for b in bins] == [2, 3]  # 0.6 is the upper end of its bin
    assert bins[0].confidence == pytest.approx(0.575)
    assert bins[1].right == pytest.approx(2 / 3)
    by_hand = (2 * abs(0.5 - 0.575) + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    assert calibration_error(confidence, right) == pytest.approx(by_hand)
    unweighted = (abs(0.5 - 0.575) + abs(2 / 3 - 2.9 / 3)) / 2
    assert calibration_error(confidence, right) != pytest.approx(unweighted)
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0
    sure = calibration_error([1.0] * 4, [True, True, False, False])
    assert sure == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration_error([1.5], [True]), "from 0 to 1, got 1.5"),
        (lambda: calibration_bins([0.5], [True], 0), "n_bins must be at least 1, got 0"),
        (lambda: accuracy([], []), "at least one, got 0 and 0"),
        (lambda: macro_f1(["a"], ["a", "b"]), "got 1 and 2"),
        (lambda: entities(["B-P", "X"]), "got 'X' at place 1"),
        (lambda: entities(["B-"]), "got 'B-' at place 0"),
        (lambda: entity_scores([["O"]], [["O", "O"]]), "row 0 has 2 tags, but 1 are predicted"),
        (lambda: answer_scores(["x"], [[]]), "question 0 must have at least one"),
    ],
)
def test_bad_predictions_are_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]


def test_a_class_that_is_only_predicted_counts_in_macro_f1() -> None:
    assert macro_f1(["a", "b"], ["a", "a"]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(["b", "b"], ["a", "a"]) == 0.0
    assert f1_score(["a", "a"], ["a", "b"], average="macro") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("predicted", "true", "f1"),
    [
        ("cat cat", "cat cat", 1.0),  # both times
        ("cat cat", "cat", 2 / 3),  # the second one is wrong
        ("cat", "cat cat", 2 / 3),
        ("cat dog", "cat cat dog", 4 / 5),
        ("dog cat", "cat dog", 1.0),  # the order of words does not count
    ],
)
def test_the_f1_of_words_counts_a_word_as_often_as_it_stands_in_both(
    predicted: str, true: str, f1: float
) -> None:
    assert answer_scores([predicted], [[true]])["f1"] == pytest.approx(f1)


def test_of_several_accepted_answers_the_best_counts_and_not_their_mean_or_order() -> None:
    for accepted in (["red cup", "cup", "kettle"], ["kettle", "cup", "red cup"]):
        assert answer_scores(["cup"], [accepted]) == {"exact_match": 1.0, "f1": 1.0}
        assert answer_scores(["blue cup"], [accepted])["f1"] == pytest.approx(2 / 3)
    # No answer is right where none is wanted, and only there.
    assert answer_scores(["", "a", "the"], [[""], [""], ["cup"]])["f1"] == pytest.approx(2 / 3)
