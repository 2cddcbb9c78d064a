"""Every notebook is paired, executed and clean; every rule of the hygiene check can fail."""

from __future__ import annotations

import base64
import copy
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from book_tools import EXECUTED, ROOT, SOURCES, colab, hygiene, notebooks
from nbformat import v4
from PIL import Image

from llm_lab.pictures import measured as measured_module
from llm_lab.pictures.measured import measured, measured_html


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_agrees_with_its_source(source: Path) -> None:
    assert notebooks.difference(source) is None, "run `make notebooks`"


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_a_notebook_is_clean(path: Path) -> None:
    assert path.with_suffix(".py").is_file(), "an .ipynb without its .py source"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert hygiene.problems(notebook, path.stem) == []


# A small notebook that keeps every rule; each control below breaks one of them.


def png(colour: tuple[int, int, int] = (255, 255, 255), line: bool = True) -> str:
    image = Image.new("RGB", (200, 120), colour)
    if line:
        image.paste((0, 80, 90), (20, 20, 180, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def exercise(number: int) -> list[Any]:
    label = f"ex-12-{number}"
    return [
        v4.new_markdown_cell(
            f"```{{exercise}} Number {number}\n:label: {label}\n*5 minutes, easy.* Return 1.\n```"
        ),
        v4.new_markdown_cell(
            f"```{{solution-start}} {label}\n:class: dropdown\n```\nOne is the answer."
        ),
        v4.new_code_cell(
            "def one() -> int:\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
        ),
        v4.new_markdown_cell("```{solution-end}\n```"),
        v4.new_code_cell("ch12.check_one(one)", outputs=[v4.new_output("stream", text="✓ one\n")]),
    ]


def good() -> Any:
    opening = (
        f"# 12 A chapter\n\n{colab.badge('12_chapter')}\n\n"
        "**You will** learn.\n**Needs** nothing.\n**Runs** quickly."
    )
    text = "--- measured ---\n1.234 in 3 s\n--- end measured ---\n"
    figure = v4.new_code_cell("plt.plot(x)\nplt.show()")
    figure.metadata["mystnb"] = {"image": {"alt": "A line that rises from the left to the right."}}
    figure.outputs = [v4.new_output("display_data", {"image/png": png()})]
    cells = [
        v4.new_markdown_cell(opening),
        v4.new_code_cell(colab.cell(), metadata={"tags": list(colab.TAGS)}),
        v4.new_markdown_cell("A short sentence about words. " * 100),
        v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", text="0.693 nats\n")]),
        v4.new_code_cell("with measured(): ...", outputs=[v4.new_output("stream", text=text)]),
        figure,
        *(cell for number in range(3) for cell in exercise(number)),
    ]
    code = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
    return v4.new_notebook(cells=cells, metadata=copy.deepcopy(notebooks.METADATA))


def printed(notebook: Any, text: str) -> None:
    notebook.cells[3].outputs[0].text = text


def set_png(notebook: Any, data: str) -> None:
    notebook.cells[5].outputs[0].data["image/png"] = data


def tag(notebook: Any, cells: int, **metadata: str) -> None:
    for cell in notebook.cells[3 : 3 + cells]:
        cell.metadata = nbformat.from_dict({"tags": ["nbval-ignore-output"], **metadata})


BAD: dict[str, tuple[Callable[[Any], object], str]] = {
    "title": (lambda n: n.cells.pop(0), "first cell"),
    "number": (lambda n: n.cells[0].update(source="# Title"), "`# 12 Title`"),
    "badge": (lambda n: n.cells[0].update(source="# 12 Title"), "badge line"),
    "runs": (
        lambda n: n.cells[0].update(source=n.cells[0].source.replace("**Runs**", "Runs")),
        r"lacks \*\*Runs",
    ),
    "colab": (lambda n: n.cells[1].update(source="import sys"), "Colab cell"),
    "colab tag": (lambda n: n.cells[1].update(metadata={}), "Colab cell"),
    "prose": (lambda n: n.cells.pop(2), "words of prose"),
    "count": (lambda n: n.cells[3].update(execution_count=9), "execution count 9, expected 2"),
    "not run": (lambda n: n.cells[3].update(execution_count=None), "execution count None"),
    "error": (
        lambda n: n.cells[3].outputs.append(v4.new_output("error", ename="KeyError")),
        "raised KeyError",
    ),
    "stderr": (lambda n: n.cells[3].outputs[0].update(name="stderr"), "wrote to stderr"),
    "widget": (
        lambda n: n.cells[3].outputs.append(
            v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})
        ),
        "widget output",
    ),
    "widget state": (lambda n: n.metadata.update(widgets={}), "widget state"),
    "kernel": (lambda n: n.metadata.kernelspec.update(name="other"), "kernel 'other'"),
    "path": (lambda n: printed(n, "saved to /home/me/x\n"), "a path of one machine"),
    "address": (lambda n: printed(n, "<f at 0x7f21a90b13d0>\n"), "a memory address"),
    "device": (lambda n: printed(n, "device cuda:0\n"), "a device"),
    "time": (lambda n: printed(n, "took 1.2 s\n"), "a time"),
    "nan": (lambda n: printed(n, "loss nan\n"), "not finite"),
    "open": (lambda n: printed(n, "--- measured ---\n1\n"), "do not pair up"),
    "close": (lambda n: printed(n, "1\n--- end measured ---\n"), "do not pair up"),
    "nested": (
        lambda n: printed(n, "--- measured ---\n" * 2 + "1\n" + "--- end measured ---\n" * 2),
        "do not pair up",
    ),
    "measured nan": (
        lambda n: printed(n, "--- measured ---\nnan\n--- end measured ---\n"),
        "holds nan",
    ),
    "measured empty": (
        lambda n: printed(n, "--- measured ---\n--- end measured ---\n"),
        "empty measured",
    ),
    "measured too often": (
        lambda n: printed(n, "--- measured ---\n1\n--- end measured ---\n" * 9),
        "10 measured blocks",
    ),
    "measured too long": (
        lambda n: printed(n, "--- measured ---\n" + "1\n" * 50 + "--- end measured ---\n"),
        "more than 40 lines",
    ),
    "measured view": (
        lambda n: n.cells[3].outputs.append(
            v4.new_output(
                "display_data",
                {"text/html": measured_html('<script type="application/json">{1</script>')},
            )
        ),
        "does not parse",
    ),
    "no figure": (lambda n: n.cells[5].update(outputs=[]), "has no PNG"),
    "broken figure": (lambda n: set_png(n, "bm90IGEgcG5n"), "does not decode"),
    "cut figure": (lambda n: set_png(n, png()[:80]), "does not decode"),
    "empty figure": (lambda n: set_png(n, png(line=False)), "all of one colour"),
    "alt": (lambda n: n.cells[5].update(metadata={}), "needs `#| alt:`"),
    "show": (lambda n: n.cells[5].update(source="plt.plot(x)"), "ends with plt.show"),
    "two figures": (
        lambda n: n.cells[5].outputs.append(v4.new_output("display_data", {"image/png": png()})),
        "2 figures in one cell",
    ),
    "reason": (lambda n: tag(n, 1), "needs `reason="),
    "budget": (lambda n: tag(n, 3, reason="The text differs on every machine."), "3 cells are not"),
    "comment": (
        lambda n: n.cells[3].update(source="# NBVAL_IGNORE_OUTPUT\nprint(1)"),
        "not an NBVAL comment",
    ),
    "few exercises": (lambda n: n.cells.__delitem__(slice(-5, None)), "2 exercises"),
    "effort": (
        lambda n: n.cells[6].update(source=n.cells[6].source.replace("*5 minutes, easy.*", "")),
        "begins with",
    ),
    "no solution": (lambda n: n.cells.__delitem__(slice(7, 10)), "but solutions for"),
    "no region": (lambda n: n.cells[8].update(source="pass"), "no code with BEGIN"),
    "no check": (lambda n: n.cells[10].update(source="one()"), "calls check_"),
    "half region": (
        lambda n: n.cells[8].update(source="### BEGIN SOLUTION\npass"),
        "has no partner",
    ),
    "region outside": (
        lambda n: n.cells[3].update(source="### BEGIN SOLUTION\n### END SOLUTION"),
        "outside a solution block",
    ),
    "no end": (lambda n: n.cells.pop(9), "solution block"),
}


