r"""BERT: a stack of encoder blocks that see both sides; Devlin et al. 2019.

Token, segment and position embeddings are added (Figure 2). One head predicts masked tokens
(Task #1, §3.1), the other whether sentence B follows sentence A (Task #2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llm_course.configs import BERTConfig
from llm_course.models.files import FileLayout, PretrainedModel
from llm_course.models.layers import (
    ACTIVATION_FUNCTIONS,
    FeedForward,
    MultiHeadAttention,
    check_ids,
    check_length,
    padding_mask,
)
from llm_course.shapes import Float, Int, Mask

INIT_STD = 0.02
NEIGHBOURS = (-1, 1, -2, 2)  # where heads of `reset_to_neighbours` look first
SHARPNESS = 6.0  # of these looks: with heads of 16, four fifths of the weight at the place itself

_BLOCK = "bert.encoder.layer.{}."
LAYOUT = FileLayout(
    model_type="bert",
    architecture="BertForPreTraining",
    prefix="bert.",
    settings={
        "vocab_size": "vocab_size",
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "n_segments": "type_vocab_size",
        "activation": "hidden_act",
        "dropout": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "norm_eps": "layer_norm_eps",
        "pad_token_id": "pad_token_id",
    },
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    names={
        "token_embedding": "bert.embeddings.word_embeddings",
        "position_embedding": "bert.embeddings.position_embeddings",
        "segment_embedding": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "encoder.{}.attn.w_q": _BLOCK + "attention.self.query",
        "encoder.{}.attn.w_k": _BLOCK + "attention.self.key",
        "encoder.{}.attn.w_v": _BLOCK + "attention.self.value",
        "encoder.{}.attn.w_o": _BLOCK + "attention.output.dense",
        "encoder.{}.attn_norm": _BLOCK + "attention.output.LayerNorm",
        "encoder.{}.ff.w_1": _BLOCK + "intermediate.dense",
        "encoder.{}.ff.w_2": _BLOCK + "output.dense",
        "encoder.{}.ff_norm": _BLOCK + "output.LayerNorm",
        "pooler.w": "bert.pooler.dense",
        "mlm_head.w": "cls.predictions.transform.dense",
        "mlm_head.norm": "cls.predictions.transform.LayerNorm",
        "mlm_head.decoder.weight": "cls.predictions.decoder.weight",
        "mlm_head.decoder.bias": "cls.predictions.bias",
        "nsp_head": "cls.seq_relationship",
    },
    heads=("pooler.", "mlm_head.", "nsp_head."),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored=(r"embeddings\.(position_ids|token_type_ids)$",),
)


class BERTBlock(nn.Module):
    """Post-norm encoder block: LayerNorm(x + Sublayer(x)), Vaswani et al. 2017, §3.1."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(config.d_model, config.n_heads, dropout=config.dropout)
        self.attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.ff = FeedForward(config.d_model, config.d_ff, config.activation)
        self.ff_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], mask: Mask | None) -> Float[Tensor, "B T D"]:
        x = self.attn_norm(x + self.dropout(self.attn(x, mask=mask)))
        return self.ff_norm(x + self.dropout(self.ff(x)))


class Pooler(nn.Module):
    r"""A whole input as one vector: $\tanh(W h_0 + b)$ of its first position, [CLS]."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.w = nn.Linear(config.d_model, config.d_model)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        return torch.tanh(self.w(hidden[:, 0]))


class MLMHead(nn.Module):
    """Logits of the token that was masked, from the hidden states of any chosen positions.

    Training needs it at the masked positions only, which are 15 %: `mlm_head(hidden[masked])`.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.w = nn.Linear(config.d_model, config.d_model)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.decoder = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, rows: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.decoder(self.norm(self.activation(self.w(rows))))


class BERTOutput(NamedTuple):
    """`mlm_logits` [B, T, V]; `nsp_logits` [B, 2], where 0 is "B follows A"."""

    mlm_logits: Tensor
    nsp_logits: Tensor


