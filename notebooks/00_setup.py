# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 Setting up and looking around
#
# [![Open in Colab](../book/_static/colab-badge.svg)](https://colab.research.google.com/github/llm-course/llm_course/blob/student/00_setup.ipynb)
#
# **You will** check that your machine computes what the book shows, meet the parts of a chapter
# and the rooms of the package, and solve a first exercise with a check that talks back.
#
# **Needs** Python. **Runs** in 10 seconds on one core. **Source** `llm_course/configs.py`,
# `llm_course/corpus/town`.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # installs the course there; elsewhere this cell does nothing
    get_ipython().run_line_magic(
        "pip",
        "install -q --no-deps git+https://github.com/llm-course/llm_course@v0.1.0 "
        "tyro docstring-parser typeguard jaxtyping wadler-lindig",
    )

# %%
import inspect
import math

import matplotlib.pyplot as plt
import torch

import llm_course
from llm_course.checks import ch00

torch.set_num_threads(1)

# %% [markdown]
# ## Why this notebook exists
#
# Nothing is more discouraging than a course whose first command fails. So this notebook does
# nothing clever. It imports the package, computes a few numbers whose values are known, and
# compares. If all cells run, all later chapters will run on your machine.
#
# The first code cell of every notebook is hidden on the page. In Colab it installs the package,
# and leaves torch and numpy as they are. Anywhere else it does nothing.

# %%
version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
assert version >= (2, 11), f"torch 2.11 or newer is needed, this is {torch.__version__}"
print("torch is new enough")
print("names of the package:", ", ".join(name for name in llm_course.__all__ if name[0].isupper()))

# %% [markdown]
# Four models, four configurations, a tokenizer and the settings of training: these are the names
# you will use most. The command `llm-course doctor` prints more about your machine: versions,
# processor, GPU, and the preset to begin with.

# %% [markdown]
# ## Formula, code, check, picture
#
# Every section of the course goes around one circle. Let us go around it once, with a formula
# that you will need in each chapter: the **softmax**. It turns any {math}`n` scores into
# {math}`n` positive numbers whose sum is one.
#
# $$\operatorname{softmax}(z)_i = \frac{e^{z_i}}{\sum_{j=1}^{n} e^{z_j}}$$ (eq-softmax)
#
# **Formula.** A score may be any number. The exponential makes it positive, and the division
# makes the sum one. Larger scores get larger shares.
#
# **Code.** The plain transcription follows the formula symbol by symbol.


# %%
def plain_softmax(z: list[float]) -> list[float]:
    """The formula, and nothing else."""
    total = sum(math.exp(score) for score in z)
    return [math.exp(score) / total for score in z]


scores = [2.0, 1.0, 0.0, -3.0]
print([f"{share:.3f}" for share in plain_softmax(scores)])

# %% [markdown]
# **Check.** PyTorch has a fast version. The two must agree. And because a check that cannot fail
# proves nothing, we also compare with a wrong version, the one that forgets the exponential, and
# see that the check notices.

# %%
fast = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
plain = torch.tensor(plain_softmax(scores), dtype=torch.float64)
assert torch.allclose(fast, plain, atol=1e-12)

wrong = torch.tensor(scores, dtype=torch.float64)
wrong = wrong / wrong.sum()
assert not torch.allclose(wrong, plain, atol=1e-12)
print("the formula and the fast version agree, the wrong version does not")

# %% [markdown]
# **Picture.** What do the numbers mean? Multiply all scores by the same factor, and look at the
# shares.

# %% mystnb={"image": {"alt": "Line chart of four softmax shares against a factor from 0 to 3. At factor 0 all four shares are one quarter. As the factor grows, the share of the largest score rises towards one and the others fall towards zero."}}
factors = torch.linspace(0, 3, 61)
shares = (factors[:, None] * torch.tensor(scores)).softmax(dim=-1)
figure, axes = plt.subplots(figsize=(6.5, 3.2))
for i, color in enumerate(("#0072B2", "#E69F00", "#009E73", "#CC79A7")):
    axes.plot(factors, shares[:, i], color=color, label=f"score {scores[i]:g}")
axes.set_xlabel("factor")
axes.set_ylabel("share")
axes.set_title("Larger factors make a sharper choice")
axes.legend()
plt.show()

# %% [markdown]
# With a factor of zero all scores are equal, and so are the shares. With a large factor the
# largest score takes nearly everything. You will meet the factor again, twice: as
# {math}`1/\sqrt{d_k}` inside attention, where it keeps the choice from being too sharp, and as
# the *temperature* when a model writes.
#
# There is one more thing that a plain transcription teaches. It breaks where the fast version
# does not:

