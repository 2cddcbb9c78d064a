"""Pretrain a BERT: documents in sentences, WordPiece, pairs with hidden tokens, model, scores.

`llm-course pretrain bert`; Devlin et al. 2019, §3.1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.configs import BERTConfig, BERTDataConfig, TrainConfig
from llm_course.data.sentences import split_sentences
from llm_course.errors import ConfigError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import INPUTS, Masking, bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.recipes.run import (
    EVALUATION_ROWS,
    Data,
    Run,
    Start,
    begin,
    pretrain_command,
    shared,
)
from llm_course.recipes.texts import (
    TOKENIZER_DOCUMENTS,
    TOWN_VALIDATION,
    check_sizes,
    is_plain_text,
    read_texts,
)
from llm_course.tokenizers.kinds import check_vocab_size
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import evaluating, to_device
from llm_town import generate_documents

Sentences = list[list[str]]  # documents, their sentences


def prepare_bert(
    model: BERTConfig,
    data: BERTDataConfig,
    train_config: TrainConfig,
    *,
    start: Start = "auto",
    out: Path | None = None,
) -> Run:
    """Data, tokenizer and a fresh model whose vocabulary is the tokenizer's.

    Raises `ConfigError` when a row is longer than the model's table of positions.
    """
    check_sizes(data, model.n_positions)
    made = _data(data)
    ids = made.tokenizer
    config = dataclasses.replace(model, vocab_size=len(ids), pad_token_id=ids.pad_id)
    network, begun = begin(BERT, config, train_config.seed, start, lab="neighbours", usual="lab")
    return Run(
        model=network,
        data=made,
        loss_fn=bert_loss_fn,
        train_config=train_config,
        out=out,
        settings=shared(begun, data),
        scores=lambda model, data: accuracies(model, data.validation),
    )


def _data(config: BERTDataConfig) -> Data:
    """Read or generate the documents, train WordPiece, make pairs of segments."""
    check_vocab_size(config.tokenizer, config.vocab_size)
    training, held_out = _documents(config)
    texts = (" ".join(document) for document in training[:TOKENIZER_DOCUMENTS])
    tokenizer = Tokenizer.train(texts, kind=config.tokenizer, vocab_size=config.vocab_size)
    masking = masking_of(tokenizer, whole_words=config.whole_words)
    paired = partial(
        SentencePairs, context=config.context, masking=masking, next_sentence=config.next_sentence
    )
    rows, held_out_rows = (paired(encoded(tokenizer, each)) for each in (training, held_out))
    return Data(
        tokenizer=tokenizer,
        train=Batches(rows, config.batch_size, seed=config.seed),
        validation=Evaluation(FixedPairs(held_out_rows), EVALUATION_ROWS),
    )


def _documents(config: BERTDataConfig) -> tuple[Sentences, Sentences]:
    """Training and validation documents, in sentences."""
    if config.data == "town":
        stories = generate_documents(config.documents, config.seed, "train")
        others = generate_documents(TOWN_VALIDATION, 0, "validation")
        return [list(d.sentences) for d in stories], [list(d.sentences) for d in others]
    is_plain_text(config.data_files)
    training, held_out = read_texts(config)
    return [split_sentences(t) for t in training], [split_sentences(t) for t in held_out]


def masking_of(tokenizer: Tokenizer, *, whole_words: bool = False) -> Masking:
    """The ids of BERT's special tokens; `ConfigError` for a tokenizer that has not all of them."""
    roles = {f"{r}_id": getattr(tokenizer, f"{r}_id") for r in ("cls", "sep", "mask", "pad")}
    if absent := [name for name, i in roles.items() if i is None]:
        raise ConfigError(f"BERT needs [CLS], [SEP], [MASK], [PAD]: this tokenizer has no {absent}")
    continues = None
    if whole_words:
        continues = tuple(tokenizer.token(i).startswith("##") for i in range(len(tokenizer)))
    return Masking(vocab_size=len(tokenizer), continues=continues, **roles)


def encoded(tokenizer: Tokenizer, documents: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The ids of each sentence, without special tokens."""
    sentences = iter(tokenizer.encode_batch([s for document in documents for s in document]))
    return [[next(sentences) for _ in document] for document in documents]


def accuracies(model: BERT, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """The share of chosen tokens, and of pairs, whose likeliest class is the right one."""
    heads: dict[str, tuple[str, Any]] = {
        "mlm_accuracy": ("labels", model.mlm_head),
        "nsp_accuracy": (
            "next_sentence_label",
            lambda first: model.nsp_head(model.pooler(first[:, None])),
        ),
    }
    right: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            batch = to_device(batch, device)
            hidden = model.hidden(**{name: batch[name] for name in INPUTS if name in batch})
            for name, (labels, head) in heads.items():
                if labels in batch:
                    chosen = batch[labels] != IGNORE
                    found = head(hidden[chosen]).argmax(-1)
                    right[name] += int((found == batch[labels][chosen]).sum())
                    counted[name] += int(chosen.sum())
    return {name: right[name] / n for name, n in counted.items() if n}


def pretrain_bert_command(**run: Any) -> None:
    """What the command line does."""
    then = 'fill-mask --model {model} --text "The [MASK] was red."'
    pretrain_command("bert", prepare_bert, then, **run)