def test_the_good_notebook_has_no_problems() -> None:
    assert hygiene.problems(good(), "12_chapter") == []


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_found(fault: str) -> None:
    break_it, message = BAD[fault]
    notebook = good()
    break_it(notebook)
    found = hygiene.problems(notebook, "12_chapter")
    assert any(re.search(message, line) or message in line for line in found), found


# The measured markers.


def test_the_sanitize_file_replaces_exactly_what_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print("before")
    with measured():
        print("a sample\nof two lines")
    print("between")
    with measured():
        print(1.234)
    print("after")
    text = capsys.readouterr().out
    config = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    pairs = re.findall(r"^regex: (.*)$\n^replace: (.*)$", config, flags=re.M)  # as nbval reads it
    for pattern, replacement in pairs:
        text = re.sub(pattern, replacement, text)
    assert text == "before\nmeasured\nbetween\nmeasured\nafter\n"
    view = f"<p>a</p>{measured_html('<b>1</b>')}<p>b</p>"
    for pattern, replacement in pairs:
        view = re.sub(pattern, replacement, view)
    assert view == "<p>a</p>measured<p>b</p>"
    assert hygiene.MEASURED == (measured_module.BEGIN, measured_module.END)
    assert hygiene.MEASURED_HTML == (measured_module.BEGIN_HTML, measured_module.END_HTML)