# %%
large = [1000.0, 999.0]
try:
    plain_softmax(large)
except OverflowError as error:
    print("plain:", error)
print("torch:", [f"{share:.3f}" for share in torch.tensor(large).softmax(dim=0)])

# %% [markdown]
# {math}`e^{1000}` is too large for a floating-point number. The fast version subtracts the
# largest score from all of them first. That changes nothing in {eq}`eq-softmax`, because the same
# factor then stands above and below the line. The exercise below asks you to do it.

# %% [markdown]
# ## The small world
#
# The labs train on *Town*, stories that a program writes. Here are two. The number under each
# story is the logarithm of its exact probability; a model that had learnt the language perfectly
# would give the same number. No model can give larger ones on average.

# %%
from llm_course.corpus.town import generate_documents

for document in generate_documents(2, seed=5, split="train"):
    print(document.text)
    print(f"log-probability {document.log_prob:.1f} nats\n")

# %% [markdown]
# ## The rooms of the package
#
# The package is a house with a few rooms, and the data walk through them in one direction:
# `corpus` has text, `tokenizers` turn it into ids, `objectives` turn ids into examples and
# losses, `models` turn ids into scores, `training` turns a model into a trained model,
# `generation` turns a trained model into text, and `visualize` turns it into pictures. A room
# knows only the rooms before it. You can read any of them on its own.
#
# A model is made from a configuration. Configurations check themselves:

# %%
from llm_course import GPTConfig

try:
    GPTConfig(d_model=100, n_heads=3)
except ValueError as error:
    print(error)
print(inspect.getsource(GPTConfig).split("def __post_init__")[0])

# %% [markdown]
# The message names the setting, the value and the rule. All messages of the package are meant to
# do that. If you meet one which leaves you helpless, it is a bug.

# %% [markdown]
# ## Exercises
#
# Each exercise states how many minutes it may take. Write your answer, run the check, and read
# what it says. A check does not only say *wrong*. It compares your answer with the usual
# mistakes, and tells you which one it looks like. The solution is in the closed box.
#
# ```{exercise} A softmax that does not break
# :label: ex-00-softmax
# *10 minutes, easy.* Write `stable_softmax(z)` for a list of numbers: equal to {eq}`eq-softmax`,
# and correct for scores such as 1000 or −1000.
#
# *Hint.* What happens to the formula when the same number is subtracted from every score?
# ```

# %% [markdown]
# ```{solution-start} ex-00-softmax
# :class: dropdown
# ```


# %%
def stable_softmax(z: list[float]) -> list[float]:
    ### BEGIN SOLUTION
    largest = max(z)
    powers = [math.exp(score - largest) for score in z]
    return [power / sum(powers) for power in powers]
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch00.check_stable_softmax(stable_softmax)

# %% [markdown]
# ```{exercise} How surprised?
# :label: ex-00-surprise
# *5 minutes, easy.* Something of probability {math}`p` happens. Its *surprise* is {math}`-\ln p`,
# in nats. Write `surprise(p)`. What should it return for {math}`p = 1`, and what for {math}`p =
# 0`?
# ```

# %% [markdown]
# ```{solution-start} ex-00-surprise
# :class: dropdown
# ```


# %%
def surprise(p: float) -> float:
    ### BEGIN SOLUTION
    return math.inf if p == 0 else -math.log(p)
    ### END SOLUTION


# %% [markdown]
# A certain event is no surprise: 0 nats. An event that was thought impossible is an infinite
# surprise. Losses in this course are sums of surprises.
#
# ```{solution-end}
# ```

# %%
ch00.check_surprise(surprise)

# %% [markdown]
# ```{exercise} Read a shape
# :label: ex-00-shape
# *5 minutes, easy.* [Notation](../book/notation.md) gives each axis a letter. Write
# `shape(letters, sizes)`: for the letters `"B T V"` and the sizes `{"B": 2, "T": 8, "V": 100}` it
# returns the tuple `(2, 8, 100)`.
# ```

# %% [markdown]
# ```{solution-start} ex-00-shape
# :class: dropdown
# ```


# %%
def shape(letters: str, sizes: dict[str, int]) -> tuple[int, ...]:
    ### BEGIN SOLUTION
    return tuple(sizes[letter] for letter in letters.split())
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch00.check_shape(shape)

# %% [markdown]
# ## What to keep
#
# Every formula in this course stands beside code that computes it, and beside a check that can
# fail. If all cells above ran, you are ready for [the chapter on the objective of
# GPT](12_gpt_objective.ipynb).
