"""How published files name settings and tensors: a table for each family, and how it is read.

The files are those of the Hugging Face hub. Our names are on the left, theirs on the right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from llm_course.configs import TransformerConfig
from llm_course.errors import WeightsError

# Their names of our activations; of two names for one function we write the first.
ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Stored:
    """Where the file keeps a tensor of ours."""

    name: str
    transposed: bool = False  # [in, out], where nn.Linear has [out, in]
    part: int = 0  # it is this part of a larger tensor,
    parts: int = 1  # of so many, which lie side by side in the last dimension


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How a published file names what our model holds.

    In `names` and `heads`, "{}" stands for the number of a block. A name without ".weight" or
    ".bias" is a module and stands for all its tensors; a full name goes before it.
    """

    model_type: str
    architecture: str  # the class of transformers that opens what we save
    settings: Mapping[str, str | tuple[str, ...]]  # our config field: their key, or keys
    names: Mapping[str, str | Stored]  # our module or tensor: theirs
    aliases: Mapping[str, str] = field(default_factory=dict)  # another name of a key: the key
    fixed: Mapping[str, Any] = field(default_factory=dict)  # key: the only value we support
    prefix: str = ""  # files of a bare body leave it out
    heads: tuple[str, ...] = ()  # our modules that `heads="new"` may initialise
    ties: Mapping[str, str] = field(default_factory=dict)  # ours if `tied`: alias, what is kept
    copies: Mapping[str, str] = field(default_factory=dict)  # tensor in the file: what it repeats
    repeats: Mapping[str, str] = field(default_factory=dict)  # the same, but we write it too
    ignored: tuple[str, ...] = ()  # patterns of tensors that hold no weights

    def locate(self, name: str) -> Stored:
        """Where our tensor `name` lies in a file."""
        number = re.search(r"\.(\d+)\.", name)
        index = number.group(1) if number else ""
        general = name.replace(f".{index}.", ".{}.", 1) if number else name
        module, _, kind = general.rpartition(".")
        if general in self.names:
            entry, suffix = self.names[general], ""
        elif module in self.names:
            entry, suffix = self.names[module], f".{kind}"
        else:
            raise WeightsError(f"{name} is not a tensor of {self.architecture}")
        stored = Stored(entry) if isinstance(entry, str) else entry
        return replace(stored, name=stored.name.format(index) + suffix)

    def to_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the file's names, transposed and joined as the file has them."""
        places = {name: self.locate(name) for name in state}
        pieces: dict[str, list[Tensor]] = {}
        for name in sorted(state, key=lambda name: places[name].part):
            tensor, stored = state[name], places[name]
            piece = tensor.T if stored.transposed and tensor.ndim == 2 else tensor
            pieces.setdefault(stored.name, []).append(piece)
        # Parts lie side by side in the last dimension; only transposed tensors have any.
        return {
            name: (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).contiguous()
            for name, parts in pieces.items()
        }

    def from_file(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors `names` of ours, as views of a file's: the inverse of `to_file`."""
        state = {}
        for name in names:
            stored = self.locate(name)
            part = tensors[stored.name].chunk(stored.parts, -1)[stored.part]
            state[name] = part.T if stored.transposed and part.ndim == 2 else part
        return state


# ---- Transformer: no one else has published this layout, so its names are ours


def _transformer_names() -> list[str]:
    attn, ff = ("w_q", "w_k", "w_v", "w_o"), ("w_1", "w_2")
    encoder = {"attn": attn, "ff": ff}
    stacks = {"encoder": encoder, "decoder": {**encoder, "cross_attn": attn}}
    names = ["token_embedding", "lm_head"]
    for stack, sublayers in stacks.items():
        for sublayer, matrices in sublayers.items():
            names.append(f"{stack}.{{}}.{sublayer}_norm")
            names += [f"{stack}.{{}}.{sublayer}.{matrix}" for matrix in matrices]
    return names


TRANSFORMER = FileLayout(
    model_type="llm_course_transformer",
    architecture="Transformer",
    settings={field.name: field.name for field in fields(TransformerConfig)},
    names={name: name for name in _transformer_names()},
    heads=("lm_head.",),
    ties={"lm_head.weight": "token_embedding.weight"},
)

# ---- BERT

_LAYER = "bert.encoder.layer.{}."
BERT = FileLayout(
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
        "tied": "tie_word_embeddings",
        "dropout": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "norm_eps": "layer_norm_eps",
        "pad_token_id": "pad_token_id",
    },
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    names={
        "token_embedding": "bert.embeddings.word_embeddings",
        "position_embedding": "bert.embeddings.position_embeddings",
        "segment_embedding": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "encoder.{}.attn.w_q": _LAYER + "attention.self.query",
        "encoder.{}.attn.w_k": _LAYER + "attention.self.key",
        "encoder.{}.attn.w_v": _LAYER + "attention.self.value",
        "encoder.{}.attn.w_o": _LAYER + "attention.output.dense",
        "encoder.{}.attn_norm": _LAYER + "attention.output.LayerNorm",
        "encoder.{}.ff.w_1": _LAYER + "intermediate.dense",
        "encoder.{}.ff.w_2": _LAYER + "output.dense",
        "encoder.{}.ff_norm": _LAYER + "output.LayerNorm",
        "pooler.w": "bert.pooler.dense",
        "mlm_head.w": "cls.predictions.transform.dense",
        "mlm_head.norm": "cls.predictions.transform.LayerNorm",
        "mlm_head.decoder.weight": "cls.predictions.decoder.weight",
        "mlm_head.decoder.bias": "cls.predictions.bias",
        "nsp_head": "cls.seq_relationship",
    },
    heads=("pooler.", "mlm_head.", "nsp_head."),
    ties={"mlm_head.decoder.weight": "token_embedding.weight"},
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored=(r"embeddings\.(position_ids|token_type_ids)$",),
)
# Without tied weights transformers 5 adds the bias of the decoder; 4 had it only beside that.
BERT_UNTIED = replace(
    BERT,
    names={**BERT.names, "mlm_head.decoder.bias": "cls.predictions.decoder.bias"},
    copies={},
    repeats={"cls.predictions.bias": "cls.predictions.decoder.bias"},
)