def test_measured_closes_its_block_when_the_cell_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), measured():
        raise KeyError
    assert capsys.readouterr().out == "--- measured ---\n--- end measured ---\n"
    with pytest.raises(ValueError, match="must not hold"):
        measured_html("<!-- measured -->")


def test_nbval_sees_a_changed_digit_but_not_a_measured_one(tmp_path: Path) -> None:
    source = (
        "# %%\nprint('loss 1.23')\n# %%\nfrom llm_lab.pictures.measured import measured\n"
        "with measured():\n    print('sample', 1)\n"
    )
    stored = {"same": source, "digit": source, "measured": source}
    for name, text in stored.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        notebook = notebooks.execute(path)
        if name != "same":
            output = notebook.cells[0 if name == "digit" else 1].outputs[0]
            output.text = output.text.replace("1.23", "1.24").replace("sample 1", "sample 2")
        nbformat.write(notebook, path.with_suffix(".ipynb"))
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "--no-header"]
    options += ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path)]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    config = ROOT / "tests" / "nbval_sanitize.cfg"
    command = [sys.executable, "-m", "pytest", *options, "--nbval-sanitize-with", str(config)]
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    failed = re.findall(r"^FAILED (\S+?)::", run.stdout, flags=re.M)
    assert failed == ["digit.ipynb"], run.stdout + run.stderr


# The pairing.

SAMPLE = """\
# %% [markdown]
# # 12 A chapter
#
# BADGE

# %% [markdown]
# COLAB

# %% tags=["covers-F12"]
#| alt: A picture of nothing much, in one line
#|   that goes on here.
#| caption: Nothing.
#| name: fig-12-nothing
print(2 + 2)
"""


def test_reading_a_source_expands_the_common_parts(tmp_path: Path) -> None:
    path = tmp_path / "12_chapter.py"
    path.write_text(SAMPLE, encoding="utf-8")
    notebook = notebooks.read_source(path)
    assert colab.badge("12_chapter") in notebook.cells[0].source
    assert notebook.cells[1].cell_type == "code"
    assert notebook.cells[1].source == colab.cell()
    assert notebook.cells[2].source == "print(2 + 2)"
    assert notebook.cells[2].metadata["tags"] == ["covers-F12"]
    assert notebook.cells[2].metadata["mystnb"] == {
        "image": {"alt": "A picture of nothing much, in one line that goes on here."},
        "figure": {"caption": "Nothing.", "name": "fig-12-nothing"},
    }
    assert notebook == notebooks.read_source(path)  # ids included


