"""Write requirements.lock from pyproject.toml: `make lock` (needs the network and uv).

The lock has one section for each extra, `book`, `dev`, `teach` and `browser`; a section holds what
the one before it does not. Every package carries its hashes, except torch: each platform has its
own build of that version, and pip brings the CUDA packages that such a build asks for.

`python tools/lock.py --section book` prints a section and those before it, without torch, for
`pip install --require-hashes`; `--torch` prints the torch requirement.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TORCH = "torch==2.13.0"
BROUGHT_BY_TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")


def compile_pins(requirements: str, *arguments: str) -> dict[str, str]:
    """The pin with its marker -> its block of lines (hashes included)."""
    command = ["uv", "pip", "compile", *arguments, "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    text = subprocess.run(
        command, input=requirements, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {b.splitlines()[0]: b for b in blocks if not BROUGHT_BY_TORCH.match(b)}


def package(pin: str) -> str:
    return re.split(r"[=;\s]", pin, maxsplit=1)[0]


def book_requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]["book"]


def write_lock() -> None:
    done: set[str] = set()
    parts = [
        "# Written by `make lock`; edit pyproject.toml instead.",
        f"# torch has no hash: every platform has its own build of it.\n{TORCH}",
    ]

    def extra(name: str) -> dict[str, str]:
        return compile_pins(TORCH, "pyproject.toml", "--extra", name, "--constraints", "-")

    everything = extra("browser")
    names = {
        "book": {package(pin) for pin in compile_pins("\n".join(book_requirements()), "-")},
        "dev": {package(pin) for pin in extra("dev")},
        "teach": {package(pin) for pin in extra("teach")},
        "browser": {package(pin) for pin in everything},
    }
    for name, packages in names.items():
        pins = sorted(pin for pin in everything if package(pin) in packages - done)
        done |= packages
        parts.append(f"# == {name} ==\n" + "\n".join(everything[pin] for pin in pins))
    LOCK.write_text("\n".join(parts) + "\n", encoding="utf-8")


def section(name: str) -> str:
    """The pins of a section and of those before it, without torch."""
    before, *chunks = re.split(r"^# == (\w+) ==\n", LOCK.read_text(encoding="utf-8"), flags=re.M)
    del before
    found = dict(zip(chunks[::2], chunks[1::2], strict=True))
    if name not in found:
        raise SystemExit(f"unknown section {name!r}: expected one of {', '.join(found)}")
    names = list(found)
    return "\n".join(found[n] for n in names[: names.index(name) + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description="write or read requirements.lock")
    parser.add_argument("--section", help="print the pins of book, dev, teach or browser")
    parser.add_argument("--torch", action="store_true", help="print the torch requirement")
    arguments = parser.parse_args()
    if arguments.torch:
        print(re.search(r"^torch==\S+", LOCK.read_text(encoding="utf-8"), flags=re.M)[0])  # type: ignore[index]
    elif arguments.section:
        sys.stdout.write(section(arguments.section))
    else:
        write_lock()


if __name__ == "__main__":
    main()