def bert_with_head(architecture: str, head: str, *, pooler: bool) -> FileLayout:
    """BERT's layout with one new head; pretraining's, and a pooler not used, are not read."""
    gone = ("mlm_head", "nsp_head") if pooler else ("mlm_head", "nsp_head", "pooler")
    unread = (r"^cls\.",) if pooler else (r"^cls\.", r"^(bert\.)?pooler\.")
    names = {name: file for name, file in BERT.names.items() if not name.startswith(gone)}
    return replace(
        BERT,
        architecture=architecture,
        names={**names, "head": head},
        heads=("head.", "pooler."),
        ties={},
        copies={},
        ignored=(*BERT.ignored, *unread),
    )


# ---- GPT-2 was published with [in, out] matrices, and with the three of attention side by side

_H = "transformer.h.{}."
GPT = FileLayout(
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
        "decoder.{}.attn_norm": _H + "ln_1",
        "decoder.{}.attn.w_q": Stored(_H + "attn.c_attn", transposed=True, part=0, parts=3),
        "decoder.{}.attn.w_k": Stored(_H + "attn.c_attn", transposed=True, part=1, parts=3),
        "decoder.{}.attn.w_v": Stored(_H + "attn.c_attn", transposed=True, part=2, parts=3),
        "decoder.{}.attn.w_o": Stored(_H + "attn.c_proj", transposed=True),
        "decoder.{}.ff_norm": _H + "ln_2",
        "decoder.{}.ff.w_1": Stored(_H + "mlp.c_fc", transposed=True),
        "decoder.{}.ff.w_2": Stored(_H + "mlp.c_proj", transposed=True),
        "norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    heads=("lm_head.",),
    ties={"lm_head.weight": "token_embedding.weight"},
    ignored=(r"\bh\.\d+\.attn\.(masked_)?bias$",),  # the causal mask, as older versions stored it
)

# ---- T5

# feed_forward_proj: our activation and gated_ff. We write the first name of a pair.
T5_FEED_FORWARDS = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "gated-relu": ("relu", True),
    "gated-gelu": ("gelu_tanh", True),  # not "gelu": so transformers reads this one name
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-gelu_python": ("gelu", True),
}


def _t5_names(ff: dict[str, str]) -> dict[str, str]:
    attn = {"w_q": "q", "w_k": "k", "w_v": "v", "w_o": "o"}
    names = {
        "token_embedding": "shared",
        "lm_head": "lm_head",
        "encoder_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder_norm": "encoder.final_layer_norm",
        "decoder_norm": "decoder.final_layer_norm",
    }
    for ours, theirs, module, weights in (
        ("encoder.{}.attn", "encoder.block.{}.layer.0", "SelfAttention", attn),
        ("encoder.{}.ff", "encoder.block.{}.layer.1", "DenseReluDense", ff),
        ("decoder.{}.attn", "decoder.block.{}.layer.0", "SelfAttention", attn),
        ("decoder.{}.cross_attn", "decoder.block.{}.layer.1", "EncDecAttention", attn),
        ("decoder.{}.ff", "decoder.block.{}.layer.2", "DenseReluDense", ff),
    ):
        names[f"{ours}_norm"] = f"{theirs}.layer_norm"
        names |= {f"{ours}.{name}": f"{theirs}.{module}.{file}" for name, file in weights.items()}
    return names


T5 = FileLayout(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    settings={
        "vocab_size": "vocab_size",
        "n_layers": "num_layers",
        "n_decoder_layers": "num_decoder_layers",
        "d_model": "d_model",
        "n_heads": "num_heads",
        "d_head": "d_kv",
        "d_ff": "d_ff",
        "n_buckets": "relative_attention_num_buckets",
        "max_distance": "relative_attention_max_distance",
        "tied": "tie_word_embeddings",
        "dropout": "dropout_rate",
        "norm_eps": "layer_norm_epsilon",
        "pad_token_id": "pad_token_id",
        "eos_token_id": "eos_token_id",
    },
    fixed={"is_encoder_decoder": True, "is_decoder": False},
    names=_t5_names({"w_1": "wi", "w_2": "wo"}),
    heads=("lm_head.",),
    ties={"lm_head.weight": "token_embedding.weight"},
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    # The first files hold a table for cross-attention, which has no relative bias.
    ignored=(r"EncDecAttention\.relative_attention_bias",),
)
T5_GATED = replace(T5, names=_t5_names({"w_gate": "wi_0", "w_1": "wi_1", "w_2": "wo"}))
