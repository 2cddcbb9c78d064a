"""Train a Transformer to translate, and score what it writes: Town, files or a hub data set."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_course.batches.pairs import Pairs
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import PairConfig, TrainConfig, TransformerConfig
from llm_course.data.pair_files import Pair, load_hub_pairs, read_pairs
from llm_course.errors import ConfigError, DataError
from llm_course.generation.decode import generate
from llm_course.losses.seq2seq import seq2seq_loss_fn
from llm_course.models.transformer import Transformer
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import loss_sums
from llm_course.training.loop import Step, train
from llm_town.tasks import translation

SHIFTS = ("none", "unseen_name", "unseen_template")
EVALUATION_ROWS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPairs:
    """What a translator needs from its data."""

    tokenizer: Tokenizer
    train: Batches
    validation: Evaluation
    tests: dict[str, list[Pair]]  # by name; on Town one for each shift
    kept: float  # the share of the training pairs that `min_count` left
    long: int  # training pairs dropped, longer than the model's positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationRun:
    """Everything that a translation run is made of."""

    model: Transformer
    data: PreparedPairs
    train_config: TrainConfig
    smoothing: float
    language: str  # of the target, for BLEU's tokenization
    out: Path | None

    def steps(self, *, resume: bool = False) -> Iterator[Step]:
        """Train; yields after every update. The validation loss has the smoothing too."""
        return train(
            self.model,
            self.data.train,
            partial(seq2seq_loss_fn, smoothing=self.smoothing),
            self.train_config,
            out=self.out,
            resume=resume,
            validation=self.data.validation if self.train_config.eval_every else None,
            tokenizer=self.data.tokenizer,
        )

    def test_scores(self, num_beams: int = 1, length_penalty: float = 1.0) -> dict[str, Any]:
        """Exact match, BLEU and chrF of each test set."""
        scores = {}
        for name, pairs in self.data.tests.items():
            written = translate_texts(
                self.model,
                self.data.tokenizer,
                [source for source, _ in pairs],
                num_beams=num_beams,
                length_penalty=length_penalty,
            )
            scores[name] = score(written, [target for _, target in pairs], self.language)
        return scores

    def summary(self, seconds: float, tokens_per_second: float) -> dict[str, Any]:
        """The keys of summary.json: the plain validation loss, and the scores of greedy search."""
        nats, count = loss_sums(self.model, self.data.validation, seq2seq_loss_fn)["lm"]
        return {
            "val_loss": nats / count,
            "val_nats_per_char": None,
            "floor_ratio": None,
            "test": self.test_scores(),
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def prepare_translation(
    model: TransformerConfig,
    data: PairConfig,
    train_config: TrainConfig,
    *,
    out: Path | None = None,
) -> TranslationRun:
    """Read or generate the pairs, train the tokenizer, and make batches and a fresh model.

    Training pairs longer than the model's positions are left out and counted; a held-out pair that
    is longer is an error, because a score must be of all of them.
    """
    prepared = _prepared(data, model.n_positions)
    ids = prepared.tokenizer
    torch.manual_seed(train_config.seed)
    network = Transformer(
        dataclasses.replace(
            model,
            vocab_size=len(ids),
            pad_token_id=ids.pad_id or 0,
            bos_token_id=ids.bos_id or 0,
            eos_token_id=ids.eos_id or 0,
        )
    )
    return TranslationRun(
        model=network,
        data=prepared,
        train_config=train_config,
        smoothing=data.smoothing,
        language="zh" if data.data == "town" else data.target,
        out=out,
    )


def _prepared(data: PairConfig, n_positions: int) -> PreparedPairs:
    pairs, validation, tests = _sets(data)
    kept = _kept("training", pairs, pairs, data.min_count)
    validation = _kept("validation", validation, pairs, data.min_count)
    tests = {name: _kept(name, found, pairs, data.min_count) for name, found in tests.items()}
    texts = [text for pair in kept for text in pair]
    tokenizer = Tokenizer.train(texts, kind=data.tokenizer, vocab_size=data.vocab_size)
    options: dict[str, Any] = {
        "pad_id": tokenizer.pad_id,
        "start_id": tokenizer.bos_id,
        "context": n_positions,
    }
    for found in tests.values():  # too long a pair is refused now, and not after the training
        Pairs(*encode_pairs(tokenizer, found), **options)
    rows = Pairs(*encode_pairs(tokenizer, kept), long_pairs="drop", **options)
    return PreparedPairs(
        tokenizer=tokenizer,
        train=Batches(rows, data.batch_size, seed=data.seed, pool=data.pool),
        validation=Evaluation(
            Pairs(*encode_pairs(tokenizer, validation), **options), EVALUATION_ROWS
        ),
        tests=tests,
        kept=len(kept) / len(pairs),
        long=rows.long,
    )


def _kept(name: str, pairs: list[Pair], training: list[Pair], min_count: int) -> list[Pair]:
    found = frequent(pairs, training, min_count)
    if not found:
        raise DataError(
            f"min_count = {min_count} leaves none of the {len(pairs)} pairs of the set {name!r}"
        )
    return found


def _sets(data: PairConfig) -> tuple[list[Pair], list[Pair], dict[str, list[Pair]]]:
    """Training, validation and test pairs."""
    if data.data == "town":
        return (
            town_pairs(data.pairs, data.seed, "train"),
            town_pairs(data.held_out, 0, "validation"),
            {shift: town_pairs(data.held_out, 0, "test", shift) for shift in SHIFTS},
        )
    columns: dict[str, Any] = {"source": data.source, "target": data.target}
    if data.data == "hub":
        assert data.dataset is not None  # PairConfig has seen to it
        parts = [
            load_hub_pairs(data.dataset, split=split, **columns)
            for split in ("train", "validation", "test")
        ]
    else:
        files = (data.data_files, data.validation_files, data.test_files)
        parts = [read_pairs(names, **columns) for names in files]
    return parts[0], parts[1], {"test": parts[2]}


def town_pairs(n: int, seed: int, split: str, shift: str = "none") -> list[Pair]:
    """Sentences of Town with their names cut into syllables, and their Chinese."""
    return [
        (translation.cut_names(example.english), example.chinese)
        for example in translation.examples(n, seed, split, shift)
    ]


def frequent(pairs: Sequence[Pair], training: Sequence[Pair], min_count: int) -> list[Pair]:
    """The pairs whose source words all stand in at least `min_count` training pairs."""
    if min_count <= 1:
        return list(pairs)
    counts = Counter(word for source, _ in training for word in set(_words(source)))
    return [pair for pair in pairs if all(counts[word] >= min_count for word in _words(pair[0]))]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Pair]
) -> tuple[list[list[int]], list[list[int]]]:
    """Sources as they are, targets with the end token."""
    sources = tokenizer.encode_batch([source for source, _ in pairs])
    targets = tokenizer.encode_batch([target for _, target in pairs])
    return sources, [[*target, tokenizer.eos_id or 0] for target in targets]


def translate_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Translations of many texts, in their order; the batches hold texts of about one length."""
    if not texts:
        raise ConfigError("texts must hold at least one text, got none")
    sources = tokenizer.encode_batch(texts)
    config = model.config
    rows = Pairs(
        sources,
        [[config.eos_token_id]] * len(sources),  # not looked at
        pad_id=config.pad_token_id,
        start_id=config.bos_token_id,
        context=config.n_positions,
    )
    batches = Evaluation(rows, max(1, EVALUATION_ROWS // num_beams))
    device = next(model.parameters()).device
    written = [""] * len(texts)
    order = iter(batches.order)
    for batch in batches:
        longest = batch["input_ids"].shape[1]
        ids = generate(
            model,
            batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=min(config.n_positions, 2 * longest + 20),
            num_beams=num_beams,
            length_penalty=length_penalty,
        )
        for row in ids.tolist():
            written[next(order)] = tokenizer.decode(row)
    return written


def score(written: Sequence[str], references: Sequence[str], language: str) -> dict[str, Any]:
    """Exact match (share), BLEU and chrF (0 to 100) by sacrebleu, each with its signature."""
    from sacrebleu.metrics import BLEU, CHRF

    if not references or len(written) != len(references):
        raise ConfigError(
            f"each text needs one reference, got {len(written)} texts "
            f"and {len(references)} references"
        )
    bleu, chrf = BLEU(tokenize="zh" if language == "zh" else "13a"), CHRF()
    found: dict[str, Any] = {
        "pairs": len(references),
        "exact_match": sum(a == b for a, b in zip(written, references)) / len(references),
    }
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        found[name] = round(metric.corpus_score(list(written), [list(references)]).score, 2)
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
