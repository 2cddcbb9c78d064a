"""A tiny language model, its batches and a reference run, for the tests of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llm_course.configs import TrainConfig
from llm_course.training.loop import train

IGNORE = -100
Batch = dict[str, Tensor]
TIMES = ("seconds", "tokens_per_second", "memory_bytes")  # what two equal runs may differ in


@dataclass(frozen=True)
class TinyConfig:
    vocab_size: int = 31
    d_model: int = 32
    n_layers: int = 2
    dropout: float = 0.1


class TinyBlock(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attn_norm = nn.LayerNorm(d)
        # No bias: softmax ignores that of the keys, so its gradient is pure rounding, which Adam
        # would blow up to 1e-11 of a step.
        self.w_qkv = nn.Linear(d, 3 * d, bias=False)
        self.w_o = nn.Linear(d, d)
        self.ff_norm = nn.LayerNorm(d)
        self.w_1 = nn.Linear(d, 2 * d)
        self.w_2 = nn.Linear(2 * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.w_qkv(self.attn_norm(x)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.w_o(mixed))
        return x + self.dropout(self.w_2(F.gelu(self.w_1(self.ff_norm(x)))))


class TinyLM(nn.Module):
    """Pre-norm, one head, tied output: as little as has all kinds of parameters."""

    def __init__(self, config: TinyConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config or TinyConfig()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.token_embedding = nn.Embedding(self.config.vocab_size, self.config.d_model)
            self.layers = nn.ModuleList(TinyBlock(self.config) for _ in range(self.config.n_layers))
            self.norm = nn.LayerNorm(self.config.d_model)
            self.head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False)
            self.score_head = nn.Linear(self.config.d_model, 2)
        self.head.weight = self.token_embedding.weight

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    @property
    def tied(self) -> dict[str, str]:
        return {"head.weight": "token_embedding.weight"}

    def hidden(self, input_ids: Tensor) -> Tensor:
        x = self.token_embedding(input_ids)
        for block in self.layers:
            x = block(x)
        return self.norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))

    def save_pretrained(self, path: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        state = dict(state_dict or self.state_dict())
        state.pop("head.weight", None)
        save_file({k: v.contiguous() for k, v in state.items()}, Path(path) / "model.safetensors")


def lm_loss(model: Any, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    logits, labels = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return {"lm": (total, (labels != IGNORE).sum())}


def two_losses(model: Any, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """As BERT's: one term per token, one per row, with counts of their own; uses `hidden`."""
    hidden = model.hidden(batch["input_ids"])
    labels = batch["labels"]
    tokens = F.cross_entropy(
        model.head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    wanted = batch["next_sentence_label"]
    rows = F.cross_entropy(
        model.score_head(hidden[:, 0]), wanted, ignore_index=IGNORE, reduction="sum"
    )
    return {"mlm": (tokens, (labels != IGNORE).sum()), "nsp": (rows, (wanted != IGNORE).sum())}


class ShuffledBatches:
    """Ragged rows in a new order each epoch; the state is the epoch and the place in it."""

    def __init__(self, n: int = 14, batch_size: int = 4, length: int = 12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 31, (n, length), generator=generator)
        self.labels = self.ids.clone()
        lengths = torch.randint(2, length + 1, (n,), generator=generator)
        self.labels[torch.arange(length) >= lengths[:, None]] = IGNORE
        self.wanted = torch.randint(0, 2, (n,), generator=generator)
        self.wanted[::3] = IGNORE
        self.batch_size, self.seed = batch_size, seed
        self.epoch = self.offset = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(len(self.ids), generator=generator)
        while self.offset < len(order):
            rows = order[self.offset : self.offset + self.batch_size]
            self.offset += self.batch_size
            yield {
                "input_ids": self.ids[rows],
                "labels": self.labels[rows],
                "next_sentence_label": self.wanted[rows],
            }
        self.epoch += 1
        self.offset = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.offset = state["epoch"], state["offset"]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()


def reference_config(**changes: Any) -> TrainConfig:
    """The reference run of the fault-injection table: 40 steps, saved every 5."""
    values: dict[str, Any] = {
        "max_steps": 40,
        "accumulation": 2,
        "lr": 3e-3,
        "warmup_steps": min(5, changes.get("max_steps", 40)),
        "save_every": 5,
        "eval_every": 10,
        "precision": "fp32",
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


def tiny(dropout: float = 0.0) -> TinyLM:
    return TinyLM(TinyConfig(dropout=dropout)).double()


def weights(model: TinyLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(((a[n] - b[n]).abs().max() / b[n].abs().max().clamp(min=1e-3)).item() for n in b)


class Listed:
    """A list of batches, again and again, so that an update's batches are known."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def whole_and_broken_run(folder: Path, config: TrainConfig, stop: int) -> None:
    """A run in one go in `whole`; the same in `broken`, left after `stop` updates and resumed."""
    list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=folder / "whole"))
    steps = train(TinyLM(), ShuffledBatches(), lm_loss, config, out=folder / "broken")
    for _ in range(stop):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    list(train(TinyLM(), ShuffledBatches(), lm_loss, config, out=folder / "broken", resume=True))


def stored(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole: put together here from the parts of its processes."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118  # not a dict
                tensor = file.get_tensor(name)
                parts.setdefault(name, []).append((offsets[name]["saved_offsets"], tensor))
    for name, found in parts.items():
        shape = [max(o[d] + t.shape[d] for o, t in found) for d in range(found[0][1].ndim)]
        whole[name] = torch.empty(shape, dtype=found[0][1].dtype)
        for at, tensor in found:
            whole[name][tuple(slice(a, a + n) for a, n in zip(at, tensor.shape))] = tensor
    return whole


def digest(out: Path) -> dict[str, str]:
    """SHA-256 of weights, optimizer, random state, data order, log and exported model of a run."""
    last = max((out / "checkpoints").glob("step-????????"))
    state = json.loads((last / "state.json").read_bytes())
    state["progress"].pop("seconds")
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k not in TIMES} for line in log]
    parts = {
        "state": json.dumps([last.name, state], sort_keys=True).encode(),
        "log": json.dumps(log).encode(),
        "export": (out / "model" / "model.safetensors").read_bytes(),
    }
    tensors = stored(last)
    for part in ("model", "optimizer", "random", "best"):
        chosen = {n: t for n, t in tensors.items() if n.startswith(f"{part}.")}
        parts[part] = b"".join(n.encode() + chosen[n].numpy().tobytes() for n in sorted(chosen))
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
