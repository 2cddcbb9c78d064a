"""What every notebook shares: the badge that opens its student edition, and the first cell.

In the repository both speak of the branch `main`. `make book` and `make student` write the commit
that they build from in its place: the page, the notebook that its badge opens, the package that
this installs and the results that it reads are then of one commit, however old the page is.
The workflow `publish.yml` puts the student edition of each commit into a folder of the branch
`student`; the badge opens it there. Students never edit a file that holds a solution.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "llm-course/llm_course"
BRANCH = "main"
STUDENT_BRANCH = "student"
EDITIONS = 20  # of the newest commits; the badge of an older page opens nothing

# Pure Python, and missing or possibly missing on Colab. With `--no-deps` nothing can replace the
# torch and numpy that Colab has loaded, so what these packages need is listed too.
REQUIREMENTS = (
    *("tyro", "docstring-parser", "typeguard"),
    *("jaxtyping", "wadler-lindig"),
    *("sacrebleu", "portalocker", "tabulate", "colorama"),
)

BADGE_IMAGE = "../book/_static/colab-badge.svg"
TAGS = ["remove-cell"]


def badge(stem: str) -> str:
    """The badge line of the notebook `stem`, such as 12_gpt_objective."""
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{STUDENT_BRANCH}"
    return f"[![Open in Colab]({BADGE_IMAGE})]({address}/{BRANCH}/{stem}.ipynb)"


def cell() -> str:
    """The first code cell of every notebook."""
    lines = textwrap.wrap(" ".join(REQUIREMENTS), 60)
    requirements = "\n".join(f'        "{line} "' for line in lines)
    return f"""\
from importlib import invalidate_caches, metadata, util

# Where the course is not installed, as on Colab or Kaggle, this installs it
# and names what else is missing or too old; elsewhere it does nothing.
if util.find_spec("llm_course") is None:
    get_ipython().run_line_magic(
        "pip",
        "install -q --no-deps git+https://github.com/{REPOSITORY}@{BRANCH} "
{requirements},
    )
    from packaging.requirements import Requirement

    invalidate_caches()
    for need in map(Requirement, metadata.requires("llm_course")):
        try:
            fits = need.marker or metadata.version(need.name) in need.specifier
        except metadata.PackageNotFoundError:
            fits = False
        if not fits:
            print(f"Missing or too old: %pip install '{{need}}'")

import llm_course  # first of all: it sets how threads wait for each other"""


def page_commit(dirty: bool = False, root: Path = ROOT) -> str:
    """The commit that is checked out; `SystemExit` where files differ from it, unless `dirty`.

    Where there is no repository, as in an unpacked archive, it is the branch `main`.
    """

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") if shutil.which("git") else ""
    if not commit:
        return BRANCH
    changed = git("status", "--porcelain").splitlines()
    if changed and not dirty:
        raise SystemExit(
            f"{len(changed)} files differ from the commit that the badges would open (the first: "
            f"{changed[0].split()[-1]}): commit them, or say DIRTY=1 (--dirty)"
        )
    return commit


def at_commit(text: str, commit: str) -> str:
    """A page or a notebook whose badge and first cell speak of this commit."""
    now = rf"(?:{BRANCH}|[0-9a-f]{{40}})"
    text = re.sub(rf"({REPOSITORY}/blob/{STUDENT_BRANCH})/{now}/", rf"\g<1>/{commit}/", text)
    return re.sub(rf"({REPOSITORY})@{now}\b", rf"\g<1>@{commit}", text)


def add_edition(branch: Path, edition: Path, commit: str, keep: int = EDITIONS) -> None:
    """Copy a student edition into the checked-out branch, and drop all but the newest `keep`."""
    listed = branch / "editions.txt"
    before = listed.read_text(encoding="utf-8").split() if listed.is_file() else []
    commits = [each for each in before if each != commit] + [commit]
    shutil.copytree(edition, branch / commit, dirs_exist_ok=True)
    for old in commits[:-keep]:
        shutil.rmtree(branch / old, ignore_errors=True)
    listed.write_text("\n".join(commits[-keep:]) + "\n", encoding="utf-8")


def main() -> None:
    """Print what a new notebook begins with."""
    print("\n".join(f"# {line}" for line in [badge("NN_topic")]))
    print(f'\n# %% tags=["{TAGS[0]}"]\n{cell()}')


if __name__ == "__main__":
    main()
