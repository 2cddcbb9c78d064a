"""What holds for every file: safe calls, words, rooms, light imports, settings."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from book_tools import ROOT

import llm_course

FOLDERS = ("llm_town", "llm_course", "llm_lab", "experiments")
PACKAGE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
CODE = PACKAGE + sorted(
    p for d in ("tools", "tests", "notebooks") for p in (ROOT / d).rglob("*.py")
)
TEXT = CODE + sorted(
    path
    for pattern in ("*.md", "*.yml", "*.toml", "Makefile", "book/**/*.md", ".github/**/*.yml")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# Safe calls

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {
    *("eval", "exec", "torch.load", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle"),
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            imported = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"line {node.lineno}: imports {n}" for n in imported & UNSAFE_CALLS)
        for name in names:
            if name.split(".")[0] in UNSAFE_MODULES:
                yield f"line {node.lineno}: imports {name}"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in UNSAFE_CALLS:
                yield f"line {node.lineno}: calls {name}"
            for keyword in node.keywords:
                if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"line {node.lineno}: {keyword.arg}="


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "exec('1')",
        "import yaml\nyaml.load(x)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "load_dataset('x', trust_remote_code=True)",
        "os.system('ls')",
    ],
)
def test_each_unsafe_call_is_found(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def test_safe_calls_that_look_alike_are_allowed() -> None:
    source = "model.eval()\nyaml.safe_load(x)\njson.load(f)\nrun(x, shell=False)\nGPT.load(path)"
    assert not list(unsafe(ast.parse(source)))


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_no_unsafe_call(path: Path) -> None:
    assert not list(unsafe(parse(path)))


# Words

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/"),
    "an unfinished place": re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b"),
    "a registry host": re.compile(r"\b(pypi\.org|files\.python" + r"hosted|test\.py" + r"pi)\b"),
}
# These hold such words as samples of what is refused.
SAMPLES = {"tests/book/test_notebooks.py", "tests/test_repository.py", "tools/hygiene.py"}


@pytest.mark.parametrize("path", [p for p in TEXT if relative(p) not in SAMPLES], ids=relative)
def test_no_forbidden_words(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = {what: m[0] for what, pattern in FORBIDDEN.items() if (m := pattern.search(text))}
    assert not found


def test_forbidden_words_are_found() -> None:
    samples = ["see /root/x", "# TO" + "DO later", "https://pypi.org/simple"]
    for sample, pattern in zip(samples, FORBIDDEN.values()):
        assert pattern.search(sample)


# Rooms

INTRUDERS = {  # file -> an import that breaks the contract named beside it
    "llm_town/parse.py": ("import llm_course", "The four folders"),
    "llm_course/data/readers.py": ("import llm_course.models.layers", "Each room imports only"),
    "llm_course/models/gpt.py": ("import llm_course.models.bert", "The model files do not import"),
    "llm_course/models/t5.py": ("import llm_course.losses", "Models know neither"),
    "llm_course/models/layers.py": ("import llm_course.configs", "What the papers share"),
    "llm_course/training/optim.py": ("import llm_course.models.layers", "Training imports no"),
    "llm_course/generation/request.py": ("import transformers", "transformers is imported only"),
    "llm_course/tokenizers/library.py": ("import datasets", "datasets is imported only"),
    "llm_course/configs.py": ("import torch", "Settings and text need"),
}


def test_each_contract_of_the_rooms_can_break(tmp_path: Path) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for name, (line, _) in INTRUDERS.items():
        path = tmp_path / name
        path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef f():\n    {line}\n")
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)", run.stdout, flags=re.M))
    config = (ROOT / ".importlinter").read_text(encoding="utf-8")
    assert len(verdicts) == len(INTRUDERS) == config.count("[importlinter:contract:")
    assert set(verdicts.values()) == {"BROKEN"}, run.stdout
    for _, contract in INTRUDERS.values():
        assert any(name.startswith(contract) for name in verdicts), contract


# Light imports


def python(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env
    )


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    run = python(
        "import sys, llm_course, llm_course.configs; "
        "print(sorted({'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
    control = python("import sys, torch; print('torch' in sys.modules)")
    assert control.stdout.strip() == "True"


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def waiting(**chosen: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in WAITING} | chosen


@pytest.mark.parametrize(
    ("chosen", "policy"),
    [
        ({}, "PASSIVE 2000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "100"}, "None 100"),
        ({"KMP_BLOCKTIME": "1"}, "None None"),
    ],
)
def test_waiting_threads_spin_shortly_and_sleep_unless_the_user_has_chosen(
    chosen: dict[str, str], policy: str
) -> None:
    names = "'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'"
    code = f"import os, llm_course; print(*map(os.environ.get, ({names})))"
    assert python(code, waiting(**chosen)).stdout.strip() == policy


def test_torch_obeys_where_it_is_loaded_after_the_package_and_not_before() -> None:
    """What the GNU library of threads says of itself when torch loads it."""
    spins = {}
    for order in ("llm_course, torch", "torch, llm_course"):
        said = python(f"import {order}", waiting(OMP_DISPLAY_ENV="VERBOSE")).stderr
        found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", said)
        if found is None:
            pytest.skip("this torch has another library of threads")
        spins[order] = int(found[1])
    assert spins["llm_course, torch"] == 2000 < spins["torch, llm_course"]


@pytest.mark.parametrize("command", ["", "pretrain", "generate", "doctor"])
def test_help_needs_no_torch(command: str) -> None:
    """A finder that refuses torch stands in for a machine that has none."""
    arguments = [*command.split(), "--help"]
    run = python(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ImportError('no torch here')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from llm_course.cli import main\n"
        f"sys.argv = ['llm-course', *{arguments!r}]\n"
        "raise SystemExit(main())\n"
    )
    assert run.returncode == 0, run.stderr
    assert "usage" in (run.stdout + run.stderr).lower()


def test_every_public_name_can_be_imported() -> None:
    for name in llm_course.__all__:
        assert getattr(llm_course, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llm_course.__getattr__("nothing")


# Settings that must agree


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_conda_environment_defers_to_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert f"python{project()['requires-python']}" in packages
    assert set(packages) == {f"python{project()['requires-python']}", "make", "pip"}
    assert pip == {"pip": ["--editable .[teach]"]}
    assert "teach" in project()["optional-dependencies"]  # type: ignore[operator]


def test_versions_agree() -> None:
    assert project()["version"] == llm_course.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {llm_course.__version__}" in changes


def test_both_licences_are_whole() -> None:
    code = (ROOT / "LICENSE").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE-text").read_text(encoding="utf-8")
    assert code.startswith("MIT License")
    assert "[fullname]" not in code
    assert "Attribution 4.0 International" in text
    assert "Section 8 -- Interpretation." in text
    assert text.rstrip().endswith("Creative Commons may be contacted at creativecommons.org.")


def test_workflows_pin_every_action_and_call_the_same_targets() -> None:
    texts = [p.read_text(encoding="utf-8") for p in (ROOT / ".github/workflows").glob("*.yml")]
    used = [use for text in texts for use in re.findall(r"uses: (\S+)", text)]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", use) for use in used), used
    assert any(".ci/run" in text for text in texts)
    assert any("make book" in text for text in texts)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in ci
    assert "make book" in ci
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## \S", makefile, flags=re.M), target
