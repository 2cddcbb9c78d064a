"""Shared by the tests of the families: references whose every parameter matters, and differences.

`python -m tests.parity` prints the worst differences of every family from transformers.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

LOGITS_GATE = 1e-5  # float32
GRADIENTS_GATE = 1e-6  # float64

Model = TypeVar("Model", bound=nn.Module)

# Each has `parity_case(seed) -> {"logits": ..., "gradients": ...}` over its own random
# configurations.
FAMILIES = {
    "GPT": "test_models_gpt",
    "BERT": "test_models_bert",
    "T5": "test_models_t5",
}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(model: Model, seed: int = 0) -> Model:
    """The model in evaluation mode with every parameter random, gains and biases too.

    Gains of one and biases of zero hide swapped norms, a forgotten bias and a wrong epsilon.
    Matrices keep about the variance of their input; vectors move by about 0.3.
    """
    generator = rng(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim < 2:
                parameter.add_((0.3 * noise).to(parameter.dtype))
            else:
                parameter.copy_(noise / max(parameter.shape[-1], 1) ** 0.5)
    return model.eval()


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of the reference."""
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} is not {tuple(reference.shape)}"
    assert ours.isfinite().all(), "not finite"
    scale = reference.detach().abs().max().item() or 1.0
    return (ours.detach().double() - reference.detach().double()).abs().max().item() / scale


def assert_relative(ours: Tensor, reference: Tensor, gate: float = LOGITS_GATE) -> None:
    difference = relative_difference(ours, reference)
    assert difference <= gate, f"relative difference {difference:.1e} exceeds {gate:.0e}"


def gradient_difference(ours: Mapping[str, Tensor], reference: nn.Module) -> float:
    """The worst relative difference of gradients; `ours` is under the reference's names.

    A tensor's differences are divided by the largest gradient of that tensor, or by 1e-3 of the
    largest of all where that is more: a gradient that is zero by symmetry is only rounding (the
    bias of the keys moves all scores of a row alike).
    """
    theirs = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    unknown = set(ours) ^ set(theirs)
    assert not unknown, f"gradients on one side only: {sorted(unknown)}"
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    worst = 0.0
    for name, gradient in theirs.items():
        assert gradient.shape == ours[name].shape, name
        scale = max(gradient.abs().max().item(), 1e-3 * largest)
        worst = max(worst, (ours[name] - gradient).abs().max().item() / scale)
    return worst


def random_ids(shape: tuple[int, ...], n_ids: int, seed: int) -> Tensor:
    return torch.randint(0, n_ids, shape, generator=rng(seed))


def random_attention_mask(kind: str, shape: tuple[int, int], draw: random.Random) -> Tensor:
    """1 = attend. `kind`: "left" or "right" padding, or "holes"; each row keeps one position."""
    rows, length = shape
    mask = torch.ones(shape, dtype=torch.int64)
    for row in range(rows):
        n_padding = draw.randrange(length) if row else 0  # one row is full
        if kind == "left":
            mask[row, :n_padding] = 0
        elif kind == "right":
            mask[row, length - n_padding :] = 0
        else:
            mask[row, draw.sample(range(length), n_padding)] = 0
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=30, help="random configurations a family")
    n_cases = parser.parse_args().cases
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    print(f"worst relative difference from transformers over {n_cases} random configurations")
    for family, module in FAMILIES.items():
        parity_case = importlib.import_module(module).parity_case
        cases = [parity_case(seed) for seed in range(n_cases)]
        worst = {kind: max(case[kind] for case in cases) for kind in cases[0]}
        print(f"{family:12}" + "  ".join(f"{kind} {value:.1e}" for kind, value in worst.items()))


if __name__ == "__main__":
    main()
