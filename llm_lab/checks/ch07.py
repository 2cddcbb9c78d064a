"""Checks of chapter 07: cross-attention, its masks, parameters, label smoothing, shift right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llm_lab.checks.grading import (
    CheckFailed,
    expect_close,
    expect_equal,
    expect_shape,
    passed,
)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.T * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


def check_cross_attention(answer: Callable[..., Tensor]) -> None:
    """F8 for one head, with a padding mask of the source."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    y, states = random(4, 6), random(5, 6)
    w_q, w_k, w_v = random(6, 3), random(6, 3), random(6, 3)
    mask = torch.tensor([True, True, True, False, True])
    q, k, v = y @ w_q, states @ w_k, states @ w_v
    scale = 3**-0.5
    scores = (q @ k.T * scale).masked_fill(~mask, -torch.inf)
    zeroed = (q @ k.T * scale).masked_fill(~mask, 0.0).softmax(dim=-1) @ v
    from_states = states @ w_q
    got = answer(y, states, w_q, w_k, w_v, mask)
    right = scores.softmax(dim=-1) @ v
    late = (q @ k.T * scale).softmax(dim=-1).masked_fill(~mask, 0.0)
    hints = {
        _attend(q, k, v, None, scale): "source_mask is not used: the padding is attended to",
        _attend(q, k, v, ~mask, scale): "the mask is turned around: True means attend",
        _attend(q, k, v, mask, 1.0): "the scores are not divided by sqrt(d_k)",
        _attend(q, k, v, mask, 1 / 3): "divide by the *root* of d_k, not by d_k itself",
        _attend(
            q, k, v, mask, 6**-0.5
        ): "divide by the root of d_k, the width of a query, not of D",
        _attend(q, y @ w_k, y @ w_v, None, scale): (
            "keys and values come from y: they must come from the encoder's states"
        ),
        _attend(from_states, k, v, mask, scale): (
            "the queries come from the states: they must come from the decoder's y"
        ),
        _attend(q, k, states @ w_k, mask, scale): "the keys are also used as values: use w_v",
        (q @ k.T * scale).masked_fill(~mask, -torch.inf).softmax(dim=0).nan_to_num() @ v: (
            "the softmax runs over the queries: each *query's* weights must sum to 1 (dim=-1)"
        ),
        late @ v: (
            "the mask is applied after the softmax: the weights that are left do not sum to 1; "
            "hide the scores before it"
        ),
        zeroed: "a score of 0 is not hidden: fill with -inf before the softmax",
        scores.softmax(dim=-1): "these are the weights: multiply them by the values",
    }
    expect_close(got, right, name="cross_attention", hints=hints)
    passed("queries of the target, keys and values of the source, and no padding")


def check_decoder_masks(answer: Callable[[int, Tensor], tuple[Tensor, Tensor]]) -> None:
    """The causal mask [T, T] and the padding mask [T, S]."""
    for n_target, source_mask in (
        (4, torch.tensor([True, True, True, False, True, False])),
        (3, torch.tensor([True, True, False])),
    ):
        pair = answer(n_target, source_mask)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise CheckFailed(
                f"decoder_masks must return two masks, got {type(pair).__name__}: {pair!r}"
            )
        causal = torch.ones(n_target, n_target).tril().bool()
        padding = source_mask.expand(n_target, -1)
        sees_all = torch.ones(n_target, len(source_mask)).bool()
        both = sees_all.tril() & padding
        for got, wanted, name in zip(pair, (causal, padding), ("self", "cross")):
            expect_shape(got, tuple(wanted.shape), name=f"the mask of the {name}-attention")
            if got.dtype != torch.bool:
                raise CheckFailed(f"the {name} mask must be bool, True = attend, got {got.dtype}")
        blocked = "this is PyTorch's convention, True = blocked; here True = attend"
        expect_equal(
            pair[0],
            causal,
            name="the mask of the self-attention",
            hints={
                causal.T: "it is upside down: rows are queries, and a query sees earlier keys",
                causal.tril(-1): "a position must see itself: the diagonal is True",
                ~causal: blocked,
                torch.ones_like(causal): "nothing is hidden: a position would see its own answer",
            },
        )
        expect_equal(
            pair[1],
            padding,
            name="the mask of the cross-attention",
            hints={
                both: "it is causal as well: the whole source is known, whatever is written",
                sees_all.tril(): "it is causal and forgets the padding: it should be source_mask",
                ~padding: blocked,
                sees_all: "source_mask is not used: the padding is attended to",
            },
        )
    passed("causal over the target, and the whole source but its padding")


