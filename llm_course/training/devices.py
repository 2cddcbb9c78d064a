"""Which device and which number format a run uses, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_course.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The format of matrix products: fp32 means none but the model's own; weights stay as they are.

    Micikevicius et al. 2018: fp16 ends at 65,504 and loses gradients under 6e-8, so its loss is
    scaled; bf16 has the range of fp32 and needs no scale.
    """

    name: str  # "fp32", "bf16" or "fp16"
    device_type: str
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        if self.name == "fp32":
            return nullcontext()
        if self.name == "bf16" and self.device_type == "cpu" and torch.is_grad_enabled():
            return _training_in_bf16_on_a_cpu()
        return torch.autocast(self.device_type, dtype=DTYPES[self.name])

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scale of fp16; with the other formats all its methods do nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")

    def __str__(self) -> str:
        return f"{self.name} on {self.device_type}: {self.reason}"


@contextmanager
def _training_in_bf16_on_a_cpu() -> Iterator[None]:
    """Attention by plain products: 2 times as fast as the fused kernel, or more, with its backward
    pass, which does not use the processor's bfloat16 (torch 2.13; T = 128 and 256, K = 32 and 64).

    It keeps the T x S weights of every layer. Without the second switch torch computes those
    products in fp32; it is about a CPU too, whatever its name says.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def choose_device(wanted: str = "auto") -> torch.device:
    """The device by name; "auto" is cuda, else mps, else cpu.

    On Hopper GPUs torch prefers cuDNN's attention kernel, whose backward pass gives wrong gradients
    for some masks (PyTorch's issues 139298, 150700 and 196678), so that a model does not learn,
    silently; and whose forward pass was wrong on Blackwell (193893). Whoever chooses a CUDA device
    here switches it off, for the whole process.
    """
    device = _find_device(wanted)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def _find_device(wanted: str) -> torch.device:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"device must be auto, cpu, cuda, cuda:N or mps, got {wanted!r}"
        ) from error
    if device.type == "cuda":
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= seen:
            raise ConfigError(f"device {wanted!r} is not there: torch sees {seen} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not there: torch sees no Apple GPU")
    return device


def choose_precision(device: torch.device | str, wanted: str = "auto") -> Precision:
    """16 bits on a GPU that has them, fp32 elsewhere; `wanted` overrides it.

    Raises ConfigError for bf16 on a GPU that only emulates it.
    """
    device = torch.device(device)
    best, why = _best(device)
    if wanted not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(f"precision must be one of auto, fp32, bf16, fp16, got {wanted!r}")
    if wanted in ("auto", best):
        return Precision(best, device.type, why)
    if wanted == "bf16" and device.type == "cuda":
        raise ConfigError(f"precision 'bf16' is not for this device: {why}; use auto, fp16 or fp32")
    return Precision(wanted, device.type, f"as asked; auto would take {best}, {why}")


def _best(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        if major >= 8:
            return "bf16", f"{name} has it natively"
        if major >= 7:
            return "fp16", f"{name} has no native bf16; the loss is scaled"
        return "fp32", f"{name} has no fast 16-bit products"
    if device.type == "cpu":  # in bf16 one processor is twice as fast and the next half as fast
        return "fp32", "the same numbers on every processor"
    return "fp32", "16-bit training is not proven on this device"


def most_memory(device: torch.device) -> int:
    """Bytes that this process has held at most, on the GPU if there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
