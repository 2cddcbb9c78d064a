"""What nbval cannot see in a notebook: figures, alt text, tags, markers, structure.

`problems(notebook, stem)` returns one line for each fault; `make notebooks` prints them, and the
tests require that there are none.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from colab import TAGS, badge
from colab import cell as colab_cell
from PIL import Image
from student import START_BLOCK, has_region, solution_cells, strip_region

MEASURED = ("--- measured ---", "--- end measured ---")
MEASURED_HTML = ("<!-- measured -->", "<!-- /measured -->")
MOST_MEASURED = 8  # blocks a notebook
MOST_MEASURED_LINES = 40  # lines of one block of text
MOST_UNCHECKED = 2  # cells a notebook whose output nbval skips or ignores, each with its reason
LEAST_WORDS = 400  # of prose
LEAST_ALT = 30  # characters
EXERCISES = range(3, 6)
CHECK_CALL = re.compile(r"^(?:\w+\.)?(check_\w+)\(", re.M)
EFFORT = r"\*\d+ minutes, (easy|medium|hard)\.\*"

UNCHECKED_TAGS = {"nbval-skip", "nbval-ignore-output"}
UNCHECKED_COMMENT = re.compile(r"^#\s*(NBVAL_SKIP|NBVAL_IGNORE_OUTPUT|PYTEST_VALIDATE\w*)", re.M)
MACHINE_WORDS = {
    "a path of one machine": re.compile(
        r"(?<![\w.])(/(home|root|Users|tmp|content|work|mnt|opt|var)/|[A-Z]:\\)"
    ),
    "a memory address": re.compile(r"\b0x[0-9a-f]{6,}\b"),
    "a device": re.compile(r"\bcuda:\d|\b(Tesla|GeForce|Xeon|EPYC)\b"),
    "a time": re.compile(r"\b\d+(\.\d+)?\s?(ms|µs|s|sec|seconds?|minutes?|it/s|tokens/s)\b(?!\w)"),
    "a number that is not finite": re.compile(r"(?<![\w'\"])(nan|-?inf)(?![\w'\"])"),
}
NOT_PROSE = re.compile(  # equations, fences with their options, comments
    r"\$\$.*?\$\$|\$[^$\n]+\$|^[`:]{3,}[^\n]*$|^:[\w-]+:[^\n]*$|<!--.*?-->", re.S | re.M
)
FIRST_CELL_PARTS = ("**You will**", "**Needs**", "**Runs**")
Notebook = Any  # nbformat.NotebookNode


def output_texts(cell: Notebook) -> Iterator[tuple[str, str]]:
    """(MIME type or stream, text) of everything that a cell printed."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.name, output.text
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield kind, data


def split_measured(text: str, markers: tuple[str, str]) -> tuple[str, list[str]]:
    """The text outside the marked blocks, and the blocks; raises ValueError if they do not pair."""
    begin, end = markers
    blocks: list[str] = []
    outside: list[str] = []
    for number, part in enumerate(text.split(begin)):
        inner, closing, rest = part.partition(end)
        if bool(closing) != bool(number) or end in rest:
            raise ValueError(f"{begin} and {end} do not pair up")
        if number:
            blocks.append(inner.strip())
        outside.append(rest if number else part)
    return "".join(outside), blocks


def measured_problems(notebook: Notebook) -> Iterator[str]:
    count = 0
    for number, cell in enumerate(notebook.cells):
        for kind, text in output_texts(cell):
            html = kind == "text/html"
            try:
                _, blocks = split_measured(text, MEASURED_HTML if html else MEASURED)
            except ValueError as error:
                yield f"cell {number}: {error}"
                continue
            count += len(blocks)
            for block in blocks:
                yield from (f"cell {number}: {p}" for p in _block_problems(block, html))
    if count > MOST_MEASURED:
        yield f"{count} measured blocks, at most {MOST_MEASURED} are allowed"


def _block_problems(block: str, html: bool) -> Iterator[str]:
    if not block:
        yield "an empty measured block"
    if not html and block.count("\n") >= MOST_MEASURED_LINES:
        yield f"a measured block of more than {MOST_MEASURED_LINES} lines"
    if MACHINE_WORDS["a number that is not finite"].search(block) and not html:
        yield "a measured block holds nan or inf"
    for payload in re.findall(r"<script type=.application/json.[^>]*>(.*?)</script>", block, re.S):
        try:
            json.loads(payload)
        except ValueError as error:
            yield f"the JSON of a measured view does not parse: {error}"


def figure_problems(notebook: Notebook) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        pictures = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        shows = "plt.show()" in cell.source
        if shows and not pictures:
            yield f"cell {number}: calls plt.show() but has no PNG"
        if not pictures:
            continue
        if cell.source.rstrip().split("\n")[-1].strip() != "plt.show()":
            yield f"cell {number}: a cell with a figure ends with plt.show()"
        if len(pictures) > 1:
            yield f"cell {number}: {len(pictures)} figures in one cell share one alt text"
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) < LEAST_ALT:
            yield f"cell {number}: the figure needs `#| alt:` of {LEAST_ALT} characters or more"
        for picture in pictures:
            yield from (f"cell {number}: {p}" for p in _picture_problems(picture))