class BERTBody(PretrainedModel):
    """Embeddings and encoder, which BERT shares with its fine-tuned forms (`heads.py`)."""

    config_class = BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        # As in transformers, the padding row learns from the MLM head alone.
        self.token_embedding = nn.Embedding(
            config.vocab_size, config.d_model, padding_idx=config.pad_token_id
        )
        self.segment_embedding = nn.Embedding(config.n_segments, config.d_model)
        self.position_embedding = nn.Embedding(config.n_positions, config.d_model)
        self.embedding_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.encoder = nn.ModuleList(BERTBlock(config) for _ in range(config.n_layers))
        self.dropout = nn.Dropout(config.dropout)

    def reset_parameters(self) -> None:
        """N(0, 0.02) for every matrix, 0 for a bias, 1 for the gain of a norm.

        Deviation: the published code draws again beyond two standard deviations.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=INIT_STD)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

    def blocks(self) -> list[nn.Module]:
        """The units to shard or to checkpoint."""
        return list(self.encoder)

    def _embed(
        self,
        input_ids: Int[Tensor, "B T"],
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> Float[Tensor, "B T D"]:
        """The sum of the three embeddings, normed."""
        config, shape = self.config, input_ids.shape
        if token_type_ids is None:
            segments = self.segment_embedding.weight[0]
        else:
            check_ids(token_type_ids, config.n_segments, "token_type_ids", shape)
            segments = self.segment_embedding(token_type_ids)
        if position_ids is None:
            check_length(shape[1], config.n_positions)
            positions = self.position_embedding.weight[: shape[1]]
        else:
            check_ids(position_ids, config.n_positions, "position_ids", shape)
            positions = self.position_embedding(position_ids)
        x = self.token_embedding(input_ids) + segments + positions
        return self.dropout(self.embedding_norm(x))

    def hidden(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The last hidden states; `forward` puts the heads on them."""
        check_ids(input_ids, self.config.vocab_size)
        rows, length = input_ids.shape
        mask = None
        if attention_mask is not None:
            mask = padding_mask(attention_mask, rows, length, length)
        x = self._embed(input_ids, token_type_ids, position_ids)
        for block in self.encoder:
            x = block(x, mask)
        return x


class BERT(BERTBody):
    """BERT with both pretraining heads; the MLM head's last matrix is the token embedding."""

    layout = LAYOUT

    def __init__(self, config: BERTConfig | None = None) -> None:
        config = config or BERTConfig()
        super().__init__(config)
        self.pooler = Pooler(config)
        self.mlm_head = MLMHead(config)
        self.nsp_head = nn.Linear(config.d_model, 2)
        self.mlm_head.decoder.weight = self.token_embedding.weight
        self.reset_parameters()

    def reset_to_neighbours(self) -> None:
        r"""Start weights with which a small model soon reads the words beside a masked one.

        With those of the paper all heads begin by looking everywhere alike. That carries the word
        counts of the input and nothing else, and a small model stays for long at the entropy of
        single words. Here three of four heads of the first block begin by looking 1 or 2 places to
        the left or right, as many heads of trained BERTs do (Clark et al. 2019, §3.1): positions
        begin as sines and cosines (Vaswani et al. 2017, §3.5), in which a step to the side is a
        rotation, and their $W^K$ is $W^Q$ rotated. The columns of the fastest ones, which these
        heads read, begin without words. All heads begin by carrying over what they see: $W^O$ is
        the transpose of $W^V$ (after Trockman and Kolter 2023, §3), divided by $L - 1$ in all
        blocks but the first. So the later ones, which begin by looking everywhere alike, add
        together no more than one of them would, and do not bury what the first has found. Other
        matrices are $N(0, 1/\sqrt{D})$, and a word counts as much as its position.
        """
        # Deviation: BERT starts from reset_parameters().
        self.reset_parameters()
        width = self.config.d_model**-0.5
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        sines = _sines_and_cosines(self.config.n_positions, self.config.d_model)
        self.position_embedding.weight.data.copy_(0.1 * 2**0.5 * sines)
        for layer in (self.pooler.w, self.mlm_head.w):
            nn.init.normal_(layer.weight, std=width)
        for block in self.encoder:
            assert isinstance(block, BERTBlock)
            for layer in (block.attn.w_q, block.attn.w_k, block.attn.w_v, block.ff.w_1):
                nn.init.normal_(layer.weight, std=width)
            nn.init.normal_(block.ff.w_2.weight, std=width / (2 * len(self.encoder)) ** 0.5)
            share = 1.0 if block is self.encoder[0] else 1 / (len(self.encoder) - 1)
            block.attn.w_o.weight.data.copy_(share * block.attn.w_v.weight.mT)
        first = self.encoder[0]
        assert isinstance(first, BERTBlock)
        for columns in _fast_columns(self.config.d_model, self.config.n_heads):
            self.token_embedding.weight.data[:, columns] = 0.0
            self.segment_embedding.weight.data[:, columns] = 0.0
        for head in range(self.config.n_heads * 3 // 4):
            _look_aside(first.attn, head, NEIGHBOURS[head % len(NEIGHBOURS)])

    @property
    def tied(self) -> dict[str, str]:
        return {"mlm_head.decoder.weight": "token_embedding.weight"}

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> BERTOutput:
        """Logits of both pretraining tasks.

        Args:
            token_type_ids: [B, T] or [1, T], the segment of each token; None: all 0.
            attention_mask: [B, S] or [B, T, S], int or bool, 1 = attend; None: everything.
            position_ids: [B, T] or [1, T]; None: 0, 1, 2, …

        Raises:
            TypeError: ids or mask of another dtype.
            ValueError: ids outside their range, more positions than fit, another shape.
        """
        hidden = self.hidden(
            input_ids,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
        )
        return BERTOutput(self.mlm_head(hidden), self.nsp_head(self.pooler(hidden)))


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
