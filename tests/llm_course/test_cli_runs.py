"""Whole runs by the command line, as processes: killed, on two ranks, and with packages absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_course.cli import main

pytestmark = pytest.mark.slow

TINY = ["--n-layers", "1", "--d-model", "16", "--n-heads", "2", "--batch-size", "4"]
TINY += ["--context", "16", "--tokenizer", "char", "--device", "cpu", "--precision", "fp32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def command(text: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "gpt", "--data-files", str(text), "--out", str(out), *TINY, *more]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(400)))
    return path


# ---- killed -------------------------------------------------------------------------------------


def signalled(words: list[str], log: Path, steps: int, number: int) -> tuple[int, str]:
    """Start a command, signal it once its log has this many steps; exit status and stderr."""
    program = [sys.executable, "-m", "llm_course", *words]
    child = subprocess.Popen(program, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") >= steps:
            child.send_signal(number)
            break
        time.sleep(0.005)
    _, said = child.communicate(timeout=60)
    return child.returncode, said


def losses_of(out: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def test_a_command_killed_and_resumed_ends_as_an_unbroken_one(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("--max-steps", "1500", "--save-every", "100", "--dropout", "0.1", "--resume")
    words, log = command(text, broken, *more), broken / "metrics.jsonl"
    status, _ = signalled(words, log, 150, signal.SIGKILL)
    assert status == -signal.SIGKILL
    seen = log.read_bytes().count(b"\n")
    status, said = signalled(words, log, seen + 100, signal.SIGTERM)
    assert status == 143
    assert "--resume goes on from there" in said
    seen = log.read_bytes().count(b"\n")
    status, said = signalled(words, log, seen + 100, signal.SIGINT)
    assert status == 130
    assert "Traceback" not in said
    assert main(words) == 0
    assert main(command(text, whole, *more)) == 0
    for name in ("model/model.safetensors", "model/tokenizer.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    losses = losses_of(whole)
    assert losses_of(broken) == losses
    assert len(losses) == 1500

    # Resumed once more there is nothing to do, and nothing is lost.
    summary = (broken / "summary.json").read_bytes()
    capsys.readouterr()
    assert main(words) == 0
    assert (broken / "summary.json").read_bytes() == summary
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(summary)
    assert "nothing is left to train" in captured.err


# ---- two processes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("parallel", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_torchrun_trains_what_one_process_trains(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], parallel: str, optimizer: str
) -> None:
    steps = ("--max-steps", "20", "--warmup-steps", "2", "--optimizer", optimizer)
    assert main(command(text, tmp_path / "one", *steps, "--accumulation", "2")) == 0
    one = json.loads(capsys.readouterr().out)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", "2", "-m", "llm_course"]
    words = command(text, tmp_path / "two", *steps, "--parallel", parallel)
    done = subprocess.run(
        [*start, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)  # one process speaks: else this would be two objects
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
    assert two["parameters"] == one["parameters"]
    assert done.stderr.count("model: GPT") == 1


# ---- absent packages ----------------------------------------------------------------------------

BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from llm_course.cli import main
status = main(sys.argv[2:])
loaded = set(sys.argv[1].split(",")) & set(sys.modules)
assert not loaded, loaded
sys.exit(status)
"""


def without(packages: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command on a machine where these packages cannot be imported."""
    program = [sys.executable, "-c", BLOCKED, packages, *words]
    return subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_the_control_misses_what_is_blocked(tmp_path: Path) -> None:
    done = without("datasets", "pretrain", "gpt", "--dataset", "a/b", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "needs the datasets library (pip install datasets)" in done.stderr
    assert "Traceback" not in done.stderr


def test_pretrain_and_generate_need_no_package_that_they_do_not_use(
    text: Path, tmp_path: Path
) -> None:
    words = command(text, tmp_path / "run", "--max-steps", "4", "--warmup-steps", "1")
    done = without("datasets,transformers,tensorboard", *words)
    assert done.returncode == 0, done.stderr
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "".join(f"row {n} of many\n" for n in range(90)))
    words = command(rows, tmp_path / "rows", "--max-steps", "4", "--warmup-steps", "1")
    done = without("datasets,transformers,tensorboard", *words)
    assert done.returncode == 0, done.stderr
    words = ["generate", "--model", str(tmp_path / "run" / "model"), "--max-new-tokens", "5"]
    done = without("datasets,transformers,tensorboard", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gpt_town", "gpt_shakespeare", "gpt2_step"])
def test_record_needs_no_datasets(text: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tinyshakespeare.txt").write_bytes(text.read_bytes())
    words = ["record", "--name", name, "--tiny", "--data-dir", str(tmp_path / "data")]
    words += ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    done = without("datasets,tensorboard", *words)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == [f"{name}-tiny.json"]
    result = json.loads((tmp_path / "results" / f"{name}-tiny.json").read_text())
    assert result["name"] == name


@pytest.mark.parametrize(
    ("packages", "words", "message"),
    [
        ("tensorboard", ("--tensorboard",), "pip install tensorboard"),
        ("tqdm", (), "No module named 'tqdm'"),
    ],
)
def test_a_missing_package_is_one_line(
    text: Path, tmp_path: Path, packages: str, words: tuple[str, ...], message: str
) -> None:
    steps = ("--max-steps", "4", "--warmup-steps", "1")
    done = without(packages, *command(text, tmp_path / "run", *steps, *words))
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
