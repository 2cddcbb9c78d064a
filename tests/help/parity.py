"""Shared by the tests of the families: references whose every parameter matters, and differences.

`python tests/help/parity.py` prints the worst differences of every family from its reference:
transformers, or for the Transformer torch.nn.Transformer.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LOGITS_GATE = 1e-5  # float32
GRADIENTS_GATE = 1e-6  # float64
DIFFERS = 1e-4  # what a control must differ by at least: far above the rounding of any processor
# The largest relative difference that each part of a `parity_case` may have.
GATES = {
    "logits": LOGITS_GATE,
    "saved": LOGITS_GATE,  # of the model that transformers reads from our directory
    "gradients": GRADIENTS_GATE,
    "training": 1e-10,  # logits in training mode: dropout acts where it does in transformers
    "cached": 1e-10,  # decoding in random pieces, against the full pass
    "padding": 1e-10,  # with padding, against the row alone
    "leak": 0.0,  # what a later token changes
}

Model = TypeVar("Model", bound=nn.Module)

# Each has `parity_case(seed)`, the differences of one random configuration; see `GATES`.
FAMILIES = {
    "GPT": "test_gpt",
    "BERT": "test_bert",
    "T5": "test_t5",
    "Transformer": "test_transformer",
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


def differs(ours: Tensor, reference: Tensor) -> bool:
    """By so much that it cannot be rounding."""
    return relative_difference(ours, reference) > DIFFERS


def reached(moved: Tensor) -> Tensor:
    """Where `moved`, at least 0, is more than exactly 0; it must not be as little as rounding."""
    found = moved > 0
    faint = moved[found & (moved <= DIFFERS)]
    assert not len(faint), f"neither zero nor above {DIFFERS:.0e}: {faint.tolist()}"
    return found


def assert_relative(ours: Tensor, reference: Tensor, gate: float = LOGITS_GATE) -> None:
    difference = relative_difference(ours, reference)
    assert difference <= gate, f"relative difference {difference:.1e} exceeds {gate:.0e}"


def gradient_difference(ours: Mapping[str, Tensor], reference: nn.Module) -> float:
    """The worst relative difference of gradients; `ours` is under the reference's names.

    A tensor's differences are divided by the largest gradient of that tensor, or by 1e-3 of the
    largest of all where that is more: a gradient that is zero by symmetry is only rounding (the
    bias of the keys moves all scores of a row alike).
    """
    learned = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    theirs = {name: p.grad for name, p in learned.items() if p.grad is not None}
    assert set(theirs) == set(learned), f"without a gradient: {set(learned) - set(theirs)}"
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


def random_width(n_heads: int, draw: random.Random) -> int:
    """d_model, at least 6: a LayerNorm over two numbers is ± its gain, whatever they are."""
    return n_heads * draw.randint(max(2, -(-6 // n_heads)), 9)


def random_attention_mask(kind: str, shape: tuple[int, int], draw: random.Random) -> Tensor:
    """1 = attend. `kind`: "left" or "right" padding, or "holes"; each row keeps one position."""
    rows, length = shape
    mask = torch.ones(shape, dtype=torch.int64)
    for row in range(rows):
        is_full = row == 0 and rows > 1
        n_padding = 0 if is_full else draw.randint(1, length - 1)
        if kind == "left":
            mask[row, :n_padding] = 0
        elif kind == "right":
            mask[row, length - n_padding :] = 0
        else:
            mask[row, draw.sample(range(length), n_padding)] = 0
    return mask


def seeded(model: nn.Module, seed: int, **inputs: Tensor) -> Any:
    """What the model returns in training mode, dropping by the random numbers of a seed."""
    torch.manual_seed(seed)
    return model.train()(**inputs)


def saved_twice(model: Any, folder: Path) -> Path:
    """Where the model was saved, having checked that what is read there saves to equal bytes."""
    model.save_pretrained(folder / "once")
    type(model).from_pretrained(folder / "once").save_pretrained(folder / "twice")
    names = ["config.json", "model.safetensors"]
    for name in ("once", "twice"):
        assert sorted(path.name for path in (folder / name).iterdir()) == names
    for name in names:
        assert (folder / "once" / name).read_bytes() == (folder / "twice" / name).read_bytes()
    return folder / "once"


def opened(auto_class: Any, folder: Path) -> Any:
    """The model that transformers reads there, having checked that no tensor was lost or new."""
    reference, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return reference


def random_splits(length: int, draw: random.Random) -> list[tuple[int, int]]:
    """A row cut at random: (0, 3), (3, 4), ..., (.., length)."""
    cuts = sorted({0, length, *(draw.randrange(length) for _ in range(draw.randint(0, 4)))})
    return list(itertools.pairwise(cuts))


def causal_leak(logits_of: Callable[[Tensor], Tensor], ids: Tensor, n_ids: int) -> float:
    """The largest change of a logit when a later token changes; its own token changes it."""
    logits, worst = logits_of(ids), 0.0
    for j in range(ids.shape[1]):
        changed = ids.clone()
        changed[:, j] = (ids[:, j] + 1) % n_ids
        others = logits_of(changed)
        assert differs(others[:, j], logits[:, j])
        if j:
            worst = max(worst, (others[:, :j] - logits[:, :j]).abs().max().item())
    return worst


def assert_parity(case: Mapping[str, float]) -> None:
    for kind, worst in case.items():
        assert worst <= GATES[kind], f"{kind}: {worst:.1e} exceeds {GATES[kind]:.0e}"


def main() -> None:
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=30, help="random configurations a family")
    n_cases = parser.parse_args().cases
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests / "llm_course" / "models"), str(tests.parent)]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    print(f"worst relative differences over {n_cases} random configurations of each family")
    for family, module in FAMILIES.items():
        parity_case = importlib.import_module(module).parity_case
        cases = [parity_case(seed) for seed in range(n_cases)]
        worst = {kind: max(case[kind] for case in cases) for kind in cases[0]}
        print(f"{family:12}" + "  ".join(f"{kind} {value:.1e}" for kind, value in worst.items()))


if __name__ == "__main__":
    main()
