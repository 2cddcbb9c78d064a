"""`fill-mask`: each guess is BERT's for the very place of its [MASK]."""

from __future__ import annotations

import pytest
import torch
from parity import perturbed

from llm_course.configs import BERTConfig
from llm_course.models.bert import BERT
from llm_course.recipes.fill_mask import fill_mask
from llm_course.tokenizers.library import Tokenizer

TEXT = "a [MASK] cat and a cat [MASK] a dog"


def bert(padding_rows: int = 0) -> tuple[BERT, Tokenizer]:
    texts = ["a black cat and a white dog", "the dog saw a bird near the cat"]
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocab_size=70)
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32, "n_positions": 24}
    vocab_size = len(tokenizer) + padding_rows
    torch.manual_seed(0)
    return perturbed(BERT(BERTConfig(**sizes, vocab_size=vocab_size, dropout=0.5))), tokenizer


def test_a_guess_is_for_the_place_of_its_mask_and_not_for_its_neighbour() -> None:
    model, tokenizer = bert()
    model.eval()
    ids = tokenizer.encode(TEXT, add_special=True, parse_special=True)
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    with torch.no_grad():
        p = model(torch.tensor([ids])).mlm_logits[0].softmax(-1)
    guesses = fill_mask(model, tokenizer, TEXT, top=3)
    assert len(guesses) == len(places) == 2
    for place, row in zip(places, guesses):
        assert [g.probability for g in row] == pytest.approx(p[place].topk(3).values.tolist())
        for token, probability in row:
            i = tokenizer.token_id(token)
            assert p[place, i].item() == pytest.approx(probability)
            assert all(abs(p[j, i].item() - probability) > 1e-4 for j in (place - 1, place + 1))


def test_guesses_are_the_same_while_the_model_is_trained() -> None:
    """Without dropout, and the model is given back in its mode."""
    model, tokenizer = bert()
    expected = fill_mask(model.eval(), tokenizer, TEXT)
    model.train()
    assert fill_mask(model, tokenizer, TEXT) == expected
    assert model.training


def test_rows_of_a_vocabulary_that_was_rounded_up_are_no_guess() -> None:
    model, tokenizer = bert(padding_rows=5)
    with torch.no_grad():
        model.get_parameter("mlm_head.decoder.bias")[-5:] = 50.0
    (first, _) = fill_mask(model.eval(), tokenizer, TEXT, top=len(tokenizer))
    assert len({guess.token for guess in first}) == len(tokenizer)
    assert sum(guess.probability for guess in first) == pytest.approx(1.0, abs=1e-4)
