"""Time and money: what a device can do at most, and what a training run takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llm_course.errors import ConfigError
from llm_lab.costs.sizes import (
    BYTES,
    ModelConfig,
    check_positive,
    choose,
    decode_flops,
    kv_cache_bytes,
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor for training or inference, as its maker's data sheet has it."""

    name: str
    flops: float  # FLOP/s at most, in 16-bit matrix products without sparsity
    bandwidth: float  # bytes/s between its memory and its arithmetic units
    memory: float  # bytes

    def __post_init__(self) -> None:
        check_positive(flops=self.flops, bandwidth=self.bandwidth, memory=self.memory)


DEVICES = {
    device.name: device
    for device in (
        Device(name="T4", flops=65e12, bandwidth=320e9, memory=16e9),
        Device(name="V100", flops=125e12, bandwidth=900e9, memory=32e9),
        Device(name="A100", flops=312e12, bandwidth=2.039e12, memory=80e9),
        Device(name="H100", flops=989e12, bandwidth=3.35e12, memory=80e9),
        Device(name="H200", flops=989e12, bandwidth=4.8e12, memory=141e9),
    )
}


class Bound(NamedTuple):
    """Two times that no program can beat: for the arithmetic, and for moving the bytes."""

    compute: float  # seconds
    bandwidth: float  # seconds

    @property
    def seconds(self) -> float:
        """The larger one: arithmetic and transfers can run at the same time."""
        return max(self)

    @property
    def limit(self) -> str:
        """Which of the two it is: "compute" or "bandwidth"."""
        return "compute" if self.compute >= self.bandwidth else "bandwidth"


def lower_bound(flops: float, n_bytes: float, device: Device, n_devices: int = 1) -> Bound:
    """FLOPs over FLOP/s and bytes over bytes/s: the roofline model, Williams et al. 2009."""
    check_positive(n_devices=n_devices)
    return Bound(flops / device.flops / n_devices, n_bytes / device.bandwidth / n_devices)


def decode_bound(
    config: ModelConfig,
    device: Device,
    *,
    context: int,
    n_rows: int = 1,
    precision: str = "bf16",
    n_source: int | None = None,
) -> Bound:
    """The least time of one decoding step, which writes one token in each of `n_rows` rows.

    Every matrix is read once for all rows, every row's cache once. Lower still only by fewer
    bytes (quantization, chapter 22) or by several tokens a step.
    """
    check_positive(context=context, n_rows=n_rows)
    flops = decode_flops(config, context, n_source)
    weights = (sum(flops.values()) - flops["attention"]) // 2  # two FLOPs for each weight
    cache = kv_cache_bytes(config, context, n_rows, precision, n_source)
    n_bytes = weights * choose(BYTES, "precision", precision) + cache
    return lower_bound(n_rows * sum(flops.values()), n_bytes, device)


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a training run takes."""

    flops: float
    device_hours: float
    days: float
    money: float


def training_cost(
    flops: float, device: Device, *, n_devices: int = 1, mfu: float, price: float
) -> TrainingCost:
    """Hours, days and money to compute `flops`.

    Args:
        mfu: model FLOPs utilisation, the share of the peak that is reached, from 0 to 1.
        price: money for one device and one hour.
    """
    check_positive(flops=flops, n_devices=n_devices, mfu=mfu)
    if mfu > 1:
        raise ConfigError(f"mfu must be at most 1, got {mfu}")
    hours = flops / (device.flops * mfu) / 3600
    return TrainingCost(
        flops=flops, device_hours=hours, days=hours / n_devices / 24, money=hours * price
    )


def utilisation(flops: float, device: Device, device_hours: float) -> float:
    """The MFU that a published run reached; Chowdhery et al. 2023, §4.1."""
    check_positive(flops=flops, device_hours=device_hours)
    return flops / (device.flops * 3600 * device_hours)