def _picture_problems(data: str) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=False))) as image:
            image.load()
            colours = image.convert("RGB").resize((64, 64)).getcolors(64 * 64)
            if min(image.size) < 100:
                yield f"the PNG is only {image.size[0]} x {image.size[1]} pixels"
            elif colours is not None and len(colours) < 2:
                yield "the PNG is empty: all of one colour"
    except (OSError, ValueError, SyntaxError):
        yield "the PNG does not decode"


def execution_problems(notebook: Notebook) -> Iterator[str]:
    code = [(n, cell) for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for expected, (number, cell) in enumerate(code, start=1):
        if cell.execution_count != expected:
            yield f"cell {number}: execution count {cell.execution_count}, expected {expected}"
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
                "tags", []
            ):
                yield f"cell {number}: raised {output.ename}"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"cell {number}: wrote to stderr: {output.text.strip()[:80]!r}"
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"cell {number}: widget output"
        for kind, text in output_texts(cell):
            yield from (f"cell {number}: {p}" for p in _text_problems(kind, text))
    if "widgets" in notebook.metadata:
        yield "widget state in the metadata"
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"kernel {kernel!r}, expected 'python3'"


def _text_problems(kind: str, text: str) -> Iterator[str]:
    try:
        text, _ = split_measured(text, MEASURED_HTML if kind == "text/html" else MEASURED)
    except ValueError:
        return  # measured_problems reports it
    for what, pattern in MACHINE_WORDS.items():
        if kind != "text/html" and (found := pattern.search(text)):
            yield f"the output holds {what}, {found[0].strip()!r}, outside `measured`"


def tag_problems(notebook: Notebook) -> Iterator[str]:
    unchecked = 0
    for number, cell in enumerate(notebook.cells):
        tagged = UNCHECKED_TAGS & set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and UNCHECKED_COMMENT.search(cell.source):
            yield f"cell {number}: use a tag with `reason=`, not an NBVAL comment"
        if tagged:
            unchecked += 1
            if len(str(cell.metadata.get("reason", ""))) < 20:
                yield f'cell {number}: {min(tagged)} needs `reason="..."` of a full sentence'
    if unchecked > MOST_UNCHECKED:
        yield f"{unchecked} cells are not compared, at most {MOST_UNCHECKED} are allowed"


def opening_problems(notebook: Notebook, stem: str) -> Iterator[str]:
    cells = notebook.cells
    if not cells or cells[0].cell_type != "markdown":
        yield "the first cell holds the title"
        return
    first = cells[0].source
    if not re.match(rf"# {stem[:2]} \S", first):
        yield f"the title is `# {stem[:2]} Title`"
    if badge(stem) not in first.split("\n"):
        yield f"the badge line is missing or differs from: {badge(stem)}"
    yield from (f"the first cell lacks {part}" for part in FIRST_CELL_PARTS if part not in first)
    code = next((c for c in cells if c.cell_type == "code"), None)
    if code is None or code.source != colab_cell() or code.metadata.get("tags") != TAGS:
        yield "the first code cell is not the Colab cell: see `python tools/colab.py`"


def prose_words(notebook: Notebook) -> int:
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return len(re.findall(r"[^\W\d_]{2,}", NOT_PROSE.sub(" ", prose)))


def exercise_problems(notebook: Notebook) -> Iterator[str]:
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    text = "\n".join(prose)
    labels = re.findall(r"\{exercise\}[^\n]*\n:label: *(\S+)", text)
    solved = re.findall(r"\{solution-start\} *(\S+)", text)
    if len(labels) not in EXERCISES:
        yield f"{len(labels)} exercises with a label, expected {EXERCISES[0]} to {EXERCISES[-1]}"
    if sorted(labels) != sorted(solved):
        yield f"exercises {sorted(labels)} but solutions for {sorted(solved)}"
    for label in labels:
        if not re.search(rf":label: *{re.escape(label)}\n\s*{EFFORT}", text):
            yield f"{label}: an exercise begins with `*10 minutes, easy.*` (or medium, hard)"
    yield from solution_problems(notebook)


def solution_problems(notebook: Notebook) -> Iterator[str]:
    """Each solution block has a cell with a region, and a check is called right after the block."""
    try:
        cells = solution_cells(notebook)
        for cell, in_block in cells:
            if cell.cell_type == "code" and has_region(cell.source):
                strip_region(cell.source)
                if not in_block:
                    yield "a BEGIN SOLUTION region stands outside a solution block"
    except ValueError as error:
        yield str(error)
        return
    for start, (cell, _) in enumerate(cells):
        if cell.cell_type != "markdown" or not START_BLOCK.search(cell.source):
            continue
        after = next((i for i in range(start, len(cells)) if not cells[i][1]), len(cells))
        block = [c for c, _ in cells[start:after]]
        if not any(c.cell_type == "code" and has_region(c.source) for c in block):
            yield f"cell {start}: the solution block has no code with BEGIN SOLUTION"
        if after == len(cells) or not CHECK_CALL.search(cells[after][0].source):
            yield f"cell {after}: after a solution block a cell calls check_...(answer)"


def problems(notebook: Notebook, stem: str) -> list[str]:
    """Every fault of an executed notebook, one line each."""
    found = [
        *opening_problems(notebook, stem),
        *execution_problems(notebook),
        *measured_problems(notebook),
        *figure_problems(notebook),
        *tag_problems(notebook),
        *exercise_problems(notebook),
    ]
    if (words := prose_words(notebook)) < LEAST_WORDS:
        found.append(f"{words} words of prose, at least {LEAST_WORDS} are wanted")
    return found
