"""The recorded runs of the translation lab."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from experiments.script import Place, RecordedRun, part_of, run_training, say
from llm_course.configs import PairConfig, TrainConfig, TransformerConfig
from llm_course.presets import find_preset
from llm_course.recipes.run import Run
from llm_course.recipes.translate import prepare_translation, translate_texts

MULTI30K = {"data_files": "train", "validation_files": "val", "test_files": "test_2016_flickr"}
BEAMS = 4
Settings = tuple[TransformerConfig, PairConfig, TrainConfig]


def run_translation(run: Run) -> dict[str, Any]:
    """Train to the end (going on after an interruption) and score, greedy and with beams."""
    return run_training(run) | {
        "smoothing": run.settings["smoothing"],
        "kept": run.data.kept,
        "long_pairs_dropped": run.data.long,
        "train_pairs": len(run.data.train.rows),
        "test_beams": {str(BEAMS): run.test_scores(num_beams=BEAMS)},
    }


def translate_town_cpu(place: Place) -> dict[str, Any]:
    """Transformer on Town's sentences into Chinese, cpu preset: two seeds, once no positions."""
    preset = find_preset("transformer", "cpu")
    runs = {}
    for name, seed in (("seed-0", 0), ("no-positions", 0), ("seed-1", 1)):
        data = dataclasses.replace(preset.data, seed=seed)
        training = dataclasses.replace(preset.train, seed=seed, device="cpu")
        settings = place.sized(preset.model, data, training)
        made = partial(_town_run, settings, positions=name != "no-positions")
        runs[name] = part_of(place, name, made)
        say(str({test: row["exact_match"] for test, row in runs[name]["test"].items()}))
    wrong = runs.pop("no-positions")
    return {
        "seed": [run["seed"] for run in runs.values()],
        "runs": list(runs.values()),
        "no_positions": wrong,
    }


def _town_run(settings: Settings, *, positions: bool) -> dict[str, Any]:
    run = prepare_translation(*settings)
    if not positions:
        run.model.position_table.zero_()
    return run_translation(run) | {"mistakes": _mistakes(run)}


def _mistakes(run: Run, shown: int = 12) -> dict[str, Any]:
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


def _multi30k(place: Place, data: PairConfig, vocab_size: int) -> PairConfig:
    """The three files of the data folder, with one vocabulary of pieces."""
    files: dict[str, Any] = {
        field: (str(place.text_file(f"multi30k_en_de/{name}.jsonl")),)
        for field, name in MULTI30K.items()
    }
    pieces: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": vocab_size, "min_count": 1}
    return dataclasses.replace(data, data="files", source="en", target="de", **files, **pieces)


def translate_multi30k(place: Place) -> dict[str, Any]:
    """Transformer on Multi30k, English to German, h200 preset."""
    preset = find_preset("transformer", "h200")
    training = dataclasses.replace(preset.train, save_every=2000)
    settings = place.sized(preset.model, _multi30k(place, preset.data, 8000), training)
    return run_translation(prepare_translation(*settings, out=place.out))


def translate_multi30k_cpu(place: Place) -> dict[str, Any]:
    """A small Transformer on Multi30k, English to German: what a CPU reaches in some minutes."""
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
    data = _multi30k(place, PairConfig(batch_size=64), 4000)
    settings = place.sized(model, data, training)
    return run_translation(prepare_translation(*settings, out=place.out))


RUNS = [
    RecordedRun(translate_town_cpu, 8),
    RecordedRun(translate_multi30k, 8, "cuda"),
    RecordedRun(translate_multi30k_cpu, 8),
]
