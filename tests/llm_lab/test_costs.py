"""The calculators agree with the models, PyTorch's own counters and published numbers."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_course import (
    BERT,
    GPT,
    T5,
    BERTConfig,
    GPTConfig,
    T5Config,
    Transformer,
    TransformerConfig,
)
from llm_course.errors import ConfigError
from llm_lab import costs
from llm_lab.costs import DEVICES, Device
from llm_lab.costs.sizes import BYTES, ModelConfig

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "dropout": 0.0,
}
GPT_SMALL = GPTConfig(**SMALL, d_ff=40, n_positions=12)
BERT_SMALL = BERTConfig(**SMALL, d_ff=48, n_positions=12)
T5_SMALL = T5Config(**SMALL, n_decoder_layers=3, d_head=12, d_ff=48)
TRANSFORMER_SMALL = TransformerConfig(**SMALL, n_decoder_layers=3, d_ff=40, n_positions=12)
GATED = T5Config(
    **SMALL, n_decoder_layers=1, d_head=4, d_ff=24, gated_ff=True, tied=False, activation="gelu"
)
CONFIGS = {
    "gpt": GPT_SMALL,
    "gpt untied": GPTConfig(**SMALL, tied=False),
    "bert untied": BERTConfig(**SMALL, d_ff=48, n_positions=12, tied=False),
    "bert": BERT_SMALL,
    "t5": T5_SMALL,
    "t5 gated, untied": GATED,
    "transformer": TRANSFORMER_SMALL,
    "transformer untied": TransformerConfig(**SMALL, n_decoder_layers=1, tied=False),
}
MODELS = {GPTConfig: GPT, BERTConfig: BERT, T5Config: T5, TransformerConfig: Transformer}
GPT3 = GPTConfig(n_layers=96, d_model=12_288, n_heads=96, n_positions=2048)
BERT_LARGE = BERTConfig(n_layers=24, d_model=1024, n_heads=16, d_ff=4096)


def on_meta(config: ModelConfig) -> Any:
    with torch.device("meta"):
        return MODELS[type(config)](config)  # type: ignore[index]


def gpt2(n_layers: int, d_model: int, n_heads: int) -> GPTConfig:
    return GPTConfig(n_layers=n_layers, d_model=d_model, n_heads=n_heads)


def t5(n_layers: int, d_model: int, n_heads: int, d_ff: int, d_head: int = 64) -> T5Config:
    return T5Config(
        n_layers=n_layers,
        n_decoder_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_head,
        d_ff=d_ff,
    )


# Parameters


@pytest.mark.covers("C4")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_counted_as_the_model_has_them(config: ModelConfig) -> None:
    model = on_meta(config)
    assert costs.count_parameters(config) == sum(p.numel() for p in model.parameters())
    assert min(costs.parameter_table(config).values()) > 0


def test_a_model_of_another_size_has_another_count() -> None:
    wider = GPTConfig(**SMALL, d_ff=41, n_positions=12)
    assert costs.count_parameters(wider) != sum(p.numel() for p in on_meta(GPT_SMALL).parameters())


def test_each_part_is_that_of_the_module_of_its_name() -> None:
    model, table = on_meta(T5_SMALL), costs.parameter_table(T5_SMALL)
    counted = dict.fromkeys(table, 0)
    for name, parameter in model.named_parameters():
        part = "norms" if "norm" in name else ""
        part = part or ("cross-attention" if ".cross_attn." in name else "")
        part = part or ("attention" if ".attn." in name else "")
        part = part or ("feed-forward" if ".ff." in name else "")
        part = part or ("relative positions" if "_bias" in name else "token embedding")
        counted[part] += parameter.numel()
    assert counted == table


@pytest.mark.parametrize(
    ("config", "published", "tolerance"),
    [
        (GPT3, 175e9, 0.01),  # Brown et al. 2020, Table 2.1
        (GPT3, 174_600e6, 1e-4),  # the same, Table D.1
        (BERTConfig(), 110e6, 0.01),  # Devlin et al. 2019, §3
        (BERT_LARGE, 340e6, 0.015),
        (GPTConfig(), 124_439_808, 0),  # the released weights of GPT-2
        (gpt2(24, 1024, 16), 354_823_168, 0),
        (gpt2(36, 1280, 20), 774_030_080, 0),
        (gpt2(48, 1600, 25), 1_557_611_200, 0),
        (gpt2(48, 1600, 25), 1542e6, 0.015),  # Radford et al. 2019, Table 2
        (T5Config(), 60_506_624, 0),  # the released weights of T5
        (t5(12, 768, 12, 3072), 222_903_552, 0),
        (t5(24, 1024, 16, 4096), 737_668_096, 0),
        (t5(24, 1024, 32, 16_384, 128), 2_851_598_336, 0),
        (t5(24, 1024, 128, 65_536, 128), 11_307_321_344, 0),
        (t5(24, 1024, 128, 65_536, 128), 11e9, 0.03),  # Raffel et al. 2020, §3.7
        (TransformerConfig(), 65e6, 0.035),  # Vaswani et al. 2017, Table 3
    ],
)
def test_published_models_have_their_published_size(
    config: ModelConfig, published: float, tolerance: float
) -> None:
    assert abs(costs.count_parameters(config) / published - 1) <= tolerance


def test_twelve_d_squared_is_near_for_wide_models_only() -> None:
    def error(config: GPTConfig) -> float:
        return 1 - costs.rough_parameters(config.n_layers, config.d_model) / (
            costs.count_parameters(config)
        )

    assert 0 < error(GPT3) < 0.005
    assert error(GPTConfig()) > 0.3  # a third of GPT-2 small is in its tables


# Floating-point operations


def run_model(config: ModelConfig, rows: int, source: int, target: int) -> Any:
    model = on_meta(config)
    ids = torch.zeros(rows, source, dtype=torch.long, device="meta")
    if isinstance(config, BERTConfig):
        out = model(ids)
        return out.mlm_logits.sum() + out.nsp_logits.sum()
    if isinstance(config, GPTConfig):
        return model(ids).sum()
    new = torch.zeros(rows, target, dtype=torch.long, device="meta")
    return model(ids, decoder_input_ids=new).sum()


def targets(config: ModelConfig, n: int) -> int | None:
    return n if isinstance(config, T5Config | TransformerConfig) else None


@pytest.mark.covers("C1")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_are_those_that_pytorch_counts(config: ModelConfig) -> None:
    rows, source, target = 3, 10, 7
    with FlopCounterMode(display=False) as forward:
        loss = run_model(config, rows, source, target)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    n_targets = targets(config, target)
    one = sum(costs.forward_flops(config, source, n_targets).values())
    assert forward.get_total_flops() == rows * one
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == costs.training_flops(config, rows, source, n_targets)
    longer = costs.training_flops(config, rows, source + 1, n_targets)
    assert both != longer


def test_attention_alone_grows_with_the_square_of_the_length() -> None:
    short, long = (costs.forward_flops(GPTConfig(), n) for n in (256, 1024))
    assert long["attention"] == 16 * short["attention"]
    for part in ("projections", "feed-forward", "heads"):
        assert long[part] == 4 * short[part]


def test_a_bert_that_predicts_15_percent_saves_the_rest_of_its_head() -> None:
    every = costs.forward_flops(BERTConfig(), 128)
    some = costs.forward_flops(BERTConfig(), 128, n_predictions=20)
    fixed = costs.forward_flops(BERTConfig(), 128, n_predictions=0)["heads"]
    assert (some["heads"] - fixed) * 128 == (every["heads"] - fixed) * 20
    assert {k: some[k] for k in some if k != "heads"} == {k: every[k] for k in some if k != "heads"}


@pytest.mark.covers("C1")
def test_6nd_is_near_for_large_models_and_far_for_small_ones_with_long_rows() -> None:
    def share(config: GPTConfig, length: int) -> float:
        exact = costs.training_flops(config, 1, length)
        return costs.six_nd(costs.count_parameters(config), length) / exact

    assert abs(share(GPT3, 2048) - 1) < 0.03
    assert share(GPTConfig(n_layers=2, d_model=64, n_heads=2, n_positions=8192), 8192) < 0.8


@pytest.mark.parametrize(
    ("parameters", "tokens", "published"),
    [(174.6e9, 300e9, 3.14e23), (109e6, 250e9, 1.64e20)],  # Brown et al. 2020, Table D.1
)
def test_6nd_gives_the_compute_of_gpt3_s_table(
    parameters: float, tokens: float, published: float
) -> None:
    assert abs(costs.six_nd(parameters, tokens) / published - 1) < 0.01
    assert abs(costs.six_nd(parameters, 2 * tokens) / published - 1) > 0.5


@pytest.mark.parametrize("name", ["gpt", "gpt untied", "t5", "t5 gated, untied", "transformer"])
def test_one_decoding_step_costs_what_pytorch_counts(name: str) -> None:
    config, source, context = CONFIGS[name], 9, 6
    model = on_meta(config)
    ids = torch.zeros(1, context, dtype=torch.long, device="meta")
    if isinstance(config, GPTConfig):
        cache, n_source = model.new_cache(1, 12), None
        model(ids[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter:
            model(ids[:, -1:], cache=cache)
    else:
        cache, n_source = model.new_cache(1, 12), source
        states = torch.zeros(1, source, config.d_model, device="meta")
        model.decode(states, ids[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter:
            model.decode(None, ids[:, -1:], cache=cache)
    step = costs.decode_flops(config, context, n_source)
    assert counter.get_total_flops() == sum(step.values())
    assert sum(costs.decode_flops(config, context + 1, n_source).values()) > sum(step.values())


def test_decoding_step_by_step_costs_as_much_as_one_causal_pass() -> None:
    one = costs.forward_flops(GPT_SMALL, 12)
    steps = [costs.decode_flops(GPT_SMALL, n) for n in range(1, 13)]
    for part in ("projections", "feed-forward", "heads"):
        assert sum(step[part] for step in steps) == one[part]
    pairs = 12 * 13 / 2  # each position sees itself and those before it
    assert sum(step["attention"] for step in steps) == one["attention"] * pairs / 12**2


# Memory


@pytest.mark.covers("C3")
@pytest.mark.parametrize("name", costs.FLOAT_BITS)
def test_the_largest_number_of_a_format_is_pytorch_s(name: str) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    largest = costs.largest_finite(name)
    assert largest == torch.finfo(dtype).max
    assert torch.tensor(largest, dtype=torch.float64).to(dtype).isfinite()
    over = torch.tensor(largest * 1.01, dtype=torch.float64).to(dtype)
    assert over.isinf()
    assert BYTES[name] == dtype.itemsize


@pytest.mark.covers("C3")
def test_a_sum_of_squares_overflows_in_fp16_and_not_in_bf16() -> None:
    x = torch.full((8,), 300.0)
    assert x.half().square().isinf().all()
    assert x.bfloat16().square().isfinite().all()
    assert costs.largest_finite("fp16") < 300.0**2 < costs.largest_finite("bf16")


def test_weights_have_the_bytes_of_the_model() -> None:
    model = on_meta(GPT_SMALL).bfloat16()
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert costs.weight_bytes(GPT_SMALL, "bf16") == n_bytes
    assert costs.weight_bytes(GPT_SMALL, "fp32") == 2 * n_bytes
    assert costs.weight_bytes(7e9, "int4") == 3.5e9


def test_fp32_training_holds_what_adamw_holds() -> None:
    model = GPT(GPT_SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    held = {
        "weights": [*model.parameters()],
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "two moments": state,
    }
    n_bytes = {part: sum(t.nbytes for t in tensors) for part, tensors in held.items()}
    assert costs.training_bytes(GPT_SMALL, "fp32") == n_bytes
    assert sum(costs.training_bytes(GPT_SMALL, "mixed").values()) == sum(n_bytes.values())


def kept_bytes(model: torch.nn.Module, *args: Any, **kwargs: Any) -> int:
    """Bytes of the tensors that autograd keeps, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model(*args, **kwargs)
        logits = out if isinstance(out, torch.Tensor) else out.mlm_logits
        labels = torch.zeros(logits.shape[:2], dtype=torch.long).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "n_layers": 3,
    "d_model": 64,
    "n_heads": 2,
    "d_ff": 256,
    "dropout": 0,
}
KEEPERS: dict[str, tuple[Any, float, float]] = {  # and the band of kept / computed
    "gpt": (GPTConfig(**SIZES, n_positions=64), 0.98, 1.02),
    "bert": (BERTConfig(**SIZES, n_positions=64), 0.98, 1.02),
    "transformer": (TransformerConfig(**SIZES, n_decoder_layers=3), 0.98, 1.02),
    "t5": (T5Config(**SIZES, n_decoder_layers=3, d_head=32), 1.0, 1.5),
}


