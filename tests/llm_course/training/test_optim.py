"""Schedules, decay groups, AdamW, Muon, clipping and the choice of the precision."""

from __future__ import annotations

import math

import pytest
import torch
from parity import DIFFERS, relative_difference
from torch import nn
from training_cases import ShuffledBatches, TinyConfig, TinyLM, lm_loss, reference_config

from llm_course.configs import GPTConfig, TrainConfig
from llm_course.errors import ConfigError
from llm_course.models.gpt import GPT
from llm_course.training.loop import train
from llm_course.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizers,
    parameter_groups,
    set_learning_rate,
)


def by_hand(name: str, t: int, warmup: int, last: int, high: float, low: float) -> float:
    """The closed forms once more, with branches in another order."""
    if name == "inverse_sqrt":
        return high * (t / warmup if t < warmup else (warmup / t) ** 0.5)
    if t > warmup:
        part = (t - 1 - warmup) / (last - warmup)
        return {
            "constant": high,
            "linear": (1 - part) * high + part * low,
            "cosine": low + 0.5 * (high - low) * (1 + math.cos(part * math.pi)),
        }[name]
    return t * high / (1 + warmup)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "inverse_sqrt"])
def test_schedules_are_their_closed_forms_at_every_step(name: str) -> None:
    config = TrainConfig(
        schedule=name,  # type: ignore[arg-type]
        max_steps=50,
        warmup_steps=7,
        lr=2e-3,
        min_lr=1e-4,
    )
    for step in range(1, 51):
        expected = by_hand(name, step, 7, 50, 2e-3, 1e-4)
        assert learning_rate(step, config) == pytest.approx(expected, rel=1e-12)
    peak = 7 if name == "inverse_sqrt" else 8
    assert learning_rate(peak, config) == pytest.approx(2e-3)
    assert learning_rate(peak - 1, config) < 2e-3


def test_one_update_without_warm_up_has_the_highest_rate() -> None:
    config = TrainConfig(max_steps=1, warmup_steps=0, lr=0.5)
    assert learning_rate(1, config) == 0.5
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        learning_rate(0, config)


def test_only_matrices_decay() -> None:
    model = TinyLM()
    decaying, *rest = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in (decaying, *rest)] == [0.1, 0.0, 0.0]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} == {
        f"layers.{i}.{w}.weight" for i in range(2) for w in ("w_qkv", "w_o", "w_1", "w_2")
    } | {"score_head.weight"}
    everything = [parameter for group in (decaying, *rest) for parameter in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(model.parameters()))


