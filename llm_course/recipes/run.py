"""A run: what a recipe has put together, trained and scored in one way, and shown on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch

from llm_course.configs import DataConfig, PairConfig, TrainConfig
from llm_course.errors import ConfigError, DataError
from llm_course.models.files import CONFIG_FILE, read_json
from llm_course.presets import find_preset
from llm_course.tokenizers.library import Tokenizer
from llm_course.training import parallel
from llm_course.training.checkpoint import list_checkpoints
from llm_course.training.devices import choose_device, choose_precision
from llm_course.training.evaluate import LossFunction, loss_sums
from llm_course.training.loop import Step, train
from llm_course.training.run_directory import check_out, write_summary

EVALUATION_ROWS = 32
Start = Literal["auto", "paper", "lab"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a recipe has made of its texts."""

    tokenizer: Any  # saved beside the model
    train: Any  # batches with state
    validation: Any  # batches that end
    characters: int | None = None  # of the validation text, where a loss is one of characters too
    floor: float | None = None  # nats: no model is better on the validation data


@dataclass(kw_only=True)
class Run:
    """A model, its data, its loss and its settings: everything that is trained and scored."""

    model: Any
    data: Any  # a `Data`, or one that knows more
    loss_fn: LossFunction
    train_config: TrainConfig
    out: Path | None
    settings: dict[str, Any]  # what a resumed run must share, and the start of the weights
    scores: Callable[..., dict[str, Any]] = lambda model, data: {}  # beside the loss

    looks_once: ClassVar[bool] = False  # whether a second summary would be a second look at a test

    def steps(self, *, resume: bool = False) -> Iterator[Step]:
        """Train; yields after every update."""
        return train(
            self.model,
            self.data.train,
            self.loss_fn,
            self.train_config,
            out=self.out,
            resume=resume,
            validation=self.data.validation,
            tokenizer=self.data.tokenizer,
            settings=self.settings,
        )

    def test_scores(self, **options: Any) -> dict[str, Any]:
        """The scores of the recipe, with its options: beams, for a translator."""
        return self.scores(self._whole_model(), self.data, **options)

    def summary_scores(self, model: Any) -> dict[str, Any]:
        """What stands under "test" in the summary, beside the losses."""
        return self.scores(model, self.data)

    def summary(self, seconds: float, tokens_per_second: float) -> dict[str, Any]:
        """The keys of summary.json; `val_loss` is the first loss, in nats a counted label."""
        model, data = self._whole_model(), self.data
        plain = getattr(self.loss_fn, "func", self.loss_fn)  # of a partial: without smoothing
        sums = loss_sums(model, data.validation, plain)
        means = {name: nats / count for name, (nats, count) in sums.items()}
        first, *others = means
        nats, _ = sums[first]
        return {
            "val_loss": means[first],
            "val_nats_per_char": nats / data.characters if data.characters else None,
            "floor_ratio": nats / data.floor if data.floor else None,
            "test": self.summary_scores(model) | {f"{n}_loss": means[n] for n in others},
            "start": self.settings["start"],
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    def _whole_model(self) -> Any:
        """The trained model; where it is sharded, each process reads what was written of it."""
        if self.train_config.parallel != "fsdp" or parallel.world_size() == 1:
            return self.model
        if self.out is None:
            raise ConfigError("parallel = 'fsdp' needs a directory to be evaluated: pass out")
        parallel.barrier()  # the first process has written it
        device = next(self.model.parameters()).device
        return type(self.model).from_pretrained(self.out / "model").to(device)


def begin(
    form: Any, config: Any, seed: int, start: str, *, lab: str, usual: str
) -> tuple[Any, str]:
    """A new model, and the start of its weights; "auto" is the `usual` one.

    "paper" is what the model's paper says, "lab" the function of that name in `llm_lab.starts`.
    """
    if start not in get_args(Start):
        raise ConfigError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
    torch.manual_seed(seed)
    model = form(config)
    chosen = usual if start == "auto" else start
    if chosen == "lab":
        # The only look upward (.importlinter): tricks of the course are not part of its models.
        from llm_lab import starts

        getattr(starts, lab)(model)
    return model, chosen


def shared(start: str, data: DataConfig | PairConfig) -> dict[str, Any]:
    """The settings that a resumed run must share; where the texts lie may change."""
    chosen = {"start": start, **data.to_dict()}
    return {k: v for k, v in chosen.items() if k != "dataset" and not k.endswith("_files")}


# A command: prepare, train with a progress bar, score, write the summary


def say(message: str) -> None:
    """Print on stderr; of several processes the first speaks."""
    if parallel.rank() == 0:
        print(message, file=sys.stderr)


def pretrain_command(
    family: str,
    prepare: Callable[..., Run],
    then: str,
    *,
    preset: str,
    options: dict[str, Any],
    out: str,
    resume: bool,
    start: Start,
) -> None:
    """Train by a preset with the options that were given; of several processes the first writes."""
    chosen, directory = find_preset(family, preset).with_options(options), Path(out)
    device = parallel.join(choose_device(chosen.train.device))
    choose_precision(device, chosen.train.precision)
    if parallel.rank() == 0:  # before the data, which take a while
        check_out(directory, resume, chosen.train.tensorboard)
    data = chosen.data
    town = f"{data.documents:,} stories of Town"
    say(f"data: {town if data.data == 'town' else data.dataset or ', '.join(data.data_files)}")
    run = prepare(chosen.model, data, chosen.train, start=start, out=directory)
    size, parameters = run.model.config, sum(p.numel() for p in run.model.parameters())
    say(
        f"model: {family.upper()}, {parameters:,} parameters, {size.n_layers} blocks of width "
        f"{size.d_model}, vocabulary {size.vocab_size}, start: {run.settings['start']}"
    )
    carry_out(run, directory, resume=resume)
    say(f"next: llm-course {then.format(model=directory / 'model')}")


def carry_out(run: Run, directory: Path, *, resume: bool) -> None:
    """Train with a progress bar, score, and print the summary."""
    try:
        trained = show_steps(run, resume=resume)
    except (KeyboardInterrupt, SystemExit):
        if saved := list_checkpoints(directory / "checkpoints"):
            say(f"saved {saved[0]}: the same command with --resume goes on from there")
        raise
    path = directory / "summary.json"
    if trained or not run.looks_once or not path.is_file():
        seconds, tokens = _logged(directory)
        summary = run.summary(seconds, tokens / seconds)
        if parallel.rank() == 0:
            write_summary(directory, **summary)
    if parallel.rank() == 0:
        print(json.dumps(read_json(path), indent=2))


def show_steps(run: Run, *, resume: bool) -> bool:
    """Train with a progress bar; evaluations and an early stop get a line of their own.

    Returns whether anything was left to train.
    """
    from tqdm import tqdm

    total, last = run.train_config.max_steps, 0
    # Else without `disable`: then the variable TQDM_DISABLE decides.
    quiet = {"disable": True} if parallel.rank() else {}
    with tqdm(total=total, unit="step", **quiet) as bar:
        for step in run.steps(resume=resume):
            if not last:  # a resumed run begins in the middle, and that took no time
                bar.n = bar.initial = step.step - 1
            last = step.step
            bar.update(last - bar.n)
            bar.set_postfix_str(f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s")
            if step.validation:
                bar.clear()
                say(f"step {last}: loss {step.loss:.3f}, validation {step.validation['loss']:.3f}")
    if not last:
        say("nothing is left to train: this run had its last update before")
    elif last < total:
        say(f"stopped early after step {last}: the model has the weights of its best evaluation")
    return last > 0


def _logged(directory: Path) -> tuple[float, float]:
    """Seconds and tokens of all updates, also of those before an interruption."""
    log = directory / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return last.get("seconds", math.nan), last.get("tokens", math.nan)


def printable(text: str) -> str:
    """The text with control characters escaped, so that no sample can steer a terminal."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


# A model that a run has written


def check_holds(path: Path, form: Any, file: str = CONFIG_FILE, what: str = "model") -> None:
    """Refuse a directory without that file, or with a model of another family."""
    if not (path / file).is_file():
        inside = path / "model"
        hint = f"; did you mean {inside}?" if (inside / file).is_file() else ""
        raise DataError(f"{path} holds no {what} (no {file}){hint}")
    wanted, found = form.layout.model_type, read_json(path / CONFIG_FILE).get("model_type")
    if found != wanted:
        raise ConfigError(
            f"this needs a {form.__name__} (model_type {wanted!r}), {path} holds {found!r}"
        )


def load_model(
    directory: str | Path, form: Any, dtype: torch.dtype | None = None
) -> tuple[Any, Tokenizer]:
    """A model of that family, and the tokenizer that lies beside it; their sizes must agree."""
    path = Path(directory)
    check_holds(path, form)
    tokenizer = Tokenizer.load(path)
    model = form.from_pretrained(path, dtype=dtype)
    tokenizer.check_fits(model.config)
    return model.eval(), tokenizer