@pytest.mark.parametrize(("config", "low", "high"), KEEPERS.values(), ids=KEEPERS)
def test_activations_are_what_autograd_keeps(config: Any, low: float, high: float) -> None:
    ids = torch.zeros(4, 64, dtype=torch.long)
    more = {} if targets(config, 64) is None else {"decoder_input_ids": ids}
    kept = kept_bytes(MODELS[type(config)](config), ids, **more)
    computed = costs.activation_bytes(config, 4, 64, targets(config, 64), precision="fp32")
    assert low < kept / computed < high
    twice = costs.activation_bytes(config, 8, 64, targets(config, 64), precision="fp32")
    assert not low < kept / twice < high


def test_a_cache_has_the_bytes_that_are_computed() -> None:
    cache = GPT(GPT_SMALL).new_cache(3, 10)
    n_bytes = cache.keys.nbytes + cache.values.nbytes
    assert costs.kv_cache_bytes(GPT_SMALL, 10, 3, "fp32") == n_bytes
    assert costs.kv_cache_bytes(GPT_SMALL, 11, 3, "fp32") != n_bytes

    model = T5(T5_SMALL)
    two = model.new_cache(3, 10)
    states = torch.zeros(3, 7, 16)
    model.decode(states, torch.zeros(3, 1, dtype=torch.long), cache=two)
    assert two.source is not None
    n_bytes = two.keys.nbytes + two.values.nbytes + sum(k.nbytes + v.nbytes for k, v in two.source)
    assert costs.kv_cache_bytes(T5_SMALL, 10, 3, "fp32", n_source=7) == n_bytes


