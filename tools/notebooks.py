"""Execute notebooks/NN_topic.py and write NN_topic.ipynb beside each: `make notebooks`.

    python tools/notebooks.py                 those whose source changed
    python tools/notebooks.py 12 13           these
    python tools/notebooks.py --all           all, after a change of the package
    python tools/notebooks.py --text          execute nothing; take over what changed in the text
    python tools/notebooks.py --check         execute nothing; fail when a pair differs

Two words in the source keep the common parts in one place (tools/colab.py): the line `BADGE` in
the first cell becomes the badge, a cell that says `COLAB` becomes the cell that installs on Colab.
Lines `#| key: value` at the head of a code cell become metadata and leave the source: `alt`,
`caption` and `name` of a figure. A line `#|` without a key continues the one before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import colab
import hygiene
import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
TIMEOUT = 180  # seconds a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
# One thread and no progress bars, as when the stored outputs are validated.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
FIGURE_OPTIONS = ("alt", "caption", "name")
Notebook = Any  # nbformat.NotebookNode


def parse_options(source: str) -> tuple[dict[str, str], str]:
    """The `#| key: value` lines at the head of a code cell, and the source without them."""
    options: dict[str, str] = {}
    lines = source.split("\n")
    key = ""
    while lines and lines[0].startswith("#|"):
        text = lines.pop(0)[2:]
        if found := re.match(r"\s?(\w+):\s*(.*)$", text):
            key = found[1]
            if key not in FIGURE_OPTIONS:
                raise ValueError(f"#| {key}: is not one of {', '.join(FIGURE_OPTIONS)}")
            options[key] = found[2].strip()
        elif not key:
            raise ValueError(f"#|{text} continues nothing")
        else:
            options[key] += " " + text.strip()
    return options, "\n".join(lines).lstrip("\n")


def _set_figure(cell: Notebook, options: dict[str, str]) -> None:
    """Put the options where MyST-NB looks for them."""
    if not options:
        return
    if "alt" not in options:
        raise ValueError(f"a figure with {', '.join(options)} needs alt")
    cell.metadata["mystnb"] = {"image": {"alt": options["alt"]}}
    figure = {key: options[key] for key in ("caption", "name") if key in options}
    if figure:
        cell.metadata["mystnb"]["figure"] = figure


def _expand(cell: Notebook, stem: str) -> Notebook:
    """Put the badge for `BADGE`, and the Colab cell for a cell `COLAB`."""
    if cell.cell_type == "markdown" and cell.source.strip() == "COLAB":
        return nbformat.v4.new_code_cell(colab.cell(), metadata={"tags": list(colab.TAGS)})
    if cell.cell_type == "markdown":
        cell.source = re.sub(r"^BADGE$", lambda _: colab.badge(stem), cell.source, flags=re.M)
    return cell


def read_source(path: Path) -> Notebook:
    """The notebook of a py:percent file, without outputs; ids depend on place and source only."""
    parsed = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    for place, cell in enumerate(_expand(cell, path.stem) for cell in parsed.cells):
        for key in ("lines_to_next_cell", "lines_to_end_of_cell_marker"):  # jupytext's own notes
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            try:
                options, cell.source = parse_options(cell.source)
                _set_figure(cell, options)
            except ValueError as error:
                raise ValueError(f"{path.name}, cell {place}: {error}") from error
        cell["id"] = hashlib.sha256(f"{place}\n{cell.source}".encode()).hexdigest()[:12]
        notebook.cells.append(cell)
    return notebook


def comparable(notebook: Notebook) -> list[tuple[str, str, str, dict[str, Any]]]:
    return [(c.cell_type, c["id"], c.source, dict(c.metadata)) for c in notebook.cells]


def difference(source: Path) -> str | None:
    """Why the .ipynb beside a source is out of date; None when the pair agrees."""
    target = source.with_suffix(".ipynb")
    if not target.is_file():
        return f"{target.name} does not exist"
    wanted, stored = read_source(source), nbformat.read(target, as_version=4)
    if stored.metadata != wanted.metadata:
        return f"{target.name}: other notebook metadata"
    ours, theirs = comparable(wanted), comparable(stored)
    for number, (ours_cell, theirs_cell) in enumerate(zip(ours, theirs)):
        if ours_cell != theirs_cell:
            return f"{target.name}: cell {number} differs from {source.name}"
    if len(ours) != len(theirs):
        return f"{target.name}: {len(theirs)} cells, {source.name} has {len(ours)}"
    code = [c for c in stored.cells if c.cell_type == "code"]
    if code and all(c.execution_count is None for c in code):
        return f"{target.name}: has no outputs"
    return None


def clean(notebook: Notebook) -> Notebook:
    """Drop what differs from run to run, and give each picture its alt text."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in ("execution", "ExecuteTime", "jupyter", "collapsed"):
            cell.metadata.pop(key, None)
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
            if alt and "image/png" in output.get("data", {}):
                output["metadata"] = {"image/png": {"alt": alt}}
    return notebook


def execute(source: Path) -> Notebook:
    """Run all cells in a fresh kernel in the folder of the notebook."""
    notebook = read_source(source)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    )
    client.execute()
    return clean(notebook)


def update(source: Path) -> list[str]:
    """Execute a notebook, write its pair and return what is wrong with it."""
    started = time.perf_counter()
    try:
        notebook = execute(source)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return [f"{source.name}: a cell failed, nothing was written\n{error}"]
    source.with_suffix(".ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(f"{source.stem}: executed in {time.perf_counter() - started:.0f} s", flush=True)
    return [f"{source.stem}: {problem}" for problem in hygiene.problems(notebook, source.stem)]


def take_text(source: Path) -> list[str]:
    """Write the pair anew with the outputs it has; refused where a code cell has changed."""
    target = source.with_suffix(".ipynb")
    if not target.is_file():
        return [f"{target.name} does not exist: execute {source.name}"]
    notebook, stored = read_source(source), nbformat.read(target, as_version=4)
    ours, theirs = (
        [cell for cell in book.cells if cell.cell_type == "code"] for book in (notebook, stored)
    )
    if [(c.source, c.metadata) for c in ours] != [(c.source, c.metadata) for c in theirs]:
        return [f"{source.name}: a code cell has changed: execute it"]
    for cell, old in zip(ours, theirs):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(f"{source.stem}: text taken over", flush=True)
    return [f"{source.stem}: {problem}" for problem in hygiene.problems(notebook, source.stem)]


def choose(folder: Path, names: list[str], everything: bool) -> list[Path]:
    sources = sorted(folder.glob("*.py"))
    for name in names:
        if not any(path.stem.startswith(name) for path in sources):
            raise SystemExit(f"no notebook begins with {name!r} in {folder}")
    if names:
        return [path for path in sources if path.stem.startswith(tuple(names))]
    return sources if everything else [path for path in sources if difference(path)]


def main() -> int:
    parser = argparse.ArgumentParser(description="execute notebooks and store them with outputs")
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 12")
    parser.add_argument("--all", action="store_true", help="execute all notebooks")
    parser.add_argument("--text", action="store_true", help="take over changed text only")
    parser.add_argument("--check", action="store_true", help="only compare the pairs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the notebooks are")
    arguments = parser.parse_args()
    chosen = choose(arguments.folder, arguments.names, arguments.all or arguments.check)
    if arguments.check:
        faults = [fault for path in chosen if (fault := difference(path))]
    else:
        os.environ.update(ENVIRONMENT)
        renew = take_text if arguments.text else update
        faults = [fault for path in chosen for fault in renew(path)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{len(chosen)} notebooks: " + ("pairs agree" if arguments.check else "up to date"))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