def test_a_pair_differs_until_it_is_executed_again(tmp_path: Path) -> None:
    path = tmp_path / "12_chapter.py"
    path.write_text(SAMPLE, encoding="utf-8")
    assert "does not exist" in str(notebooks.difference(path))
    unexecuted = notebooks.read_source(path)
    nbformat.write(unexecuted, path.with_suffix(".ipynb"))
    assert "no outputs" in str(notebooks.difference(path))
    notebooks.update(path)
    assert notebooks.difference(path) is None
    before = path.with_suffix(".ipynb").read_bytes()
    notebooks.update(path)
    assert path.with_suffix(".ipynb").read_bytes() == before  # the same bytes each time
    path.write_text(SAMPLE.replace("2 + 2", "2 + 3"), encoding="utf-8")
    assert "cell 2 differs" in str(notebooks.difference(path))
    path.write_text(SAMPLE.replace("covers-F12", "covers-F13"), encoding="utf-8")
    assert "cell 2 differs" in str(notebooks.difference(path))
    path.write_text(SAMPLE + "# %%\n1\n", encoding="utf-8")
    assert "has 4" in str(notebooks.difference(path))


def test_text_is_taken_over_with_the_outputs_and_code_is_not(tmp_path: Path) -> None:
    source, target = tmp_path / "77_topic.py", tmp_path / "77_topic.ipynb"
    source.write_text("# %% [markdown]\n# # Before\n\n# %%\nprint(1)\n", encoding="utf-8")
    assert notebooks.take_text(source) == [f"{target.name} does not exist: execute {source.name}"]
    stored = notebooks.read_source(source)
    stored.cells[1].execution_count = 1
    stored.cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    target.write_text(nbformat.writes(stored), encoding="utf-8")
    source.write_text("# %% [markdown]\n# # After\n\n# %%\nprint(1)\n", encoding="utf-8")
    notebooks.take_text(source)
    assert notebooks.difference(source) is None
    found = nbformat.read(target, as_version=4).cells
    assert (found[0].source, found[1].outputs[0].text) == ("# After", "1\n")
    source.write_text("# %% [markdown]\n# # After\n\n# %%\nprint(2)\n", encoding="utf-8")
    assert notebooks.take_text(source) == [f"{source.name}: a code cell has changed: execute it"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("#| alternative: x", "is not one of"),
        ("#|   x", "continues nothing"),
        ("#| caption: x", "needs alt"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "12_chapter.py"
    path.write_text(f"# %%\n{source}\nprint(1)\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        notebooks.read_source(path)


def test_a_failing_cell_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "12_chapter.py"
    path.write_text("# %%\nraise KeyError('x')\n", encoding="utf-8")
    assert "a cell failed" in notebooks.update(path)[0]
    assert not path.with_suffix(".ipynb").exists()


def test_the_first_cell_does_nothing_where_the_course_is_and_touches_neither_torch_nor_numpy() -> (
    None
):
    names = set(re.findall(r"[\w-]+", colab.cell()))
    assert "--no-deps" in colab.cell()
    assert not names & {"torch", "numpy"}
    run = subprocess.run([sys.executable, "-c", colab.cell()], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


MISSING = """
import importlib.metadata, importlib.util

class Shell:
    def run_line_magic(self, name, line):
        print(name, line)

get_ipython = Shell
importlib.util.find_spec = lambda name: None
needs = ["torch>=99", "numpy>=1", "not-there-at-all", "nothing; extra == 'dev'"]
importlib.metadata.requires = lambda name: needs
"""


def test_the_first_cell_installs_where_the_course_is_missing_and_names_what_does_not_fit() -> None:
    code = MISSING + colab.cell()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    installed, *said = run.stdout.splitlines()
    place = f"git+https://github.com/{colab.REPOSITORY}@{colab.BRANCH}"
    assert installed.startswith(f"pip install -q --no-deps {place} tyro ")
    assert said == [
        "Missing or too old: %pip install 'torch>=99'",
        "Missing or too old: %pip install 'not-there-at-all'",
    ]
