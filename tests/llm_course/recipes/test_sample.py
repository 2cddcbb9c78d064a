"""Texts of `generate`: each begins with its prompt and ends where its own end token stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm_course.configs import GPTConfig
from llm_course.models.gpt import GPT
from llm_course.recipes.sample import sample_texts
from llm_course.tokenizers.library import Tokenizer

LETTERS = Tokenizer.train(["abc"], kind="char", vocab_size=20)
START, END = "<bos>", "<eos>"


def chain(tokens: Tokenizer, follows: dict[str, str]) -> GPT:
    """A GPT for which the letters of `follows[token]` follow a token, equally likely; "." is END.

    Embeddings are one-hot and the block adds nothing, so the head is the table of what follows; its
    last column takes back what the norm subtracts.
    """
    sizes = {"vocab_size": len(tokens), "d_model": len(tokens) + 1, "n_positions": 12}
    model = GPT(GPTConfig(**sizes, n_layers=1, n_heads=1, tied=False, dropout=0.0)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name == "norm.weight" else 0.0)
        model.token_embedding.weight[:, :-1] = torch.eye(len(tokens))
        head = model.lm_head.weight
        for token, letters in follows.items():
            for letter in letters:
                head[tokens.token_id(END if letter == "." else letter), tokens.token_id(token)] = 20
        head[:, -1] = -head.sum(-1)
    return model


def test_a_text_ends_at_its_own_end_token() -> None:
    model = chain(LETTERS, {START: "a", "a": "ab", "b": ".", END: "c", "c": "c"})
    texts = sample_texts(model, LETTERS, samples=20, temperature=1.0, max_new_tokens=10)
    assert len(set(texts)) > 3  # they end at different places
    for text in texts:
        assert text.strip("a") == "b" or text == "a" * 10
    greedy = chain(LETTERS, {START: "a", "a": "b", "b": "c", "c": "c"})  # the control: no end
    assert sample_texts(greedy, LETTERS, max_new_tokens=5) == ["abccc"]


def test_an_end_token_that_is_a_piece_of_text_is_not_shown(tmp_path: Path) -> None:
    """As some published tokenizers have it: decoding leaves out only what they call special."""
    LETTERS.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": "<bos>", "eos_token": "c"}))
    tokens = Tokenizer.load(tmp_path)
    model = chain(tokens, {START: "a", "a": "b", "b": "c", "c": "a"})
    computed: list[int] = []
    model.norm.register_forward_hook(lambda *_: computed.append(1))
    assert sample_texts(model, tokens, max_new_tokens=9) == ["ab"]
    assert len(computed) == 3  # a, b and the end: nothing is computed after it
    assert sample_texts(model, tokens, prompt="bab", max_new_tokens=8) == ["bab"]


@pytest.mark.parametrize(
    ("prompt", "n", "text"), [("b", 3, "bccc"), ("", 2, "ab"), ("abc", 99, "")]
)
def test_a_text_is_its_prompt_and_as_many_new_tokens_as_asked_for_or_fit(
    prompt: str, n: int, text: str
) -> None:
    model = chain(LETTERS, {START: "a", "a": "b", "b": "c", "c": "c"})
    expected = text or prompt + "c" * (11 - len(prompt))  # <bos> is one of the 12 positions
    assert sample_texts(model, LETTERS, prompt=prompt, max_new_tokens=n) == [expected]


def test_the_seed_decides_the_texts_and_each_sample_is_drawn_for_itself() -> None:
    model = chain(LETTERS, {START: "abc", "a": "abc", "b": "abc", "c": "abc"})
    texts = [sample_texts(model, LETTERS, samples=4, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert texts[0] == texts[1]
    assert len({*texts[0], *texts[2]}) == 8
