"""Bad input: every case is refused before any compute, by a message with the value and the range.

Each row is (what is done, the error, what its message must name). The number of rows is the figure
that the changelog quotes; `test_the_table_is_long` keeps it honest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_course import GPT, GPTConfig, T5Config, Tokenizer, TrainConfig, generate, train
from llm_course.cli import main
from llm_course.configs import DataConfig, TransformerConfig
from llm_course.corpus.sources import read_documents
from llm_course.errors import CheckpointError, ConfigError, DataError, RunInUseError, WeightsError
from llm_course.objectives.batching import BlockBatches, DocumentBatches
from llm_course.objectives.causal import causal_lm_loss, causal_loss_fn
from llm_course.runs.pretrain import settings
from llm_course.runs.sample import load_for_generation, sample_texts

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


def batches(vocab: int = 11) -> BlockBatches:
    return BlockBatches(torch.arange(200) % vocab, 8, 2, seed=0)


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
    ("bos outside", lambda t: TransformerConfig(vocab_size=3, bos_token_id=9), ConfigError, "9"),
    ("unknown key", lambda t: GPTConfig.from_dict({"n_layer": 3}), ConfigError, "mean 'n_layers'"),
    ("lr of 0", lambda t: TrainConfig(lr=0.0), ConfigError, "lr.*got 0"),
    ("long warm-up", lambda t: TrainConfig(max_steps=5), ConfigError, "max_steps = 5.*100"),
    ("accumulation of 0", lambda t: TrainConfig(accumulation=0), ConfigError, "accumulation.*0"),
    ("unknown schedule", lambda t: TrainConfig(schedule="step"), ConfigError, "cosine.*step"),
    ("files without names", lambda t: DataConfig(data="files"), ConfigError, "data_files"),
    ("batch of 0", lambda t: DataConfig(batch_size=0), ConfigError, "batch_size.*0"),
    ("unknown preset", lambda t: settings("h100", {}), ConfigError, "cpu, t4, h200.*h100"),
    (
        "file and hub",
        lambda t: settings("cpu", {"data_files": ("a",), "dataset": "b"}),
        ConfigError,
        "not both",
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
    ("nothing counted", count_zero, Exception, "count"),
    # generation
    ("negative temperature", gen(temperature=-1.0), ValueError, "temperature.*-1"),
    ("top_p of 0", gen(temperature=1.0, top_p=0.0), ValueError, "top_p.*0"),
    ("top_p of 2", gen(temperature=1.0, top_p=2.0), ValueError, "top_p.*2"),
    ("top_k of 0", gen(temperature=1.0, top_k=0), ValueError, "top_k.*0"),
    ("top_k above V", gen(temperature=1.0, top_k=12), ValueError, "top_k.*11.*12"),
    ("no beams", gen(num_beams=0), ValueError, "num_beams.*0"),
    ("sampled beams", gen(num_beams=2, temperature=1.0), ValueError, "num_beams|temperature"),
    ("no new tokens", gen(max_new_tokens=0), ValueError, "max_new_tokens.*0"),
    ("beyond the context", gen(max_new_tokens=15), ValueError, "16"),
    ("eos outside", gen(eos_token_id=11), ValueError, "11"),
    (
        "no samples",
        lambda t: sample_texts(
            gpt(), Tokenizer.train(["ab"], kind="char", vocab_size=9), samples=0
        ),
        ConfigError,
        "at least 1.*0",
    ),
    # text
    ("missing file", lambda t: read_documents([t / "no.txt"]), DataError, "no.txt"),
    ("empty file", reading("e.txt", b""), DataError, "e.txt.*empty|empty.*e.txt"),
    ("blank file", reading("b.txt", b"  \n \n"), DataError, "b.txt"),
    ("not UTF-8", reading("u.txt", b"fine\nab\xff"), DataError, r"u.txt.*2.*"),
    ("NUL", reading("n.txt", b"fine\na\x00b"), DataError, "n.txt.*2"),
    ("ragged csv", reading("r.csv", b"text,label\na,1\nb\n"), DataError, "r.csv.*3"),
    (
        "no such column",
        reading("c.csv", b"text,label\na,1\n", column="body"),
        DataError,
        "body.*text",
    ),
    ("bad json line", reading("j.jsonl", b'{"text": "a"}\n{"text": \n'), DataError, "j.jsonl.*2"),
    ("short corpus", lambda t: BlockBatches(torch.arange(5), 8, 2, seed=0), DataError, "5"),
    (
        "no documents",
        lambda t: DocumentBatches([], 8, 2, seed=0, pad_id=0),
        DataError,
        "empty|no doc|at least",
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
        "",
    ),
    (
        "small vocabulary",
        lambda t: Tokenizer.train(["a"], kind="bpe", vocab_size=10),
        ConfigError,
        "10",
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
    ("path out of the folder", escaping_index, Exception, r"\.\."),
    ("tokenizer of another size", wrong_tokenizer, Exception, "11"),
    ("corrupt checkpoint", corrupt_checkpoint, CheckpointError, "SHA-256|sha256|hash|damaged"),
    ("resume with another lr", other_config, (CheckpointError, ConfigError), "lr"),
    ("two runs in one directory", two_runs, RunInUseError, "run"),
]


@pytest.mark.parametrize(
    ("action", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_refused_by_name(
    action: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        action(tmp_path)


def test_the_table_is_long() -> None:
    assert len(CASES) >= 40
    assert len({case[0] for case in CASES}) >= len(CASES) - 1


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
