"""Read what a recorded run has measured, and the checkpoint that it has kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from llm_course.errors import DataError

RESULTS = Path(__file__).parents[1] / "results"  # of a clone


def installed_commit() -> str:
    """The commit that pip installed; where it knows none, as from a wheel, today's `main`."""
    for found in distributions(name="llm_course"):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if commit := origin.get("vcs_info", {}).get("commit_id"):
            return str(commit)
    return "main"


# Where a notebook in Colab finds them: there the package is installed without its repository.
ADDRESS = f"https://raw.githubusercontent.com/llm-course/llm_course/{installed_commit()}/results"


def load_result(name: str) -> dict[str, Any]:
    """The stored result of a recorded run, from the clone or, where there is none, from its host.

    Raises `DataError` for a name that is no name of a run, and when the result is nowhere.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise DataError(f"name must be letters, digits and _, got {name!r}")
    try:
        if RESULTS.is_dir():
            text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
        else:
            with urllib.request.urlopen(f"{ADDRESS}/{name}.json", timeout=30) as answer:
                text = answer.read().decode("utf-8")
    except OSError as error:
        raise DataError(
            f"no stored result {name!r}: {error}; make it by `llm-course record --name {name}`"
        ) from error
    result: dict[str, Any] = json.loads(text)
    return result


def load_checkpoint(name: str) -> Path:
    """The directory of a recorded run's checkpoint, for `from_pretrained` and `Tokenizer.load`.

    The weights lie there in float16: to train on, read them with `dtype=torch.float32`.
    It is the clone's own or, where there is no clone, a copy in the user's cache, fetched once from
    the host of the results. Every file is compared with the SHA-256 in the run's result, whenever
    it is asked for.

    Raises `DataError` for a run without a checkpoint, a file that is missing or is another one, and
    when there is neither a clone nor a network.
    """
    hashes = load_result(name).get("checkpoint")
    if hashes is None:
        raise DataError(f"the recorded run {name!r} has kept no checkpoint")
    for file in hashes:
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z]+)+", file):
            raise DataError(f"a checkpoint has plain file names, got {file!r} in that of {name!r}")
    kept, what_to_do = RESULTS / name, f"make it by `llm-course record --name {name}`"
    if not RESULTS.is_dir():
        # Of another version there are other files: each set has its own place.
        version = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:12]
        kept = cache_directory() / f"{name}-{version}"
        what_to_do = f"delete {kept} and try again"
        _fetch(name, hashes, kept)
    _verify(kept, hashes, what_to_do)
    return kept


def cache_directory() -> Path:
    """Where fetched checkpoints lie: `$XDG_CACHE_HOME`, else `~/.cache`, and there `llm_course`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_course"


def _fetch(name: str, hashes: dict[str, str], kept: Path) -> None:
    """Fetch what is not there yet; a file comes whole and with its SHA-256, or not at all."""
    from torch.hub import download_url_to_file

    for file, expected in hashes.items():
        try:
            kept.mkdir(parents=True, exist_ok=True)
            if not (kept / file).exists():
                address = f"{ADDRESS}/{name}/{file}"
                download_url_to_file(address, str(kept / file), expected, progress=False)
        except (OSError, RuntimeError) as error:  # no network or disk; another file
            raise DataError(
                f"{file} of the checkpoint {name!r} could not be fetched from {ADDRESS}: {error}; "
                f"try again, or make it by `llm-course record --name {name}` in a clone"
            ) from error


def _verify(directory: Path, hashes: dict[str, str], what_to_do: str) -> None:
    for file, expected in hashes.items():
        try:
            content = (directory / file).read_bytes()
        except OSError as error:
            raise DataError(
                f"{file} of the checkpoint {directory} cannot be read: {error}; {what_to_do}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise DataError(
                f"{file} of the checkpoint {directory} is not the file of the recorded run "
                f"(SHA-256 {found[:12]}..., expected {expected[:12]}...); {what_to_do}"
            )
