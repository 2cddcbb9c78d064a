"""Checks of chapter 01: parameters, training days, the KV cache, and the bend of a batch."""

from __future__ import annotations

from collections.abc import Callable

from llm_lab.checks.grading import CheckFailed, expect_close, expect_equal, passed


def check_gated_parameters(answer: Callable[[int, int, int, int], int]) -> None:
    """The parameters of a Llama-like model."""
    for n_layers, d, f, v in ((2, 8, 20, 50), (32, 4096, 11_008, 32_000)):
        block = 4 * d * d + 3 * d * f + 2 * d
        norms = n_layers * 2 * d
        right = n_layers * block + d + 2 * v * d
        expect_equal(
            answer(n_layers, d, f, v),
            right,
            name=f"gated_parameters({n_layers}, {d}, {f}, {v})",
            hints={
                right - v * d: "the head is not tied: a second table of V x D is missing",
                right - 2 * v * d: "both tables are missing: the embedding and the head",
                right - n_layers * d * f: "the feed-forward layer has three matrices here, not two",
                right - d: "the norm at the end is missing: one more vector of D",
                right - norms - d: "the norms are missing: two vectors a block, one at the end",
                right - norms: "the norms of the blocks are missing: two vectors a block",
                right - n_layers * d: "one norm of each block is missing: it has two",
                right + norms + d: "these norms have one vector each, not two",
                right - (n_layers - 1) * block: "this is one block: multiply by n_layers",
                right + n_layers * 4 * d: "attention has no biases here",
            },
        )
    passed("6,738,415,616 parameters: the published model, to the last one")


def check_training_days(answer: Callable[[float, float, int, float, float], float]) -> None:
    """6ND over what the devices reach, in days."""
    n, tokens, devices, peak, mfu = 1.5e9, 3e10, 16, 312e12, 0.35
    right = 6 * n * tokens / (devices * peak * mfu) / 86_400
    expect_close(
        answer(n, tokens, devices, peak, mfu),
        right,
        name="training_days",
        hints={
            right / 3: "2ND is the forward pass only: the backward pass costs twice as much again",
            right * 86_400: "these are seconds: a day has 86,400",
            right * 60: "divided by 1,440, the minutes of a day: peak counts by the second",
            int(right): "do not round: a part of a day counts",
            right * 24: "these are hours",
            right * devices: "the devices share the work: divide by n_devices",
            right * mfu: "the peak is not reached: divide by mfu",
            right * mfu * mfu: "multiplied by mfu: a lower share takes longer, so divide",
            right / 6: "a token costs 6 operations per parameter, not 1",
        },
    )
    passed("a page of arithmetic gives the days")


def check_longest_text(answer: Callable[[float, float, int, int, int], int]) -> None:
    """How many positions fit beside the weights."""
    memory, weights, n_layers, d, rows = 80e9, 13.5e9, 32, 4096, 7
    free = memory - weights
    per_number = n_layers * d * rows
    right = int(free // (4 * per_number))
    got = answer(memory, weights, n_layers, d, rows)
    expect_close(
        got,
        right,
        name="longest_text",
        tolerance=1e-9,
        hints={
            free // (2 * per_number): "a position has a key and a value, of 2 bytes a number each",
            free // per_number: "a position has a key and a value, and each number has 2 bytes",
            free // (8 * per_number): "these are 32-bit caches: 16 bits are 2 bytes",
            memory // (4 * per_number): "the weights take memory too: subtract them first",
            free // (4 * n_layers * d): "each of the rows has its own cache",
            free // (4 * d * rows): "each block has its own cache: multiply by n_layers",
            free / (4 * per_number): "a part of a token cannot be kept: round down",
            right + 1: "one token too many: round down, not up",
        },
    )
    expect_equal(
        answer(10e9, 13.5e9, n_layers, d, rows),
        0,
        name="longest_text of a model whose weights do not fit",
        hints={int((10e9 - 13.5e9) // (4 * per_number)): "a text cannot have a negative length"},
    )
    expect_equal(
        answer(13.5e9 + 4 * per_number, 13.5e9, n_layers, d, rows),
        1,
        name="longest_text where exactly one token fits",
    )
    passed("it fits, and one more token would not")


def check_rows_at_bend(answer: Callable[[float, float, float], float]) -> None:
    """The batch at which arithmetic takes as long as reading the weights."""
    peak, bandwidth = 312e12, 2.039e12
    for size in (4.0, 0.5):  # at 2 bytes several mistakes give the right number
        right = peak * size / (2 * bandwidth)
        expect_close(
            answer(peak, bandwidth, size),
            right,
            name=f"rows_at_bend with {size:g} bytes a weight",
            hints={
                2 * right: "a weight has two operations per row: multiply and add",
                right / size: "the bytes of a weight count: fewer bytes are read sooner",
                right / size / size: "divided by the bytes: fewer bytes mean fewer rows",
                1 / right: "turned around: solve for the rows",
                2 * right / size: "this is the ratio of the two speeds: it still needs the "
                "operations, and bytes_per_weight as it is given",
                4 * right: "divide by the two operations of a weight, do not multiply",
            },
        )
    if not answer(2 * peak, bandwidth, 2) > answer(peak, bandwidth, 2):
        raise CheckFailed("a device with more FLOP/s needs more rows to be busy")
    passed("the bend belongs to the device")
