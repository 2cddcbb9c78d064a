"""Beam search against all strings of a tiny vocabulary, and against a plain search by hand."""

from __future__ import annotations

import pytest
import torch
from generation_references import FAMILIES, all_answers, continuation, next_logits, tiny
from torch import Tensor, nn

from llm_course import generate
from llm_course.generation.beam import Hypotheses, beam_search
from llm_course.generation.request import check_request
from llm_course.generation.stepping import make_stepper

V = 5
PENALTIES = (0.0, 0.6, 1.0, 2.0, -1.0)


def search(
    model: nn.Module, prompt: list[int], n: int, beams: int, penalty: float, stops: list[int]
) -> Hypotheses:
    request = check_request(
        model,
        torch.tensor([prompt]),
        max_new_tokens=n,
        temperature=0.0,
        top_k=None,
        top_p=None,
        eos_token_id=stops,
        pad_token_id=0,
        attention_mask=None,
        generator=None,
    )
    with torch.inference_mode():
        stepper = make_stepper(model, request)
        return beam_search(stepper, request, num_beams=beams, length_penalty=penalty)


def by_hand(
    model: nn.Module, prompt: list[int], n: int, beams: int, penalty: float, stops: list[int]
) -> tuple[list[int], float]:
    """Beam search with lists, without early ends: the best of all that ever finished."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, n + 1):
        prefixes = torch.tensor([ids for _, ids in live], dtype=torch.long)
        log_probs = next_logits(model, prompt, prefixes)[:, -1].log_softmax(-1).tolist()
        ranked = sorted(
            ((s + log_probs[i][v], [*ids, v]) for i, (s, ids) in enumerate(live) for v in range(V)),
            key=lambda entry: -entry[0],
        )
        best = ranked[:beams]
        ended += [(s / length**penalty, ids) for s, ids in best if ids[-1] in stops or length == n]
        live = [entry for entry in ranked if entry[1][-1] not in stops][:beams]
    score, ids = max(ended)
    return ids, score


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stops", [[], [1], [1, 3]])
def test_wide_beam_finds_the_most_probable_string_of_all(family: str, stops: list[int]) -> None:
    model, prompt = tiny(family, V, seed=7), [2, 3]
    for n in (1, 2, 3, 4):
        strings = all_answers(model, prompt, n, stops)
        for penalty in PENALTIES:
            scores = {a: p / len(a) ** penalty for a, p in strings.items()}
            best = max(scores, key=lambda a: scores[a])
            found = search(model, prompt, n, V**n, penalty, stops)
            length = int(found.lengths)
            assert tuple(found.ids[0, :length].tolist()) == best
            assert float(found.scores) == pytest.approx(scores[best], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2, 3, 7])
def test_narrow_beam_is_the_search_by_hand(family: str, beams: int) -> None:
    for seed in (20, 30):
        model = tiny(family, V, seed=seed)
        for stops in ([], [1], [0, 4]):
            for penalty in PENALTIES:
                found = search(model, [2, 3], 6, beams, penalty, stops)
                ids, score = by_hand(model, [2, 3], 6, beams, penalty, stops)
                assert found.ids[0, : int(found.lengths)].tolist() == ids
                assert float(found.scores) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_score_is_the_sum_of_log_probabilities_over_the_length(family: str) -> None:
    model = tiny(family, V, seed=8)
    strings = all_answers(model, [1], 4, [2])
    for beams in (2, 3):
        for penalty in (0.0, 1.0):
            found = search(model, [1], 4, beams, penalty, [2])
            ids = tuple(found.ids[0, : int(found.lengths)].tolist())
            assert float(found.scores) == pytest.approx(
                strings[ids] / len(ids) ** penalty, rel=1e-5
            )


def log_probability(model: nn.Module, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([answer])
    terms = next_logits(model, prompt, ids)[:, :-1].log_softmax(-1)
    return float(terms.gather(-1, ids[..., None]).sum())


def test_beams_find_strings_that_greedy_misses() -> None:
    better = 0
    for seed in range(10):
        model, prompt = tiny("gpt", V, seed=100 * seed), [0, 4]
        greedy, beam = (
            generate(model, torch.tensor([prompt]), max_new_tokens=5, eos_token_id=[], num_beams=k)
            for k in (1, V**5)
        )
        low, high = (
            log_probability(model, prompt, continuation(model, prompt, ids[0]))
            for ids in (greedy, beam)
        )
        assert high >= low - 1e-5
        better += high > low + 1e-3
    assert better >= 2  # or these models could not tell a search from greedy decoding


def test_length_penalty_chooses_between_short_and_long() -> None:
    model = tiny("gpt", V, seed=7)
    lengths = {p: int(search(model, [2], 6, 30, p, [1, 3]).lengths) for p in (-2.0, 0.0, 4.0)}
    assert lengths[-2.0] <= lengths[0.0] <= lengths[4.0]
    assert lengths[-2.0] < lengths[4.0]


def test_search_ends_as_soon_as_nothing_can_win() -> None:
    """A stop token that is nearly certain ends the search after one step, not after 12."""
    model = tiny("gpt", V, seed=1)
    steps: list[Tensor] = []
    model.blocks()[0].register_forward_pre_hook(lambda _, args: steps.append(args[0]))
    settings = {"max_new_tokens": 12, "num_beams": 3}
    free = generate(model, torch.tensor([[2]]), eos_token_id=[], **settings)
    assert len(steps) == 12
    assert free.shape == (1, 13)
    steps.clear()
    certain = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + certain)
    ids = generate(model, torch.tensor([[2]]), eos_token_id=1, length_penalty=0.0, **settings)
    assert ids.tolist() == [[2, 1]]
    assert len(steps) == 1


def test_search_goes_on_while_a_short_answer_could_still_win() -> None:
    """Where long answers are punished, what comes next counts, not what comes last."""
    model, calls = tiny("gpt", V), []

    def say(module: nn.Module, args: object, logits: Tensor) -> Tensor:
        calls.append(1)
        said = logits.new_full((V,), 0.01)
        said[0 if len(calls) == 1 else 1] = 0.94  # first 0, then the stop token
        said[2] = 0.03 if len(calls) == 1 else 0.01
        return said.log().expand_as(logits)

    model.lm_head.register_forward_hook(say)
    # At -5: [1] has log 0.01 = -4.6, [0, 1] about 32 * -0.12, [0] grown to six tokens -480.
    for penalty in (-1.0, -2.0, -5.0):
        calls.clear()
        found = search(model, [2], 6, 5, penalty, [1])
        assert found.ids[0, :2].tolist() == [0, 1]
        assert found.lengths.tolist() == [2]


def test_all_tokens_may_be_stop_tokens() -> None:
    model = tiny("gpt", V)
    found = search(model, [2], 4, 3, 1.0, [0, 1, 2, 3, 4])
    assert found.lengths.tolist() == [1]
    assert found.ids[0, 0] == next_logits(model, [2], torch.zeros(1, 0, dtype=torch.long)).argmax()


def test_rows_of_a_batch_do_not_mix() -> None:
    model, n_tokens = tiny("t5", V, seed=9), 5
    prompts = [[a, b] for a in range(V) for b in range(V)]
    together = generate(
        model, torch.tensor(prompts), max_new_tokens=n_tokens, num_beams=4, eos_token_id=[1, 2]
    )
    for prompt, row in zip(prompts, together.tolist()):
        found = search(model, prompt, n_tokens, 4, 1.0, [1, 2])
        length = int(found.lengths)
        assert row[:length] == found.ids[0, :length].tolist()
        assert set(row[length:]) <= {0}
