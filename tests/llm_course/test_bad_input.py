"""Bad input: every case is refused before any compute, by a message with the value and the range.

Each row is (what is done, the error, what its message must name). The number of rows is the figure
that the changelog quotes; `test_the_table_is_long` keeps it honest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_course import GPT, GPTConfig, T5Config, Tokenizer, TrainConfig, configs, generate, train
from llm_course.batches.blocks import Blocks
from llm_course.batches.documents import PackedDocuments
from llm_course.batches.ragged import check_ids
from llm_course.batches.sampler import Batches
from llm_course.cli import main
from llm_course.configs import (
    BERTConfig,
    BERTDataConfig,
    BERTLabelConfig,
    DataConfig,
    FineTuneConfig,
    PairConfig,
    TransformerConfig,
)
from llm_course.data.corpora import read_documents
from llm_course.errors import CheckpointError, ConfigError, DataError, RunInUseError, WeightsError
from llm_course.losses.causal import causal_lm_loss, causal_loss_fn
from llm_course.losses.masked import Masking
from llm_course.models.gpt import GPTBlock
from llm_course.presets import find_preset
from llm_course.recipes.predictor import TaskSettings
from llm_course.recipes.pretrain_gpt import pretrain_gpt_command
from llm_course.recipes.sample import generate_command, load_for_generation, sample_texts

pytestmark = pytest.mark.unchecked  # a shape check would refuse some inputs before we do

CONFIG = GPTConfig(vocab_size=11, n_layers=1, d_model=8, n_heads=2, n_positions=16, dropout=0.0)


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def ids(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def gen(**options: Any) -> Callable[[Path], object]:
    return lambda tmp: generate(gpt(), ids(1, 2), **{"max_new_tokens": 2, **options})


def written(name: str, content: bytes) -> Callable[[Path], str]:
    def write(tmp: Path) -> str:
        (tmp / name).write_bytes(content)
        return str(tmp / name)

    return write


def reading(name: str, content: bytes, **options: Any) -> Callable[[Path], object]:
    return lambda tmp: read_documents([written(name, content)(tmp)], **options)


def damaged(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], object]:
    """Load a saved model whose tensors were changed."""

    def load(tmp: Path) -> object:
        gpt().save_pretrained(tmp / "m")
        tensors = load_file(tmp / "m" / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp / "m" / "model.safetensors", metadata={"format": "pt"})
        return GPT.from_pretrained(tmp / "m")

    return load


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("ln_f.weight"))
    tensors[name] = torch.ones(9)


def with_config(**changes: Any) -> Callable[[Path], object]:
    """Load a saved model whose config.json was changed."""

    def load(tmp: Path) -> object:
        gpt().save_pretrained(tmp / "m")
        path = tmp / "m" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return GPT.from_pretrained(tmp / "m")

    return load


def batches(vocab: int = 11) -> Batches:
    return Batches(Blocks(torch.arange(200) % vocab, 8), 2)


def run(tmp: Path, *, resume: bool = False, **options: Any) -> None:
    values = {"max_steps": 2, "warmup_steps": 1, "device": "cpu", "precision": "fp32", **options}
    config = TrainConfig(**values)
    for _ in train(gpt(), batches(), causal_loss_fn, config, out=tmp / "run", resume=resume):
        pass


def corrupt_checkpoint(tmp: Path) -> None:
    run(tmp)
    for path in (tmp / "run" / "checkpoints").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    run(tmp, resume=True)


def other_config(tmp: Path) -> None:
    run(tmp)
    run(tmp, resume=True, lr=0.5, max_steps=4)


def two_runs(tmp: Path) -> None:
    config = TrainConfig(max_steps=2, warmup_steps=1, device="cpu", precision="fp32")
    first = train(gpt(), batches(), causal_loss_fn, config, out=tmp / "run")
    next(first)
    try:
        run(tmp)
    finally:
        first.close()


def wrong_tokenizer(tmp: Path) -> object:
    gpt().save_pretrained(tmp / "m")
    Tokenizer.train(["a b c d e f g h i j k l m n o p"], kind="char", vocab_size=99).save(tmp / "m")
    return load_for_generation(tmp / "m")


def no_weights(tmp: Path) -> object:
    gpt().save_pretrained(tmp / "m")
    (tmp / "m" / "model.safetensors").unlink()
    (tmp / "m" / "pytorch_model.bin").write_bytes(b"x")
    return GPT.from_pretrained(tmp / "m")


def escaping_index(tmp: Path) -> object:
    gpt().save_pretrained(tmp / "m")
    shutil.move(tmp / "m" / "model.safetensors", tmp / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(["transformer.wte.weight"], "../secret.safetensors")}
    (tmp / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    return GPT.from_pretrained(tmp / "m")


def pretrain(**options: Any) -> Callable[[Path], object]:
    """What `llm-course pretrain gpt` calls, beside files that would do."""

    def start(tmp: Path) -> None:
        (tmp / "mine.txt").write_text("a fine text of some words\n" * 40)
        (tmp / "rows.csv").write_text("text,label\n" + "some words,1\nother words,2\n" * 20)
        (tmp / "a_file").write_text("")
        given = {"device": "cpu", **{n: v for n, v in options.items() if n != "out"}}
        if "data_files" in given:
            given["data_files"] = tuple(str(tmp / name) for name in given["data_files"])
        out = str(tmp / options.get("out", "run"))
        pretrain_gpt_command(preset="cpu", start="auto", resume=False, out=out, options=given)

    return start


def with_options(**options: Any) -> object:
    return find_preset("gpt", "cpu").with_options(options)


def prompted(**options: Any) -> Callable[[Path], object]:
    """What `llm-course generate` calls, on a model that fits its tokenizer."""

    def start(tmp: Path) -> None:
        saved_with_tokenizer(tmp / "m")
        defaults = {"device": "cpu", "samples": 1, "temperature": 0.0, "max_new_tokens": 2}
        generate_command(**{"model": str(tmp / "m"), **defaults, **options})

    return start


def saved_with_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.train(["abcdefg"], kind="char", vocab_size=11)
    assert len(tokenizer) == CONFIG.vocab_size
    gpt().save_pretrained(folder)
    tokenizer.save(folder)


def broken_model(name: str, content: bytes | None) -> Callable[[Path], object]:
    """Load a model of whose files one is damaged or gone."""

    def load(tmp: Path) -> object:
        saved_with_tokenizer(tmp / "m")
        if content is None:
            (tmp / "m" / name).unlink()
        else:
            (tmp / "m" / name).write_bytes(content)
        return load_for_generation(tmp / "m")

    return load


def broken_checkpoint(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def resume(tmp: Path) -> None:
        run(tmp)
        (path,) = (tmp / "run" / "checkpoints").rglob(name)
        path.write_bytes(change(path.read_bytes()))
        run(tmp, resume=True)

    return resume


def other_data(tmp: Path) -> None:
    run(tmp)
    config = TrainConfig(max_steps=2, warmup_steps=1, device="cpu", precision="fp32")
    list(train(gpt(), batches(7), causal_loss_fn, config, out=tmp / "run", resume=True))


def other_model(tmp: Path) -> None:
    run(tmp)
    model = GPT(dataclasses.replace(CONFIG, n_heads=4))
    config = TrainConfig(max_steps=2, warmup_steps=1, device="cpu", precision="fp32")
    list(train(model, batches(), causal_loss_fn, config, out=tmp / "run", resume=True))


def run_again(tmp: Path) -> None:
    run(tmp)
    run(tmp)


def count_zero(tmp: Path) -> None:
    class Uncounted:
        def __iter__(self) -> Any:
            row = torch.ones(1, 4, dtype=torch.int64)
            while True:
                yield {"input_ids": row, "labels": torch.full_like(row, -100)}

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    config = TrainConfig(max_steps=1, warmup_steps=1, device="cpu", precision="fp32")
    next(train(gpt(), Uncounted(), causal_loss_fn, config))


CASES: list[tuple[str, Callable[[Path], object], type[Exception], str]] = [
    # settings
    ("width and heads", lambda t: GPTConfig(d_model=10, n_heads=3), ConfigError, "n_heads = 3.*10"),
    ("no layers", lambda t: GPTConfig(n_layers=0), ConfigError, "n_layers.*at least 1.*0"),
    ("half a layer", lambda t: GPTConfig(n_layers=1.5), ConfigError, "whole number.*1.5"),
    ("dropout of 2", lambda t: GPTConfig(dropout=2.0), ConfigError, "dropout.*at most 1.*2"),
    ("unknown activation", lambda t: GPTConfig(activation="swish"), ConfigError, "relu.*swish"),
    ("eos outside", lambda t: GPTConfig(vocab_size=5, eos_token_id=5), ConfigError, "0 to 4.*5"),
    ("buckets", lambda t: T5Config(max_distance=16), ConfigError, "exceed.*16.*got 16"),
    (
        "bos outside",
        lambda t: TransformerConfig(vocab_size=3, bos_token_id=9),
        ConfigError,
        "0 to 2.*9",
    ),
    ("unknown key", lambda t: GPTConfig.from_dict({"n_layer": 3}), ConfigError, "mean 'n_layers'"),
    ("lr of 0", lambda t: TrainConfig(lr=0.0), ConfigError, "lr.*got 0"),
    ("long warm-up", lambda t: TrainConfig(max_steps=5), ConfigError, "max_steps = 5.*100"),
    ("accumulation of 0", lambda t: TrainConfig(accumulation=0), ConfigError, "accumulation.*0"),
    ("unknown schedule", lambda t: TrainConfig(schedule="step"), ConfigError, "cosine.*step"),
    ("unknown optimizer", lambda t: TrainConfig(optimizer="sgd"), ConfigError, "adamw, muon.*sgd"),
    ("files without names", lambda t: DataConfig(data="files"), ConfigError, "data_files"),
    ("batch of 0", lambda t: DataConfig(batch_size=0), ConfigError, "batch_size.*0"),
    ("seed too large", lambda t: TrainConfig(seed=2**40), ConfigError, "4294967295.*1099511627776"),
    ("negative seed", lambda t: DataConfig(seed=-1), ConfigError, "seed.*at least 0.*-1"),
    ("lr of NaN", lambda t: TrainConfig(lr=float("nan")), ConfigError, "lr.*1000.*nan"),
    (
        "patience without evaluations",
        lambda t: TrainConfig(patience=3),
        ConfigError,
        "patience = 3.*eval_every.*0",
    ),
    ("unknown option", lambda t: with_options(n_layer=3), ConfigError, "n_layer"),
    ("unknown preset", lambda t: find_preset("gpt", "h100"), ConfigError, "cpu, t4, h200.*h100"),
    (
        "file and hub",
        lambda t: with_options(data_files=("a",), dataset="b"),
        ConfigError,
        "not both",
    ),
    # a run from the command line: refused before its data are made
    ("no such device", pretrain(device="gpu"), ConfigError, "auto, cpu, cuda.*'gpu'"),
    ("no such GPU", pretrain(device="cuda:99"), ConfigError, "cuda:99.*torch sees \\d+"),
    ("out is a file", pretrain(out="a_file"), ConfigError, "out must be a directory.*a_file"),
    ("out under a file", pretrain(out="a_file/run"), ConfigError, "out.*a_file is a file"),
    ("Town and files", pretrain(data="town", data_files=("mine.txt",)), ConfigError, "'town'.*1"),
    ("files but none", pretrain(data="files"), ConfigError, "data_files.*0 files"),
    ("hub but no name", pretrain(data="hub"), ConfigError, "dataset.*'hub'.*None"),
    (
        "a file twice",
        pretrain(data_files=("mine.txt", "mine.txt")),
        ConfigError,
        "data_files must differ.*mine.txt",
    ),
    (
        "text and table",
        pretrain(data_files=("mine.txt", "rows.csv")),
        DataError,
        r"all text or all tables.*\.csv.*\.txt",
    ),
    (
        "documents without bos",
        pretrain(data_files=("rows.csv",), tokenizer="wordpiece"),
        ConfigError,
        "bpe, word or char.*'wordpiece'",
    ),
    ("vocabulary below the bytes", pretrain(vocab_size=100), ConfigError, "at least 259.*100"),
    (
        "corpus shorter than a block",
        pretrain(data_files=("mine.txt",), tokenizer="char", context=5000),
        DataError,
        "context = 5000 tokens, the text has 936",
    ),
    (
        "corpus smaller than a batch",
        pretrain(data_files=("rows.csv",), vocab_size=300, batch_size=99),
        DataError,
        "= 99 rows.*the data make",
    ),
    (
        "a story longer than the context",
        pretrain(documents=20, vocab_size=300, context=4),
        ConfigError,
        "context must hold a whole story.*at least.*4",
    ),
    # ids, masks, labels
    ("id too large", lambda t: gpt()(ids(1, 11)), ValueError, "0 to 10.*11.*position 1"),
    ("negative id", lambda t: gpt()(ids(-1, 1)), ValueError, "0 to 10.*-1"),
    ("float ids", lambda t: gpt()(torch.ones(1, 2)), TypeError, "float32"),
    ("too long", lambda t: gpt()(torch.ones(1, 17, dtype=torch.int64)), ValueError, "16.*17"),
    (
        "no positions",
        lambda t: gpt()(torch.ones(1, 0, dtype=torch.int64)),
        ValueError,
        "at least one",
    ),
    (
        "mask shape",
        lambda t: gpt()(ids(1, 2), attention_mask=ids(1, 1, 1)),
        ValueError,
        r"\(1, 3\)",
    ),
    ("mask of 2", lambda t: gpt()(ids(1, 2), attention_mask=ids(1, 2)), ValueError, "0 and 1.*2"),
    (
        "labels shape",
        lambda t: causal_lm_loss(torch.ones(1, 3, 4), ids(1, 2)),
        ValueError,
        r"\[1, 2\]",
    ),
    ("nothing counted", count_zero, DataError, "no counted label in update 1"),
    # generation
    ("negative temperature", gen(temperature=-1.0), ValueError, "temperature.*-1"),
    ("top_p of 0", gen(temperature=1.0, top_p=0.0), ValueError, "top_p.*0"),
    ("top_p of 2", gen(temperature=1.0, top_p=2.0), ValueError, "top_p.*2"),
    ("top_k of 0", gen(temperature=1.0, top_k=0), ValueError, "top_k.*0"),
    ("top_k above V", gen(temperature=1.0, top_k=12), ValueError, "top_k.*11.*12"),
    ("no beams", gen(num_beams=0), ValueError, "num_beams.*0"),
    ("sampled beams", gen(num_beams=2, temperature=1.0), ValueError, "num_beams|temperature"),
    ("no new tokens", gen(max_new_tokens=0), ValueError, "max_new_tokens.*0"),
    ("beyond the context", gen(max_new_tokens=15), ValueError, "17.*n_positions = 16"),
    ("stop token outside", gen(eos_token_id=11), ValueError, "at most 10.*11"),
    (
        "no samples",
        lambda t: sample_texts(
            gpt(), Tokenizer.train(["ab"], kind="char", vocab_size=9), samples=0
        ),
        ConfigError,
        "at least 1.*0",
    ),
    (
        "prompt too long",
        prompted(prompt="abcdefg" * 3),
        ValueError,
        "prompt of 22.*n_positions = 16",
    ),
    ("unknown device", prompted(device="gpu"), ConfigError, "auto, cpu, cuda.*'gpu'"),
    ("equal samples", prompted(samples=3), ConfigError, "samples = 3.*temperature 0"),
    ("seed of 1e20", prompted(seed=10**20), ConfigError, "0 to 4294967295.*1000000"),
    ("temperature of NaN", prompted(temperature=float("nan")), ValueError, "temperature.*nan"),
    # text
    ("missing file", lambda t: read_documents([t / "no.txt"]), DataError, "no.txt"),
    ("empty file", reading("e.txt", b""), DataError, "e.txt.*empty|empty.*e.txt"),
    ("blank file", reading("b.txt", b"  \n \n"), DataError, "b.txt"),
    (
        "not UTF-8",
        reading("u.txt", b"fine\nab\xff"),
        DataError,
        "u.txt: line 2, byte 3: 0xff is not utf-8",
    ),
    (
        "not UTF-8 in a csv",
        reading("u.csv", b"text\nab\n\xe9t\xe9\n"),
        DataError,
        "u.csv: line 3, byte 1: 0xe9",
    ),
    ("UTF-16", reading("w.txt", "ab".encode("utf-16")), DataError, "w.txt: line 1, byte 1: UTF-16"),
    ("NUL", reading("n.txt", b"fine\na\x00b"), DataError, "n.txt: line 2, byte 2: NUL"),
    ("unknown ending", reading("a.pdf", b"x"), DataError, r"a.pdf.*\.txt"),
    ("a folder", lambda t: read_documents([t]), DataError, "a folder; name the files"),
    ("column of a text", reading("t.txt", b"x", column="text"), DataError, "='text' is for tables"),
    ("a column twice", reading("d.csv", b"text,text\na,b\n"), DataError, "d.csv: line 1.*'text'"),
    (
        "which column",
        reading("q.csv", b"a,b\n1,2\n"),
        DataError,
        "q.csv: line 2: name the column.*'a', 'b'",
    ),
    (
        "a number for a text",
        reading("l.json", b'[{"text": "a"}, {"text": 3}]'),
        DataError,
        r"l.json: item 2: column 'text' holds 3 \(int\), expected text",
    ),
    ("json without objects", reading("o.jsonl", b"[1]\n"), DataError, "o.jsonl: line 1.*list"),
    (
        "ragged csv",
        reading("r.csv", b"text,label\na,1\nb\n"),
        DataError,
        "r.csv: line 3: 1 fields.*2",
    ),
    (
        "no such column",
        reading("c.csv", b"text,label\na,1\n", column="body"),
        DataError,
        "body.*text",
    ),
    (
        "bad json line",
        reading("j.jsonl", b'{"text": "a"}\n{"text": \n'),
        DataError,
        "j.jsonl: line 2, column 9",
    ),
    (
        "short corpus",
        lambda t: Blocks(torch.arange(5), 8),
        DataError,
        "context = 8 tokens, the text has 5",
    ),
    (
        "ids beyond the vocabulary",
        lambda t: check_ids(torch.arange(50), vocab_size=40),
        DataError,
        "0 to 39.*40 at position 40",
    ),
    (
        "document too long",
        lambda t: PackedDocuments([[1, *range(20), 2]], 8),
        DataError,
        "1 of 1 documents.*context = 8.*22",
    ),
    (
        "no documents",
        lambda t: PackedDocuments([], 8),
        DataError,
        "at least one document, got none",
    ),
    (
        "surrogate",
        lambda t: Tokenizer.train(["a"], kind="bpe", vocab_size=300).encode("\ud800"),
        DataError,
        "surrogate",
    ),
    (
        "no text to train on",
        lambda t: Tokenizer.train([], kind="bpe", vocab_size=300),
        DataError,
        "texts must hold at least one character, got none",
    ),
    (
        "small vocabulary",
        lambda t: Tokenizer.train(["a"], kind="bpe", vocab_size=10),
        ConfigError,
        "at least 259.*10",
    ),
    (
        "unknown kind",
        lambda t: Tokenizer.train(["a"], kind="bytes", vocab_size=300),
        ConfigError,
        "bytes",
    ),
    # weights and checkpoints
    (
        "missing tensors",
        damaged(lambda w: w.pop(next(n for n in w if "ln_f.bias" in n))),
        WeightsError,
        "ln_f.bias",
    ),
    ("extra tensors", damaged(lambda w: w.update(stray=torch.ones(1))), WeightsError, "stray"),
    ("misshapen tensor", damaged(misshape), WeightsError, r"ln_f.weight.*9"),
    ("another model type", with_config(model_type="llama"), (ConfigError, WeightsError), "llama"),
    (
        "unsupported option",
        with_config(scale_attn_by_inverse_layer_idx=True),
        (ConfigError, WeightsError),
        "scale_attn_by_inverse",
    ),
    ("only a pickle", no_weights, WeightsError, "only pickled weights"),
    ("path out of the folder", escaping_index, WeightsError, r"\.\./secret"),
    (
        "tokenizer of another size",
        wrong_tokenizer,
        ConfigError,
        "tokenizer has 21 tokens, the model's vocab_size is 11",
    ),
    ("no tokenizer", broken_model("tokenizer.json", None), DataError, "no tokenizer.json"),
    ("a broken tokenizer", broken_model("tokenizer.json", b"{}"), DataError, "tokenizer.json: not"),
    ("no model", lambda t: load_for_generation(t), DataError, "holds no model"),
    (
        "config that is not JSON",
        broken_model("config.json", b"{"),
        ConfigError,
        "config.json is not JSON",
    ),
    (
        "config that is a list",
        broken_model("config.json", b"[]"),
        ConfigError,
        "JSON object, got list",
    ),
    (
        "weights that are no weights",
        broken_model("model.safetensors", b"hello"),
        WeightsError,
        "model.safetensors cannot be read",
    ),
    (
        "corrupt checkpoint",
        corrupt_checkpoint,
        CheckpointError,
        r"step-00000002 is damaged: SHA256SUMS does not agree with shard-.*safetensors",
    ),
    (
        "checkpoint cut short",
        broken_checkpoint("shard-*.safetensors", lambda data: data[:-7]),
        CheckpointError,
        r"step-00000002 is damaged: SHA256SUMS does not agree with shard-.*safetensors",
    ),
    (
        "state that was edited",
        broken_checkpoint("state.json", lambda data: data.replace(b'"step": 2', b'"step": 3')),
        CheckpointError,
        "step-00000002 is damaged: SHA256SUMS does not agree with state.json",
    ),
    (
        "list of hashes that was edited",
        broken_checkpoint("SHA256SUMS", lambda data: data + b"\n"),
        CheckpointError,
        "step-00000002 is damaged: SHA256SUMS was changed",
    ),
    (
        "resume with another lr",
        other_config,
        CheckpointError,
        "training.lr was 0.001 and is 0.5",
    ),
    ("resume with other data", other_data, CheckpointError, "data was '?[0-9a-f]+… and is"),
    ("resume with another model", other_model, CheckpointError, "model.n_heads was 2 and is 4"),
    ("a run over another", run_again, ConfigError, r"already holds a run .step-00000002.*--resume"),
    ("two runs in one directory", two_runs, RunInUseError, r"run is in use by process \d+"),
]


# Cases that begin with a run which is good: its updates, each of one block.
UPDATES_BEFORE = {
    "nothing counted": 1,  # the counts are known after the forward pass; no weight has moved
    "corrupt checkpoint": 2,
    "checkpoint cut short": 2,
    "state that was edited": 2,
    "list of hashes that was edited": 2,
    "resume with another lr": 2,
    "resume with other data": 2,
    "resume with another model": 2,
    "a run over another": 2,
    "two runs in one directory": 1,
}


@pytest.mark.parametrize(("name", "action", "error", "message"), CASES, ids=[c[0] for c in CASES])
def test_bad_input_is_refused_by_name_before_any_compute(
    name: str,
    action: Callable[[Path], object],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed, forward = [], GPTBlock.forward

    def counting(self: GPTBlock, *args: Any, **kwargs: Any) -> torch.Tensor:
        computed.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GPTBlock, "forward", counting)
    with pytest.raises(error, match=f"(?s){message}"):
        action(tmp_path)
    assert len(computed) == UPDATES_BEFORE.get(name, 0)


def test_the_table_is_long() -> None:
    assert len(CASES) >= 100
    assert len({case[0] for case in CASES}) == len(CASES)
    assert all(len(message) > 3 for *_, message in CASES)


SETTINGS: list[tuple[type, dict[str, Any]]] = [
    *((kind, {}) for kind in (TransformerConfig, BERTConfig, BERTLabelConfig, GPTConfig)),
    *((kind, {}) for kind in (T5Config, TrainConfig, DataConfig, PairConfig)),
    *((kind, {}) for kind in (BERTDataConfig, FineTuneConfig)),
    (TaskSettings, {"task": "qa", "context": 32}),
]


def numbers_of(kind: type, needed: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """The fields of some settings that hold a number, and whether it is a whole one."""
    hints, made = typing.get_type_hints(kind), kind(**needed)
    for field in dataclasses.fields(kind):
        if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
            yield field.name, not isinstance(getattr(made, field.name), float)


@pytest.mark.parametrize(("kind", "needed"), SETTINGS, ids=[kind.__name__ for kind, _ in SETTINGS])
def test_no_setting_takes_infinity_or_what_is_no_number(kind: type, needed: dict[str, Any]) -> None:
    fields = dict(numbers_of(kind, needed))
    assert len(fields) >= 3
    for name, whole in fields.items():
        wrong: list[Any] = [math.inf, -math.inf, math.nan, "1", *([1.5] if whole else [True])]
        for value in wrong:
            with pytest.raises(ConfigError, match=rf"^{name} must .*{value}"):
                kind(**{**needed, name: value})


def test_every_kind_of_settings_is_in_the_table_above() -> None:
    public = (kind for name, kind in vars(configs).items() if not name.startswith("_"))
    made = {kind for kind in public if dataclasses.is_dataclass(kind)}
    assert len(made) > 8
    assert made <= {kind for kind, _ in SETTINGS}
    assert {"lr", "min_lr", "clip_norm", "weight_decay"} <= dict(numbers_of(TrainConfig, {})).keys()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.5, -0.1])
@pytest.mark.parametrize("name", ["chosen", "masked", "replaced"])
def test_shares_of_masking_are_refused_when_they_are_set(name: str, value: float) -> None:
    ids = {"cls_id": 1, "sep_id": 2, "mask_id": 3, "pad_id": 0, "vocab_size": 9}
    with pytest.raises(ConfigError, match=f"{name} must be from 0 to 1, got {value}"):
        Masking(**ids, **{name: value})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


@pytest.mark.parametrize(
    "refused",
    [
        lambda tmp: run(tmp),
        lambda tmp: run(tmp, resume=True, lr=0.5),
        lambda tmp: run(tmp, resume=True, weight_decay=0.2),
        lambda tmp: pretrain()(tmp),
        lambda tmp: pretrain(resume=True, documents=20, vocab_size=300)(tmp),
    ],
    ids=["again", "another lr", "another decay", "command", "command, resumed"],
)
def test_a_refused_run_leaves_an_earlier_one_as_it_was(
    refused: Callable[[Path], object], tmp_path: Path
) -> None:
    run(tmp_path)
    before = contents(tmp_path / "run")
    with pytest.raises((ConfigError, CheckpointError)):
        refused(tmp_path)
    assert contents(tmp_path / "run") == before


def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written("u.txt", b"fine\n\xff")(tmp_path)
    out = tmp_path / "run"
    assert main(["pretrain", "gpt", "--data-files", path, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "u.txt" in error
    assert "DataError" in error
    assert not (out / "checkpoints").exists()  # refused before the run directory is made