def test_embeddings_and_a_tied_head_have_a_rate_of_their_own() -> None:
    model = GPT(GPTConfig(vocab_size=11, n_layers=1, d_model=8, n_heads=2, n_positions=6))
    (optimizer,) = make_optimizers(model, TrainConfig(embedding_lr_scale=4.0))
    set_learning_rate([optimizer], 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (2.0 if "embedding" in name else 0.5), name
    assert rates[id(model.lm_head.weight)] == 2.0
    with pytest.raises(ConfigError, match=r"embedding_lr_scale must be .* got -1"):
        TrainConfig(embedding_lr_scale=-1.0)


def test_a_scaled_rate_moves_only_the_embeddings_further() -> None:
    """The first update of AdamW is the rate in each number with a gradient."""
    moved = {}
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        model = TinyLM(TinyConfig(dropout=0.0)).double()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        config = reference_config(
            max_steps=1, accumulation=1, warmup_steps=0, lr=1e-2, embedding_lr_scale=scale
        )
        list(train(model, ShuffledBatches(), lm_loss, config))
        moved[scale] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name, step in moved[1.0].items():
        factor = 3.0 if "emb" in name else 1.0
        torch.testing.assert_close(moved[3.0][name], factor * step, rtol=1e-9, atol=1e-12, msg=name)


def test_frozen_parameters_are_left_out() -> None:
    model = TinyLM()
    for parameter in model.layers.parameters():
        parameter.requires_grad_(False)
    (optimizer,) = make_optimizers(model, TrainConfig())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 5
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        make_optimizers(model, TrainConfig())


def test_one_update_is_adamw_by_hand() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, after clipping, on every parameter."""
    config = reference_config(
        max_steps=1, accumulation=1, warmup_steps=0, lr=1e-2, clip_norm=0.5, weight_decay=0.3
    )
    model = TinyLM(TinyConfig(dropout=0.0)).double()
    reference = TinyLM(TinyConfig(dropout=0.0)).double()
    total, count = lm_loss(reference, next(iter(ShuffledBatches())))["lm"]
    (total / count).backward()
    norm = sum((p.grad**2).sum() for p in reference.parameters() if p.grad is not None) ** 0.5
    (step,) = train(model, ShuffledBatches(), lm_loss, config)
    assert step.loss == pytest.approx((total / count).item(), rel=1e-12)
    assert step.grad_norm == pytest.approx(float(norm), rel=1e-12)
    for (name, new), old in zip(model.named_parameters(), reference.parameters()):
        if old.grad is None:
            assert torch.equal(new, old), name
            continue
        g = old.grad * min(1.0, 0.5 / (float(norm) + 1e-6))
        first = (1 - config.beta1) * g / (1 - config.beta1)
        second = (1 - config.beta2) * g**2 / (1 - config.beta2)
        decay = 0.3 if name.endswith("weight") and "norm" not in name and "emb" not in name else 0.0
        expected = old * (1 - 1e-2 * decay) - 1e-2 * first / (second.sqrt() + config.adam_eps)
        torch.testing.assert_close(new, expected, rtol=1e-10, atol=1e-12, msg=name)


HIDDEN = {f"layers.{i}.{w}.weight" for i in range(2) for w in ("w_qkv", "w_o", "w_1", "w_2")}


def moved_by(optimizer: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights before one update, and after it."""
    model = TinyLM(TinyConfig(dropout=0.0)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = reference_config(
        max_steps=1, accumulation=1, warmup_steps=0, lr=1e-2, optimizer=optimizer, weight_decay=0.3
    )
    list(train(model, ShuffledBatches(), lm_loss, config))
    return before, {name: p.detach() for name, p in model.named_parameters()}


def test_one_update_of_muon_has_singular_values_near_one() -> None:
    """The gradient's own directions (Jordan et al. 2024), and Liu et al. 2025, eq. (4), in size."""
    model = TinyLM(TinyConfig(dropout=0.0)).double()
    total, count = lm_loss(model, next(iter(ShuffledBatches())))["lm"]
    (total / count).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name in HIDDEN}
    spread = {}
    for optimizer in ("muon", "adamw"):
        before, after = moved_by(optimizer)
        for name, gradient in gradients.items():
            assert gradient is not None
            size = 1e-2 * 0.2 * max(gradient.shape) ** 0.5
            step = (before[name] * (1 - 1e-2 * 0.3) - after[name]) / size
            u, s, v = torch.linalg.svd(gradient, full_matrices=False)
            large = s > s[0] / 20  # smaller ones are not yet near 1 after five iterations
            turned = (u.mT @ step @ v.mT)[large][:, large]
            lengths = turned.diagonal()
            off = (turned - lengths.diag()).abs().max().item()
            spread[optimizer, name] = max((lengths - 0.95).abs().max().item() / 0.35, off / 0.05)
    assert max(spread["muon", name] for name in HIDDEN) < 1
    assert min(spread["adamw", name] for name in HIDDEN) > 1


def test_what_muon_leaves_is_trained_by_adamw() -> None:
    before, by_muon = moved_by("muon")
    _, by_adamw = moved_by("adamw")
    for name in before:
        gap = relative_difference(by_muon[name], by_adamw[name])
        assert gap > DIFFERS if name in HIDDEN else gap < 1e-12, name


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    config = GPTConfig(vocab_size=11, n_layers=1, d_model=8, n_heads=2, n_positions=6, tied=False)
    model = GPT(config)
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon", beta1=0.8))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert taken == {n for n, p in model.named_parameters() if "decoder" in n and p.ndim == 2}
    left = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(left) == sorted(set(names.values()) - taken)
    assert muon.param_groups[0]["momentum"] == 0.8
    for parameter in model.parameters():
        parameter.requires_grad_(names[id(parameter)] in taken)
    assert [type(each) for each in make_optimizers(model, TrainConfig(optimizer="muon"))] == [
        torch.optim.Muon
    ]


def test_where_muon_cannot_work_is_said() -> None:
    with pytest.raises(ConfigError, match="got Linear with 0 blocks"):
        make_optimizers(nn.Linear(3, 3), TrainConfig(optimizer="muon"))
    model = TinyLM()
    model.layers.requires_grad_(False)
    with pytest.raises(ConfigError, match="got TinyLM with 2 blocks; use 'adamw'"):
        make_optimizers(model, TrainConfig(optimizer="muon"))
    with pytest.raises(ConfigError, match="needs whole matrices"):
        TrainConfig(optimizer="muon", parallel="fsdp")


@pytest.mark.parametrize("clip_norm", [0.0, 0.1, 1e9])
def test_clipping_equals_torch(clip_norm: float) -> None:
    layers = [nn.Linear(5, 4), nn.Linear(5, 4)]
    for layer in layers:
        for i, parameter in enumerate(layer.parameters()):
            parameter.grad = torch.full_like(parameter, 2.0 + i)
    ours, theirs = (list(layer.parameters()) for layer in layers)
    norm = clip_gradients(ours, clip_norm)
    expected = nn.utils.clip_grad_norm_(theirs, clip_norm or math.inf)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad)
