"""Devices and number formats: what is chosen, why, and what is switched off or on with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_cases import ShuffledBatches, TinyConfig, TinyLM, lm_loss, reference_config

from llm_course.errors import ConfigError
from llm_course.training.devices import choose_device, choose_precision
from llm_course.training.loop import train


def test_every_processor_computes_in_fp32_unless_told() -> None:
    assert choose_precision("cpu").name == "fp32"
    asked = choose_precision("cpu", "bf16")
    assert asked.name == "bf16"
    assert "as asked" in asked.reason


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_a_gpu_gets_what_it_has_natively(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    chosen = choose_precision("cuda")
    assert chosen.name == expected
    assert "Some GPU" in chosen.reason
    if expected != "bf16":
        with pytest.raises(ConfigError, match=r"bf16.*Some GPU"):
            choose_precision("cuda", "bf16")


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="cuda:99"):
        choose_device("cuda:99")
    with pytest.raises(ConfigError, match="'tpu'"):
        choose_device("tpu")
    with pytest.raises(ConfigError, match="'fp8'"):
        choose_precision("cpu", "fp8")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_as_fp32_does(precision: str) -> None:
    losses, formats = {}, {}
    for name in ("fp32", precision):
        config = reference_config(max_steps=12, precision=name, save_every=0)
        model = TinyLM(TinyConfig(dropout=0.0))
        seen: set[torch.dtype] = set()
        model.layers[0].w_1.register_forward_hook(lambda *call, seen=seen: seen.add(call[-1].dtype))
        losses[name] = [s.loss for s in train(model, ShuffledBatches(), lm_loss, config)]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        formats[name] = seen
    assert losses[precision] == pytest.approx(losses["fp32"], rel=2e-2)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert formats == {"fp32": {torch.float32}, precision: {low}}


def test_fp16_skips_what_overflows_and_lowers_its_scale() -> None:
    config = reference_config(max_steps=8, precision="fp16", save_every=0, non_finite="stop")
    steps = list(train(TinyLM(), ShuffledBatches(), huge_gradient, config))
    skipped = [step.skipped for step in steps]
    assert skipped[0]
    assert not skipped[-1]  # the scale was halved until the gradient fitted


def huge_gradient(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict:
    total, count = lm_loss(model, batch)["lm"]
    return {"lm": (total * 100, count)}


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:0"])
def test_a_gpu_is_chosen_without_cudnns_attention(wanted: str) -> None:
    choose_device("cpu")
    assert torch.backends.cuda.cudnn_sdp_enabled()  # the control: nothing to switch off there
    assert choose_device(wanted).type == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def attention_in(precision: str, *, trains: bool) -> tuple[torch.Tensor, set[str]]:
    """The output for fixed inputs, and the names of the kernels that computed it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, 16, 8, generator=generator).requires_grad_(trains) for _ in range(3)
    )
    with (
        torch.set_grad_enabled(trains),
        choose_precision("cpu", precision).autocast(),
        torch.profiler.profile() as profile,
    ):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.detach().float(), {event.key for event in profile.key_averages()}


def test_a_cpu_trains_in_bf16_by_plain_products_and_evaluates_by_the_fused_kernel() -> None:
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    expected, kernels = attention_in("fp32", trains=True)
    assert fused in kernels
    for trains in (True, False):
        got, kernels = attention_in("bf16", trains=trains)
        assert (fused in kernels) == (not trains)
        assert (got - expected).norm() < 2e-2 * expected.norm()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
