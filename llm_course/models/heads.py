"""BERT fine-tuned: a class for a text, a class for each token, or an answer in a text.

Devlin et al. 2019, §4 and Figure 4. The body is BERT's; only the last linear map is new, so a
pretrained checkpoint is read with `heads="new"`. What is saved opens in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from llm_course.configs import BERTConfig, BERTLabelConfig
from llm_course.errors import ConfigError
from llm_course.models.bert import INIT_STD, BERTBody, Pooler
from llm_course.models.files import read_settings, write_settings
from llm_course.models.layouts import bert_with_head
from llm_course.shapes import Float, Int


class _Labelled(BERTBody):
    """What the two models with named labels share: their names in `config.json`."""

    config_class = BERTLabelConfig

    @classmethod
    def config_from_file(cls, raw: dict[str, Any]) -> BERTLabelConfig:
        settings = read_settings(raw, cls.layout)
        found = raw.get("id2label")
        if found is not None:
            if not isinstance(found, dict) or set(found) != {str(i) for i in range(len(found))}:
                raise ConfigError(
                    f"config.json: id2label must name the classes 0, 1, ..., got {found!r}"
                )
            settings["labels"] = tuple(str(found[str(i)]) for i in range(len(found)))
        return BERTLabelConfig.from_dict(settings)

    @classmethod
    def config_to_file(cls, config: Any) -> dict[str, Any]:
        labels = config.labels
        return write_settings(config, cls.layout) | {
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)},
        }


class BERTForSequenceClassification(_Labelled):
    """A class for a text or a pair of texts, from the pooled [CLS] (Figure 4 a, b)."""

    layout = bert_with_head("BertForSequenceClassification", "classifier", pooler=True)

    def __init__(self, config: BERTLabelConfig) -> None:
        super().__init__(config)
        self.pooler = Pooler(config)
        self.head = nn.Linear(config.d_model, len(config.labels))
        self.reset_parameters()

    def forward(
        self, input_ids: Int[Tensor, "B T"], **inputs: Tensor | None
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes; `inputs` are those of `BERT.hidden`."""
        return self.head(self.dropout(self.pooler(self.hidden(input_ids, **inputs))))


class BERTForTokenClassification(_Labelled):
    """A class for each token (Figure 4 d)."""

    layout = bert_with_head("BertForTokenClassification", "classifier", pooler=False)

    def __init__(self, config: BERTLabelConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.d_model, len(config.labels))
        self.reset_parameters()

    def forward(
        self, input_ids: Int[Tensor, "B T"], **inputs: Tensor | None
    ) -> Float[Tensor, "B T C"]:
        """Logits of the classes of each token; `inputs` are those of `BERT.hidden`."""
        return self.head(self.dropout(self.hidden(input_ids, **inputs)))


class Span(NamedTuple):
    """Scores of each token as the first, and as the last, of the answer: [B, T] each."""

    start_logits: Tensor
    end_logits: Tensor


class BERTForQuestionAnswering(BERTBody):
    """The answer to a question as a stretch of the text (Figure 4 c)."""

    layout = bert_with_head("BertForQuestionAnswering", "qa_outputs", pooler=False)

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.d_model, 2)
        self.reset_parameters()

    def forward(self, input_ids: Int[Tensor, "B T"], **inputs: Tensor | None) -> Span:
        """Both scores of each token; `inputs` are those of `BERT.hidden`."""
        start, end = self.head(self.hidden(input_ids, **inputs)).unbind(-1)
        return Span(start, end)


def new_head(model: BERTBody, labels: Sequence[str] = ()) -> None:
    """Give the model a head that is drawn anew, for these classes; for answers there are none.

    The head of an earlier task goes. `ConfigError` for fewer than two labels, or equal ones.
    """
    old = model.get_submodule("head").weight
    n_rows = 2
    if isinstance(model, _Labelled):
        model.config = replace(model.config, labels=tuple(labels))
        n_rows = len(labels)
    elif labels:
        raise ConfigError(f"{type(model).__name__} has no labels, got {list(labels)}")
    head = nn.Linear(model.config.d_model, n_rows, device=old.device, dtype=old.dtype)
    nn.init.normal_(head.weight, std=INIT_STD)
    nn.init.zeros_(head.bias)
    model.head = head


def train_last_blocks(model: BERTBody, n_blocks: int) -> None:
    """Freeze all but the new head and the last `n_blocks` blocks; all blocks: nothing is frozen.

    With 0 this is the article's step B5: BERT is frozen and its pooler too, where it has one.
    `ConfigError` for more blocks than there are.
    """
    blocks = model.blocks()
    if not 0 <= n_blocks <= len(blocks):
        raise ConfigError(f"n_blocks must be from 0 to {len(blocks)}, got {n_blocks}")
    everything = n_blocks == len(blocks)
    for parameter in model.parameters():
        parameter.requires_grad_(everything)
    trained = [model.get_submodule("head"), *blocks[len(blocks) - n_blocks :]]
    if n_blocks and hasattr(model, "pooler"):
        trained.append(model.get_submodule("pooler"))
    for module in trained:
        module.requires_grad_(True)
