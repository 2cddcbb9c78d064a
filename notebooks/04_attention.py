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
# # 04 Attention: looking up what is needed
#
# BADGE
#
# **You will** see why a memory of fixed size forgets, build attention from a dictionary lookup,
# check the formula of the Transformer in four forms, derive the factor {math}`1/\sqrt{d_k}`, put
# masks in the right place, measure what attention costs, and train a layer whose weights you can
# read.
#
# **Needs** Python, matrices, the softmax of [chapter 00](00_setup.ipynb); [chapter
# 02](02_families_and_masks.ipynb) shows what masks are for. **Runs** in 20 seconds on one core.
# **Source** {cite:p}`vaswani2017`; `llm_course/models/layers.py`.

# %% [markdown]
# COLAB

# %%
import inspect
import itertools
import math
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_course.models.layers import (
    attention,
    attention_weights,
    causal_mask,
    fused_attention,
)
from llm_lab.checks import ch04
from llm_lab.pictures.attention import attention_view, plot_attention
from llm_lab.pictures.head_measures import relation_mass
from llm_lab.pictures.measured import measured
from llm_town import generate_documents

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Words that refer back
#
# Here is a story from *Town*, the generated text that this course trains on. Some of its words
# mean nothing by themselves. We look at the story as a list of words. For each pronoun and each
# repeated name we count how far it is from the first mention of the person.

# %%
stories = generate_documents(100, seed=4, split="train")
story = next(s for s in stories if "that his father had given" in s.text)
print(story.text)
print()

words = [word.strip(".,") for word in story.text.split()]
person = "Halvin"
first = words.index(person)
gaps = []
for place, word in enumerate(words[first + 1 :], start=first + 1):
    if word.lower() in ("he", "his", "him", person.lower()):
        gaps.append(place - first)
        print(f"{word:>7} at word {place:2d}: {gaps[-1]:2d} words further on")
assert max(gaps) > 40

# %% [markdown]
# "He searched the kitchen": to know who did, a reader has to go back to the word "Halvin". To know
# that the Halvin of the last sentence is the teacher of the first, the way back is more than 40 words
# long. In a long text it may be thousands of words. A model of language needs a way to bring
# information from one position to another, wherever the two are.
#
# ### A memory of fixed size
#
# Before 2017 most models of text kept a memory: a vector of fixed size, updated at each word. The
# simplest memory is an average. Each word is a vector, and the memory is the mean of the vectors
# read so far. How much of the text can be read from it? We take a vocabulary of 1,000 random
# vectors of 64 numbers, average {math}`n` of them, and ask the average which words are in it:
# those whose vectors have the largest scalar product with it.

# %%
vocabulary = F.normalize(torch.randn(1000, 64, generator=generator), dim=1)
counts = [1, 2, 4, 8, 16, 32]
recovered = []
for n in counts:
    found = 0
    for _ in range(50):
        chosen = torch.randperm(1000, generator=generator)[:n]
        memory = vocabulary[chosen].mean(dim=0)
        guessed = (vocabulary @ memory).topk(n).indices
        found += len(set(chosen.tolist()) & set(guessed.tolist()))
    recovered.append(found / (50 * n))
for n, share in zip(counts, recovered):
    print(f"{n:2d} words in the average: {share:.2f} are found")
assert recovered[1] > 0.95  # two words
assert recovered[-1] < 0.5

# %% [markdown]
# One or two words are found without a mistake. Of 16 words, more than half are lost: the vector
# has 64 numbers, and each new word is laid over the others. From the second word on the average has
# also lost the order, since a sum is the same in every order of its terms. It knows which words it
# has read, at best, but not which of them belong together.
#
# A **recurrent network** has a better memory. It reads the words one after another, and a learnt
# function computes the new memory, called the **state**, from the old state and the new word:
# {math}`h_t = f(h_{t-1}, x_t)`. The function can decide what to keep. The **GRU**, *gated recurrent
# unit* {cite:p}`cho2014`, is a well-known function of this kind. But its memory still has a fixed
# size, and there is a second problem. What happened {math}`n` words ago has passed through the function
# {math}`n` times. This number is called the **path length**. In training, the gradient must go the
# same way back.
#
# **Attention** keeps all vectors, and lets each position look at every other position directly.
# Its path length is one, for every distance. The next sections explain how; here is first the
# effect. We take one GRU and one attention layer, both with random weights, give both the
# same 60 random vectors, and ask: how much does the output at the last position change with the
# input {math}`n` positions before? We make one number of this output, its scalar product with a
# random vector (`probe` in the code), and take the gradient of this number by each input. The longer
# the gradient, the greater the influence.

# %% tags=["covers-X1"]
length, width = 60, 48
torch.manual_seed(0)
gru = nn.GRU(width, width, batch_first=True)
projections = [nn.Linear(width, width, bias=False) for _ in range(3)]


def look_everywhere(x: torch.Tensor) -> torch.Tensor:
    return attention(*(projection(x) for projection in projections))


