r"""GPT-2: a stack of decoder blocks that predicts the next token; Radford et al. 2018 and 2019.

$h_0 = U W_e + W_p$, then $h_l = \mathrm{Block}(h_{l-1})$, and at the end
$P(u) = \mathrm{softmax}(\mathrm{LayerNorm}(h_n) W_e^T)$ (2018, eq. (2); the last norm and the norms
in front of each sub-layer are those of GPT-2: 2019, §2.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_course.configs import GPTConfig
from llm_course.models.files import FileLayout, PretrainedModel, Stored, read_settings
from llm_course.models.layers import (
    FeedForward,
    KVCache,
    LayerCache,
    MultiHeadAttention,
    causal_mask,
    check_ids,
    check_length,
    padding_mask,
)
from llm_course.shapes import Float, Int, Mask

INIT_STD = 0.02

# GPT-2 was published with [in, out] matrices, and with the three of attention side by side.
LAYOUT = FileLayout(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    settings={
        "vocab_size": "vocab_size",
        "n_layers": "n_layer",
        "d_model": "n_embd",
        "n_heads": "n_head",
        "d_ff": "n_inner",
        "n_positions": "n_positions",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
        "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "norm_eps": "layer_norm_epsilon",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
    },
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    names={
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "decoder.{}.attn_norm": "transformer.h.{}.ln_1",
        "decoder.{}.attn.w_q": Stored("transformer.h.{}.attn.c_attn", True, part=0, parts=3),
        "decoder.{}.attn.w_k": Stored("transformer.h.{}.attn.c_attn", True, part=1, parts=3),
        "decoder.{}.attn.w_v": Stored("transformer.h.{}.attn.c_attn", True, part=2, parts=3),
        "decoder.{}.attn.w_o": Stored("transformer.h.{}.attn.c_proj", True),
        "decoder.{}.ff_norm": "transformer.h.{}.ln_2",
        "decoder.{}.ff.w_1": Stored("transformer.h.{}.mlp.c_fc", True),
        "decoder.{}.ff.w_2": Stored("transformer.h.{}.mlp.c_proj", True),
        "norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    heads=("lm_head.",),
    ignored=(r"\bh\.\d+\.attn\.(masked_)?bias$",),  # the causal mask, as older versions stored it
)


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

    layout = LAYOUT
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

    def reset_to_copying(self) -> None:
        r"""Start weights with which a small model soon learns to look back and repeat a word.

        With those of the paper, attention must first find what to carry, and only then is it of use
        to look at the right place. Here each head begins by carrying over what it sees: $W^O$ is
        the transpose of $W^V$, so that $W^V W^O$ is near a multiple of the identity (after Trockman
        and Kolter 2023, §3: trained vision models come near a negative one, and begin with such a
        product to advantage). Matrices are $N(0, 1/\sqrt{D})$, and a
        word counts more than its position: $N(0, 0.1)$ and $N(0, 0.002)$.
        """
        # Deviation: GPT-2 starts from reset_parameters().
        self.reset_parameters()
        width = self.config.d_model**-0.5
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        nn.init.normal_(self.position_embedding.weight, std=0.002)
        for block in self.decoder:
            assert isinstance(block, GPTBlock)
            for layer in (block.attn.w_q, block.attn.w_k, block.attn.w_v, block.ff.w_1):
                nn.init.normal_(layer.weight, std=width)
            nn.init.normal_(block.ff.w_2.weight, std=width / (2 * len(self.decoder)) ** 0.5)
            block.attn.w_o.weight.data.copy_(block.attn.w_v.weight.mT)

    def blocks(self) -> list[nn.Module]:
        """The units to shard or to checkpoint."""
        return list(self.decoder)

    @property
    def tied(self) -> dict[str, str]:
        return {"lm_head.weight": "token_embedding.weight"} if self.config.tied else {}

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> GPTConfig:
        values = read_settings(raw, cls.layout)
        for name in ("bos_token_id", "eos_token_id"):
            # transformers gives the published model's ids to tiny vocabularies too.
            if values.get(name, 0) >= values.get("vocab_size", GPTConfig.vocab_size):
                values[name] = None
        return GPTConfig(**values)

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        fixed_shape: bool = False,
    ) -> KVCache:
        """An empty cache for `max_length` positions; see `KVCache`."""
        config, weight = self.config, self.token_embedding.weight
        check_length(max_length, config.n_positions)
        return KVCache(
            config.n_layers,
            batch_size,
            config.n_heads,
            config.d_model // config.n_heads,
            max_length,
            device=device or weight.device,
            dtype=dtype or weight.dtype,
            fixed_shape=fixed_shape,
        )

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
        layers: list[LayerCache | None] = [None] * self.config.n_layers
        if cache is not None:
            cache.check(rows, self.config.n_layers)
            layers = [*cache.layers(n_new)]
        positions = self._positions(input_ids, position_ids, cache)
        mask = self._mask(input_ids, attention_mask, cache)
        x = self.dropout(self.token_embedding(input_ids) + positions)
        for block, layer in zip(self.decoder, layers):
            x = block(x, mask, layer)
        if cache is not None:
            cache.advance(n_new)
        return self.norm(x)

    def _positions(
        self, input_ids: Tensor, position_ids: Tensor | None, cache: KVCache | None
    ) -> Float[Tensor, "... T D"]:
        """The position embeddings: of `position_ids`, or of what follows the cache."""
        n_new = input_ids.shape[1]
        if position_ids is not None:
            check_ids(position_ids, self.config.n_positions, "position_ids", input_ids.shape)
            return self.position_embedding(position_ids)
        if cache is not None and cache.fixed_shape:
            return self.position_embedding(cache.slots(n_new))
        start = 0 if cache is None else cache.length
        end = start + n_new
        check_length(end, self.config.n_positions)
        return self.position_embedding.weight[start:end]

    def _mask(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
    ) -> Mask | None:
        """What each position may attend to; None: all positions up to itself."""
        rows, n_new = input_ids.shape
        n_keys = n_new if cache is None else cache.n_keys(n_new)
        mask = None
        if cache is not None and cache.fixed_shape:
            slots = cache.slots(n_new)
            mask = torch.arange(n_keys, device=slots.device) <= slots[:, None]
        elif attention_mask is not None:
            mask = causal_mask(n_new, n_keys, input_ids.device)
        if attention_mask is None or mask is None:
            return mask
        return mask & padding_mask(attention_mask, rows, n_new, n_keys)

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
                the cached positions too; with one of fixed shape, S is its max_length.
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