# Time and money


def test_the_bound_is_the_slower_of_arithmetic_and_transfer() -> None:
    device = Device(name="one", flops=100.0, bandwidth=10.0, memory=1.0)
    bound = costs.lower_bound(200.0, 10.0, device)
    assert (bound.compute, bound.bandwidth, bound.seconds) == (2.0, 1.0, 2.0)
    assert bound.limit == "compute"
    other = costs.lower_bound(200.0, 50.0, device, n_devices=5)
    assert (other.seconds, other.limit) == (1.0, "bandwidth")


@pytest.mark.covers("C4")
def test_one_row_waits_for_memory_and_many_rows_for_arithmetic() -> None:
    model = GPTConfig(n_layers=32, d_model=4096, n_heads=32, n_positions=4096)
    one = costs.decode_bound(model, DEVICES["A100"], context=10)
    many = costs.decode_bound(model, DEVICES["A100"], context=10, n_rows=512)
    assert (one.limit, many.limit) == ("bandwidth", "compute")
    assert many.seconds < 5 * one.seconds  # 512 tokens in less than the time of 5
    least = costs.weight_bytes(model) / DEVICES["A100"].bandwidth
    assert 0.95 * least < one.seconds < 1.05 * least
    half = costs.decode_bound(model, DEVICES["A100"], context=10, precision="int8")
    assert half.seconds == pytest.approx(one.seconds / 2)