def _count(
    vocab_size: int,
    n_layers: int,
    n_decoder_layers: int,
    d: int,
    d_ff: int,
    tied: bool,
    attention_bias: bool,
    *,
    cross: bool = True,
    cross_bias: bool = True,
    norm_parts: int = 2,
    decoder_norms: int = 3,
    ff_bias: bool = True,
    tables: int | None = None,
) -> int:
    """Equation (eq-07-parameters) with what an answer may forget."""
    attention = 4 * d * d + (4 * d if attention_bias else 0)
    ff = 2 * d * d_ff + (d_ff + d if ff_bias else 0)
    encoder = attention + ff + 2 * norm_parts * d
    decoder = (2 if cross else 1) * attention + ff + decoder_norms * norm_parts * d
    if attention_bias and not cross_bias:
        decoder -= 4 * d
    tables = (1 if tied else 2) if tables is None else tables
    return tables * vocab_size * d + n_layers * encoder + n_decoder_layers * decoder


def check_count_parameters(answer: Callable[..., int]) -> None:
    """The formula of the chapter, with a head of its own and with biases."""
    # The small sizes come first: where d_ff = 4 d, two different mistakes give the same number.
    for sizes in ((50, 2, 3, 24, 20), (37_000, 6, 6, 512, 2048)):
        for tied in (True, False):
            for bias in (False, True):
                case = (*sizes, tied, bias)
                right = _count(*case)
                expect_equal(
                    answer(*case),
                    right,
                    name=f"count_parameters{case}",
                    hints={
                        _count(*case, tables=3): "source and target share one table",
                        _count(*case, tables=1): "when tied is False, the head has its own table",
                        _count(*case, tables=2): "when tied is True, the head is the same table",
                        _count(*case, cross=False): (
                            "a decoder block has two attention layers: cross-attention is missing"
                        ),
                        _count(*case, decoder_norms=2): "a decoder block has three norms",
                        _count(*case, norm_parts=1): (
                            "a norm has 2 d numbers: d weights and d biases"
                        ),
                        _count(*case, norm_parts=0): "the norms are missing: 2 d numbers each",
                        _count(*case, tables=0): "the table of the tokens is missing",
                        _count(*case, cross_bias=False): (
                            "the cross-attention has biases too when attention_bias is True"
                        ),
                        _count(*case, ff_bias=False): "the feed-forward layer has two biases",
                        _count(*sizes, tied, not bias): (
                            "attention_bias says whether the four projections have biases: "
                            "4 d numbers in each attention layer"
                        ),
                    },
                )
    passed("every parameter is counted once")


