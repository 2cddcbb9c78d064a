"""BERT's rows packed and padded: the same pairs, the same model, how many tokens a second.

A padded position costs as much as a token and teaches nothing. The layouts take turns, so that
whatever else the machine does meets all of them; the medians are compared.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from itertools import islice
from typing import Any

import torch

from experiments.record import Place
from llm_course.batches.sampler import Batch, Batches
from llm_course.batches.sentence_pairs import SentencePairs
from llm_course.losses.masked import Masking, bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.presets import bert_preset
from llm_course.recipes.pretrain_bert import encoded, masking_of
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.devices import choose_precision
from llm_town import generate_documents

Layouts = dict[str, list[Batch]]


def packing_cpu(place: Place) -> dict[str, Any]:
    """Tokens a second of the cpu preset's model by three layouts, on one thread."""
    preset = bert_preset("cpu")
    stories, repeats, batches = (60, 2, 1) if place.tiny else (2000, 9, 10)
    documents = [list(d.sentences) for d in generate_documents(stories, 0)]
    texts = (" ".join(document) for document in documents)
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocab_size=preset.data.vocab_size)
    masking = masking_of(tokenizer)
    context, rows = preset.data.context, preset.data.batch_size
    layouts = layouts_of(encoded(tokenizer, documents), context, rows, masking, batches)
    torch.manual_seed(0)
    model = BERT(dataclasses.replace(preset.model, vocab_size=len(tokenizer)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = seconds_in_turns(model, layouts, repeats)
    finally:
        torch.set_num_threads(threads)
    found = {name: _row(layout, seconds[name], masking.pad_id) for name, layout in layouts.items()}
    rate = found["packed"]["tokens_per_second"]
    return {
        "seed": 0,
        "training_threads": 1,
        "precision": choose_precision("cpu").name,
        "model": model.config.to_dict(),
        "context": context,
        "repeats": repeats,
        "layouts": found,
        "packed_against": {
            name: round(rate / row["tokens_per_second"], 3)
            for name, row in found.items()
            if name != "packed"
        },
    }


def layouts_of(
    documents: list[list[list[int]]], context: int, rows: int, masking: Masking, batches: int
) -> Layouts:
    """The same number of batches in each layout, with about as many pairs in each.

    packed               several pairs a row, which do not see each other; positions restart
    padded to longest    a pair a row, as wide as the longest pair of the batch
    padded to context    a pair a row, as wide as the packed rows
    """
    together = SentencePairs(documents, context, masking)
    packed = list(islice(Batches(together, rows), batches))
    in_batch = [int((b["next_sentence_label"] >= 0).sum()) for b in packed]
    single = SentencePairs(documents, context, masking, packed=False)
    alone = list(islice(Batches(single, round(statistics.mean(in_batch))), batches))
    return {
        "packed": packed,
        "padded to longest": [narrowed(batch, masking.pad_id) for batch in alone],
        "padded to context": alone,
    }


def narrowed(batch: Batch, pad_id: int) -> Batch:
    """The batch without the columns that hold padding alone."""
    width = int((batch["input_ids"] != pad_id).any(0).nonzero().max()) + 1
    cut = {name: value[:, :width] for name, value in batch.items()}
    cut["attention_mask"] = cut["attention_mask"][:, :, :width]
    return cut


def seconds_in_turns(model: BERT, layouts: Layouts, repeats: int) -> dict[str, list[float]]:
    """Seconds of training on all batches of a layout, repeat by repeat; the first is a warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for repeat in range(repeats + 1):
        for name, batches in layouts.items():
            begin = time.perf_counter()
            for batch in batches:
                _update(model, batch, optimizer)
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def _update(model: BERT, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    with choose_precision("cpu").autocast():
        terms = bert_loss_fn(model, batch)
    torch.stack([total / count for total, count in terms.values()]).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _row(batches: list[Batch], seconds: list[float], pad_id: int) -> dict[str, Any]:
    tokens = sum(int((batch["input_ids"] != pad_id).sum()) for batch in batches)
    positions = sum(batch["input_ids"].numel() for batch in batches)
    return {
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "fill": round(tokens / positions, 4),
        "tokens": tokens,
        "pairs": sum(int((batch["next_sentence_label"] >= 0).sum()) for batch in batches),
        "seconds": [round(s, 4) for s in seconds],
    }
