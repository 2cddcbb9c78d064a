"""The three families are their masks: which output depends on which token, and what follows."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from parity import perturbed, reached
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llm_course.configs import BERTConfig, GPTConfig, T5Config, TrainConfig
from llm_course.losses.causal import causal_lm_loss, causal_loss_fn
from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.models.layers import causal_mask
from llm_course.models.t5 import T5
from llm_course.training.loop import train
from llm_town import generate_documents, tokenize
from llm_town.tasks import entities

VOCAB, S, T = 30, 4, 5
N = S + T
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "dropout": 0.0}


def bert(layers: int = 2) -> BERT:
    """Not as it starts: there a token moves the outputs of others by 1e-9 only."""
    return perturbed(BERT(BERTConfig(n_layers=layers, d_ff=64, n_positions=16, **SIZES)).double())


def gpt() -> GPT:
    return perturbed(GPT(GPTConfig(n_layers=2, n_positions=16, **SIZES)).double())


def moved(outputs: Callable[[Tensor], Sequence[Tensor] | Tensor], n: int = N) -> Tensor:
    """[i, j]: whether the output at i moves when token j changes, and not by rounding only."""
    ids = torch.randint(VOCAB, (1, n), generator=torch.Generator().manual_seed(1))
    result = torch.zeros(n, n, dtype=torch.float64)
    with torch.no_grad():
        before = outputs(ids)
        for j in range(n):
            changed = ids.clone()
            changed[0, j] = (ids[0, j] + 1) % VOCAB
            for i, vector in enumerate(outputs(changed)):
                result[i, j] = (vector - before[i]).abs().max()
    return reached(result)


def mask_of(may_look: Callable[[int, int], bool], n: int = N) -> Tensor:
    return torch.tensor([[may_look(i, j) for j in range(n)] for i in range(n)])


def prefix_mask(p: int) -> Tensor:
    return mask_of(lambda i, j: j <= i or j < p)


@pytest.mark.covers("K3")
def test_in_an_encoder_every_output_depends_on_every_token() -> None:
    model = bert()
    dependency = moved(lambda ids: model(ids).mlm_logits[0])
    assert dependency.all()
    assert not torch.equal(dependency, causal_mask(N, N))  # it is no decoder


@pytest.mark.covers("K3")
def test_in_a_decoder_exactly_nothing_before_the_changed_token_moves() -> None:
    model = gpt()
    assert torch.equal(moved(lambda ids: model(ids)[0]), mask_of(lambda i, j: j <= i))

    def without_mask(ids: Tensor) -> Tensor:
        x = model.token_embedding(ids) + model.position_embedding.weight[:N]
        for block in model.decoder:
            x = block(x, mask=torch.ones(N, N, dtype=torch.bool))
        return model.head(model.norm(x))[0]

    assert moved(without_mask).all()  # the measure finds a missing mask


@pytest.mark.covers("K3")
def test_an_encoder_decoder_sees_its_source_wholly_and_its_target_causally() -> None:
    config = T5Config(n_layers=2, n_decoder_layers=2, d_head=8, d_ff=64, **SIZES)
    model = perturbed(T5(config).double())

    def outputs(ids: Tensor) -> list[Tensor]:
        source, target = ids[:, :S], ids[:, S:]
        return [*model.encode(source)[0], *model(source, decoder_input_ids=target)[0]]

    dependency = moved(outputs)
    assert dependency[:S, :S].all()
    assert not dependency[:S, S:].any()
    assert dependency[S:, :S].all()
    assert torch.equal(dependency[S:, S:], causal_mask(T, T))
    assert torch.equal(dependency, prefix_mask(S))  # that of a prefix language model
    assert not torch.equal(dependency, prefix_mask(S + 1))


@pytest.mark.covers("K3")
@pytest.mark.parametrize("p", [0, 3, N])
def test_the_mask_alone_decides_what_the_same_weights_depend_on(p: int) -> None:
    model, mask = bert(), prefix_mask(p)
    with_mask = moved(lambda ids: model(ids, attention_mask=mask[None]).mlm_logits[0])
    assert torch.equal(with_mask, mask)
    other = prefix_mask(p + 2 if p < N else 1)
    assert not torch.equal(with_mask, other)


@pytest.mark.covers("K3")
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_a_deep_model_reaches_is_the_boolean_power_of_its_mask(layers: int) -> None:
    n = 10
    window = mask_of(lambda i, j: i - 3 < j <= i, n)
    reach = window
    for _ in range(layers - 1):
        reach = (window[:, :, None] & reach[None]).any(dim=1)
    model = bert(layers)
    found = moved(lambda ids: model(ids, attention_mask=window[None]).mlm_logits[0], n)
    assert torch.equal(found, reach)
    assert found[-1].sum() == layers * 2 + 1
    assert torch.equal(found, window) == (layers == 1)  # deeper, it is no longer the mask


@pytest.mark.covers("K2")
def test_autoregression_predicts_every_token_and_autoencoding_the_hidden_ones() -> None:
    ids = torch.randint(4, VOCAB, (1, 13), generator=torch.Generator().manual_seed(0))
    hidden = [3, 9]
    with torch.no_grad():
        logits = gpt()(ids)
        damaged = ids.clone()
        damaged[0, hidden] = 3
        restored = bert()(damaged).mlm_logits[0]
    total, count = causal_lm_loss(logits, ids)
    log_p = logits[0].log_softmax(-1)
    by_hand = -sum(float(log_p[i - 1, ids[0, i]]) for i in range(1, 13))
    assert abs(float(total) - by_hand) < 1e-10
    assert count == 12

    labels = torch.full_like(ids[0], -100)
    labels[hidden] = ids[0, hidden]
    sum_ae = float(cross_entropy(restored, labels, reduction="sum"))
    log_p = restored.log_softmax(-1)
    assert abs(sum_ae + sum(float(log_p[i, ids[0, i]]) for i in hidden)) < 1e-10
    # the rule of the other family, one place later, gives another number
    shifted = -sum(float(log_p[i - 1, ids[0, i]]) for i in hidden)
    assert abs(sum_ae - shifted) > 1e-3


@pytest.mark.covers("K2")
def test_a_hidden_word_is_seen_by_no_output_and_both_sides_by_its_own() -> None:
    model = bert()

    def hides(ids: Tensor) -> Tensor:
        damaged = ids.clone()
        damaged[0, 4] = 3
        return model(damaged).mlm_logits[0]

    dependency = moved(hides)
    assert not dependency[:, 4].any()
    assert dependency[4, :4].all()
    assert dependency[4, 5:].all()
    assert moved(lambda ids: model(ids).mlm_logits[0])[:, 4].all()  # when it is not hidden


class Unmasked(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = SIZES | {"vocab_size": 12}
        self.stack = BERT(BERTConfig(n_layers=1, d_ff=64, n_positions=8, **sizes))
        self.masked = masked

    def forward(self, input_ids: Tensor) -> Tensor:
        rows, n = input_ids.shape
        mask = causal_mask(n, n).expand(rows, n, n) if self.masked else None
        return self.stack(input_ids, attention_mask=mask).mlm_logits


@pytest.mark.slow
@pytest.mark.covers("K3")
def test_without_the_mask_the_loss_passes_its_floor_and_nothing_can_be_written() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(12, (4000, 8), generator=g)  # random: nothing can be predicted
    batches = [{"input_ids": part, "labels": part} for part in rows[:3840].split(64)]
    unseen = rows[3840:]
    ends, right = {}, {}
    for masked in (True, False):
        model = Unmasked(masked)
        settings = TrainConfig(max_steps=200, lr=1e-2, warmup_steps=20, device="cpu")
        *_, last = train(model, batches, causal_loss_fn, settings)
        with torch.no_grad():
            guess = model.eval()(unseen[:, :4])[:, -1].argmax(-1)
        ends[masked], right[masked] = last.loss, (guess == unseen[:, 4]).float().mean()
    assert ends[False] < 0.3  # far below log 12 = 2.48, the least that is possible
    assert right[False] < 0.25
    assert ends[True] > 2.2  # the control: with the mask, the loss stays at the floor
    assert right[True] < 0.25


LENGTH = 64


def ids_of(tokens: Sequence[str], index: dict[str, int]) -> list[int]:
    ids = [2, *(index.get(token, 1) for token in tokens), 3]
    return (ids + [0] * LENGTH)[:LENGTH]


class Tagger(nn.Module):
    def __init__(self, body: GPT) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = copy.deepcopy(body)
        self.tag_head = nn.Linear(body.config.d_model, len(entities.TAGS))

    def forward(self, ids: Tensor) -> Tensor:
        return self.tag_head(self.body.hidden(ids))


def tag_loss(model: Tagger, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    scores, labels = model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
    return {"tags": (cross_entropy(scores, labels, reduction="sum"), (labels != -100).sum())}


def tag_batch(number: int, seed: int, split: str, index: dict[str, int]) -> dict[str, Tensor]:
    found = list(entities.examples(number, seed=seed, split=split))
    ids = torch.tensor([ids_of(e.tokens, index) for e in found])
    labels = torch.full_like(ids, -100)
    for row, e in enumerate(found):
        tags = torch.tensor([entities.TAGS.index(tag) for tag in e.tags][: LENGTH - 1])
        labels[row, 1 : 1 + len(tags)] = tags
    return {"input_ids": ids, "labels": labels}


def f1_after_fine_tuning(body: GPT, few: dict[str, Tensor], unseen: dict[str, Tensor]) -> float:
    model = Tagger(body)
    settings = TrainConfig(max_steps=30, lr=1e-3, warmup_steps=5, device="cpu")
    for _ in train(model, [few], tag_loss, settings):
        pass
    with torch.no_grad():
        guess = model.eval()(unseen["input_ids"]).argmax(-1)
    tags = unseen["labels"]
    entity, counted = tags > 0, tags != -100
    right = ((guess == tags) & entity).sum()
    return float(2 * right / (((guess > 0) & counted).sum() + entity.sum()))


@pytest.mark.slow
@pytest.mark.covers("K1")
def test_a_pretrained_model_needs_fewer_labels_because_of_what_it_knows_about_words() -> None:
    texts = [tokenize(d.text) for d in generate_documents(2000, seed=1, split="train")]
    counts = Counter(itertools.chain.from_iterable(texts))
    names = ["<pad>", "<unk>", "<bos>", "<eos>", *(w for w, _ in counts.most_common(1496))]
    index = {word: i for i, word in enumerate(names)}
    rows = torch.tensor([ids_of(text, index) for text in texts])

    class Rows:
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            g = torch.Generator().manual_seed(0)
            while True:
                ids = rows[torch.randint(len(rows), (8,), generator=g)]
                yield {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(names), "n_positions": LENGTH, "dropout": 0.0}
    scratch = GPT(GPTConfig(n_layers=1, d_model=64, n_heads=4, **sizes))
    pretrained = copy.deepcopy(scratch)
    settings = TrainConfig(max_steps=200, lr=4e-3, warmup_steps=20, device="cpu")
    for _ in train(pretrained, Rows(), causal_loss_fn, settings):
        pass
    wrong_words = copy.deepcopy(pretrained)
    with torch.no_grad():
        table = wrong_words.token_embedding.weight
        table[4:] = table[4:][torch.randperm(len(names) - 4)]

    few, unseen = tag_batch(8, 7, "train", index), tag_batch(100, 3, "validation", index)
    f1 = {
        name: f1_after_fine_tuning(body, few, unseen)
        for name, body in {"pre": pretrained, "scratch": scratch, "wrong": wrong_words}.items()
    }
    assert f1["pre"] > f1["scratch"] + 0.1, f1
    assert f1["pre"] > f1["wrong"] + 0.1, f1  # the control: same matrices, words mixed up
