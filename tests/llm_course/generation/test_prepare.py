"""Long generations lay wide weights out anew: the model gets its own back, the ids stay."""

from __future__ import annotations

import pytest
import torch
from generation_references import tiny
from torch import nn

from llm_course import generate
from llm_course.generation.prepare import MAX_HEAD_ROWS, MAX_ROWS, MIN_STEPS, columns_first
from llm_course.models.t5 import T5

PROMPT = torch.tensor([[1, 2, 3]])


def layout(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Address and stride of each parameter."""
    return {name: (p.data_ptr(), p.stride(0)) for name, p in model.named_parameters()}


def column_weights(model: nn.Module) -> set[str]:
    return {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and not p.is_contiguous() and p.T.is_contiguous()
    }


def t5() -> nn.Module:
    return tiny("t5", vocab_size=40, seed=2)


@pytest.mark.parametrize(
    ("n_rows", "n_steps", "changed"),
    [
        (1, MIN_STEPS, {"lm_head.weight", "ff.w_1.weight"}),
        (MAX_ROWS, MIN_STEPS, {"lm_head.weight", "ff.w_1.weight"}),
        (MAX_ROWS + 1, MIN_STEPS, {"lm_head.weight"}),
        (MAX_HEAD_ROWS + 1, MIN_STEPS, set()),
        (1, MIN_STEPS - 1, set()),
    ],
)
def test_only_wide_weights_change_and_only_where_it_pays(
    n_rows: int, n_steps: int, changed: set[str]
) -> None:
    model = t5()
    before, values = layout(model), {n: p.clone() for n, p in model.named_parameters()}
    with columns_first(model, n_rows, n_steps):
        found = column_weights(model)
        assert not any(name.startswith("encoder") for name in found)  # it runs once
        assert {".".join(name.split(".")[-3:]) for name in found} == changed
        assert all(torch.equal(p, values[n]) for n, p in model.named_parameters())
    assert layout(model) == before


@pytest.mark.parametrize("family", ["t5", "transformer"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_long_generation_begins_with_the_ids_of_a_short_one(family: str, num_beams: int) -> None:
    model = tiny(family, vocab_size=40, seed=2) if family == "t5" else transformer(128)
    before = layout(model)
    seen: list[set[str]] = []
    model.blocks()[-1].register_forward_pre_hook(lambda *_: seen.append(column_weights(model)))
    long = generate(model, PROMPT, max_new_tokens=MIN_STEPS, eos_token_id=[])
    assert all("lm_head.weight" in names for names in seen)
    seen.clear()
    short = generate(model, PROMPT, max_new_tokens=MIN_STEPS - 1, eos_token_id=[])
    assert not any(seen)
    assert torch.equal(long[:, :-1], short)
    generate(model, PROMPT, max_new_tokens=MIN_STEPS, num_beams=num_beams)
    assert layout(model) == before


def transformer(n_positions: int) -> nn.Module:
    from llm_course import Transformer, TransformerConfig

    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=40, n_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=32,
        n_positions=n_positions,
    )  # fmt: skip
    return Transformer(config).eval()


def test_tied_weights_are_tied_again_also_after_an_error() -> None:
    model = transformer(128)
    assert model.lm_head.weight is model.token_embedding.weight

    def fail(*_: object) -> None:
        assert model.lm_head.weight is not model.token_embedding.weight
        raise RuntimeError("from inside")

    model.blocks()[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="from inside"):
        generate(model, PROMPT, max_new_tokens=MIN_STEPS)
    assert model.lm_head.weight is model.token_embedding.weight
    assert all(p.requires_grad for p in model.parameters())


def test_other_kinds_of_linear_maps_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    model = t5()
    assert isinstance(model, T5)
    head = Other(16, 40, bias=False)
    model.lm_head = head
    with columns_first(model, 1, MIN_STEPS):
        assert "lm_head.weight" not in column_weights(model)
    half = t5().to(torch.bfloat16)
    with columns_first(half, 1, MIN_STEPS):
        assert not column_weights(half)
