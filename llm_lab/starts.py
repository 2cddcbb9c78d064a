r"""Start weights of our own, with which small models soon learn to read the stories of Town.

Deviation: GPT-2 and BERT begin with `reset_parameters()`, the start of their papers. With it, all
heads begin by looking everywhere alike and carry nothing over, and a small model stays for long at
the entropy of single words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.models.layers import MultiHeadAttention
from llm_course.shapes import Float

NEIGHBOURS = (-1, 1, -2, 2)  # where the first heads look
SHARPNESS = 6.0  # of these looks: with heads of 16, four fifths of the weight at the place itself


def copying(model: GPT) -> None:
    r"""Start weights with which a small model soon learns to look back and repeat a word.

    With those of the paper, attention must first find what to carry, and only then is it of use
    to look at the right place. Here each head begins by carrying over what it sees: $W^O$ is
    the transpose of $W^V$, so that $W^V W^O$ is near a multiple of the identity (after Trockman
    and Kolter 2023, §3: trained vision models come near a negative one, and begin with such a
    product to advantage). Matrices are $N(0, 1/\sqrt{D})$, and a
    word counts more than its position: $N(0, 0.1)$ and $N(0, 0.002)$.
    """
    model.reset_parameters()
    nn.init.normal_(model.token_embedding.weight, std=0.1)
    nn.init.normal_(model.position_embedding.weight, std=0.002)
    for block in model.decoder:
        _carry_over(block, len(model.decoder))


def neighbours(model: BERT) -> None:
    r"""Start weights with which a small model soon reads the words beside a masked one.

    Three of four heads of the first block begin by looking 1 or 2 places to
    the left or right, as many heads of trained BERTs do (Clark et al. 2019, §3.1): positions
    begin as sines and cosines (Vaswani et al. 2017, §3.5), in which a step to the side is a
    rotation, and their $W^K$ is $W^Q$ rotated. The columns of the fastest ones, which these
    heads read, begin without words. All heads begin by carrying over what they see, as in
    `copying`, divided by $L - 1$ in all blocks but the first. So the later ones, which begin by
    looking everywhere alike, add together no more than one of them would, and do not bury what the
    first has found. Other matrices are $N(0, 1/\sqrt{D})$, and a word counts as much as its
    position.
    """
    model.reset_parameters()
    d_model, n_heads = model.config.d_model, model.config.n_heads
    nn.init.normal_(model.token_embedding.weight, std=0.1)
    sines = _sines_and_cosines(model.config.n_positions, d_model)
    model.position_embedding.weight.data.copy_(0.1 * 2**0.5 * sines)
    _draw((model.pooler.w, model.mlm_head.w), d_model)
    n_blocks = len(model.encoder)
    for i, block in enumerate(model.encoder):
        _carry_over(block, n_blocks, share=1.0 if i == 0 else 1 / (n_blocks - 1))
    for columns in _fast_columns(d_model, n_heads):
        model.token_embedding.weight.data[:, columns] = 0.0
        model.segment_embedding.weight.data[:, columns] = 0.0
    first: Any = model.encoder[0]
    for head in range(n_heads * 3 // 4):
        _look_aside(first.attn, head, NEIGHBOURS[head % len(NEIGHBOURS)])


def _draw(layers: Iterable[nn.Linear], d_model: int) -> None:
    for layer in layers:
        nn.init.normal_(layer.weight, std=d_model**-0.5)


def _carry_over(block: Any, n_blocks: int, share: float = 1.0) -> None:
    """Matrices of a block that carries `share` of what its heads see to its output."""
    attn, ff = block.attn, block.ff
    d_model = attn.w_q.in_features
    _draw((attn.w_q, attn.w_k, attn.w_v, ff.w_1), d_model)
    nn.init.normal_(ff.w_2.weight, std=d_model**-0.5 / (2 * n_blocks) ** 0.5)
    attn.w_o.weight.data.copy_(share * attn.w_v.weight.mT)


def _frequencies(d_model: int) -> Tensor:
    """Those of Vaswani et al. 2017, §3.5, the fastest first."""
    return 10_000.0 ** -(torch.arange(0, d_model - 1, 2) / d_model)


def _sines_and_cosines(n_positions: int, d_model: int) -> Float[Tensor, "T D"]:
    """All sines, then all cosines; the last column of an odd width is zero."""
    angles = torch.arange(n_positions)[:, None] * _frequencies(d_model)
    table = torch.zeros(n_positions, d_model)
    table[:, : 2 * angles.shape[1]] = torch.cat([angles.sin(), angles.cos()], dim=1)
    return table


def _fast_columns(d_model: int, n_heads: int) -> tuple[slice, slice]:
    """Where sines and cosines stand that tell neighbours apart: as many as a head has room for."""
    number, half = d_model // n_heads // 2, d_model // 2
    return slice(0, number), slice(half, half + number)


def _look_aside(attn: MultiHeadAttention, head: int, offset: int) -> None:
    r"""Let a head look from a place $t$ to $t + o$: its score there is the highest.

    For a frequency $w$ the query is $(\sin wt, \cos wt)$ and the key, of a place $s$,
    $(\sin w(s - o), \cos w(s - o))$, so that their product is $\cos w(s - o - t)$.
    """
    d_model, size = attn.w_q.weight.shape[1], attn.w_q.weight.shape[0] // attn.n_heads
    number = size // 2
    angles = offset * _frequencies(d_model)[:number]
    sines, cosines = _fast_columns(d_model, attn.n_heads)
    query, key = torch.zeros(2, 2 * number, d_model)
    query[:number, sines] = query[number:, cosines] = torch.eye(number)
    key[:number, sines] = key[number:, cosines] = torch.diag(angles.cos())
    key[number:, sines] = torch.diag(angles.sin())
    key[:number, cosines] = -key[number:, sines]
    rows = slice(head * size, head * size + 2 * number)
    attn.w_q.weight.data[rows] = SHARPNESS**0.5 * query
    attn.w_k.weight.data[rows] = SHARPNESS**0.5 * key
