"""Large language models from scratch: the Transformer, BERT, GPT and T5.

Names are imported when they are first used, so `import llm_course` costs nothing.

It sets OMP_WAIT_POLICY and GOMP_SPINCOUNT, unless you have set one of them or KMP_BLOCKTIME: where
torch's threads wait for each other they spin for some microseconds, then sleep. By default they
spin on, and beside a busy program training gets many times slower; if they sleep at once, waking
them can take half of the time. torch reads the variables when it is loaded, so import `llm_course`
before `torch`, or set them in the shell; then only `torch.set_num_threads(1)` helps.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}

if TYPE_CHECKING:  # what type checkers and editors see; the table below is what runs
    from llm_course.configs import BERTConfig as BERTConfig
    from llm_course.configs import BERTLabelConfig as BERTLabelConfig
    from llm_course.configs import GPTConfig as GPTConfig
    from llm_course.configs import T5Config as T5Config
    from llm_course.configs import TrainConfig as TrainConfig
    from llm_course.configs import TransformerConfig as TransformerConfig
    from llm_course.generation.decode import generate as generate
    from llm_course.losses.causal import causal_lm_loss as causal_lm_loss
    from llm_course.losses.causal import causal_loss_fn as causal_loss_fn
    from llm_course.losses.masked import bert_loss_fn as bert_loss_fn
    from llm_course.losses.masked import mlm_loss as mlm_loss
    from llm_course.losses.masked import nsp_loss as nsp_loss
    from llm_course.losses.seq2seq import seq2seq_loss as seq2seq_loss
    from llm_course.losses.seq2seq import seq2seq_loss_fn as seq2seq_loss_fn
    from llm_course.models.bert import BERT as BERT
    from llm_course.models.gpt import GPT as GPT
    from llm_course.models.heads import BERTForQuestionAnswering as BERTForQuestionAnswering
    from llm_course.models.heads import (
        BERTForSequenceClassification as BERTForSequenceClassification,
    )
    from llm_course.models.heads import BERTForTokenClassification as BERTForTokenClassification
    from llm_course.models.t5 import T5 as T5
    from llm_course.models.transformer import Transformer as Transformer
    from llm_course.recipes.predictor import Predictor as Predictor
    from llm_course.tokenizers.library import Tokenizer as Tokenizer
    from llm_course.training.evaluate import evaluate as evaluate
    from llm_course.training.loop import train as train

_NAMES = {
    "configs": "BERTConfig BERTLabelConfig GPTConfig T5Config TrainConfig TransformerConfig",
    "generation.decode": "generate",
    "losses.causal": "causal_lm_loss causal_loss_fn",
    "losses.masked": "bert_loss_fn mlm_loss nsp_loss",
    "losses.seq2seq": "seq2seq_loss seq2seq_loss_fn",
    "models.bert": "BERT",
    "models.gpt": "GPT",
    "models.heads": "BERTForQuestionAnswering BERTForSequenceClassification "
    "BERTForTokenClassification",
    "models.t5": "T5",
    "models.transformer": "Transformer",
    "recipes.predictor": "Predictor",
    "tokenizers.library": "Tokenizer",
    "training.evaluate": "evaluate",
    "training.loop": "train",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"llm_course.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'llm_course' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
