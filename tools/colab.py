"""What every notebook shares: the badge that opens its student edition, and the Colab cell.

The workflow `publish.yml` pushes the generated student edition to the branch `student`, one file a
notebook at its root; the badge opens it there. Students never edit a file that holds a solution.
"""

from __future__ import annotations

import textwrap

REPOSITORY = "llm-course/llm_course"
TAG = "v0.1.0"  # the release that Colab installs: raise it together with llm_course.__version__
STUDENT_BRANCH = "student"

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
    return f"[![Open in Colab]({BADGE_IMAGE})]({address}/{stem}.ipynb)"


def cell() -> str:
    """The first code cell of every notebook."""
    lines = textwrap.wrap(" ".join(REQUIREMENTS), 60)
    requirements = "\n".join(f'        "{line} "' for line in lines)
    return f"""\
import sys

# On Colab this installs the course; elsewhere it does nothing.
if "google.colab" in sys.modules:
    get_ipython().run_line_magic(
        "pip",
        "install -q --no-deps git+https://github.com/{REPOSITORY}@{TAG} "
{requirements},
    )"""


def main() -> None:
    """Print what a new notebook begins with."""
    print("\n".join(f"# {line}" for line in [badge("NN_topic")]))
    print(f'\n# %% tags=["{TAGS[0]}"]\n{cell()}')


if __name__ == "__main__":
    main()