def check_smoothed_loss(answer: Callable[[Tensor, Tensor, float], Tensor | float]) -> None:
    """The mean of the smoothed loss over counted labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 6), generator=generator)
    labels[0, 4:] = -100
    log_p = logits.log_softmax(-1)

    def mean(own: float, each: float, outputs: Tensor = log_p, targets: Tensor = labels) -> float:
        """With weight `own` on the right token and `each` on every token, added."""
        counted = targets != -100
        picked = outputs.gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1)
        wanted = own * picked + each * outputs.sum(-1)
        return float(-(wanted * counted).sum() / counted.sum())

    n_counted, n_vocab = int((labels != -100).sum()), logits.shape[-1]
    for epsilon in (0.1, 0.3, 0.0):
        right = mean(1 - epsilon, epsilon / n_vocab)
        others = epsilon / (n_vocab - 1)
        counted = labels != -100
        pads_spread = (1 - epsilon) * mean(1.0, 0.0) - epsilon * float(log_p.mean())
        raw = epsilon * float(logits.mean(-1)[counted].mean())
        everywhere = mean(1 - epsilon, epsilon / n_vocab, targets=labels.clamp_min(0))
        shifted = mean(1 - epsilon, epsilon / n_vocab, log_p[:, :-1], labels[:, 1:])
        expect_close(
            answer(logits, labels, epsilon),
            right,
            name=f"smoothed_loss with epsilon = {epsilon}",
            hints={
                mean(1.0, 0.0): "this is the loss without smoothing",
                mean(1 - epsilon - others, others): (
                    "epsilon is shared by the other V - 1 tokens; the paper gives all V a share"
                ),
                mean(1 - epsilon, epsilon): (
                    "epsilon times the *mean* of the log-probabilities, not times their sum"
                ),
                mean(1 - epsilon, 0.0): "the share of the other tokens is missing",
                mean(epsilon, (1 - epsilon) / n_vocab): "epsilon and 1 - epsilon are exchanged",
                mean(1.0, epsilon / n_vocab): "the right token keeps 1 - epsilon, not 1",
                pads_spread: "the epsilon part is averaged over all places: leave out -100 there",
                (1 - epsilon) * mean(1.0, 0.0) - raw: (
                    "the epsilon part takes the mean of the logits, not of the log-probabilities"
                ),
                everywhere: "labels of -100 are counted as if they were token 0",
                shifted: "nothing is shifted here: the decoder's input was shifted before",
                right * n_counted: "this is the sum: divide by the number of counted labels",
                right * n_counted / labels.numel(): (
                    f"divided by all {labels.numel()} places; only {n_counted} labels count"
                ),
                -right: "the sign is turned around: a loss is a *negative* logarithm",
            },
        )
    passed("a share for every token, and a mean over what counts")


def check_decoder_input(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """The target shifted right by one, without -100."""
    for start_id, pad_id in ((1, 0), (12, 10)):
        _check_shift(answer, start_id, pad_id)
    passed("the decoder reads one token behind")


def _check_shift(answer: Callable[[Tensor, int, int], Tensor], start_id: int, pad_id: int) -> None:
    labels = torch.tensor([[5, 9, 4, 2], [7, 2, -100, -100], [3, 8, 2, -100]])
    before = labels.clone()
    got = answer(labels, start_id, pad_id)
    if not torch.equal(labels, before):
        raise CheckFailed("the labels were changed: copy them, the loss needs them unshifted")
    start = torch.full((3, 1), start_id)
    raw = torch.cat([start, labels[:, :-1]], dim=1)
    right = raw.masked_fill(raw == -100, pad_id)
    longer = torch.cat([start, labels], dim=1)
    left = torch.cat([labels[:, 1:], torch.full((3, 1), pad_id)], dim=1)
    rolled = torch.cat([labels[:, -1:], right[:, 1:]], dim=1)
    if isinstance(got, Tensor) and got.shape == longer.shape:
        raise CheckFailed(
            f"decoder_input should have the shape {tuple(labels.shape)}, got {tuple(got.shape)}: "
            "the last label is never read, so leave it out"
        )
    if isinstance(got, Tensor) and got.shape == labels[:, 1:].shape:
        raise CheckFailed(
            f"decoder_input should have the shape {tuple(labels.shape)}, got {tuple(got.shape)}: "
            "the start token is missing"
        )
    fixed = "the ids are the arguments start_id and pad_id, not always 1 and 0"
    expect_equal(
        got,
        right,
        name=f"decoder_input with start_id = {start_id}, pad_id = {pad_id}",
        hints={
            raw.masked_fill(raw == -100, 0): fixed,
            torch.cat([torch.ones_like(start), right[:, 1:]], dim=1): fixed,
            torch.cat([torch.ones_like(start), raw[:, 1:].clamp_min(0)], dim=1): fixed,
            raw: "-100 is not a token: put pad_id in its place",
            labels.masked_fill(labels == -100, pad_id): (
                "nothing is shifted: each position would read its own answer"
            ),
            left.masked_fill(left == -100, pad_id): (
                "shifted to the left: the start token comes first"
            ),
            torch.cat([start - start + pad_id, right[:, 1:]], dim=1): (
                "the first token must be start_id"
            ),
            raw.masked_fill(raw == -100, start_id): "-100 becomes pad_id, not start_id",
            right.roll(-1, 1): "shifted to the left: the start token comes first",
            rolled: "the last label came around to the first place (roll): put start_id there",
        },
    )
