"""The class, the data set and the loop that chapter 10 writes by hand equal the package's."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import pytest
import torch
from book_tools import ROOT
from parity import differs
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from llm_course.configs import BERTConfig
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.tokenizers.library import Tokenizer
from llm_town import generate_documents

SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48}
LENGTH = 48
STORIES = list(generate_documents(200, seed=0))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The cells of the notebook with the tag by-hand, as a module."""
    notebook = jupytext.read(ROOT / "notebooks" / "10_bert_pretrain.py")
    cells = [c.source for c in notebook.cells if "by-hand" in c.metadata.get("tags", [])]
    assert len(cells) == 6
    path = tmp_path_factory.mktemp("by_hand") / "bert_by_hand.py"
    path.write_text("\n\n".join(cells), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([d.text for d in STORIES], kind="wordpiece", vocab_size=700)


@pytest.fixture
def dataset(by_hand: Any, tokenizer: Tokenizer, tmp_path: Path) -> Any:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join("\n".join(d.sentences) for d in STORIES) + "\n", encoding="utf-8")
    return by_hand.MyDataset(path, tokenizer, LENGTH)


def model_of(by_hand: Any, vocab_size: int) -> Any:
    torch.manual_seed(0)
    return by_hand.MyBERT(vocab_size, length=LENGTH, **SIZES)


def batch_of(dataset: Any, rows: int = 8) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = next(iter(DataLoader(dataset, rows)))
    return batch


@pytest.mark.covers("D1")
def test_the_class_by_hand_gives_the_logits_and_losses_of_the_package(
    by_hand: Any, dataset: Any, tokenizer: Tokenizer
) -> None:
    mine = model_of(by_hand, len(tokenizer)).double()
    with torch.no_grad():  # fresh biases are zero and would hide a mistake
        for parameter in mine.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    config = BERTConfig(vocab_size=len(tokenizer), n_positions=LENGTH, dropout=0.0, **SIZES)
    theirs = BERT(config).double()
    theirs.load_state_dict(by_hand.package_state(mine))
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    batch = batch_of(dataset)
    names = ("input_ids", "token_type_ids", "attention_mask")
    rest = {name: batch[name] for name in names[1:]}
    with torch.no_grad():
        mlm, nsp = mine(*(batch[name] for name in names))
        expected = theirs(batch["input_ids"], **rest)
        terms = bert_loss_fn(theirs, by_hand.package_batch(batch))
    seen = batch["attention_mask"]
    assert_close(mlm[seen], expected.mlm_logits[seen], rtol=0, atol=1e-10)
    assert_close(nsp, expected.nsp_logits, rtol=0, atol=1e-10)
    losses = {
        "mlm": nn.functional.cross_entropy(mlm.flatten(0, 1), batch["labels"].flatten()),
        "nsp": nn.functional.cross_entropy(nsp, 1 - batch["is_next"]),
    }
    for name, value in losses.items():
        assert_close(value, terms[name][0] / terms[name][1], rtol=0, atol=1e-10)
    wrong_way = nn.functional.cross_entropy(nsp, batch["is_next"])
    assert abs(wrong_way - losses["nsp"]) > 1e-3
    mine.pooler = nn.Sequential(mine.pooler[0])  # as the article has it: without tanh
    with torch.no_grad():
        other = mine(*(batch[name] for name in names))[1]
    assert differs(other, expected.nsp_logits)


@pytest.mark.covers("D1")
def test_the_articles_heads_have_no_place_for_published_tensors(
    by_hand: Any, tokenizer: Tokenizer
) -> None:
    mine = model_of(by_hand, len(tokenizer))
    config = BERTConfig(vocab_size=len(tokenizer), n_positions=LENGTH, dropout=0.0, **SIZES)
    theirs = BERT(config)
    theirs.load_state_dict(by_hand.package_state(mine))  # the published form fits
    mine.mlm_head = nn.Linear(SIZES["d_model"], len(tokenizer))
    mine.pooler = nn.Linear(SIZES["d_model"], SIZES["d_model"])
    with pytest.raises(RuntimeError, match=r"mlm_head\.w\.weight.*mlm_head\.norm\.weight"):
        theirs.load_state_dict(by_hand.package_state(mine))


