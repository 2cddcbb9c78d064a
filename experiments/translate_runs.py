"""The recorded runs of the translation lab."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from experiments.record import Place, RecordedRun, part_of, say
from experiments.training import run_training
from llm_course.configs import PairConfig, TrainConfig, TransformerConfig
from llm_course.presets import transformer_preset
from llm_course.recipes.translate import TranslationRun, prepare_translation, translate_texts

MULTI30K = ("train", "val", "test_2016_flickr")
BEAMS = 4


def run_translation(run: TranslationRun) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and score, greedy and with beams."""
    return run_training(run) | {
        "smoothing": run.smoothing,
        "kept": run.data.kept,
        "long_pairs_dropped": run.data.long,
        "train_pairs": len(run.data.train.rows),
        "test_beams": {str(BEAMS): run.test_scores(num_beams=BEAMS)},
    }


def translate_town_cpu(place: Place) -> dict[str, Any]:
    """The cpu preset on Town: frequent words, two seeds, and once without positions."""
    preset = transformer_preset("cpu")
    runs = {}
    for name, seed in (("seed-0", 0), ("no-positions", 0), ("seed-1", 1)):
        model, data = preset.model, dataclasses.replace(preset.data, seed=seed)
        training = dataclasses.replace(preset.train, seed=seed, device="cpu")
        if place.tiny:
            model, data, training = _tiny(model, data, training)
        made = partial(
            _town_run, model, data, training, preset.smoothing, positions=name != "no-positions"
        )
        runs[name] = part_of(place, name, made)
        say(str({test: row["exact_match"] for test, row in runs[name]["test"].items()}))
    wrong = runs.pop("no-positions")
    return {
        "seed": [run["seed"] for run in runs.values()],
        "runs": list(runs.values()),
        "no_positions": wrong,
    }


def _town_run(
    model: TransformerConfig,
    data: PairConfig,
    training: TrainConfig,
    smoothing: float,
    *,
    positions: bool,
) -> dict[str, Any]:
    run = prepare_translation(model, data, training, smoothing=smoothing)
    if not positions:
        run.model.position_table.zero_()
    return run_translation(run) | {"mistakes": _mistakes(run)}


def _mistakes(run: TranslationRun, shown: int = 12) -> dict[str, Any]:
    """The first mistakes, and how many had the right characters in a wrong order."""
    pairs = run.data.tests["none"]
    written = translate_texts(run.model, run.data.tokenizer, [source for source, _ in pairs])
    wrong = [(*pair, text) for pair, text in zip(pairs, written) if pair[1] != text]
    return {
        "number": len(wrong),
        "only_order": sum(sorted(right) == sorted(text) for _, right, text in wrong),
        "first": [
            {"source": source, "right": right, "written": text}
            for source, right, text in wrong[:shown]
        ],
    }


def _multi30k(place: Place, data: PairConfig) -> PairConfig:
    """The three files of the data folder, with one vocabulary of pieces."""
    files = [str(place.text_file(f"multi30k_en_de/{name}.jsonl")) for name in MULTI30K]
    return dataclasses.replace(
        data,
        data="files",
        data_files=(files[0],),
        validation_files=(files[1],),
        test_files=(files[2],),
        source="en",
        target="de",
        tokenizer="bpe",
        vocab_size=300 if place.tiny else 8000,
        min_count=1,
    )


def translate_multi30k(place: Place) -> dict[str, Any]:
    """The h200 preset on Multi30k, English to German."""
    preset = transformer_preset("h200")
    model, training = preset.model, dataclasses.replace(preset.train, save_every=2000)
    data = _multi30k(place, preset.data)
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    run = prepare_translation(model, data, training, smoothing=preset.smoothing, out=place.out)
    return run_translation(run)


def translate_multi30k_cpu(place: Place) -> dict[str, Any]:
    """A small model on Multi30k: what a CPU reaches in some minutes."""
    model = TransformerConfig(
        n_layers=2, n_decoder_layers=2, d_model=128, n_heads=4, d_ff=512, n_positions=128
    )
    training = TrainConfig(
        max_steps=1800,
        lr=2e-3,
        warmup_steps=200,
        min_lr=1e-5,
        beta2=0.98,
        device="cpu",
        precision="fp32",
        save_every=300,
    )
    data = _multi30k(place, PairConfig(batch_size=64))
    data = data if place.tiny else dataclasses.replace(data, vocab_size=4000)
    if place.tiny:
        model, data, training = _tiny(model, data, training)
    return run_translation(prepare_translation(model, data, training, smoothing=0.1, out=place.out))


def _tiny(
    model: TransformerConfig, data: PairConfig, training: TrainConfig
) -> tuple[TransformerConfig, PairConfig, TrainConfig]:
    """The same run in seconds: only sizes change."""
    return (
        dataclasses.replace(
            model, n_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=32, n_positions=128
        ),
        dataclasses.replace(data, pairs=300, held_out=8, min_count=1, batch_size=4),
        dataclasses.replace(
            training,
            max_steps=4,
            warmup_steps=2,
            eval_every=2 if training.eval_every else 0,
            save_every=2 if training.save_every else 0,
            device="cpu",
        ),
    )


RUNS = {
    "translate_town_cpu": RecordedRun(
        title="Transformer on Town's sentences into Chinese, cpu preset",
        device="cpu",
        minutes=8,
        make=translate_town_cpu,
    ),
    "translate_multi30k": RecordedRun(
        title="Transformer on Multi30k, English to German, h200 preset",
        device="cuda",
        minutes=8,
        make=translate_multi30k,
    ),
    "translate_multi30k_cpu": RecordedRun(
        title="a small Transformer on Multi30k, English to German",
        device="cpu",
        minutes=8,
        make=translate_multi30k_cpu,
    ),
}
