r"""BERT: a stack of encoder blocks that see both sides; Devlin et al. 2019.

Token, segment and position embeddings are added (Figure 2). One head predicts masked tokens
(Task #1, §3.1), the other whether sentence B follows sentence A (Task #2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llm_course.configs import BERTConfig
from llm_course.models import layouts
from llm_course.models.files import PretrainedModel
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
    """BERT with both pretraining heads; tied, the MLM head's last matrix is the token embedding."""

    layout = layouts.BERT

    def __init__(self, config: BERTConfig | None = None) -> None:
        config = config or BERTConfig()
        super().__init__(config)
        self.pooler = Pooler(config)
        self.mlm_head = MLMHead(config)
        self.nsp_head = nn.Linear(config.d_model, 2)
        if config.tied:
            self.mlm_head.decoder.weight = self.token_embedding.weight
        else:
            self.layout = layouts.BERT_UNTIED
        self.reset_parameters()

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
