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
# BADGE
#
# **You will** check that your machine computes what the book shows, meet the parts of a chapter
# and the sub-packages, and solve a first exercise with a check that explains what is wrong.
#
# **Needs** Python. **Runs** in 10 seconds on one core. **Source** `llm_course/configs.py`,
# `llm_town`.

# %% [markdown]
# COLAB

# %%
import inspect
import math

import matplotlib.pyplot as plt
import torch

import llm_course
from llm_lab.checks import ch00

# %% [markdown]
# ## Why this notebook exists
#
# This notebook imports the package, computes a few numbers whose values are known, and compares.
# If all its cells run, the package is installed and the later chapters find what they need.
#
# The first code cell of every notebook is hidden on the page. Where the package is missing, as in
# Colab, it installs it, in the version of the page that you came from. It leaves torch and numpy
# as they are, and names what is too old. Where the package is installed it only imports it.

# %%
parts = torch.__version__.split("+")[0].split(".")
version = int(parts[0]), int(parts[1])
assert version >= (2, 11), f"torch 2.11 is needed, this is {torch.__version__}"
print("torch is new enough")
names = [name for name in llm_course.__all__ if name[0].isupper()]
print("names of the package:", ", ".join(names))

# %% [markdown]
# Four models, four configurations, a tokenizer and the settings of training: these are the names
# you will use most. The command `llm-course doctor` prints more about your machine: versions,
# processor, GPU, and the preset to begin with.

# %% [markdown]
# ## Formula, code, check, picture
#
# The sections of this course repeat four steps. Here they are for a formula that you will need in
# each chapter: the **softmax**. It turns any {math}`n` scores into {math}`n` positive numbers whose
# sum is one. In a language model the scores are called **logits**.
#
# $$\operatorname{softmax}(z)_i = \frac{e^{z_i}}{\sum_{j=1}^{n} e^{z_j}}$$ (eq-softmax)
#
# **Formula.** A score may be any number. The exponential makes it positive, and the division
# makes the sum one. A larger score gets a larger share.
#
# **Code.** The plain transcription follows the formula symbol by symbol.


# %%
def plain_softmax(z: list[float]) -> list[float]:
    """The formula, and nothing else."""
    total = sum(math.exp(score) for score in z)
    return [math.exp(score) / total for score in z]


scores = [2.0, 1.0, 0.0, -1.0]
print([f"{share:.3f}" for share in plain_softmax(scores)])

# %% [markdown]
# **Check.** PyTorch has a fast version. The two must agree. And because a check that cannot fail
# proves nothing, we also compare with a wrong version, the one that forgets the exponential, and
# see that the check finds the difference.

# %%
fast = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
plain = torch.tensor(plain_softmax(scores), dtype=torch.float64)
assert torch.allclose(fast, plain, atol=1e-12)

wrong = torch.tensor(scores, dtype=torch.float64)
wrong = wrong / wrong.sum()
assert not torch.allclose(wrong, plain, atol=1e-12)
print("formula and fast version agree:", [f"{share:.3f}" for share in fast])
print("without the exponential:       ", [f"{share:.3f}" for share in wrong])
assert wrong.sum() == 1
assert wrong.min() < 0

# %% [markdown]
# The wrong numbers sum to one as well, but one of them is negative, so they are not probabilities.
# A test of the sum alone would have accepted them.

# %% [markdown]
# **Picture.** What do the numbers mean? Multiply all scores by the same factor, and look at the
# shares.

# %% mystnb={"image": {"alt": "Line chart of four softmax shares against a factor from 0 to 3. At factor 0 all four shares are one quarter. The share of score 2 rises towards one. The share of score 1 rises a little, to 0.28, and then falls. The shares of scores 0 and minus 1 fall from the start."}}
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
# largest score takes nearly everything. A score in the middle first gains from those below it, and
# then loses to the one above it. You will meet the factor again, twice: as {math}`1/\sqrt{d_k}`
# inside attention, where it keeps the choice from being too sharp, and as one over the
# *temperature* when a model writes: a low temperature is a large factor.
#
# The plain version has a weakness. It fails where the fast version does not:

# %%
large = [1000.0, 999.0]
try:
    plain_softmax(large)
except OverflowError as error:
    print("plain:", error)
fast = torch.tensor(large).softmax(dim=0)
print("torch:", [f"{share:.3f}" for share in fast])

# %% [markdown]
# {math}`e^{1000}` is too large for a floating-point number. The fast version subtracts the
# largest score from all of them first. That changes nothing in {eq}`eq-softmax`: numerator and
# denominator are both divided by the same number. The first exercise asks you to do it.

# %% [markdown]
# ## The small world
#
# The labs, the chapters in which you train a model, use *Town*: stories that a program writes. Here
# are two. The number under each story is the logarithm of its exact probability. It is negative,
# because a probability is at most one. A model that had learnt the language perfectly would give
# the same number. For one story a model may give a larger one, but not on average over stories.

# %%
from llm_town import generate_documents

for document in generate_documents(2, seed=5, split="train"):
    print(document.text)
    print(f"log-probability {document.log_prob:.1f} nats\n")

# %% [markdown]
# ## The sub-packages
#
# The course has three packages. `llm_town` writes the stories, `llm_course` holds the models and
# all that trains them, and `llm_lab` what only the book needs: checks of exercises, pictures,
# counting. Inside `llm_course` each sub-package imports only earlier ones. In this order:
# `tokenizers` turn text into ids, `data` reads files, `losses` compare scores with labels,
# `batches` turn ids into batches, `models` turn ids into scores, `generation` lets a model write
# text, `training` changes the weights of a model, and `recipes` do a task from data to score.
# The command `make lint` checks the order. So you can read a sub-package without those that come
# after it.
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
# The message names the settings, their values and the rule. All messages of the package are meant
# to do that. If you meet one that does not tell you what to change, please report it as a bug.

# %% [markdown]
# ## Exercises
#
# Each exercise states how many minutes it may take. Write your answer, run the check, and read
# what it says. A check compares your answer with the usual mistakes, and names the one that gives
# the same result. The solution is in the closed box.
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
# *5 minutes, easy.* Something of probability {math}`p` happens. Its *surprise* is {math}`-\log p`,
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
# fail. A softmax turns scores into probabilities. Continue with [the chapter on the objective of
# GPT](12_gpt_objective.ipynb).
