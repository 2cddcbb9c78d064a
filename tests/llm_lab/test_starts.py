"""The course's own starts: heads that carry over what they see, and look at neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm_course import BERT, GPT, BERTConfig, GPTConfig
from llm_lab.starts import NEIGHBOURS, copying, neighbours


def test_the_copying_start_carries_over_what_attention_sees() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, n_layers=3, d_model=192, n_heads=3, n_positions=16))
    paper = carried(model)
    copying(model)
    assert carried(model) > 0.65
    assert paper < 0.1  # the control: the start of the paper carries over nothing
    assert model.token_embedding.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model.position_embedding.weight.std().item() < 0.003
    assert model.lm_head.weight is model.token_embedding.weight


def carried(model: GPT) -> float:
    """How much of a vector is left, as a cosine, after the values and the output of one layer."""
    x = torch.randn(50, model.config.d_model, generator=torch.Generator().manual_seed(0))
    attn = model.decoder[0].attn
    with torch.no_grad():
        return torch.cosine_similarity(attn.w_o(attn.w_v(x)), x, dim=-1).mean().item()


def looks(model: BERT, ids: Tensor) -> Tensor:
    """[H, T, S]: where the heads of the first block look."""
    block = model.encoder[0]
    with torch.no_grad():
        return block.attn.weights(model._embed(ids, None, None))[0]


def test_the_start_of_small_models_looks_at_neighbours_and_carries_over_what_it_sees() -> None:
    torch.manual_seed(0)
    model = BERT(BERTConfig(vocab_size=300, n_layers=2, d_model=128, n_heads=8, n_positions=64))
    model.eval()
    ids = torch.randint(300, (1, 60), generator=torch.Generator().manual_seed(1))
    paper = looks(model, ids)
    neighbours(model)
    weights = looks(model, ids)
    for head in range(6):
        offset = NEIGHBOURS[head % 4]
        seen = weights[head].diagonal(offset).mean()
        assert seen > 0.7
        assert seen > 20 * weights[head].diagonal(-offset).mean()  # to one side only
        assert paper[head].diagonal(offset).mean() < 0.03  # the control: everywhere alike
    for head in (6, 7):
        assert weights[head].diagonal(1).mean() < 0.1
    attn = model.encoder[1].attn
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        carried = torch.cosine_similarity(attn.w_o(attn.w_v(x)), x, dim=-1).mean()
    assert carried > 0.65
    assert model.mlm_head.decoder.weight is model.token_embedding.weight


def test_the_later_blocks_of_a_deep_start_carry_together_as_much_as_one() -> None:
    torch.manual_seed(0)
    model = BERT(BERTConfig(vocab_size=30, n_layers=6, d_model=32, n_heads=2, n_positions=8))
    neighbours(model)
    attentions = [block.attn for block in model.encoder]
    torch.testing.assert_close(attentions[0].w_o.weight, attentions[0].w_v.weight.mT)
    for attn in attentions[1:]:
        torch.testing.assert_close(5 * attn.w_o.weight, attn.w_v.weight.mT)


@pytest.mark.parametrize(("d_model", "n_heads"), [(15, 5), (4, 4), (16, 1), (6, 2)])
def test_the_start_of_small_models_fits_every_width(d_model: int, n_heads: int) -> None:
    config = {"d_model": d_model, "n_heads": n_heads, "d_ff": 8, "n_positions": 9}
    model = BERT(BERTConfig(vocab_size=20, n_layers=1, **config))
    neighbours(model)
    assert model(torch.arange(9)[None]).mlm_logits.isfinite().all()
