"""The recorded runs that measure speed: GPT-2's step beside transformers, BERT's rows packed.

What is compared takes turns or stands side by side on one machine; the medians are compared.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch

from experiments.script import Place, RecordedRun, part_of, say
from llm_course.batches.sampler import Batch, Batches
from llm_course.batches.sentence_pairs import SentencePairs
from llm_course.configs import GPTConfig
from llm_course.losses.causal import causal_lm_loss
from llm_course.losses.masked import Masking, bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.presets import find_preset
from llm_course.recipes.pretrain_bert import encoded, masking_of
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.devices import choose_precision
from llm_lab.costs import count_parameters
from llm_town import generate_documents

Layouts = dict[str, list[Batch]]


def bert_packing_cpu(place: Place) -> dict[str, Any]:
    """BERT's rows packed and padded: tokens a second of the cpu preset's model, on one thread.

    A padded position costs as much as a token and teaches nothing.
    """
    preset = find_preset("bert", "cpu")
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
            name: round(rate / found[name]["tokens_per_second"], 3)
            for name in ("padded to longest", "padded to context")
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
    pairs = round(statistics.mean(map(_pairs_in, packed)))
    single = SentencePairs(documents, context, masking, packed=False)
    alone = list(islice(Batches(single, pairs), batches))
    return {
        "packed": packed,
        "padded to longest": [narrowed(batch, masking.pad_id) for batch in alone],
        "padded to context": alone,
    }


def _pairs_in(batch: Batch) -> int:
    return int((batch["next_sentence_label"] >= 0).sum())


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
                with choose_precision("cpu").autocast():
                    terms = bert_loss_fn(model, batch)
                torch.stack([total / count for total, count in terms.values()]).sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def _row(batches: list[Batch], seconds: list[float], pad_id: int) -> dict[str, Any]:
    tokens = sum(int((batch["input_ids"] != pad_id).sum()) for batch in batches)
    positions = sum(batch["input_ids"].numel() for batch in batches)
    return {
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "fill": round(tokens / positions, 4),
        "tokens": tokens,
        "pairs": sum(map(_pairs_in, batches)),
        "seconds": [round(s, 4) for s in seconds],
    }


def gpt2_step(place: Place) -> dict[str, Any]:
    """GPT-2 124M: tokens per second and share of the peak of a step, beside transformers."""
    import transformers  # noqa: F401  # if it is missing, better said now than after our half

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, length, steps = (2, 32, 2) if place.tiny else (32, 1024, 20)
    (config,) = place.sized(GPTConfig(dropout=0.0))
    ids = torch.randint(config.vocab_size, (batch, length), device=device)
    flops = _flops_per_token(config, length)
    rows = {}
    keys = ("ours", "hf") if place.tiny else ("ours", "ours_compiled", "hf", "hf_compiled")
    for key in keys:
        rows[key] = part_of(place, key, partial(_step_row, key, config, ids, steps, flops))
        say(f"{key}: {rows[key]}")
    peak = _matmul_peak(device, 256 if place.tiny else 8192)
    for row in rows.values():
        row["mfu_of_measured_matmul"] = round(row["tokens_per_second"] * flops / peak, 4)
    return {
        "seed": 0,
        "batch": [batch, length],
        "precision": "bf16",
        "flops_per_token": flops,
        "matmul_flops_per_second": peak,
        "rows": rows,
    }


def _step_row(
    key: str, config: GPTConfig, ids: torch.Tensor, steps: int, flops: float
) -> dict[str, Any]:
    """The speed of one implementation; its memory is free again afterwards."""
    torch.manual_seed(0)
    network = (_hugging_face(config) if key.startswith("hf") else GPT(config)).to(ids.device)
    step_ms, first = _time_steps(network, ids, steps, compiled=key.endswith("_compiled"))
    rate = ids.numel() / step_ms * 1e3
    return {
        "ms_per_step": round(step_ms, 2),
        "tokens_per_second": round(rate),
        "mfu_of_989_tflops": round(rate * flops / 989e12, 4),
        "first_step_seconds": round(first, 1),
    }


def _hugging_face(config: GPTConfig) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    names = {"n_layer": "n_layers", "n_embd": "d_model", "n_head": "n_heads"}
    names |= {"vocab_size": "vocab_size", "n_positions": "n_positions"}
    sizes: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in names.items()}
    sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes))


def _time_steps(
    network: torch.nn.Module, ids: torch.Tensor, steps: int, *, compiled: bool
) -> tuple[float, float]:
    """Median milliseconds of a whole step, and seconds of the first one (with compilation)."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    called = torch.compile(network) if compiled else network
    is_ours = isinstance(network, GPT)

    def step() -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            output = called(ids)
            logits = output if is_ours else output.logits
            total, count = causal_lm_loss(logits, ids)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = [_seconds(step, ids.device) for _ in range(4 + steps)]
    return statistics.median(seconds[4:]) * 1e3, seconds[0]


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _flops_per_token(config: GPTConfig, length: int) -> float:
    """nanoGPT's count: 6 N + 12 L H K T, N without the table of positions."""
    parameters = count_parameters(config) - config.n_positions * config.d_model
    return 6.0 * parameters + 12.0 * config.n_layers * config.d_model * length


def _matmul_peak(device: torch.device, size: int) -> float:
    """FLOP/s of a large bf16 matrix product, measured here."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def multiply() -> None:
        torch.mm(a, b)

    seconds = [_seconds(multiply, device) for _ in range(13)]
    return 2.0 * size**3 / statistics.median(seconds[3:])  # the first ones warm up


RUNS = [RecordedRun(gpt2_step, 4, "cuda"), RecordedRun(bert_packing_cpu, 3)]
