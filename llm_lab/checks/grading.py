"""What the exercise checks are made of: comparisons that say what is wrong with an answer.

A check calls the `expect_...` functions, raises `CheckFailed` where they do not fit, and ends with
`passed(...)`:

    def check_perplexity(answer: Callable[[float], float]) -> None:
        expect_close(answer(2.0), math.exp(2.0), name="perplexity(2.0)",
                     hints={4.0: "the loss is in nats: use exp, not a power of 2"})
        passed("two nats are 7.4 equally likely tokens")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

TOLERANCE = 1e-6
# Factors that come from one well-known slip each.
KNOWN_FACTORS = {
    -1.0: "is the sign turned around? A loss is a *negative* logarithm",
    math.log(2): "is a logarithm taken in another base? Nats use the natural logarithm",
    1 / math.log(2): "is this in bits? Nats use the natural logarithm",
}


class CheckFailed(AssertionError):
    """An answer is wrong; the message says how. A notebook shows the message, not a traceback."""

    def _render_traceback_(self, *_: Any) -> list[str]:
        return [f"✗ {self}"]


def passed(sentence: str) -> None:
    """Say that a check has passed."""
    print(f"✓ {sentence}")


def expect_close(
    actual: Any,
    expected: Any,
    *,
    name: str = "your answer",
    tolerance: float = TOLERANCE,
    hints: Mapping[Any, str] | None = None,
) -> None:
    """Compare numbers, lists or tensors: |actual − expected| ≤ tolerance·max(1, |expected|).

    `hints` maps the value that a mistake produces to its diagnosis. Where such a value equals the
    expected one within the tolerance, the answer passes.
    """
    got, wanted = _as_tensor(actual, name), _as_tensor(expected, "the expected value")
    if _close(got, wanted, tolerance):
        return
    for mistake, diagnosis in (hints or {}).items():
        if _close(got, _as_tensor(mistake, "a hint"), tolerance):
            _fail(f"{_values(name, got, wanted, tolerance)}. Hint: {diagnosis}")
    if got.shape != wanted.shape:
        _fail(_shape_message(name, got, wanted))
    if not torch.isfinite(got).all() and torch.isfinite(wanted).all():
        _fail(
            f"{name} holds {'nan' if got.isnan().any() else 'inf'}: look for the logarithm of 0, "
            "a division by 0, or a softmax over a row that is masked everywhere"
        )
    _fail(_values(name, got, wanted, tolerance) + _guess(got, wanted))


def expect_equal(
    actual: Any, expected: Any, *, name: str = "your answer", hints: Mapping[Any, str] | None = None
) -> None:
    """Compare exactly: ids, strings, truth values, or lists of them; tensors are read as lists."""
    expect_given(actual, name)
    got, wanted = _as_plain(actual), _as_plain(expected)
    if got == wanted:
        return
    message = f"{name} should be {_short(wanted)}, got {_short(got)}"
    for mistake, diagnosis in (hints or {}).items():
        if got == _as_plain(mistake):
            _fail(f"{message}. Hint: {diagnosis}")
    if isinstance(got, list) and isinstance(wanted, list):
        if len(got) != len(wanted):
            _fail(f"{message}: it has {len(got)} elements, not {len(wanted)}")
        place = next(i for i, (a, b) in enumerate(zip(got, wanted)) if a != b)
        _fail(f"{message}: the first difference is at index {place}")
    _fail(message)


def expect_shape(actual: Any, shape: tuple[int, ...], *, name: str = "your answer") -> None:
    """Fail unless the answer is a tensor of this shape."""
    expect_given(actual, name)
    if not isinstance(actual, Tensor):
        _fail(f"{name} should be a tensor, got {type(actual).__name__}")
    if tuple(actual.shape) != shape:
        _fail(f"{name} should have the shape {shape}, got {tuple(actual.shape)}")


def expect_given(value: Any, name: str) -> None:
    """Fail where there is no answer yet."""
    if value is None:
        _fail(f"{name} is None: does your function end without `return`?")
    if value is Ellipsis:
        _fail(f"{name} is still `...`: write your answer there")


def expect_mask(actual: Any, shape: tuple[int, ...], *, name: str) -> None:
    """Fail unless the answer is a mask of this shape: bool, True = attend."""
    expect_shape(actual, shape, name=name)
    if actual.dtype != torch.bool:
        _fail(f"{name} must be bool, True = attend, got {actual.dtype}")


def expect_parts(actual: Any, count: int, message: str) -> None:
    """Fail with the message unless the answer is a tuple or a list of so many things."""
    if not isinstance(actual, tuple | list) or len(actual) != count:
        _fail(f"{message}, got {_short(actual)}")


def expect_verdict(
    actual: Any, expected: bool, *, name: str, case: str, advice: Mapping[bool, str]
) -> None:
    """Compare what a detector says of one case; `advice` for the right verdict that it missed."""
    if not isinstance(actual, bool):
        _fail(
            f"{name} must return True or False, got a {type(actual).__name__} of "
            f"{type(actual).__module__}: {actual!r}. bool(...) makes one of a single value"
        )
    if actual != expected:
        _fail(f"{case}: expected {expected}, got {actual}. {advice[expected]}")


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same on each machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def at_labels(values: Tensor, labels: Tensor) -> Tensor:
    """The value of each label, [B, T] of [B, T, V]; where the label is -100, that of token 0."""
    return values.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)


def _fail(message: str) -> NoReturn:
    raise CheckFailed(message)


def _as_tensor(value: Any, name: str) -> Tensor:
    expect_given(value, name)
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value):
        value = _as_plain(value)
    try:
        return torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        _fail(
            f"{name} should be a number, a list of numbers or a tensor, got "
            f"{type(value).__name__}: {_short(value)}"
        )


def _as_plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, tuple | list):
        return [_as_plain(item) for item in value]
    return value


def _differs(got: Tensor, wanted: Tensor, tolerance: float) -> Tensor:
    """Where two tensors of one shape differ; equal infinities and two nans do not."""
    close = (got - wanted).abs() <= tolerance * wanted.abs().clamp_min(1.0)
    close &= wanted.isfinite()  # or every number would be close to an infinite one
    return ~(close | (got == wanted) | (got.isnan() & wanted.isnan()))


def _close(got: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return got.shape == wanted.shape and not _differs(got, wanted, tolerance).any()


def _short(value: Any, limit: int = 90) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 2] + " …"


def _values(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> str:
    """What was found and what was expected, at the first place where they differ."""
    if got.shape != wanted.shape:
        return f"{name} should have the shape {tuple(wanted.shape)}, got {tuple(got.shape)}"
    if not got.dim():
        return f"{name} should be {wanted.item():.6g}, got {got.item():.6g}"
    places = _differs(got, wanted, tolerance).nonzero().tolist()
    place = tuple(places[0])
    return (
        f"{name} is wrong in {len(places)} of {got.numel()} numbers: at "
        f"[{', '.join(map(str, place))}] it should be {wanted[place].item():.6g}, "
        f"got {got[place].item():.6g}"
    )


def _shape_message(name: str, got: Tensor, wanted: Tensor) -> str:
    message = f"{name} should have the shape {tuple(wanted.shape)}, got {tuple(got.shape)}"
    if got.dim() > 1 and got.mT.shape == wanted.shape:
        return message + ": are the last two axes swapped?"
    if got.squeeze().shape == wanted.squeeze().shape:
        return message + ": an axis of size 1 is too many or missing (keepdim? unsqueeze?)"
    if not wanted.dim():
        return message + ": is a sum or a mean missing?"
    return message


def _guess(got: Tensor, wanted: Tensor) -> str:
    """A guess at the mistake, from a constant factor or a constant difference."""
    if not got.numel() or not (wanted != 0).all():
        return ""
    ratio, offset = (got / wanted).flatten(), (got - wanted).flatten()
    if torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=0):
        factor = ratio[0].item()
        for known, diagnosis in KNOWN_FACTORS.items():
            if math.isclose(factor, known, rel_tol=1e-3):
                return f". That is {factor:.4g} times the right value: {diagnosis}"
        count = max(factor, 1 / factor) if factor > 0 else 0.0
        if count > 1.5 and math.isclose(count, round(count), rel_tol=1e-3):
            return (
                f". That is {factor:.4g} times the right value: is a sum taken for a mean, "
                "or divided by the wrong count?"
            )
    elif torch.allclose(offset, offset[0].expand_as(offset), rtol=1e-4, atol=TOLERANCE):
        return f". Every number is off by the same {offset[0].item():.4g}"
    return ""