def test_an_encoder_is_not_read_while_decoding() -> None:
    t5_bound = costs.decode_bound(T5Config(), DEVICES["A100"], context=1, n_source=1)
    everything = costs.weight_bytes(T5Config()) / DEVICES["A100"].bandwidth
    assert t5_bound.bandwidth < 0.75 * everything


@pytest.mark.covers("C1")
def test_training_cost_is_flops_over_what_a_device_reaches() -> None:
    device = Device(name="one", flops=1e12, bandwidth=1e12, memory=1.0)
    cost = costs.training_cost(3.6e17, device, n_devices=10, mfu=0.5, price=2.0)
    assert cost.device_hours == pytest.approx(200)
    assert cost.days == pytest.approx(200 / 10 / 24)
    assert cost.money == pytest.approx(400)
    assert costs.utilisation(3.6e17, device, 200) == pytest.approx(0.5)
    assert costs.utilisation(3.6e17, device, 400) != pytest.approx(0.5)


@pytest.mark.parametrize(
    ("flops", "device", "hours", "low", "high"),
    [
        # Llama 2 7B: 2.0T tokens, 184,320 hours of an A100 (Touvron et al. 2023, Table 2)
        (costs.six_nd(6.74e9, 2e12), "A100", 184_320, 0.35, 0.45),
        # GPT-3: 14.8 days of 10,000 V100s (Patterson et al. 2021, Table 4)
        (costs.six_nd(174.6e9, 300e9), "V100", 10_000 * 14.8 * 24, 0.18, 0.21),
    ],
)
def test_published_runs_reach_a_credible_share_of_the_peak(
    flops: float, device: str, hours: float, low: float, high: float
) -> None:
    assert low < costs.utilisation(flops, DEVICES[device], hours) < high