@pytest.mark.covers("D2", "P1", "P2")
def test_rows_of_the_data_set_are_bert_s_and_its_shares_hold(
    dataset: Any, tokenizer: Tokenizer
) -> None:
    cls, sep, mask, pad = (getattr(tokenizer, f"{r}_id") for r in ("cls", "sep", "mask", "pad"))
    sentences = [tokenizer.encode_batch(list(d.sentences)) for d in STORIES]
    shares: dict[str, int] = dict.fromkeys(("tokens", "chosen", "mask", "same", "next"), 0)
    for item in [*range(len(dataset))] * 4:
        row = dataset[item]
        n = int(row["attention_mask"].sum())
        read, labels = row["input_ids"].tolist(), row["labels"].tolist()
        assert len(read) == len(labels) == LENGTH
        assert read[n:] == [pad] * (LENGTH - n)
        text = [old if old != -100 else new for old, new in zip(labels, read)][:n]
        border = text.index(sep)
        assert text[0] == cls
        assert text[-1] == sep
        assert text.count(sep) == 2
        assert row["token_type_ids"].tolist()[:n] == [0] * (border + 1) + [1] * (n - border - 1)
        first, second = text[1:border], text[border + 1 : -1]
        # A keeps its end, and B its beginning, where a sentence is too long.
        told = sentences[item]
        places = [i for i, s in enumerate(told[:-1]) if s[-len(first) :] == first]
        assert places
        if row["is_next"]:
            assert second in [told[i + 1][: len(second)] for i in places]
        shares["tokens"] += n - 3
        shares["next"] += int(row["is_next"])
        for old, new in zip(labels, read):
            if old != -100:
                shares["chosen"] += 1
                shares["mask"] += new == mask
                shares["same"] += new == old
    chosen, rows = shares["chosen"], 4 * len(dataset)
    rules = (
        (chosen, shares["tokens"], 0.15),
        (shares["mask"], chosen, 0.8),
        (shares["same"], chosen, 0.1 + 0.1 / len(tokenizer)),
        (shares["next"], rows, 0.5),
    )
    for count, of, p in rules:
        assert abs(count - of * p) < 4 * math.sqrt(of * p * (1 - p))
    assert abs(chosen - shares["tokens"] * 0.25) > 4 * math.sqrt(shares["tokens"] * 0.15 * 0.85)


@pytest.mark.covers("D2")
def test_masks_are_drawn_anew_and_follow_from_the_seed(
    by_hand: Any, dataset: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    drawn = {tuple(dataset[3]["input_ids"].tolist()) for _ in range(8)}
    assert len(drawn) > 4
    again = by_hand.MyDataset(tmp_path / "corpus.txt", tokenizer, LENGTH, seed=1)
    twin = by_hand.MyDataset(tmp_path / "corpus.txt", tokenizer, LENGTH, seed=1)
    assert again[0]["input_ids"].tolist() == twin[0]["input_ids"].tolist()


@pytest.mark.covers("D3", "B3")
def test_the_loop_by_hand_lowers_both_losses_and_begins_at_those_of_the_package(
    by_hand: Any, dataset: Any, tokenizer: Tokenizer
) -> None:
    class OneBatch(torch.utils.data.Dataset):
        """The same 16 rows for ever: a loop that learns must know them by heart."""

        def __init__(self) -> None:
            self.rows = [dataset[i] for i in range(16)]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
            row: dict[str, torch.Tensor] = self.rows[item]
            return row

    model, fixed = model_of(by_hand, len(tokenizer)), OneBatch()
    config = BERTConfig(vocab_size=len(tokenizer), n_positions=LENGTH, dropout=0.0, **SIZES)
    theirs = BERT(config)
    theirs.load_state_dict(by_hand.package_state(model))
    terms = bert_loss_fn(theirs, by_hand.package_batch(batch_of(fixed, 16)))
    history = by_hand.pretrain(model, fixed, 50, lr=1e-2)
    for value, name in zip(history[0], ("mlm", "nsp")):
        assert abs(value - (terms[name][0] / terms[name][1]).item()) < 1e-4
    assert history[-1][0] < 3 < 6 < history[0][0]
    assert history[-1][1] < 0.3 < 0.6 < history[0][1]
    still = by_hand.pretrain(model_of(by_hand, len(tokenizer)), fixed, 3, lr=0.0)
    assert abs(still[-1][0] - history[0][0]) < 1e-5  # the control: no rate, no learning
