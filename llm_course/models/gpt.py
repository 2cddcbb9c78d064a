r"""GPT-2: a stack of decoder blocks that predicts the next token; Radford et al. 2018 and 2019.

$h_0 = U W_e + W_p$, then $h_l = \mathrm{Block}(h_{l-1})$, and at the end
$P(u) = \mathrm{softmax}(\mathrm{LayerNorm}(h_n) W_e^T)$ (2018, eq. (2); the last norm and the norms
in front of each sub-layer are those of GPT-2: 2019, §2.3).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from llm_course.configs import GPTConfig
from llm_course.models import layouts
from llm_course.models.cache import KVCache, LayerCache
from llm_course.models.files import PretrainedModel, read_settings
from llm_course.models.layers import (
    FeedForward,
    MultiHeadAttention,
    causal_mask,
    check_ids,
    check_length,
    padding_mask,
)
from llm_course.shapes import Float, Int, Mask

INIT_STD = 0.02


class GPTBlock(nn.Module):
    """Pre-norm decoder block, x + Sublayer(LayerNorm(x)); Radford et al. 2019, §2.3."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.d_ff is not None  # its own __post_init__ fills it in
        self.attn_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attn = MultiHeadAttention(config.d_model, config.n_heads, dropout=config.dropout)
        self.ff_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.ff = FeedForward(config.d_model, config.d_ff, config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Mask | None = None, cache: LayerCache | None = None
    ) -> Float[Tensor, "B T D"]:
        """`mask` hides the later positions and what else is hidden; None: only the later ones."""
        h = self.attn_norm(x)
        x = x + self.dropout(self.attn(h, mask=mask, causal=mask is None, cache=cache))
        return x + self.dropout(self.ff(self.ff_norm(x)))


class GPT(PretrainedModel):
    """GPT-2 with its output head, which is the token embedding again unless `tied` is false."""

    layout = layouts.GPT
    config_class = GPTConfig

    def __init__(self, config: GPTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GPTConfig()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.n_positions, config.d_model)
        self.decoder = nn.ModuleList(GPTBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.tied:
            self.lm_head.weight = self.token_embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""$N(0, 0.02)$ for every matrix (2018, §4.1), 0 for a bias, 1 for the gain of a norm.

        What is added to the residual stream is scaled by $1/\sqrt{2N}$, N blocks with two
        sub-layers each, so that the stream does not grow with the depth (2019, §2.3).
        """
        last = INIT_STD / (2 * self.config.n_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                ends_sublayer = name.endswith(("attn.w_o.weight", "ff.w_2.weight"))
                nn.init.normal_(parameter, std=last if ends_sublayer else INIT_STD)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

    def blocks(self) -> list[nn.Module]:
        """The units to shard or to checkpoint."""
        return list(self.decoder)

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for `max_length` positions."""
        check_length(max_length, self.config.n_positions)
        return KVCache(self.decoder, batch_size, max_length)

    def hidden(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The last hidden states, after the last norm; `forward` puts the head on them."""
        check_ids(input_ids, self.config.vocab_size)
        rows, n_new = input_ids.shape
        start = 0
        if cache is not None:
            cache.check(len(self.decoder), input_ids)
            start = cache.length
        end = start + n_new
        if position_ids is None:
            check_length(end, self.config.n_positions)
            positions = self.position_embedding.weight[start:end]
        else:
            check_ids(position_ids, self.config.n_positions, "position_ids", input_ids.shape)
            positions = self.position_embedding(position_ids)
        mask = None
        if attention_mask is not None:
            mask = padding_mask(attention_mask, rows, n_new, end)
            mask = mask & causal_mask(n_new, end, mask.device)
        x = self.dropout(self.token_embedding(input_ids) + positions)
        layers = [None] * len(self.decoder) if cache is None else cache.layers()
        for block, layer in zip(self.decoder, layers):
            x = block(x, mask, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def head(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of the next token."""
        return self.lm_head(x)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each position; no position sees a later one.

        Args:
            attention_mask: [B, S] or [B, T, S], int or bool, 1 = attend. With a cache, S counts
                the cached positions too.
            position_ids: [B, T] or [1, T]; None: 0, 1, 2, …, or those that follow the cache.
            cache: from `new_cache`; `input_ids` are then only the new ids.

        Raises:
            TypeError: ids or mask of another dtype.
            ValueError: ids outside the vocabulary, more positions than fit, another shape.
        """
        return self.head(
            self.hidden(
                input_ids, attention_mask=attention_mask, position_ids=position_ids, cache=cache
            )
        )

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> GPTConfig:
        values = read_settings(raw, cls.layout)
        for name in ("bos_token_id", "eos_token_id"):
            # transformers gives the published model's ids to tiny vocabularies too.
            if values.get(name, 0) >= values.get("vocab_size", GPTConfig.vocab_size):
                values[name] = None
        return GPTConfig(**values)