def test_a_measured_product_takes_no_less_than_its_bound() -> None:
    """The machine's own rate, from a large product, bounds another product of that size."""

    times: dict[int, list[float]] = {512: [], 768: []}
    for _ in range(20):  # in turn, so that a busy machine slows both
        for n, seconds in times.items():
            a, b = torch.ones(n, n), torch.ones(n, n)
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
    peak = 2 * 768**3 / min(times[768])
    device = Device(name="here", flops=peak, bandwidth=1e15, memory=1e9)
    bound = costs.lower_bound(2 * 512**3, 3 * 512**2 * 4, device)
    assert 1e8 < peak < 1e14  # FLOP/s of one core
    assert bound.limit == "compute"
    assert 0.3 < min(times[512]) / bound.seconds < 30


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: costs.forward_flops(T5_SMALL, 4), "needs n_targets"),
        (lambda: costs.forward_flops(GPT_SMALL, 4, 4), "n_targets must be None"),
        (lambda: costs.forward_flops(GPT_SMALL, 0), "n_tokens must be positive"),
        (lambda: costs.forward_flops(GPT_SMALL, 4, n_predictions=5), "from 0 to 4, got 5"),
        (lambda: costs.decode_flops(BERT_SMALL, 4), "token by token"),
        (lambda: costs.decode_flops(T5_SMALL, 4), "needs n_source"),
        (lambda: costs.decode_flops(GPT_SMALL, 4, 4), "n_source must be None"),
        (lambda: costs.kv_cache_bytes(T5_SMALL, 4), "needs n_source"),
        (lambda: costs.weight_bytes(1e9, "fp8"), "one of fp32, bf16, .* got 'fp8'"),
        (lambda: costs.largest_finite("int8"), "one of fp32, bf16, fp16"),
        (lambda: costs.training_bytes(1e9, "sgd"), "one of fp32, mixed"),
        (lambda: costs.weight_bytes(-1), "n_parameters must be positive"),
        (lambda: costs.six_nd(math.inf, 1), "n_parameters must be positive and finite"),
        (lambda: costs.training_cost(1.0, DEVICES["T4"], mfu=1.1, price=1), "at most 1"),
        (lambda: costs.lower_bound(1, 1, DEVICES["T4"], 0), "n_devices must be positive"),
        (lambda: Device(name="x", flops=0, bandwidth=1, memory=1), "flops must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_the_calculators_need_no_torch() -> None:
    code = "import llm_lab.costs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.covers("C2")
def test_gpt_3_read_a_twelfth_of_the_text_that_later_work_asks_for() -> None:
    """Brown et al. 2020, Table 2.1: 300 billion tokens. Hoffmann et al. 2022: 20 a parameter."""
    wanted = 20 * costs.count_parameters(GPT3)
    assert 11 < wanted / 300e9 < 12
    small = GPTConfig()  # for GPT-2 small the same 300 billion tokens would be more than enough
    assert 20 * costs.count_parameters(small) < 300e9 / 100