def influence(layer, rows: int = 64) -> torch.Tensor:
    """Gradient of the last output by each input; the last input first."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, length, width, generator=g, requires_grad=True)
    probe = torch.randn(width, generator=g)
    (layer(x)[:, -1] @ probe).sum().backward()
    return x.grad.norm(dim=-1).mean(dim=0).flip(0)


by_recurrence = influence(lambda x: gru(x)[0])
by_attention = influence(look_everywhere)
for distance in (1, 5, 10, 20, 40):
    ratio = by_recurrence[distance] / by_recurrence[1]
    flat = by_attention[distance] / by_attention[1]
    print(f"distance {distance:2d}: GRU {ratio:.4f}, attention {flat:.2f}")
assert by_recurrence[40] < 1e-4 * by_recurrence[1]
near, far = by_attention[1:20].mean(), by_attention[40:].mean()
assert 0.8 < far / near < 1.25

# %%
#| alt: Two curves of the length of the gradient against the distance in positions, on a
#|   logarithmic axis. The curve of the GRU is nearly a straight line down, from about 2 at distance
#|   0 to far below one millionth at distance 59. The curve of attention is flat: higher at distance
#|   0, and from distance 1 on always about the same.
#| caption: How much the last output depends on an input so many positions before. Both layers have
#|   random weights.
#| name: fig-04-path
figure, axes = plt.subplots(figsize=(7, 3.4))
axes.plot(by_recurrence, color="#D55E00", label="GRU")
axes.plot(by_attention, color="#0072B2", label="attention")
axes.set_yscale("log")
axes.set_xlabel("distance in positions")
axes.set_ylabel("length of the gradient")
axes.set_title("Recurrence forgets, attention does not")
axes.legend()
plt.show()

# %% [markdown]
# In {numref}`fig-04-path` the influence of an input on the GRU's last output shrinks by a nearly
# constant factor with each step, so it falls exponentially: after 40 steps almost nothing arrives.
# Training can move this factor closer to one, but it has to begin with gradients that are almost
# zero. For attention the distance has no effect; the small differences are chance. Only distance 0 is
# special, since the last position also asks the question.
#
# A recurrent network has another cost. Step {math}`t` needs the state of step {math}`t - 1`, so 60
# positions are 60 steps that wait for each other. Attention computes all positions at once, by
# matrix products. This is why the Transformer, which has attention in place of recurrence, trains fast on
# hardware that is good at large matrix products.

# %% [markdown]
# ## A dictionary that is soft
#
# You know a lookup with an exact answer. A Python dictionary has keys and values. You come with a
# query; if it equals one of the keys, you get the value of that key. Otherwise there is an error.
#
# Attention is a dictionary in which nothing has to be equal. **Query** and **keys** are vectors.
# The query is compared with *every* key by a scalar product: the **score** is large when the two
# vectors point in the same direction. A softmax turns the scores into **attention weights**, which
# are positive and sum to one. The result is the average of all **values**, weighted by them. A key
# that fits well contributes much, one that fits badly contributes little, and everything can be
# differentiated.
#
# An example that you can compute by hand. There are three entries, and their keys have four
# numbers. The scores are divided by {math}`\sqrt 4 = 2`; a later section explains why.

# %% tags=["covers-F1"]
query = torch.tensor([1.0, 1.0, 1.0, 1.0])
keys = torch.tensor([[2.0, 2, 0, 0], [1, 0, 1, 0], [1, -1, 0, 0]])
values = torch.tensor([[10.0, 0], [0, 10], [10, 10]])

scores = keys @ query / 2
powers = scores.exp()
weights = powers / powers.sum()
output = weights @ values
print("scores ", *scores.tolist())
print("exp    ", *(f"{power:.3f}" for power in powers))
print(f"sum     {powers.sum():.3f}")
print("weights", *(f"{weight:.3f}" for weight in weights))
print("output ", *(f"{number:.2f}" for number in output))
assert scores.tolist() == [2, 1, 0]
assert abs(powers.sum() - 11.107) < 1e-3
expected = attention(query[None], keys, values)[0]
assert torch.allclose(output, expected, atol=1e-6)

# %% [markdown]
# The first scalar product is {math}`1\cdot2 + 1\cdot2 = 4`, and half of it is 2. The three powers
# are {math}`e^2`, {math}`e^1` and {math}`e^0`. The first key gets two thirds of the weight. The
# output is {math}`0.665 \cdot (10, 0)` plus {math}`0.245 \cdot (0, 10)`
# plus {math}`0.090 \cdot (10, 10)`.
#
# How soft is the dictionary? Make the query longer, and all scores grow by the same factor.

# %%
factors = torch.cat([torch.zeros(1), torch.logspace(-1, 1.3, 60)])
path = attention(factors[:, None] * query, keys, values)
assert torch.allclose(path[0], values.mean(dim=0), atol=1e-5)
assert torch.allclose(path[-1], values[0], atol=1e-3)
print("query × 0: ", *(f"{number:.2f}" for number in path[0]))
print("query × 20:", *(f"{number:.2f}" for number in path[-1]))

# %%
#| alt: A triangle in the plane with the corners value 1 at (10, 0), value 2 at (0, 10) and value 3
#|   at (10, 10). A curve begins in the middle of the triangle, at the point marked query times 0,
#|   passes a point marked query times 1, and ends at the corner value 1. It stays inside the triangle.
figure, axes = plt.subplots(figsize=(4.6, 4.2))
corners = torch.cat([values, values[:1]])
axes.plot(corners[:, 0], corners[:, 1], color="#999999", lw=1)
axes.plot(path[:, 0], path[:, 1], color="#0072B2", lw=2)
for i, shift in enumerate([(8, -4), (6, 8), (-20, 8)]):
    axes.annotate(
        f"value {i + 1}", values[i], shift, textcoords="offset points"
    )
for name, point, shift in (
    ("query × 0", path[0], (-54, 7)),
    ("query × 1", output, (-72, -14)),
):
    axes.plot(*point, "o", color="#D55E00")
    axes.annotate(name, point, shift, textcoords="offset points")
axes.set_xlim(-1, 14)
axes.set_ylim(-1, 12)
axes.set_xlabel("first number of the output")
axes.set_ylabel("second number")
axes.set_title("The output stays between the values")
plt.show()

# %% [markdown]
# The output of attention always lies inside the triangle of the values, because the weights are
# positive and sum to one. With a query of zero all keys fit equally well, and the output is the
# mean of the values: attention contains the average as a special case. With a long query nearly
# all the weight goes to the best key, and the soft dictionary becomes a hard one. A model learns
# how long its queries and keys should be.
#
# Where do the three come from? In **self-attention** every position has all three roles. From its
# vector {math}`x` three learnt matrices make a query (what am I looking for?), a key (what do I
# offer to be found by?) and a value (what do I hand over?). The matrices could learn, for example, to
# give "him" a query that asks for *a man who was named*, and "Halvin" a key that fits this query.

# %% [markdown]
# ## The formula
#
# Now for all queries at once. The queries are the rows of a matrix {math}`Q` with {math}`T` rows,
# the keys those of {math}`K` and the values those of {math}`V`, both with {math}`S` rows. Queries
# and keys have {math}`d_k` numbers each. The formula is equation (1) of {cite:t}`vaswani2017`:
#
# $$\begin{aligned}
# &\operatorname{Attention}(Q, K, V) \\
# &\quad = \operatorname{softmax}\Bigl(\frac{QK^\top}{\sqrt{d_k}}\Bigr)\,V
# \end{aligned}$$ (eq-attention)
#
# The number in row {math}`t` and column {math}`s` of {math}`QK^\top` is the scalar product of
# query {math}`t` and key {math}`s`. The softmax works on each **row**: one query, all keys. The result
# has a row for each query, as wide as the values. As loops over numbers:


# %% tags=["covers-F1"]
def plain_attention(
    q: list[list[float]], k: list[list[float]], v: list[list[float]]
) -> list[list[float]]:
    """F1 as loops: slow, but close to the formula."""
    rows = []
    for query in q:
        scores = []
        for key in k:
            product = sum(a * b for a, b in zip(query, key))
            scores.append(product / math.sqrt(len(key)))
        total = sum(math.exp(score) for score in scores)
        row = [0.0] * len(v[0])
        for score, value in zip(scores, v):
            weight = math.exp(score) / total
            row = [r + weight * number for r, number in zip(row, value)]
        rows.append(row)
    return rows


def matrix_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """F1 with three matrix operations."""
    scores = q @ k.mT / math.sqrt(k.shape[-1])
    return scores.softmax(dim=-1) @ v


# %% [markdown]
# The package has the formula in two functions, so that the weights can also be looked at.
# `attention_weights` is the softmax; the section about masks shows its code. `attention`
# multiplies the weights with the values:

# %%
print(inspect.getsource(inspect.unwrap(attention)))

# %% [markdown]
# A fourth form, `fused_attention`, calls a **fused kernel**: one program that goes from {math}`Q`,
# {math}`K` and {math}`V` to the result, and never writes the matrix of weights into memory. The
# models of this course call that one. Loops, matrices, package and fused kernel must agree, in 64-bit
# numbers, to {math}`10^{-10}`. Two wrong versions must not: one without the factor, and one with the
# softmax over the wrong axis.
#
# A detail about the test: where the inputs do not suit its fused kernel, PyTorch computes the plain
# formula, and says nothing. The kernel needs four axes, and values as wide as the keys. The `with` line
# allows nothing else, so the comparison is with the kernel itself.


# %% tags=["covers-F1"]
def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


generator.manual_seed(8)
q, k, v = draw(4, 8), draw(6, 8), draw(6, 8)  # T = 4, S = 6, d_k = 8
loops = torch.tensor(
    plain_attention(q.tolist(), k.tolist(), v.tolist()), dtype=torch.float64
)
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    fused = fused_attention(q[None, None], k[None, None], v[None, None])[0, 0]
forms = {
    "matrix form": matrix_attention(q, k, v),
    "package": attention(q, k, v),
    "fused kernel": fused,
}
for name, result in forms.items():
    difference = (result - loops).abs().max().item()
    assert difference < 1e-10
    print(f"{name:>12}: differs by less than 1e-10")

wrong_axis = (q @ k.mT / math.sqrt(8)).softmax(dim=0) @ v
no_factor = attention(q, k, v, scale=1.0)
for name, result in (("no factor", no_factor), ("wrong axis", wrong_axis)):
    difference = (result - loops).abs().max().item()
    assert difference > 0.1
    print(f"{name:>12}: differs by {difference:.2f}")

# %% [markdown]
# Both wrong versions have the right shape and give no message. With the softmax over the wrong
# axis the *columns* sum to one: each of the six keys distributes one unit of weight over the four
# queries, so a query may get more than one unit, or less. Look at the sums of the rows:

# %%
#| alt: Two heat maps with four queries as rows and six keys as columns, and the sum of each row
#|   written beside it. In the upper one, the softmax over keys, all sums are 1.00. In the lower one,
#|   the softmax over queries, the four sums are different, between 0.71 and 2.54.
over_keys = attention_weights(q, k)
over_queries = (q @ k.mT / math.sqrt(8)).softmax(dim=0)
figure, panels = plt.subplots(2, 1, figsize=(4.6, 5.6), layout="constrained")
titles = ("softmax over keys (right)", "softmax over queries (wrong)")
for axes, shown, title in zip(panels, (over_keys, over_queries), titles):
    image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    for t, total in enumerate(shown.sum(dim=1)):
        axes.text(5.7, t, f"sum {total:.2f}", va="center")
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(title)
figure.colorbar(image, ax=panels, label="weight", location="bottom")
plt.show()

# %%
assert torch.allclose(over_keys.sum(dim=1), torch.ones(4).double())
sums = over_queries.sum(dim=1)
assert abs(sums.sum() - 6) < 1e-10  # six keys, one unit each
assert sums.max() > 2.5 > 0.8 > sums.min()

# %% [markdown]
# Above, each query has one unit of weight to give. Below, the last query has two and a half units, and
# the third has less than one. All four rows together have six, one for each key.
#
# A remark. Scores can also be computed by a small network that gets query and key and returns a
# number. This is called *additive* attention {cite:p}`bahdanau2015`, and it came first, as an
# addition to recurrent networks for translation. The scalar product replaced it, because all
# scores together are one matrix product.

# %% [markdown]
# ## Why the square root of d_k
#
# A scalar product of longer vectors is a sum of more terms, so it is larger. How much? Suppose
# that the numbers in a query and in a key are independent, with mean 0 and variance 1. One term
# {math}`q_i k_i` has the mean {math}`0`, and the variance {math}`E[q_i^2]\,E[k_i^2] = 1`.
# Different terms are independent, and the variance of a sum of independent terms is the sum of
# their variances:
#
# $$\operatorname{Var}(q \cdot k) = \sum_{i=1}^{d_k} \operatorname{Var}(q_i k_i) = d_k$$ (eq-score-variance)
#
# The typical size of a score is the square root of its variance, {math}`\sqrt{d_k}`. Divide by it,
# and the variance is 1 for every width. Let us check the equation without any chance: when every
# number is −1 or 1 with equal probability, all pairs of vectors can be listed.


# %% tags=["covers-F1"]
def exact_variance(d_k: int, numbers: tuple[float, float]) -> float:
    """Variance of q · k over all pairs of vectors made of two numbers."""
    products = []
    for query in itertools.product(numbers, repeat=d_k):
        for key in itertools.product(numbers, repeat=d_k):
            products.append(sum(a * b for a, b in zip(query, key)))
    mean = sum(products) / len(products)
    return sum((p - mean) ** 2 for p in products) / len(products)


for d_k in (1, 2, 3, 4):
    centred = exact_variance(d_k, (-1.0, 1.0))
    shifted = exact_variance(d_k, (0.0, 2.0))  # variance 1, but mean 1
    print(f"d_k = {d_k}: variance {centred:.0f}; with mean 1: {shifted:.0f}")
    assert abs(centred - d_k) < 1e-10
    assert abs(shifted - d_k) > 1

# %% [markdown]
# The second column is the control. Its numbers also have variance 1, but their mean is 1 and not
# 0, and {eq}`eq-score-variance` does not hold for them. The equation is true for a new model,
# whose weights are drawn around 0. In a trained model queries and keys are no longer independent;
# the model has then had the chance to choose the size of its scores itself.
#
# Now with numbers from a normal distribution, and widths that models have:

# %%
drawn = {}
for d_k in (4, 16, 64, 256):
    drawn[d_k] = (draw(20_000, d_k) * draw(20_000, d_k)).sum(dim=1)
    variance = drawn[d_k].var().item()
    scaled = (drawn[d_k] / math.sqrt(d_k)).var().item()
    print(
        f"d_k = {d_k:3d}: variance {variance:6.1f}, after division {scaled:.2f}"
    )
    assert abs(scaled - 1) < 0.1

# %%
#| alt: Two panels with histograms of 20,000 scores for four widths. In the upper one, the scores as they
#|   are: the curve for width 4 is a high peak at 0, and the curves become lower and wider with the
#|   width; that for 256 reaches from about minus 45 to 45. In the lower one, the scores divided by the
#|   square root of the width: the four curves lie nearly on top of each other, between minus 4 and 4;
#|   that for width 4 has a somewhat higher peak.
#| caption: Scores of random queries and keys, without and with the factor.
#| name: fig-04-scores
colors = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
figure, (above, below) = plt.subplots(
    2, 1, figsize=(6.5, 5.4), layout="constrained"
)
for (d_k, numbers), color in zip(drawn.items(), colors):
    options = {"histtype": "step", "density": True, "color": color}
    above.hist(numbers, 80, range=(-50, 50), label=f"d_k = {d_k}", **options)
    below.hist(numbers / math.sqrt(d_k), 80, range=(-5, 5), **options)
above.set_title("scores q · k")
below.set_title("scores divided by the square root of d_k")
above.legend()
for axes in (above, below):
    axes.set_ylabel("density")
plt.show()

# %% [markdown]
# In the upper part of {numref}`fig-04-scores` the scores spread with the width. In the lower part
# the four curves have the same spread. The one for width 4 has a higher peak and longer tails: a
# sum of only four products is not yet close to a normal distribution, but its variance is 1 as
# well.
#
# Why is a large score bad? You saw the reason in the triangle: a softmax of large scores becomes a
# hard choice. This is called **saturation**. A hard choice can be right in a *trained* layer. But
# in a new model the scores are random, and so is the choice: each query would look at one random
# key and at nothing else. We measure two things for 32 random keys, over {math}`d_k`: the largest
# weight, and how much the weights react to a change of the scores, that is, the gradient.
#
# For the second we need a formula. A softmax {math}`a = \operatorname{softmax}(z)` has the
# derivatives
#
# $$\frac{\partial a_i}{\partial z_j} = a_i\,([i = j] - a_j)$$ (eq-softmax-gradient)
#
# where the bracket is 1 when {math}`i = j`, and 0 otherwise. It follows from the quotient rule.
# The numerator {math}`e^{z_i}` depends on {math}`z_j` only when {math}`i = j`; this gives
# {math}`a_i [i = j]`. The denominator always depends on {math}`z_j`; this gives {math}`-a_i a_j`.


# %% tags=["covers-F1"]
def softmax_gradient(z: list[float]) -> list[list[float]]:
    """The derivatives as loops: row i, column j."""
    total = sum(math.exp(score) for score in z)
    a = [math.exp(score) / total for score in z]
    n = len(a)
    return [[a[i] * ((i == j) - a[j]) for j in range(n)] for i in range(n)]


z = draw(6)
by_autograd = torch.autograd.functional.jacobian(
    lambda scores: scores.softmax(dim=0), z
)
by_hand = torch.tensor(softmax_gradient(z.tolist()), dtype=torch.float64)
assert (by_hand - by_autograd).abs().max() < 1e-10
a = z.softmax(dim=0)
diagonal_only = torch.diag(a * (1 - a))  # as if each score had its own sigmoid
assert (diagonal_only - by_autograd).abs().max() > 1e-2
print("formula and autograd agree; without the other scores they do not")
assert by_hand.sum(dim=0).abs().max() < 1e-10
print("each column sums to 0: what one weight gains, the others lose")

# %% [markdown]
# Look at {eq}`eq-softmax-gradient` for a hard choice. If one weight is 1 and all others are 0,
# every product {math}`a_i([i = j] - a_j)` is zero. **A saturated softmax passes no gradient**, so
# neither the query nor the keys can learn that the choice was wrong. In the measurement the *length of
# the gradient* is the root of the sum of all squared derivatives, the mean of 200 queries.


# %%
def saturation(d_k: int, scale: float) -> tuple[float, float]:
    """Largest weight and length of the gradient, for 32 random keys."""
    q, k = draw(200, 1, d_k), draw(200, 32, d_k)
    a = attention_weights(q, k, scale=scale)[:, 0]
    slopes = torch.diag_embed(a) - a[:, :, None] * a[:, None, :]
    gradient = slopes.flatten(1).norm(dim=1)
    return a.amax(dim=1).mean().item(), gradient.mean().item()


widths = [1, 4, 16, 64, 256, 1024, 4096]
without = [saturation(d_k, 1.0) for d_k in widths]
with_root = [saturation(d_k, d_k**-0.5) for d_k in widths]
print("without the factor      with it")
print(" d_k  largest grad  largest grad")
for d_k, left, right in zip(widths, without, with_root):
    print(f"{d_k:4d}", end="")
    for largest, gradient in (left, right):
        print(f"{largest:9.2f} {gradient:4.2f}", end="")
    print()
assert without[3][0] > 0.7
assert without[-1][1] < 0.2 * with_root[-1][1]
assert max(row[0] for row in with_root[1:]) < 0.3

# %%
#| alt: Two panels over the width d_k from 1 to 4096, on a logarithmic axis, each with two curves. Upper
#|   panel, the largest of 32 weights: without the factor it rises from below 0.2 to nearly 1;
#|   with the factor it stays near 0.16. Lower panel, the length of the gradient: without
#|   the factor it first rises a little, up to width 4, and then falls to nearly 0; with the factor it stays
#|   nearly the same from width 16 on.
figure, (above, below) = plt.subplots(
    2, 1, figsize=(6.5, 5.2), sharex=True, layout="constrained"
)
for rows, color, name in (
    (without, "#D55E00", "scores as they are"),
    (with_root, "#0072B2", "divided by the root of d_k"),
):
    above.plot(widths, [row[0] for row in rows], "o-", color=color, label=name)
    below.plot(widths, [row[1] for row in rows], "o-", color=color)
below.set_xscale("log", base=2)
below.set_xticks(widths, widths)
above.set_ylabel("largest weight")
below.set_ylabel("length of the gradient")
below.set_xlabel("d_k")
above.set_ylim(0, 1.05)
below.set_ylim(0)
above.legend()
plt.show()

# %% [markdown]
# Without the factor a query of width 64, the width in the paper, gives most of its weight to one
# of 32 random keys, and at width 4096 the gradient is nearly gone. With the factor the width hardly
# matters any more: weights and gradients of a new model are about the same for all widths. (At width 1
# the factor is 1. There the two columns differ by chance.)
#
# The factor is not the only way. T5 has none: it starts with smaller weights in its query
# projection instead, and its attention is called with `scale=1.0`.

# %% [markdown]
# ## Masks
#
# Sometimes a query must not look at a key: because the key is padding, which only fills a row up to the
# length of its batch, or because it lies in the future, as in a model that predicts the next
# token. A **mask** is a matrix of truth values with a row for each query and a column for each
# key. In this course **True means attend**. (PyTorch's `nn.MultiheadAttention` has it the other
# way round. Read the documentation of whatever function you call.)
#
# A mask must act *before* the softmax. A forbidden score becomes {math}`-\infty`, its power is
# {math}`e^{-\infty} = 0`, and the remaining weights share the whole unit. A natural mistake is to
# act after the softmax, and to set the forbidden weights to zero. We compare both for the **causal
# mask**, in which a query sees itself and what is before it.


# %%
def masked_after(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """WRONG: the softmax has already seen the forbidden scores."""
    return attention_weights(q, k).masked_fill(~mask, 0.0) @ v


n = 6
q, k, v = draw(n, 8), draw(n, 8), draw(n, 8)
mask = causal_mask(n, n)
print(mask.int())
right = attention_weights(q, k, mask)
wrong = attention_weights(q, k).masked_fill(~mask, 0.0)
print("sums of the rows")
print("mask before:", *(f"{total:.2f}" for total in right.sum(dim=1)))
print("mask after: ", *(f"{total:.2f}" for total in wrong.sum(dim=1)))
assert torch.allclose(right.sum(dim=1), torch.ones(n).double())
assert wrong.sum(dim=1)[:-1].max() < 0.9

# %% [markdown]
# With the mask after the softmax all rows but the last sum to less than one, so those positions
# get an output that is too small. The second fault is worse. The denominator of the softmax still
# contains the forbidden scores, so the size of the output tells something about the future. We
# change the last key, and look at the outputs before it.

# %%
changed = k.clone()
changed[-1] += 3 * q[0]  # the last key now fits the first query
before = attention(q, k, v, mask)
after = attention(q, changed, v, mask)
moved = (after - before).abs().amax(dim=1)
assert (moved[:-1] == 0).all()  # exactly
leak = masked_after(q, changed, v, mask) - masked_after(q, k, v, mask)
leak = leak.abs().amax(dim=1)
assert leak[0] > 0.01
print("mask before: outputs 0 to 4 move by", moved[:-1].max().item())
print(f"mask after:  output 0 moves by {leak[0]:.2f}")

# %% [markdown]
# With the right mask nothing moves, not even in the last digit. With the wrong one the first
# position reacts to a key that it must not see. In training, a model can use such a leak.
#
# One could divide the rows by their new sum. On paper this gives the same numbers as the right
# mask, but not in a computer: when a forbidden score is much larger than all allowed ones, the
# allowed weights are rounded to zero, and then zero is divided by zero.

# %%
scores = torch.tensor([1.0, 2.0, 150.0])  # 32-bit numbers
allowed = torch.tensor([True, True, False])
early = scores.masked_fill(~allowed, -torch.inf).softmax(dim=0)
late = scores.softmax(dim=0) * allowed
print("mask before:        ", *(f"{weight:.2f}" for weight in early))
assert (late / late.sum()).isnan().all()
print("after, then divided: all NaN")
scores[2] = 3.0  # a harmless forbidden score
late = scores.softmax(dim=0) * allowed
assert torch.allclose(late / late.sum(), early)

# %% [markdown]
# There is one case in which the right mask needs care: **a query that may look at nothing**. This
# happens, for example, in rows that are all padding. All scores of such a row are {math}`-\infty`,
# all powers are 0, and the softmax divides 0 by 0. The result is NaN, *not a number*. The output
# of that row would not matter, since nobody uses it. But in the backward pass the gradient of the
# values is multiplied by the weights, and NaN times zero is NaN. One such row spoils the gradient
# of the matrix that makes the values, and with the next step the model.

# %%
blocked = mask.clone()
blocked[2] = False  # the third query may look at nothing
counted = torch.ones(n, 1, dtype=torch.float64)
counted[2] = 0  # and the loss ignores its output


def careless(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(k.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


for name, form in (("careless", careless), ("package", attention)):
    w_v = torch.eye(8, dtype=torch.float64, requires_grad=True)
    result = form(q, k, v @ w_v, blocked)
    result.masked_fill(counted == 0, 0.0).sum().backward()
    row = "NaN" if result[2].isnan().any() else f"{result[2].abs().max():.0f}"
    bad = int(w_v.grad.isnan().sum())
    print(f"{name}: row 2 is {row}; NaN in {bad} of 64 gradients")
    assert bad == (64 if name == "careless" else 0)

# %% [markdown]
# The careless version spoils all 64 gradients, although the loss does not use the row. The
# package's function returns zero for a row without any key, and so does the fused kernel. Here is
# the code of the weights:
#
# ```{literalinclude} ../llm_course/models/layers.py
# :pyobject: attention_weights
# ```
#
# The last three lines are about empty rows. The scores of such a row are replaced by zeros
# *before* the softmax, so that NaN never exists, and its weights are set to zero afterwards.

# %% [markdown]
# ## Order does not exist
#
# Read {eq}`eq-attention` again and look for the positions. They are not there. A score depends on
# what a query and a key contain, and not on where they stand. Exchange two rows of the input, and
# the same two rows of the output are exchanged, nothing else. This property is called
# **permutation equivariance**.

# %%
sentence = ["Colton", "invited", "Marla"]
turned = [2, 1, 0]  # Marla invited Colton
x = draw(3, 8)
w = [draw(8, 8) / math.sqrt(8) for _ in range(3)]


def self_attention(x: torch.Tensor, mask=None) -> torch.Tensor:
    return attention(*(x @ matrix for matrix in w), mask)


same = self_attention(x[turned])[1] - self_attention(x)[1]
assert (
    self_attention(x[turned]) - self_attention(x)[turned]
).abs().max() < 1e-10
causal = causal_mask(3, 3)
differs = self_attention(x[turned], causal)[1] - self_attention(x, causal)[1]
assert same.abs().max() < 1e-10
assert differs.abs().max() > 0.1
print("output at 'invited' in both sentences: equal to 1e-10")
print(f"with a causal mask: differs by {differs.abs().max():.2f}")

# %% [markdown]
# For attention alone, "Colton invited Marla" and "Marla invited Colton" are the same set of words.
# A causal mask breaks the symmetry, since earlier positions see fewer keys; but the keys that a query
# does see still have no order. In general a model has to be told where each token stands, and
# [chapter 06](06_positions_norms_ff.ipynb) adds this.

# %% [markdown]
# ## What it costs
#
# Every query is compared with every key, so there are {math}`T S` scores and as many weights. A score
# needs {math}`d_k` multiplications, each followed by an addition: {math}`d_k` *multiply-adds*. The
# weighted average needs {math}`d_v` for each weight, where {math}`d_v` is the width of a value:
#
# $$\text{multiply-adds} = T\,S\,(d_k + d_v)$$ (eq-attention-cost)
#
# (The softmax needs {math}`T\,S` exponentials more.) In self-attention {math}`S = T`, so the cost
# grows with {math}`T^2`. We count in loops, and compare with PyTorch's own counter. It counts a
# multiplication and an addition as two operations.


# %%
def counted_attention(n_queries, n_keys, d_k, d_v) -> int:
    """Walks through the loops of F1 and counts."""
    count = 0
    for _ in range(n_queries):
        for _ in range(n_keys):
            for _ in range(d_k):
                count += 1  # score += query[i] * key[i]
        for _ in range(n_keys):
            for _ in range(d_v):
                count += 1  # row[i] += weight * value[i]
    return count


for shape in ((5, 5, 4, 4), (10, 10, 4, 4), (3, 7, 4, 2)):
    n_queries, n_keys, d_k, d_v = shape
    with FlopCounterMode(display=False) as counter:
        attention(draw(n_queries, d_k), draw(n_keys, d_k), draw(n_keys, d_v))
    formula = n_queries * n_keys * (d_k + d_v)
    assert (
        counted_attention(*shape) == counter.get_total_flops() // 2 == formula
    )
    assert formula != n_queries * n_keys * d_k  # a count without the values
    print(f"T = {n_queries:2d}, S = {n_keys:2d}: {formula} multiply-adds")

# %% [markdown]
# Twice as many positions, four times the work. Memory behaves in the same way, if the weights are
# stored. In training they are, because {eq}`eq-softmax-gradient` needs them in the backward pass.
# PyTorch can tell us which tensors a function keeps. We count the bytes for 4 attention layers side by
# side (called **heads**, the subject of [chapter 05](05_several_heads.ipynb)) of width 64, without the inputs.


# %%
def rows_of(length: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    shape = (1, 4, length, 64)  # 1 row, 4 heads
    return [torch.randn(shape, generator=g) for _ in range(3)]


def kept_bytes(form, length: int) -> int:
    inputs = [x.requires_grad_() for x in rows_of(length)]
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = form(*inputs)  # keeps every tensor alive while we count
    assert result.requires_grad
    for x in inputs:
        kept.pop(x.data_ptr(), None)
    return sum(kept.values())


def seconds(form, length: int) -> float:
    inputs = rows_of(length)
    best = math.inf
    with torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            form(*inputs)
            best = min(best, time.process_time() - start)
    return best


lengths = [256, 512, 1024, 2048]
forms = {"plain": attention, "fused": fused_attention}
memory = {f: [kept_bytes(forms[f], t) for t in lengths] for f in forms}
times = {f: [seconds(forms[f], t) for t in lengths] for f in forms}

growth = {f: memory[f][-1] / memory[f][-2] for f in forms}
slower = times["plain"][-1] / times["plain"][-3]  # 4 times as long
with measured():
    print("   T  plain MB   ms  fused MB   ms")
    for i, t in enumerate(lengths):
        numbers = []
        for f in forms:
            numbers += [memory[f][i] / 1e6, times[f][i] * 1e3]
        print(f"{t:4d} {numbers[0]:9.1f} {numbers[1]:4.0f}", end="")
        print(f" {numbers[2]:9.1f} {numbers[3]:4.0f}")
    print(
        f"twice the length: {growth['plain']:.2f} times the memory,", end=" "
    )
    print(f"fused {growth['fused']:.2f} times")
    print(f"4 times the length: {slower:.1f} times as slow")
assert 3.5 < growth["plain"] < 4.5
assert 1.5 < growth["fused"] < 2.5
assert 5 < slower < 80
assert times["fused"][-1] < 1.5 * times["plain"][-1]

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# From 1,024 to 2,048 positions the memory of the plain form grows about 4 times, that of the fused
# kernel about 2 times. From 512 to 2,048 positions the plain form becomes 5 to 80 times slower. By
# {eq}`eq-attention-cost` the factor would be 16. It is often larger, because the larger matrix of
# weights no longer fits into the fast memory of the processor.
# ```

# %%
#| alt: Kept memory in megabytes against the length, 256 to 2048, both axes logarithmic. Two straight
#|   lines. The plain form rises by a factor of four with each doubling, from about 2 to over 100
#|   megabytes. The fused kernel rises by a factor of two with each doubling, from about 0.3 to 2
#|   megabytes.
figure, axes = plt.subplots(figsize=(6, 3.4))
for f, color in (("plain", "#D55E00"), ("fused", "#0072B2")):
    megabytes = [size / 1e6 for size in memory[f]]
    axes.plot(lengths, megabytes, "o-", color=color, label=f)
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_xticks(lengths, lengths)
axes.set_xlabel("length T")
axes.set_ylabel("kept for training, MB")
axes.set_title("Four times or two times with each doubling")
axes.legend()
plt.show()

# %% [markdown]
# The steeper line is {math}`T^2`. Compare also the times in the table. The fused kernel does the same
# multiplications, but it writes and reads less memory, and so it is usually faster.
#
# How can the fused kernel do without the weights? It reads the keys in small groups, and for each
# query it keeps only three things: the largest score so far, the sum of the powers so far, and the
# weighted sum of the values so far. In the backward pass it computes the weights once more
# {cite:p}`dao2022`. The work is still {math}`T^2`; only the memory is not. The last exercise
# builds this algorithm.

# %% [markdown]
# ## Train a layer that looks things up
#
# Now the layer has to learn. The task is called **associative recall**. A row states eight facts,
# such as "Marla:baker", each about another person and with another job, and then asks four questions,
# such as "Marla:?". The facts are drawn anew for each row. So nothing about Marla can be learnt by
# heart: the answer stands in the row and nowhere else.
#
# Each position is one vector, the embedding of a name plus the embedding of a job. (An *embedding*
# is a table with a learnt vector for each word.) For a question, the job is a special word "?".

# %%
people = ["Marken", "Tamton", "Dalna", "Eltor", "Edna", "Zanton"]
people += ["Halna", "Luton", "Colton", "Wildy", "Belton"]
people += ["Marla", "Elbur", "Wilna", "Halvin", "Marric"]
jobs = ["baker", "teacher", "nurse", "chef", "writer", "doctor"]
jobs += ["florist", "fisher", "artist", "singer", "driver"]
jobs += ["sailor", "tailor", "farmer", "painter", "judge"]
FACTS, QUESTIONS, ASK = 8, 4, len(jobs)


def recall_rows(number: int, g: torch.Generator, facts: int = FACTS):
    """Names [B, T], jobs [B, T], answers [B, 4], asked facts [B, 4]."""
    order = torch.rand(number, len(people), generator=g).argsort(dim=1)
    told = torch.rand(number, len(jobs), generator=g).argsort(dim=1)
    told = told[:, :facts]
    asked = torch.randint(facts, (number, QUESTIONS), generator=g)
    names = order[:, :facts]
    names = torch.cat([names, names.gather(1, asked)], dim=1)
    questions = torch.full((number, QUESTIONS), ASK)
    return (
        names,
        torch.cat([told, questions], dim=1),
        told.gather(1, asked),
        asked,
    )


def as_words(names: torch.Tensor, told: torch.Tensor) -> list[str]:
    pairs = zip(names.tolist(), told.tolist())
    return [f"{people[a]}:{[*jobs, '?'][b]}" for a, b in pairs]


names, told, answers, asked = recall_rows(1, generator)
print(" | ".join(as_words(names[0], told[0])))
print("answers:", ", ".join(jobs[i] for i in answers[0]))

# %% [markdown]
# Two models read the same rows: one attention layer, and one GRU. Both end with a matrix that
# gives each job a score. Read `mix` of the first: the three matrices and one call of the formula.
# The loss is minus the logarithm of the probability that the right job gets.
#
# A model that knows nothing spreads its probability over all 16 jobs; its loss is {math}`\log 16`. A
# model that knows *which* eight jobs the row has named, but not *whose* they are, can only guess among
# eight; its loss is {math}`\log 8`, and one answer in eight is right.


# %% tags=["covers-X1"]
class Recall(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.name = nn.Embedding(len(people), width)
        self.job = nn.Embedding(len(jobs) + 1, width)
        self.head = nn.Linear(width, len(jobs))

    def forward(self, names: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.name(names) + self.job(told)))


class AttentionRecall(Recall):
    def __init__(self, width: int = 48) -> None:
        super().__init__(width)
        self.w_q = nn.Linear(width, width, bias=False)
        self.w_k = nn.Linear(width, width, bias=False)
        self.w_v = nn.Linear(width, width, bias=False)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return attention(self.w_q(x), self.w_k(x), self.w_v(x))

    def weights(self, names: torch.Tensor, told: torch.Tensor):
        x = self.name(names) + self.job(told)
        return attention_weights(self.w_q(x), self.w_k(x))


class RecurrentRecall(Recall):
    def __init__(self, width: int = 48) -> None:
        super().__init__(width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


def train_recall(kind, steps: int = 400):
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        names, told, answers, _ = recall_rows(64, g)
        logits = model(names, told)[:, -QUESTIONS:]
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def accuracy(model: Recall, facts: int = FACTS) -> float:
    g = torch.Generator().manual_seed(1)
    names, told, answers, _ = recall_rows(1000, g, facts)
    with torch.no_grad():
        guess = model(names, told)[:, -QUESTIONS:].argmax(dim=-1)
    return (guess == answers).double().mean().item()


looking, looking_losses = train_recall(AttentionRecall)
reading, reading_losses = train_recall(RecurrentRecall)
found = {"attention": accuracy(looking), "GRU": accuracy(reading)}
ends = {
    "attention": sum(looking_losses[-20:]) / 20,
    "GRU": sum(reading_losses[-20:]) / 20,
}
sizes = [sum(p.numel() for p in m.parameters()) for m in (looking, reading)]
print(f"parameters: attention {sizes[0]:,}, GRU {sizes[1]:,}")
with measured():
    for name, share in found.items():
        print(f"{name:>9}: loss {ends[name]:.3f}, right answers {share:.3f}")
assert found["attention"] > 0.98
assert found["GRU"] < 0.4
assert 1.6 < ends["GRU"] < 2.5
print(f"log 16 = {math.log(16):.3f}, log 8 = {math.log(8):.3f}")

# %%
#| alt: Two loss curves over 400 steps, and a dashed line at log 8 = 2.08. Both curves begin near 2.8.
#|   The curve of attention falls below 0.1 within 100 steps and stays near 0. The curve of
#|   the GRU falls slowly, comes close to the dashed line, and ends a little above it.
figure, axes = plt.subplots(figsize=(7, 3.4))
axes.plot(reading_losses, color="#D55E00", lw=1, label="GRU")
axes.plot(looking_losses, color="#0072B2", lw=1.5, label="attention")
axes.axhline(math.log(FACTS), color="#555555", ls="--", lw=1, label="log 8")
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per answer")
axes.set_title("The same task, the same number of steps")
axes.legend()
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The attention layer answers more than 98 % of the questions of unseen rows. The GRU answers fewer
# than 40 %, usually about one in eight, and its loss ends between 1.6 and 2.5 nats, near {math}`\log 8`.
# ```
#
# The attention layer needs fewer than a hundred steps. The GRU has more parameters, and it has learnt
# at most which jobs the row has named, not whose they are. It is the fault of the average from the
# first section: the words are there, without their connections. A larger GRU, or a much longer
# training, may do better. But every fact has to be packed into a state of fixed size, by a function
# that does not yet know the question. Attention leaves the facts where they are.

# %% [markdown]
# ## Look at the weights
#
# Where does the trained layer look? Here is one unseen row. Point at one of the four questions, the
# tokens that end with "?". The number under each token is then the weight that the question gives to
# it; all of them together are 1. The small map below shows all rows at once. Our layer is the only one
# and has one head, so both are number 0.

# %%
g = torch.Generator().manual_seed(3)
names, told, answers, asked = recall_rows(200, g)
with torch.no_grad():
    maps = [looking.weights(names, told)[:, None]]  # one layer, one head
tokens = as_words(names[0], told[0])
attention_view(maps, tokens, title="Each question looks for its fact")

# %% [markdown]
# The same row as a picture that can be printed:

# %%
#| alt: Heat map with twelve rows, the queries, and twelve columns, the keys: eight facts and four
#|   questions. In each of the last four rows, the questions, one square is dark blue: the fact
#|   about the same person. All other squares of these rows are nearly white. Above, the facts have a
#|   dark or medium square on the diagonal, some also a second one at a question about their person.
figure = plot_attention(
    maps, tokens, layer=0, head=0, title="Facts and questions"
)
plt.show()

# %% [markdown]
# The questions look at the fact about the same person, and at nearly nothing else. The facts look
# at themselves, since their own name fits best, and some also at a question about the same
# person. The training did not ask for this: the outputs of the facts are not part of the loss.
#
# One row may be chosen well by chance. So we measure. For each question we know which position it
# should look at: the fact with the same name. `relation_mass` takes a matrix that is True at these
# places, and returns the weight that arrives there, averaged over all questions of 200 rows. The
# same layer before training is the control.

# %% tags=["covers-F1"]
relation = torch.zeros(200, FACTS + QUESTIONS, FACTS + QUESTIONS).bool()
rows = torch.arange(200)[:, None]
relation[rows, FACTS + torch.arange(QUESTIONS), asked] = True

torch.manual_seed(0)
with torch.no_grad():
    fresh = [AttentionRecall().weights(names, told)[:, None]]
mass = relation_mass(maps, relation)[0, 0].item()
mass_before = relation_mass(fresh, relation)[0, 0].item()
longer = accuracy(looking, facts=16)
even = 1 / (FACTS + QUESTIONS)
with measured():
    print(f"weight on the fact that was asked for: {mass:.3f}")
    print(f"before training: {mass_before:.3f}; evenly spread: {even:.3f}")
    print(f"right answers with 16 facts instead of 8: {longer:.3f}")
assert mass > 0.9
assert mass_before < 0.3
assert longer > 0.9

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# More than 90 % of the weight of a question lies on its fact, and less than 30 % before training.
# With 16 facts, twice as many as in training, still more than 90 % of the answers are right.
# ```
#
# The layer has learnt the lookup: `w_q` and `w_k` compare names, and `w_v` hands over the job. It
# also works in rows that are longer than those of the training, because the weights depend only on
# how well each key fits.
#
# A caution. In this model the weights explain the answer, because there is one layer with one head,
# and nothing else that could carry information. In a deep model a position holds information about
# many others, and a picture of weights shows where a head looked, not why the model answered as it
# did.

# %% [markdown]
# ## Exercises
#
# ```{exercise} Backward through the softmax
# :label: ex-04-backward
# *10 minutes, easy.* A training program does not build the matrix of {eq}`eq-softmax-gradient`. It
# has the weights {math}`a` and the derivatives {math}`g_i = \partial \mathcal L / \partial a_i`,
# and needs {math}`\partial \mathcal L / \partial z_j`. Write `softmax_backward(weights, upstream)`
# with sums and products only. `upstream` holds the {math}`g_i`; both tensors have the shape `[T, S]`,
# one softmax in each row.
#
# *Hint.* Write down {math}`\sum_i g_i\, \partial a_i / \partial z_j`, and see what remains of the
# bracket.
# ```

# %% [markdown]
# ```{solution-start} ex-04-backward
# :class: dropdown
# ```


# %%
def softmax_backward(
    weights: torch.Tensor, upstream: torch.Tensor
) -> torch.Tensor:
    ### BEGIN SOLUTION
    mean = (weights * upstream).sum(dim=-1, keepdim=True)
    return weights * (upstream - mean)
    ### END SOLUTION


# %% [markdown]
# The sum is
#
# $$\begin{aligned}
# & \sum_i g_i a_i ([i = j] - a_j) \\
# &\quad = a_j\Bigl(g_j - \sum_i g_i a_i\Bigr)
# \end{aligned}$$
#
# The sum in the bracket is the mean of the {math}`g_i`, weighted by attention. A step of training
# raises the score of a key only if more weight on it lowers the loss more than this mean.
#
# ```{solution-end}
# ```

# %%
ch04.check_softmax_backward(softmax_backward)

# %% [markdown]
# ```{exercise} The mask in the right place
# :label: ex-04-mask
# *15 minutes, medium.* Write `masked_attention(q, k, v, mask)` with matrix operations, without the
# functions of the package. `mask` is bool, True = attend, with the shape `[T, S]`. A query that
# may look at nothing gets the output zero, and no gradient may be NaN.
#
# *Hint 1.* What must a forbidden score be before the softmax? *Hint 2.* A `masked_fill` of the
# *output* hides a NaN there, but the weights still hold it, and the gradient of the values is
# multiplied by the weights. Replace the scores of an empty row before the softmax.
# ```

# %% [markdown]
# ```{solution-start} ex-04-mask
# :class: dropdown
# ```


# %%
def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    ### BEGIN SOLUTION
    scores = q @ k.mT / math.sqrt(k.shape[-1])
    empty = ~mask.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~mask & ~empty, -torch.inf)
    return scores.softmax(dim=-1).masked_fill(empty, 0.0) @ v
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch04.check_masked_attention(masked_attention)

# %% [markdown]
# ```{exercise} When does attention cost more than its matrices?
# :label: ex-04-cost
# *10 minutes, easy.* A self-attention layer of width {math}`D` usually has four matrices of {math}`D
# \times D`, called projections: three make queries, keys and values, one works on the output. All {math}`T` positions
# pass through each of them. Write `attention_share(length, d_model)`: the part of the layer's
# multiply-adds that belongs to {eq}`eq-attention-cost`, with {math}`S = T` and {math}`d_k = d_v =
# D`. At which length is it one half?
# ```

# %% [markdown]
# ```{solution-start} ex-04-cost
# :class: dropdown
# ```


# %%
def attention_share(length: int, d_model: int) -> float:
    ### BEGIN SOLUTION
    lookup = length * length * 2 * d_model
    projections = 4 * length * d_model * d_model
    return lookup / (lookup + projections)
    ### END SOLUTION


# %%
for length in (128, 1024, 8192):
    print(f"T = {length:4d}, D = 512: {attention_share(length, 512):.2f}")

# %% [markdown]
# {math}`2T^2D = 4TD^2` gives {math}`T = 2D`. For the width 512 that is a length of 1,024. In
# shorter rows most of the work is in the projections, in longer ones in the lookup.
#
# ```{solution-end}
# ```

# %%
ch04.check_attention_share(attention_share)

# %% [markdown]
# ```{exercise} Attention that forgets its weights
# :label: ex-04-stream
# *25 minutes, hard.* Write `streaming_attention(query, keys, values)` for one query of shape
# `[d_k]`; return its output. Read the pairs of key and value one by one, and keep only three things: the
# largest score so far, the sum of the powers, and the weighted sum of the values. Keep powers of *score
# minus largest score*, so that a score of 1,000 does no harm.
#
# *Hint 1.* First write it without the largest score. *Hint 2.* When a new largest score comes,
# both sums hold powers relative to the old one. By which factor must they be multiplied? *Hint 3.*
# Begin with the largest score {math}`-\infty`.
# ```

# %% [markdown]
# ```{solution-start} ex-04-stream
# :class: dropdown
# ```


# %%
def streaming_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    ### BEGIN SOLUTION
    largest = torch.tensor(-torch.inf, dtype=query.dtype)
    total = torch.zeros((), dtype=query.dtype)
    mixed = torch.zeros_like(values[0])
    for key, value in zip(keys, values):
        score = query @ key / math.sqrt(len(query))
        new_largest = torch.maximum(largest, score)
        shrink = (largest - new_largest).exp()
        power = (score - new_largest).exp()
        total = total * shrink + power
        mixed = mixed * shrink + power * value
        largest = new_largest
    return mixed / total
    ### END SOLUTION


# %% [markdown]
# The first shrinking factor is {math}`e^{-\infty} = 0`, and both sums are zero anyway. At the end
# the division by the sum of the powers happens once. Fused kernels do the same with groups of keys
# instead of single ones.
#
# ```{solution-end}
# ```

# %%
ch04.check_streaming_attention(streaming_attention)

# %% [markdown]
# ## What to keep
#
# Attention is a soft lookup: scalar products of queries and keys, a softmax over the keys, and a
# weighted average of the values. Every position reaches every other one in a single step, so
# distance does not weaken what arrives. The factor {math}`1/\sqrt{d_k}` keeps the scores of a new
# model at variance 1; without it the softmax saturates, and a saturated softmax passes no
# gradient. A mask acts before the softmax, True means attend, and a row without any key must give
# zero and not NaN. Attention does not know the order of its inputs. Its work grows with
# {math}`T^2`, its memory too, unless a fused kernel computes the weights without storing them.
#
# A layer looks things up in one way. [Chapter 05](05_several_heads.ipynb) gives it several heads, so that it can look for
# several things at once.
