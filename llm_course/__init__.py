"""Large language models from scratch: the Transformer, BERT, GPT and T5.

Names are imported when they are first used, so `import llm_course` costs nothing.

It sets OMP_WAIT_POLICY to PASSIVE, unless you have set it, GOMP_SPINCOUNT or KMP_BLOCKTIME: torch's
threads then sleep where they wait for each other. By default they spin, and beside a busy program
training gets many times slower. torch reads the variable when it is loaded, so import `llm_course`
before `torch`, or set it in the shell; after `import torch` only `torch.set_num_threads(1)` helps.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

_HOMES = {
    "TransformerConfig": "llm_course.configs",
    "BERTConfig": "llm_course.configs",
    "BERTLabelConfig": "llm_course.configs",
    "GPTConfig": "llm_course.configs",
    "T5Config": "llm_course.configs",
    "TrainConfig": "llm_course.configs",
    "Transformer": "llm_course.models.transformer",
    "BERT": "llm_course.models.bert",
    "BERTForSequenceClassification": "llm_course.models.heads",
    "BERTForTokenClassification": "llm_course.models.heads",
    "BERTForQuestionAnswering": "llm_course.models.heads",
    "GPT": "llm_course.models.gpt",
    "T5": "llm_course.models.t5",
    "Tokenizer": "llm_course.tokenizers.library",
    "generate": "llm_course.generation.decode",
    "train": "llm_course.training.loop",
}

if TYPE_CHECKING:
    from llm_course.configs import (
        BERTConfig,
        BERTLabelConfig,
        GPTConfig,
        T5Config,
        TrainConfig,
        TransformerConfig,
    )
    from llm_course.generation.decode import generate
    from llm_course.models.bert import BERT
    from llm_course.models.gpt import GPT
    from llm_course.models.heads import (
        BERTForQuestionAnswering,
        BERTForSequenceClassification,
        BERTForTokenClassification,
    )
    from llm_course.models.t5 import T5
    from llm_course.models.transformer import Transformer
    from llm_course.tokenizers.library import Tokenizer
    from llm_course.training.loop import train

__all__ = [
    "BERT",
    "GPT",
    "T5",
    "BERTConfig",
    "BERTForQuestionAnswering",
    "BERTForSequenceClassification",
    "BERTForTokenClassification",
    "BERTLabelConfig",
    "GPTConfig",
    "T5Config",
    "Tokenizer",
    "TrainConfig",
    "Transformer",
    "TransformerConfig",
    "generate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llm_course' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
