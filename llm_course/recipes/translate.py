"""Train a Transformer to translate, and score what it writes: Town, files or a hub data set."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
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
from llm_course.recipes.run import Data, Run, shared
from llm_course.tokenizers.library import Tokenizer
from llm_town.tasks import translation

SHIFTS = ("none", "unseen_name", "unseen_template")
AT_ONCE = 100  # pairs that are evaluated, and texts that are translated, together


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData(Data):
    """What a translator needs from its data."""

    tests: dict[str, list[Pair]]  # by name; on Town one for each shift
    language: str  # of the target, for BLEU's tokenization
    kept: float  # the share of the training pairs that `min_count` left
    long: int  # training pairs dropped, longer than the model's positions


def prepare_translation(
    model: TransformerConfig,
    data: PairConfig,
    train_config: TrainConfig,
    *,
    out: Path | None = None,
) -> Run:
    """Read or generate the pairs, train the tokenizer, and make batches and a fresh model.

    Training pairs longer than the model's positions are left out and counted; a held-out pair that
    is longer is an error, because a score must be of all of them. The loss is smoothed in training
    and in evaluations on the way, that of the summary is not.
    """
    made = _data(data, model.n_positions)
    ids = made.tokenizer
    config = dataclasses.replace(
        model,
        vocab_size=len(ids),
        pad_token_id=ids.pad_id or 0,
        bos_token_id=ids.bos_id or 0,
        eos_token_id=ids.eos_id or 0,
    )
    torch.manual_seed(train_config.seed)
    return Run(
        model=Transformer(config),
        data=made,
        loss_fn=partial(seq2seq_loss_fn, smoothing=data.smoothing),
        train_config=train_config,
        out=out,
        settings=shared("paper", data),
        scores=translation_scores,
    )


def _data(config: PairConfig, n_positions: int) -> PairData:
    """One vocabulary for both languages, and batches of the pairs that `min_count` leaves."""
    sets = _sets(config)
    kept = {name: frequent(each, sets["training"], config.min_count) for name, each in sets.items()}
    if empty := [name for name, pairs in kept.items() if not pairs]:
        raise DataError(
            f"min_count = {config.min_count} leaves none of the {len(sets[empty[0]])} pairs of the "
            f"set {empty[0]!r}"
        )
    training, validation, tests = kept.pop("training"), kept.pop("validation"), kept
    texts = [text for pair in training for text in pair]
    tokenizer = Tokenizer.train(texts, kind=config.tokenizer, vocab_size=config.vocab_size)
    ids: dict[str, Any] = {"pad_id": tokenizer.pad_id, "start_id": tokenizer.bos_id}
    paired = partial(Pairs, context=n_positions, **ids)
    for found in tests.values():  # too long a pair is refused now, and not after the training
        paired(*encode_pairs(tokenizer, found))
    rows = paired(*encode_pairs(tokenizer, training), long_pairs="drop")
    held_out = paired(*encode_pairs(tokenizer, validation))
    return PairData(
        tokenizer=tokenizer,
        train=Batches(rows, config.batch_size, seed=config.seed, pool=config.pool),
        validation=Evaluation(held_out, AT_ONCE),
        tests=tests,
        language="zh" if config.data == "town" else config.target,
        kept=len(training) / len(sets["training"]),
        long=rows.long,
    )


def _sets(config: PairConfig) -> dict[str, list[Pair]]:
    """Training and validation pairs, and test sets by their names."""
    if config.data == "town":
        return {
            "training": town_pairs(config.pairs, config.seed, "train"),
            "validation": town_pairs(config.held_out, 0, "validation"),
            **{shift: town_pairs(config.held_out, 0, "test", shift) for shift in SHIFTS},
        }
    columns: dict[str, Any] = {"source": config.source, "target": config.target}
    if config.data == "hub":
        dataset, splits = str(config.dataset), ("train", "validation", "test")
        parts = [load_hub_pairs(dataset, split=split, **columns) for split in splits]
    else:
        files = (config.data_files, config.validation_files, config.test_files)
        parts = [read_pairs(names, **columns) for names in files]
    return dict(zip(("training", "validation", "test"), parts))


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


def translation_scores(model: Transformer, data: PairData, **options: Any) -> dict[str, Any]:
    """Exact match, BLEU and chrF of each test set; the options are those of `translate_texts`."""
    scores = {}
    for name, pairs in data.tests.items():
        sources, references = zip(*pairs)
        written = translate_texts(model, data.tokenizer, sources, **options)
        scores[name] = score(written, references, data.language)
    return scores


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
    batches = Evaluation(rows, max(1, AT_ONCE // num_beams))
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
