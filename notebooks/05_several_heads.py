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
# # 05 Several heads: looking for more than one thing
#
# BADGE
#
# **You will** see a task that one head fails at and two heads of half the width solve; cut the
# matrices of single heads out of a layer and put them together again in three equal forms; catch a
# bug that keeps every shape right; count what heads cost; and train a small GPT whose heads you
# find by a measure and then remove one by one.
#
# **Needs** attention, from [chapter 04](04_attention.ipynb). **Runs** in 70 seconds on one core.
# **Source** {cite:p}`vaswani2017,michel2019`; `llm_course/models/layers.py`,
# `llm_lab/pictures/head_measures.py`.
#
# Names such as F2 and F3 are ids of formulas in the article that this course follows. The
# [source map](../book/source_map.md) lists them.

# %% [markdown]
# COLAB

# %%
import inspect
import random

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llm_course import (
    GPT,
    BERTConfig,
    GPTConfig,
    T5Config,
    Tokenizer,
    TrainConfig,
    TransformerConfig,
    train,
)
from llm_course.batches.documents import PackedDocuments
from llm_course.batches.sampler import Batches
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.layers import MultiHeadAttention, attention
from llm_course.models.transformer import sinusoids
from llm_lab.checks import ch05
from llm_lab.pictures.attention import (
    attention_maps,
    attention_view,
    plot_attention,
)
from llm_lab.pictures.head_measures import best_head, relation_mass
from llm_lab.pictures.measured import measured
from llm_lab.starts import copying
from llm_town import generate_documents, spans

generator = torch.Generator().manual_seed(0)
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW = "#CC79A7", "#E69F00"

# %% [markdown]
# ## One average is not enough
#
# In [chapter 04](04_attention.ipynb) a position sent out a query and got back one vector: the average of all values,
# weighted by how well their keys fit. This is one **head**. A position often needs two things at
# once. To continue "Halvin thanked Marla, because", a model wants to know who thanked *and* who was
# thanked, and the two must not be confused.
#
# Let us see what an average does with two things. There are two jobs, baker and nurse, and each has
# a vector. In the first world Halvin is the baker and Marla the nurse, in the second it is the other
# way round. A head looks at both facts with equal weight.

# %% tags=["covers-X3"]
baker, nurse = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
worlds = {
    "Halvin bakes, Marla nurses": torch.stack([baker, nurse]),
    "Halvin nurses, Marla bakes": torch.stack([nurse, baker]),
}
one_head = torch.tensor([[0.5, 0.5]])  # a row of weights for each head
two_heads = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
for name, values in worlds.items():
    print(name)
    print("   one head: ", (one_head @ values).flatten().tolist())
    print("   two heads:", (two_heads @ values).flatten().tolist())
first, second = worlds.values()
assert torch.equal(one_head @ first, one_head @ second)
assert not torch.equal(two_heads @ first, two_heads @ second)

# %% [markdown]
# The average is the same in both worlds. It says that somebody bakes and somebody nurses. No layer
# that comes later can tell the worlds apart, because the difference is gone. Two heads keep two
# averages side by side: the first looks at Halvin, the second at Marla.
#
# An uneven average, say 0.7 and 0.3, keeps a trace of the difference. Can one head learn to use it?
# We let it try. The task is the recall of [chapter 04](04_attention.ipynb) with a harder question: a row states eight
# facts, a person and a job each, and then *one* position asks about *two* people, the first and
# the second. The model must answer with two jobs in the right order. Both models are one layer of
# the package's `MultiHeadAttention` of width 32, with the same number of parameters. One has one head
# of width 32, the other two heads of width 16.


# %% tags=["covers-X3"]
PEOPLE = JOBS = 16
FACTS = 8


def two_questions(n: int, g: torch.Generator):
    """Facts [n, 8], two asked people [n, 2], and their two jobs [n, 2]."""
    names = torch.rand(n, PEOPLE, generator=g).argsort(dim=1)[:, :FACTS]
    jobs = torch.randint(JOBS, (n, FACTS), generator=g)
    asked = torch.rand(n, FACTS, generator=g).argsort(dim=1)[:, :2]
    return names, jobs, names.gather(1, asked), jobs.gather(1, asked)


class TwoAnswers(nn.Module):
    def __init__(self, n_heads: int, width: int = 32) -> None:
        super().__init__()
        self.name = nn.Embedding(PEOPLE, width)
        self.job = nn.Embedding(JOBS, width)
        self.ask_first = nn.Embedding(PEOPLE, width)
        self.ask_second = nn.Embedding(PEOPLE, width)
        self.attn = MultiHeadAttention(width, n_heads)
        self.answer = nn.Linear(width, 2 * JOBS)

    def forward(self, names, jobs, asked) -> torch.Tensor:
        facts = self.name(names) + self.job(jobs)
        question = self.ask_first(asked[:, :1]) + self.ask_second(asked[:, 1:])
        found = self.attn(question, facts)  # queries here, keys there
        return self.answer(found).unflatten(-1, (2, JOBS)).squeeze(1)


def learn_two(n_heads: int, kind=TwoAnswers, steps: int = 800, seed: int = 0):
    torch.manual_seed(seed)
    model = kind(n_heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    g = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        *inputs, answers = two_questions(64, g)
        logits = model(*inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    *inputs, answers = two_questions(2000, torch.Generator().manual_seed(9))
    with torch.no_grad():
        right = model(*inputs).argmax(dim=-1) == answers
    return losses, right.double().mean(dim=0), right.all(dim=1), model


attempts = {n_heads: learn_two(n_heads) for n_heads in (1, 2)}
sizes = [
    sum(p.numel() for p in model.parameters())
    for *_, model in attempts.values()
]
assert sizes[0] == sizes[1]
print(f"parameters of each model: {sizes[0]:,}")
both = {h: a[2].double().mean().item() for h, a in attempts.items()}
with measured():
    for n_heads, (_, single, _, _) in attempts.items():
        print(
            f"{n_heads} head{'s' if n_heads > 1 else ' '}: "
            f"first right {single[0]:.2f}, second right {single[1]:.2f}, "
            f"both right {both[n_heads]:.2f}"
        )
assert both[2] > 0.98
assert both[1] < 0.5

# %%
#| alt: Two loss curves over 800 steps. Both begin near 2.8 and fall together for about 100 steps. Then
#|   the curve of two heads falls to nearly zero within 200 steps. The curve of one head goes down
#|   slowly and ends near 0.9.
#| caption: Two questions at one position, for one head of width 32 and two heads of width 16.
#| name: fig-05-two-questions
figure, axes = plt.subplots(figsize=(6.5, 3.4))
axes.plot(attempts[1][0], color=RED, lw=1, label="one head of width 32")
axes.plot(attempts[2][0], color=BLUE, lw=1.5, label="two heads of width 16")
axes.set_ylim(bottom=0)
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per answer")
axes.set_title("Two questions, one position")
axes.legend()
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# Two heads answer more than 98 % of the pairs right, one head fewer than half of them.
# ```
#
# In {numref}`fig-05-two-questions` both models have equally many parameters and read the same
# rows. The loss of the one head keeps falling slowly, but it is still near 0.9 after 800 steps. This
# head is right on the first job in 77 % of the rows and on the second in 32 %, but on both in only
# 15 %. So in most rows it prefers one of the two people.
#
# An uneven average still holds a trace of the other job. But only one *linear* layer, `answer`, comes
# after the head, and for this answer it would have to choose the job with the *smaller* share. With
# fixed shares such as 0.7 and 0.3 no linear layer can do this for all pairs of jobs: it would have to
# count the presence of a job against this job, and then the jobs that are absent win. A layer that is
# not linear could do it, such as the feed-forward layer of [chapter 06](06_positions_norms_ff.ipynb).
# We try this too, with one head.


# %% tags=["covers-X3"]
class NotLinear(TwoAnswers):
    def __init__(self, n_heads: int, width: int = 32) -> None:
        super().__init__(n_heads, width)
        self.answer = nn.Sequential(
            nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2 * JOBS)
        )


_, _, right, _ = learn_two(1, NotLinear)
assert right.double().mean() > 0.6
print("one head and a layer that is not linear: both right in more than 60 %")

# %% [markdown]
# So one uneven average can carry both jobs, where something that comes later can read it. Two heads
# need no such help: each brings one job. They have narrower queries and keys, 16 numbers instead of
# 32, and for finding one of 16 people that is enough.
#
# So this is the idea of **multi-head attention**: divide the width among several heads, let each
# look for its own thing, and put the results side by side.

# %% [markdown]
# ## One head, with its matrices
#
# Each head has three matrices of its own. They make its queries, keys and values out of the same
# inputs:
#
# $$\begin{aligned}
# \text{head}_i &= \operatorname{Attention}( \\
# &\qquad Q W_i^Q,\; K W_i^K,\; V W_i^V)
# \end{aligned}$$ (eq-head)
#
# with the shapes
#
# $$\begin{aligned}
# W_i^Q, W_i^K &\in \mathbb R^{D \times d_k} \\
# W_i^V &\in \mathbb R^{D \times d_v} \\
# W^O &\in \mathbb R^{h\,d_v \times D}
# \end{aligned}$$ (eq-head-shapes)
#
# In this formula {math}`Q`, {math}`K` and {math}`V` are the inputs of the layer, before the
# projection, and {math}`h` is the number of heads. The formula counts the heads from 1, as the paper
# does. The code and the figures count them from 0. In self-attention all three are the same matrix
# {math}`x` with one row of {math}`D` numbers for each position. Each head turns the {math}`D` numbers
# into a short query of {math}`d_k` numbers. {math}`W^O` comes after the heads; the next section needs
# it. In the paper, and in this course, {math}`d_k = d_v`, and the configuration calls it `d_head`.
#
# Usually {math}`d_k = D / h`. Nothing in the formula demands this. T5 chooses `d_head` freely, and
# in its largest version the heads together are 16 times as wide as the model.


# %% tags=["covers-F3"]
def sizes_of(config) -> tuple[int, int, int]:
    d_head = getattr(config, "d_head", config.d_model // config.n_heads)
    return config.d_model, config.n_heads, d_head


t5_11b = T5Config(d_model=1024, n_heads=128, d_head=128, d_ff=65536)
configurations = {
    "Transformer": TransformerConfig(),
    "BERT-base": BERTConfig(),
    "GPT-2": GPTConfig(),
    "T5-small": T5Config(),
    "T5-11B": t5_11b,
}
print("              D    h  d_k   W_i^Q, W_i^K, W_i^V  W^O           h d_k/D")
for name, config in configurations.items():
    d_model, n_heads, d_head = sizes_of(config)
    small, last = (d_model, d_head), (n_heads * d_head, d_model)
    ratio = n_heads * d_head / d_model
    print(f"{name:11} {d_model:4d} {n_heads:4d} {d_head:4d}   ", end="")
    print(f"{small!s:20} {last!s:13} {ratio:4.0f}")
    with torch.device("meta"):  # shapes without memory
        layer = MultiHeadAttention(d_model, n_heads, d_head=d_head)
    for linear in (layer.w_q, layer.w_k, layer.w_v):
        assert linear.weight.mT.shape == (d_model, n_heads * d_head)
    assert layer.w_o.weight.mT.shape == last

# %% [markdown]
# The last lines of the cell compare the table with the layers that the package would build. One
# thing needs care. The package holds the matrices of all heads in **one** `nn.Linear`, so that one
# large product makes all queries. And `nn.Linear` stores its matrix transposed: it computes
# {math}`x W^\top`. So the matrix {math}`W_i^Q` of head {math}`i`, counted from 0, is the transpose of
# the *rows* {math}`i d_k` to {math}`(i+1) d_k - 1` of `w_q.weight`. {math}`W^O` is also stored
# transposed, and there head {math}`i` has *columns*.

# %%
#| alt: Two coloured rectangles. Left, w_q.weight, 12 rows and 8 columns: the rows lie in three
#|   bands of four, head 0 at the top, then head 1 and head 2. Right, w_o.weight, 8 rows and 12
#|   columns: three bands of four columns, head 0 at the left, then head 1 and head 2.
#| caption: Where the matrices of three heads of width 4 stand in a layer of width 8.
#| name: fig-05-matrices
owner = torch.arange(3).repeat_interleave(4)
figure, panels = plt.subplots(1, 2, figsize=(6.8, 3.4), layout="constrained")
heads_map = plt.matplotlib.colors.ListedColormap([BLUE, YELLOW, GREEN])
panels[0].imshow(owner[:, None].expand(12, 8), cmap=heads_map)
panels[1].imshow(owner[None].expand(8, 12), cmap=heads_map)
for i, color in enumerate(("white", "black", "white")):
    style = {"ha": "center", "va": "center", "color": color}
    panels[0].text(3.5, 4 * i + 1.5, f"head {i}", **style)
    panels[1].text(4 * i + 1.5, 3.5, f"head {i}", rotation=90, **style)
panels[0].set_title("w_q.weight")
panels[1].set_title("w_o.weight")
for axes in panels:
    axes.set_xlabel("input number")
    axes.set_ylabel("output number")
plt.show()

# %% [markdown]
# {numref}`fig-05-matrices` shows a layer with {math}`D = 8` and three heads of width 4: here the
# heads together are wider than the model. `w_k` and `w_v` look like `w_q`.

# %% [markdown]
# ## Several heads, side by side
#
# The results of the heads are put side by side, which makes {math}`h d_v` numbers for each
# position, and {math}`W^O` turns them into {math}`D` numbers again:
#
# $$\begin{aligned}
# &\operatorname{MultiHead}(Q, K, V) \\
# &= \operatorname{Concat}(\text{head}_1, \dots, \text{head}_h)\, W^O
# \end{aligned}$$ (eq-multi-head)
#
# As a loop over the heads, with matrices that are cut out of a layer of the package:


# %% tags=["covers-F2", "covers-F3"]
def matrices_of(layer: MultiHeadAttention, i: int) -> list[torch.Tensor]:
    """W_i^Q, W_i^K and W_i^V, each of shape [D, d_k]."""
    rows = slice(i * layer.d_head, (i + 1) * layer.d_head)
    return [w.weight[rows].mT for w in (layer.w_q, layer.w_k, layer.w_v)]


def one_head_of(layer: MultiHeadAttention, x: torch.Tensor, i: int):
    w_q, w_k, w_v = matrices_of(layer, i)
    return attention(x @ w_q, x @ w_k, x @ w_v)  # eq-head


def plain_heads(layer: MultiHeadAttention, x: torch.Tensor, order=None):
    """F2 as a loop; the layer has no biases."""
    heads = []
    for i in order or range(layer.n_heads):
        heads.append(one_head_of(layer, x, i))
    return torch.cat(heads, dim=-1) @ layer.w_o.weight.mT  # eq-multi-head


# %% [markdown]
# The package does not loop. It makes all queries with one product, *reshapes* the result so that
# the heads become an axis, and calls attention once for all heads. (`source`, `mask`, `keys_values` and
# `cache` are for later chapters. `fused_attention` computes the same as `attention`.)

# %%
for function in (MultiHeadAttention._split, MultiHeadAttention.forward):
    print(inspect.getsource(inspect.unwrap(function)))

# %% [markdown]
# `unflatten` turns the last axis of {math}`h d_k` numbers into two, heads and width, and
# `transpose` moves the heads in front of the positions. Attention works on the last two axes, so
# each head is by itself. After it, the same steps happen backwards.
#
# Both forms must agree in 64-bit numbers to {math}`10^{-10}`. Two wrong ones must not: the heads in
# another order, and the rows cut in another way, every third row for each of three heads.


# %% tags=["covers-F2", "covers-F3"]
def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def cut_wrongly(layer: MultiHeadAttention, x: torch.Tensor):
    """WRONG: head i gets the rows i, i + h, i + 2h, ..."""
    heads = []
    for i in range(layer.n_heads):
        rows = slice(i, None, layer.n_heads)
        weights = [w.weight[rows] for w in (layer.w_q, layer.w_k, layer.w_v)]
        heads.append(attention(*(x @ weight.mT for weight in weights)))
    return torch.cat(heads, dim=-1) @ layer.w_o.weight.mT


torch.manual_seed(0)
torch.set_grad_enabled(False)  # until we train
x = draw(2, 5, 8)  # B = 2, T = 5, D = 8
for n_heads, d_head in ((3, 4), (2, None), (1, 5)):
    layer = MultiHeadAttention(8, n_heads, d_head=d_head, bias=False).double()
    difference = (plain_heads(layer, x) - layer(x)).abs().max()
    assert difference < 1e-10
    print(
        f"{n_heads} of width {layer.d_head}: loop and package agree to 1e-10"
    )

layer = MultiHeadAttention(8, 3, d_head=4, bias=False).double()
turned = (plain_heads(layer, x, order=[2, 1, 0]) - layer(x)).abs().max()
wrong = (cut_wrongly(layer, x) - layer(x)).abs().max()
assert turned > 0.1
assert wrong > 0.1
print(f"heads in another order: differs by {turned:.2f}")
print(f"rows cut wrongly:       differs by {wrong:.2f}")

# %% [markdown]
# Why does the order matter, if no head is special? Because {math}`W^O` knows who stands where. Put
# the row blocks of {math}`W^O` in the same new order, and the result is the same again:

# %% tags=["covers-F2"]
order = [2, 1, 0]
turned_heads = torch.cat([one_head_of(layer, x, i) for i in order], dim=-1)
row_blocks = layer.w_o.weight.mT.unflatten(0, (3, 4))  # one block a head
again = turned_heads @ row_blocks[order].flatten(0, 1)
assert (again - layer(x)).abs().max() < 1e-10
print("heads and row blocks in another order: agree to 1e-10")

# %% [markdown]
# No head is the first one, as long as {math}`W^O` has the same order as the heads.

# %% [markdown]
# ## A sum of heads
#
# There is a third form, the most useful one for understanding. A row of numbers times a matrix is a sum:
# each number times its row of the matrix. The first {math}`d_v` numbers come from head 1, and they
# meet the first {math}`d_v` rows of {math}`W^O`. Call these rows
# {math}`W_1^O \in \mathbb R^{d_v \times D}`. Then
#
# $$\begin{aligned}
# &\operatorname{Concat}(\text{head}_1, \dots, \text{head}_h)\, W^O \\
# &= \sum_{i=1}^{h} \text{head}_i\, W_i^O
# \end{aligned}$$ (eq-head-sum)
#
# Nothing is approximated. Concatenation and projection together *are* a sum of contributions, one
# from each head, all of the width of the model. With biases, as in GPT-2 and BERT, {math}`b_O` is
# added once to the sum. It belongs to no head, and stays when a head is removed.


# %% tags=["covers-F2"]
def contribution(layer: MultiHeadAttention, x: torch.Tensor, i: int):
    columns = slice(i * layer.d_head, (i + 1) * layer.d_head)
    return one_head_of(layer, x, i) @ layer.w_o.weight[:, columns].mT


parts = [contribution(layer, x, i) for i in range(layer.n_heads)]
assert (sum(parts) - layer(x)).abs().max() < 1e-10
print("the sum of the heads and the package agree to 1e-10")
missing = (parts[0] + parts[2] - layer(x)).abs().max()
assert missing > 0.1
print(f"without head 1: differs by {missing:.2f}")

# %%
#| alt: Four heat maps one above the other, each with five rows for the positions and eight columns for
#|   the numbers of the vector. The upper three are the contributions of head 0, head 1 and head 2,
#|   each with its own pattern. The lowest is their sum.
titles = [f"head {i} times its part of W^O" for i in range(3)]
shown = [*parts, layer(x)]
figure, panels = plt.subplots(
    4, 1, figsize=(5.2, 7.6), sharex=True, layout="constrained"
)
for axes, values, title in zip(panels, shown, [*titles, "the layer: the sum"]):
    image = axes.imshow(values[0], cmap="PuOr", vmin=-0.4, vmax=0.4)
    axes.set_title(title)
    axes.set_ylabel("position")
panels[-1].set_xlabel("number of the vector")
figure.colorbar(image, ax=panels, label="value")
plt.show()

# %% [markdown]
# The lowest picture is the sum of the three above it, square by square. So an output of attention
# can be **taken apart**: this much came from head 0, that much from head 1. In a Transformer the
# output of the layer is added to the vector that went in, {math}`x + \operatorname{MultiHead}(x)`;
# [chapter 06](06_positions_norms_ff.ipynb) explains why. Each head then *writes* its contribution into the vector of its position,
# and to remove a head means to leave out one term of the sum. We will do this with a trained model.

# %% [markdown]
# ## A bug that keeps every shape right
#
# The reshaping has a trap. After the projection, the queries have the shape
# `[B, T, H * K]`, and attention wants `[B, H, T, K]`. Why two steps, `unflatten` and `transpose`? A
# single `view` reaches the same shape:


# %%
def right_split(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def wrong_split(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """WRONG: the right shape, and the numbers in the wrong places."""
    n_rows, length, width = x.shape
    return x.view(n_rows, n_heads, length, width // n_heads)


names = [f"{t}{letter}" for t in range(4) for letter in "abcd"]
marks = torch.arange(16).view(1, 4, 4)  # 4 positions of 4 numbers
for split in (right_split, wrong_split):
    shape = split(marks, 2).shape
    print(f"{split.__name__}: shape {tuple(shape)}")
    for head, rows in enumerate(split(marks, 2)[0].tolist()):
        print(f"   head {head}:", [[names[n] for n in row] for row in rows])
assert right_split(marks, 2).shape == wrong_split(marks, 2).shape

# %% [markdown]
# Each number is marked by its position, 0 to 3, and a letter. In the right version head 0 has the
# letters a and b of all four positions. In the wrong one head 0 has all letters of positions 0 and
# 1, and head 1 those of positions 2 and 3. `view` keeps the numbers in their order in
# memory, and only cuts this order into other pieces; only `transpose` exchanges axes.
#
# With the wrong version everything runs. There is no message. But row {math}`t` of a head is not
# position {math}`t`. The output of a position is made of pieces of other positions, so the layer
# cannot do its work. In a causal model something worse happens:
# positions see the future. A test can find this. Change one position of the input, and see
# which outputs move.


# %% tags=["covers-F2"]
class WrongLayer(MultiHeadAttention):
    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return wrong_split(x, self.n_heads)


def moved_by(layer: nn.Module, place: int, length: int = 6) -> list[bool]:
    """Which outputs of a causal layer move when one input changes."""
    x = draw(1, length, 8)
    changed = x.clone()
    changed[:, place] += 1
    gap = layer(changed, causal=True) - layer(x, causal=True)
    return (gap.abs().amax(dim=(0, 2)) > 0).tolist()


honest = [False] * 3 + [True] * 3  # position 3 and those after it
for kind, n_heads in (
    (MultiHeadAttention, 2),
    (WrongLayer, 2),
    (WrongLayer, 1),
):
    torch.manual_seed(0)
    moved = moved_by(kind(8, n_heads).double(), place=3)
    stars = " ".join("-*"[m] for m in moved)
    print(f"{kind.__name__:18} {n_heads} heads: {stars}")
    assert (moved == honest) == (kind is MultiHeadAttention or n_heads == 1)

# %% [markdown]
# A star marks an output that moved when the input at position 3 changed. In the right layer these
# are position 3 and the two after it. In the wrong layer with two heads all of them move, also the
# three before. A test that demands the pattern of the first line fails on this layer, as it should. But look
# at the last line: **with one head the wrong split is right.** A test with `n_heads=1` never finds
# this bug. Nor does a test with one position, where nothing can be in the wrong place. Test such
# code with at least two heads, and with numbers of heads, positions and widths that are all
# different.

# %% [markdown]
# ## What heads cost
#
# Do more heads cost more? Count the parameters of the four matrices, without biases, and the
# multiply-adds for {math}`T` positions. Each projection has {math}`D \cdot h d_k` numbers, and each
# position passes through all of them. The scores and the weighted averages need {math}`2 T^2 d_k`
# for each head, as [chapter 04](04_attention.ipynb) has counted.
#
# $$\begin{aligned}
# \text{parameters} &= 4\,D\,(h d_k) \\
# \text{multiply-adds} &= 4\,T D\,(h d_k) \\
# &\quad + 2\,T^2 (h d_k)
# \end{aligned}$$ (eq-head-cost)
#
# The number of heads occurs only in the product {math}`h d_k`. When {math}`h d_k = D`, neither line
# depends on {math}`h`.


# %% tags=["covers-X3"]
def counted_heads(layer: MultiHeadAttention, length: int) -> tuple[int, int]:
    """Multiply-adds by PyTorch's counter; bytes of the attention weights."""
    x = torch.zeros(1, length, layer.w_q.in_features)
    with FlopCounterMode(display=False) as counter:
        q = layer._split(layer.w_q(x))
        k, v = layer.keys_values(x)
        joined = attention(q, k, v).transpose(1, 2).flatten(2)
        layer.w_o(joined)
    stored = layer.weights(x).nbytes
    return counter.get_total_flops() // 2, stored


D, T = 64, 128
print(" h d_k parameters multiply-adds   kB")
costs = {}
for n_heads in (1, 2, 4, 8, 16):
    layer = MultiHeadAttention(D, n_heads, bias=False)
    n_parameters = sum(p.numel() for p in layer.parameters())
    count, stored = counted_heads(layer, T)
    width = n_heads * layer.d_head
    assert n_parameters == 4 * D * width
    assert count == 4 * T * D * width + 2 * T**2 * width
    costs[n_heads] = n_parameters, count
    print(
        f"{n_heads:2d}{layer.d_head:4d}{n_parameters:11,}{count:14,}"
        f"{stored / 1000:5.0f}"
    )
assert len(set(costs.values())) == 1
fixed = MultiHeadAttention(D, 4, d_head=64, bias=False)  # d_k kept at 64
assert counted_heads(fixed, T)[0] == 4 * costs[1][1]
print("4 heads of width 64 each: 4 times the work")

# %% [markdown]
# Parameters and the multiply-adds of the matrix products are the same in all rows. The last line is
# the control: if each head keeps its full width, the work grows with the number of heads.
#
# At fixed {math}`h d_k`, what grows with {math}`h` is everything that is done once for each
# attention weight, because each head has its own {math}`T \times T` of them: the scaling and the
# softmax, which PyTorch's counter does not count, and the memory. The last column is the size of the
# weights in kilobytes; a fused kernel never stores them.
#
# So heads are nearly free. But each becomes narrower.

# %% [markdown]
# ## What a narrow head cannot do
#
# The scores of a head are {math}`Q_i K_i^\top`, a {math}`T \times T` matrix. It is a product of a
# matrix with {math}`d_k` columns and one with {math}`d_k` rows. The **rank** of a matrix is the smallest
# number of rows from which all its rows can be made, by multiplying and adding. A product has at most
# the rank of each factor:
#
# $$\operatorname{rank}\bigl(x W_i^Q (x W_i^K)^\top\bigr) \le d_k$$ (eq-head-rank)
#
# If {math}`d_k` is small against {math}`T`, the {math}`T^2` scores cannot be chosen independently. A head of width 1
# has the rank 1: all rows of its scores are multiples of one row. So the keys have one order, and
# each query can only follow it or turn it around. {cite:t}`bhojanapalli2020` call this the low-rank
# bottleneck. We measure the rank of random heads, and count how many of 32 keys are the **favourite**
# of some query, that is, get its largest weight.

# %%
T = 32
print(" d_k  rank  different favourite keys")
favourites = {}
for d_head in (1, 2, 4, 8, 16, 64):
    layer = MultiHeadAttention(64, 1, d_head=d_head, bias=False).double()
    x = draw(1, T, 64)
    q, k = layer.w_q(x)[0], layer.w_k(x)[0]
    rank = torch.linalg.matrix_rank(q @ k.mT).item()
    assert rank == min(d_head, T)  # never more than d_k
    favourites[d_head] = len((q @ k.mT).argmax(dim=1).unique())
    print(f"{d_head:4d} {rank:5d} {favourites[d_head]:6d} of {T}")
assert favourites[1] <= 2
assert favourites[1] < favourites[4] < favourites[64]
free = torch.linalg.matrix_rank(draw(T, T)).item()  # scores without heads
assert free == T
print(f"a matrix that is no such product: rank {free}")

largest = draw(1000, T, T).argmax(dim=-1)  # of 1000 such matrices
reached = F.one_hot(largest, T).amax(dim=1).sum(dim=1).double().mean()
assert 20 < reached < 21
print(f"   its favourites: {reached:.1f} of {T} on average")

angle = torch.arange(T) * 2 * torch.pi / T
circle = torch.stack([angle.cos(), angle.sin()], dim=1)  # queries and keys
assert torch.linalg.matrix_rank(circle @ circle.mT) == 2
reached = len((circle @ circle.mT).argmax(dim=1).unique())
assert reached == T
print(f"d_k = 2, queries and keys on a circle: {reached} of {T}")

# %% [markdown]
# With {math}`d_k = 1` there are at most two favourites, the key with the largest number and the key
# with the smallest. This is a limit: no training can change it. (The softmax comes after this
# product, and the weights can have a higher rank than the scores. But which key is the largest is
# decided by the scores alone.)
#
# The other rows are about *random* heads. With {math}`d_k = 64` there are 19 favourites, and random
# scores without any head have about 20, so nothing is missing. And a trained head of width 2 could
# reach all 32, with its queries and keys on a circle. What it cannot do is give every query any
# weights it likes. {cite:t}`bhojanapalli2020` show that this needs {math}`d_k \ge T`.
#
# So the number of heads is a compromise: many heads look for many things, each in a coarser way.
# {cite:t}`vaswani2017` tried 1, 4, 8, 16 and 32 heads at the same cost, and both ends were worse
# than 8 (their Table 3). T5-11B leaves the compromise: many heads *and* a width of 128 each, at the
# price of {eq}`eq-head-cost`.

# %% [markdown]
# ## What do heads learn?
#
# Now we look at heads that have learnt. The model is a GPT with two blocks of four heads each, which
# guesses the next token of a text. ([Chapter 12](12_gpt_objective.ipynb) explains its loss. Here you only need to know that
# it is {math}`-\log` of the probability of the right token, in nats, and that no position sees a
# later one. This is the *surprise* of [chapter 00](00_setup.ipynb).) The text is from Town. To
# make it easy, we take only stories of three *plots*, that is, of three kinds of events.
#
# The training should not take longer than half a minute. In a story of Town a name comes back a few
# times among a hundred tokens, and for a small model and a short training that is a weak signal. So we
# make repetition dense: a row of the training text is a passage from a story, told again and again
# until the row is full. The passages have different lengths, so that a position alone does not tell
# where to look.

# %%
PLOTS = ("loan", "lesson", "work")


def some_stories(n: int, split: str) -> list:
    drawn = generate_documents(n, seed=0, split=split)
    return [story for story in drawn if story.derivation.plot in PLOTS]


stories = some_stories(24_000, "train")
held_out = some_stories(2_500, "validation")[:200]
tokenizer = Tokenizer.train(
    (story.text for story in stories[:1500]), kind="bpe", vocab_size=512
)
LENGTH, ONCE = 72, 30  # tokens of a row; of a passage told twice


def told_again(ids: list[int], n: int) -> list[int]:
    """BOS, then a passage of n tokens again and again."""
    return [tokenizer.bos_id, *(ids[:n] * (LENGTH // n + 1))][:LENGTH]


shuffle = random.Random(0)
rows, lengths = [], []  # two passages of each story
for ids in 2 * tokenizer.encode_batch([story.text for story in stories]):
    n = shuffle.randrange(24, 36)
    start = shuffle.randrange(len(ids) - n)
    rows.append(told_again(ids[start:], n))
    lengths.append(n)
print(f"{len(rows)} rows of {LENGTH} tokens; the first one:")
pieces = [tokenizer.token(i).replace("Ġ", " ") for i in rows[0]]
for start in range(1, LENGTH, lengths[0]):  # a telling
    told = pieces[start : start + lengths[0]]
    for place in range(0, len(told), 15):
        print("   " if place else "->", "|".join(told[place : place + 15]))

# %% [markdown]
# An arrow marks the beginning of a telling; BOS, which begins each row, is not printed. The third
# telling is cut off at the end of the row. The tokens are pieces of words, made by byte-pair encoding. Frequent
# words and many names are one token, such as " Marna". Rarer words have two or more, such as
# " gre" + "ed" + "y".
#
# Two more things make the learning short. The model begins with the start `copying`: there,
# each head already carries what it looks at to the output, and has to learn only *where* to look.
# [Chapter 13](13_gpt_pretrain.ipynb) shows what this is good for. And the vectors that tell the model its positions begin as
# waves, so that near positions have similar vectors; [chapter 06](06_positions_norms_ff.ipynb) explains them. The training takes
# about half a minute.

# %%
WIDTH, HEADS, STEPS = 64, 4, 1200
config = GPTConfig(
    vocab_size=len(tokenizer),
    n_layers=2,
    d_model=WIDTH,
    n_heads=HEADS,
    n_positions=LENGTH,
    dropout=0.0,
)


def new_gpt(seed: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config)
    copying(model)
    table = model.position_embedding.weight.data
    table.copy_(0.1 * sinusoids(LENGTH, WIDTH))
    return model


torch.set_grad_enabled(True)
SEED = 0
model, untrained = new_gpt(SEED), new_gpt(SEED).eval()
batches = Batches(PackedDocuments(rows, LENGTH, separate=False), 8, seed=SEED)
settings = TrainConfig(
    max_steps=STEPS,
    lr=8e-3,
    warmup_steps=50,
    min_lr=2e-4,
    precision="fp32",
    device="cpu",
)
curve = [step.loss for step in train(model, batches, causal_loss_fn, settings)]
model.eval()
torch.set_grad_enabled(False)


def surprise(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """-log p of each token but the first, in nats."""
    log_p = model(ids).log_softmax(dim=-1)
    return -log_p[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)


encoded = tokenizer.encode_batch([story.text for story in held_out])
twice = torch.tensor([told_again(ids, ONCE) for ids in encoded])
twice = twice[:, : 1 + 2 * ONCE]
nats = surprise(model, twice)
told = {"first telling": nats[:, :ONCE], "second telling": nats[:, ONCE:]}
with measured():
    for name, part in told.items():
        print(f"{name:>14}: {part.mean():.2f} nats per token")
    later = nats[:, ONCE + 1 :].mean()
    print(f"without its first token: {later:.2f}")
assert told["second telling"].mean() < 0.8 * told["first telling"].mean()

# %%
#| alt: Curve of the mean surprise over the 60 positions of a row, with a dashed line at position 30, where
#|   the second telling begins. The curve begins at 7, stays between 1 and 2.7 left of the line, jumps to 9 at
#|   the first token of the second telling, and stays between 0.3 and 1.3 right of it.
#| caption: Mean surprise at each position of 200 held-out passages, each told twice.
#| name: fig-05-twice
figure, axes = plt.subplots(figsize=(7, 3.4))
axes.plot(range(1, 1 + 2 * ONCE), nats.mean(dim=0), color=BLUE)
axes.axvline(ONCE + 0.5, color="#555555", ls="--", lw=1)
axes.set_ylim(bottom=0)
axes.set_xlabel("position of the token that is guessed")
axes.set_ylabel("surprise, nats")
axes.set_title("What was told before is easier to guess")
plt.show()

# %% [markdown]
# In {numref}`fig-05-twice` the tokens of the second telling are the same as those of the first, 30
# positions later, and the model is less surprised by them. It can only know them from the row
# itself. So some head must look back.
#
# The peak is where the second telling begins: the passage ends in the middle of a sentence, and
# nothing announces that it begins again. The curve begins high for a similar reason. The training
# passages start anywhere in a story, so the model does not expect the beginning of one. Both peaks
# are above {math}`\log 512 = 6.2`, the surprise of a model that finds all tokens alike: the model was
# sure of something else. Without its first token the second telling costs about 0.65 nats per token.

# %% [markdown]
# ## Finding heads by a measure
#
# Which head does what? It is tempting to look at pictures until one shows something. With eight
# heads and 200 rows there are 1,600 pictures, and among so many some show a pattern by chance. So we first write down
# what a head could do, as a matrix: True where this query should look at this key.
#
# `relation_mass` then adds, for each query, the weights of all keys that are True. It takes the mean
# over those queries that have at least one True. So 1.00 means that these queries give all their
# weight to such keys. Five relations:
#
# - **previous token**: the position just before;
# - **first token**: BOS, at position 0;
# - **same token**: earlier positions that hold the same token;
# - **what followed**: positions just *after* an earlier occurrence of the same token. A head that
#   looks there reads what comes next, if the text repeats itself;
# - **pronoun to name**: from "he", "she", "his", "her" or "him" to the pieces of the name, where
#   exactly one person has been named so far. For this one we take the stories as they are.
#
# {cite:t}`elhage2021` and {cite:t}`olsson2022` describe heads that look at the token before, and at
# what followed the same token, in larger models. {cite:t}`wang2022` add heads that look at the same
# token. They call them *duplicate token heads*.


# %%
PRONOUNS = ("he", "she", "his", "her", "him")


def people_in(story, ids: list[int]) -> list[str]:
    """For each token the person whose name it is a piece of, or ''."""
    owners, end = [], 0
    for i in ids:
        start, end = end, end + len(tokenizer.token(i))
        owner = ""
        for span in spans(story):
            inside = start < span.end and end > span.start
            if span.type == "PERSON" and inside:
                owner = span.lemma
        owners.append(owner)
    return owners


def whom(story, ids: list[int]) -> torch.Tensor:
    """Relation [T, T] from pronouns to the only person named so far."""
    owners = ["", *people_in(story, ids[: LENGTH - 1])]  # BOS is nobody
    relation = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for t, i in enumerate(ids[: LENGTH - 1], start=1):
        word = tokenizer.token(i).replace("Ġ", "").lower()
        if word in PRONOUNS and len({*owners[:t]} - {""}) == 1:
            relation[t, :t] = torch.tensor([bool(o) for o in owners[:t]])
    return relation


long_enough = [i for i, ids in enumerate(encoded) if len(ids) >= LENGTH]
plain = torch.tensor(
    [[tokenizer.bos_id, *encoded[i][: LENGTH - 1]] for i in long_enough]
)
pronouns = torch.stack([whom(held_out[i], encoded[i]) for i in long_enough])


def token_relations(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    length = ids.shape[1]
    before = torch.ones(length, length).tril(-1).bool()
    same = (ids[:, :, None] == ids[:, None, :]) & before
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    first = torch.zeros(length, length, dtype=torch.bool)
    first[1:, 0] = True
    return {
        "previous token": torch.diag(torch.ones(length - 1), -1).bool(),
        "first token": first,
        "same token": same,
        "what followed": followed & before,
    }


def even_attention(ids: torch.Tensor) -> torch.Tensor:
    """Each position looks at itself and at all before it alike."""
    length = ids.shape[1]
    weights = torch.ones(length, length).tril()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights.expand(len(ids), 1, length, length)


def find_heads(ids: torch.Tensor, relations: dict) -> dict[str, tuple]:
    """Best head, its mass, that of even attention, best untrained, all."""
    now, start = attention_maps(model, ids), attention_maps(untrained, ids)
    found = {}
    for name, relation in relations.items():
        scores = relation_mass(now, relation)
        place = best_head(scores)
        chance = relation_mass([even_attention(ids)], relation)
        fresh = relation_mass(start, relation).max()
        found[name] = (
            place,
            scores[place].item(),
            chance.item(),
            fresh.item(),
            scores.tolist(),
        )
    return found


found = find_heads(twice, token_relations(twice))
found |= find_heads(plain, {"pronoun to name": pronouns})
with measured():
    heads = [f"{block},{head}" for block in range(2) for head in range(HEADS)]
    print(f"{'':15} even untr. ", *(f"{name:>4}" for name in heads))
    for name, (_, _, chance, fresh, scores) in found.items():
        print(f"{name:15} {chance:.2f}  {fresh:.2f} ", end=" ")
        print(*(f"{mass:.2f}" for block in scores for mass in block))
assert found["what followed"][1] > 4 * found["what followed"][2]
assert found["same token"][1] > 2 * found["same token"][2]
assert found["what followed"][0][0] == 0  # in the first block
alike = sorted(found["what followed"][4][0])
assert alike[1] > 4 * found["what followed"][2]  # three heads of four
for name in ("what followed", "same token"):
    assert found[name][3] < 2 * found[name][2]  # not there before training

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# Three heads of the first block give *what followed* more than 4 times the weight of even attention,
# and one gives *same token* more than 2 times. Before training no head did.
# ```
#
# The column *even* is what a head reaches that looks at everything alike, and *untr.* is the best of
# the eight heads before training. Without these two columns a number such as 0.1 would mean nothing.
# Then come the four heads of each block. A head is named by its block and its number in it: (0, 1) is
# head 1 of block 0. (From here on the text has the numbers of the stored run. Another processor can
# give slightly different ones, and even another order of heads that are nearly equal.)
#
# Two relations stand out. The best head for *same token* is (0, 1), and the best for *what followed*
# is (0, 0). The name of a "best head" says too much here: three heads of the first block, (0, 0),
# (0, 2) and (0, 3), look far back in nearly the same way, and the best is only the first of three.
# Remember this when we remove heads one at a time.
#
# The others are weak. The *first token* gets three times the weight of even attention, but the best
# untrained head already gave 0.10, so training only about doubled it. The *previous token* gets little
# more than from even attention (0.10 against 0.06). And no head finds whom a pronoun means: the best
# head gives about as much weight as the best untrained one. This model is small and has read little,
# and this test may be unfair to it: the stories are told once here, while every row of the training
# repeats itself. The relation that we hoped for is not always there, and a measure says so; a chosen
# picture would not.
#
# ### What has the head learnt?
#
# A head that finds what followed the same token is known as an **induction head**, and a real one
# works with any tokens. To know that position {math}`s` comes after a certain token, its key must
# contain the token *before* it. In a Transformer this takes two steps: a head of the first block
# brings the previous token, and one of a later block compares. But ours is in the *first* block, and
# nothing has brought it anything. How can it know?
#
# Perhaps it does not look for what followed in *this row*. There are two shorter ways. It may have learnt
# what often follows *in Town*, and it may have learnt *how far back* to look. If a passage has
# {math}`n` tokens, the same token is {math}`n` places before, and what followed it
# {math}`n - 1`. All passages of the training had between 24 and 35 tokens. So we write down two more
# relations:
#
# - **far back**: all positions from 23 to 35 places before;
# - **often follows**: of these, the positions that hold one of the ten tokens which come after this
#   token most often in the training rows.
#
# And we give the model two kinds of rows that it has not been trained on: 30 random tokens, told
# twice, which no story could contain; and passages of only 14 tokens, told twice, where what followed
# is nearer than 23 places.

# %%
g = torch.Generator().manual_seed(3)
noise = torch.randint(20, len(tokenizer), (200, ONCE), generator=g)
noise = torch.cat([twice[:, :1], noise, noise], dim=1)
short = torch.tensor([told_again(ids, 14)[:29] for ids in encoded])


read = torch.tensor(rows)
counts = torch.zeros(len(tokenizer), len(tokenizer))
one = torch.ones(read[:, 1:].numel())
followers = (read[:, :-1].flatten(), read[:, 1:].flatten())
counts.index_put_(followers, one, accumulate=True)
often = torch.zeros_like(counts, dtype=torch.bool)
often.scatter_(1, counts.topk(10).indices, True)


def relation_of(name: str, ids: torch.Tensor) -> torch.Tensor:
    places = torch.arange(ids.shape[1])
    steps = places[:, None] - places
    far_back = (steps >= 23) & (steps <= 35)
    if name == "far back":
        return far_back
    if name == "often follows":
        return often[ids[:, :, None], ids[:, None, :]] & far_back
    return token_relations(ids)[name]


def strength(name: str, place: tuple, ids: torch.Tensor) -> float:
    """How many times the weight of even attention a head gives."""
    relation = relation_of(name, ids)
    mass = relation_mass(attention_maps(model, ids), relation)
    chance = relation_mass([even_attention(ids)], relation)
    return (mass[place] / chance[0, 0]).item()


tested = {"stories": twice, "random": noise, "short": short}
asked = {name: found[name][0] for name in ("same token", "what followed")}
asked["far back"] = asked["often follows"] = asked["what followed"]
times = {
    name: {kind: strength(name, place, ids) for kind, ids in tested.items()}
    for name, place in asked.items()
}
with measured():
    print("times even attention")
    print(f"{'':14}stories random  short")
    for name, numbers in times.items():
        print(f"{name:14}", *(f"{number:6.1f}" for number in numbers.values()))
assert (
    times["what followed"]["random"] < 0.5 * times["what followed"]["stories"]
)
assert times["same token"]["random"] > 2
often_follows, far_back = times["often follows"], times["far back"]
assert often_follows["random"] > 1.5 * times["what followed"]["random"]
assert often_follows["random"] > 1.5 * far_back["random"]
assert times["what followed"]["random"] < 1.6 * far_back["random"]
assert (
    times["what followed"]["short"] < 0.6 * times["what followed"]["stories"]
)

# %% [markdown]
# The first line is the best head of *same token*, the other three are the best head of *what
# followed*. Read the column of the random rows. *Same token* is still found. *What followed* has lost
# most of its strength: 2.4 times even attention, about the same as all positions far back get (2.2),
# whatever token they hold. But among these positions, those that hold a token which *often follows*
# get 6.6 times. So this head has learnt **which tokens follow which in Town**, and **how far back to
# look**, and only little or nothing of induction.
#
# In short passages the repetition is nearer than in any row of the training, and both heads miss it.
# These are shorter ways to a lower loss than induction, and with little training the model took them.
# {cite:t}`elhage2021` found the same in models with one layer: their heads look at earlier tokens that
# could plausibly come next, and copy them. A measure tells where a head looks. *Why* it looks there is
# another question, and it needs another experiment, such as this one.

# %% [markdown]
# ### Look at them
#
# Here is the beginning of a held-out story, told twice. Choose a layer and a head, and point at a
# token of the second telling, or move to it with the Tab key and the arrow keys. (The view and the
# pictures call a block *layer*.) The view begins with the best head of *what followed*.

# %%
PASSAGE = 30
ids = told_again(encoded[0], PASSAGE)[: 1 + 2 * PASSAGE]
tokens = [tokenizer.token(i).replace("Ġ", "") for i in ids]
shown_maps = attention_maps(model, torch.tensor([ids]))
block, head = found["what followed"][0]
attention_view(
    shown_maps, tokens, layer=block, head=head, title="A passage told twice"
)

# %% [markdown]
# And the best heads of *what followed* and *same token*, as pictures that can be printed. The rows are
# the tokens of the second telling, the columns those of the first. What a row gives to other places
# is not shown, so we first measure where the weight of these rows goes in this passage.

# %%
told_first, told_second = tokens[: 1 + PASSAGE], tokens[1 + PASSAGE :]
back = [maps[:, :, 1 + PASSAGE :, : 1 + PASSAGE] for maps in shown_maps]
row = torch.arange(1 + PASSAGE, 1 + 2 * PASSAGE)
steps = row[:, None] - torch.arange(1 + 2 * PASSAGE)
shares = {
    "shown in the picture": steps >= row[:, None] - PASSAGE,
    "23 to 35 places before": (steps >= 23) & (steps <= 35),
    "29 before: what followed": steps == PASSAGE - 1,
    "30 before: the same token": steps == PASSAGE,
    "itself": steps == 0,
    "the token just before": steps == 1,
    "BOS": steps == row[:, None],
}
with measured():
    print(f"{'share of the weight':26}what followed  same token")
    for name, mask in shares.items():
        print(f"{name:26}", end="")
        for kind in ("what followed", "same token"):
            block, head = found[kind][0]
            part = (shown_maps[block][0, head, row] * mask).sum(dim=1)
            print(f"{part.mean():13.2f}", end="")
        print()

# %%
#| alt: Heat map with the 30 tokens of the second telling as rows, and BOS and the 30 tokens of the
#|   first telling as columns. The darker squares lie in a broad band from the upper left to the lower
#|   right. The darkest lie just right of the diagonal of equal tokens: "In" looks at "Col", "Col" at
#|   "wick", "for" at "h".
block, head = found["what followed"][0]
figure = plot_attention(
    back,
    told_second,
    key_tokens=told_first,
    layer=block,
    head=head,
    title="What followed",
)
plt.show()

# %%
#| alt: Heat map with the same rows and columns for the other head. It is paler. Squares of middle blue lie
#|   where a token such as "h", "p" or "ar" meets itself, others near this line. The darkest squares
#|   are in the column of BOS.
block, head = found["same token"][0]
figure = plot_attention(
    back,
    told_second,
    key_tokens=told_first,
    layer=block,
    head=head,
    title="Same token",
)
plt.show()

# %% [markdown]
# A head that always looked at what followed would have one dark line, just right of the diagonal. In
# the first picture one can see this line: "In" looks at "Col", and "Col" at "wick". It gets 0.28 of the
# weight. But it lies in a broad band, and all distances from 23 to 35 together get 0.84. The head has
# learnt the distances of all training passages, not the one of this passage. In this band it prefers
# tokens that could come next.
#
# The second head is paler, and its line is the diagonal, where a token meets itself. The line gets
# only 0.12. More than a third of the weight is not in the picture: 0.19 stays at the token that looks,
# and some goes to its neighbours. And several tokens put their weight on BOS, the first token.
# {cite:t}`clark2019` found many heads of BERT that look at `[SEP]`, and suggest that they do so where
# they find nothing to bring: a softmax cannot give zero everywhere.

# %% [markdown]
# ## Removing heads
#
# A head's weights may look meaningful, and the model may not need it. The direct question is: how
# much worse is the model *without* this head? By {eq}`eq-head-sum` it is enough to set the head's
# part of the concatenation to zero. A *hook* does it, a function that PyTorch calls on the input of `w_o`
# before each use, and the model itself stays as it is. We ask separately for the first telling, for the second, and for the names in the second.


# %% tags=["covers-X3"]
class without:
    """`with without(model, [(block, head), ...]):` these heads give zero."""

    def __init__(self, model: GPT, heads) -> None:
        self.model, self.heads = model, heads

    def __enter__(self) -> None:
        self.hooks = []
        for number, block in enumerate(self.model.blocks()):
            silent = [head for where, head in self.heads if where == number]

            def silence(module, inputs, silent=silent):
                split = inputs[0].unflatten(-1, (HEADS, -1)).clone()
                split[..., silent, :] = 0
                return split.flatten(-2)

            hook = block.attn.w_o.register_forward_pre_hook(silence)
            self.hooks.append(hook)

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


again = torch.zeros_like(nats, dtype=torch.bool)
again[:, ONCE:] = True
is_name = torch.zeros_like(again)
for i, (story, story_ids) in enumerate(zip(held_out, encoded)):
    owners = people_in(story, story_ids[:ONCE])
    is_name[i] = torch.tensor([owner != "" for owner in owners] * 2)
kinds = {"first": ~again, "second": again, "names": again & is_name}


def cost_without(heads) -> dict[str, float]:
    with without(model, heads):
        more = surprise(model, twice) - nats
    costs = {"all": more.mean().item()}
    return costs | {name: more[m].mean().item() for name, m in kinds.items()}


places = [(block, head) for block in range(2) for head in range(HEADS)]
table = {place: cost_without([place]) for place in places}
assert max(abs(cost) for cost in cost_without([]).values()) < 1e-6
whole = {"all": nats.mean().item()}
whole |= {name: nats[mask].mean().item() for name, mask in kinds.items()}
second_block = cost_without(places[HEADS:])
with measured():
    print("nats per token     all  first second  names")
    print("all heads     ", *(f"{whole[name]:6.2f}" for name in whole))
    for place, costs in table.items():
        print(f"without {place}", *(f"{costs[n]:+6.2f}" for n in whole))
    print("without block 1", *(f"{second_block[n]:+5.2f}" for n in whole))
ranked = sorted(places, key=lambda place: table[place]["all"])
cheapest, most = table[ranked[0]]["all"], table[ranked[-1]]["all"]
assert most > 0.25
assert cheapest < 0.1
assert most > 4 * cheapest
assert {place[0] for place in ranked[:4]} == {1}
gains = [costs["second"] - costs["first"] for costs in table.values()]
assert max(gains) - min(gains) > 0.2  # heads differ in what they are for

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The most expensive head costs more than 0.25 nats per token, the cheapest less than 0.1, and the most
# expensive at least four times as much as the cheapest. The four cheapest heads are those of the second block.
# ```

# %%
#| alt: Bar chart with two bars for each of eight heads, for the first and for the second telling. The
#|   four heads of block 0 have bars between 0.3 and 1.4 nats; one of them is highest in the first
#|   telling, another in the second. The bars of the four heads of block 1 are below 0.1.
#| caption: What it costs to remove one head, for tokens of the first and of the second telling.
#| name: fig-05-ablation
figure, axes = plt.subplots(figsize=(6.8, 3.6))
bars = torch.arange(len(places))
for shift, kind, color in ((-0.2, "first", YELLOW), (0.2, "second", BLUE)):
    heights = [table[place][kind] for place in places]
    axes.bar(bars + shift, heights, 0.4, color=color, label=f"{kind} telling")
axes.set_xticks(bars, [f"{block}, {head}" for block, head in places])
axes.set_xlabel("block, head that is removed")
axes.set_ylabel("additional loss, nats per token")
axes.set_title("Some heads cost much, others almost nothing")
axes.legend()
plt.show()

# %% [markdown]
# In {numref}`fig-05-ablation` each head of the first block is needed, and none of the second is
# needed much. All four heads of the second block together cost only 0.07 nats in the second telling.
# An induction head would have to be one of them. This is a second sign, beside the random rows, that
# the model has hardly any induction.
#
# The heads of the first block differ in *what* they are needed for. (0, 0), the best head of *what
# followed*, costs twice as much in the second telling (+0.71) as in the first (+0.35), as its name
# promises. For (0, 2), which looks at the same places, the two costs are nearly equal, and (0, 3) costs
# more in the first telling. (0, 1), which we called *same token*, costs four times as much in the
# *first* telling (+1.35) as in the second (+0.32). So it does other work: it is also the head that gives
# the *previous token* the most weight. For pieces of names in the second telling the most expensive
# head is (0, 2), with +0.91. A measure names one thing that a head does, not all that it does.
#
# How many can be removed together? We remove the cheapest head, then also the second cheapest, and
# so on, and compare with the sum of the costs that these heads have alone.

# %%
removed = [cost_without(ranked[:n])["all"] for n in range(len(places) + 1)]
summed = [0.0]
for place in ranked:
    summed.append(summed[-1] + table[place]["all"])
with measured():
    print("heads removed  together  sum of single costs")
    for n, (cost, total) in enumerate(zip(removed, summed)):
        print(f"{n:7d} {cost:+14.2f} {total:+13.2f}")
assert removed[1] < 0.1
assert removed[4] < 0.4 * removed[8]
assert removed[8] > 1
assert removed[8] > 1.5 * summed[8]

# %%
#| alt: Two curves of the additional loss against the number of removed heads. Both stay near 0 up to
#|   four heads. Then the curve of the heads removed together rises more and more steeply, to more than
#|   6 nats with all eight removed, and that of the summed single costs only to 2.5.
figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.plot(removed, "o-", color=BLUE, label="removed together")
axes.plot(summed, "s--", color=RED, label="single costs, summed")
axes.set_xlabel("heads removed, the cheapest first")
axes.set_ylabel("additional loss, nats per token")
axes.set_title("Half of the heads carry most of the work")
axes.legend()
plt.show()

# %% [markdown]
# In our model half of the heads can be removed one at a time with hardly any loss, and together with
# little. {cite:t}`michel2019` found in large models for translation, and in BERT, that *most* heads can
# be removed one at a time after training with hardly any loss, and a good part of them together.
# {cite:t}`voita2019`
# looked at which heads remain when training forces a model to switch heads off. Those are the ones
# with a clear task, such as looking at a neighbour.
#
# Three cautions. The model was not trained again after the removal; it might find another way. A
# head whose work another head also does costs little when it is removed *alone*, so the costs of
# single heads do not have to add up: the sum of all eight is 2.51 nats, and removed together they cost
# 6.83. And zero is a value that the model has never met at this place. One can put in the mean of
# the head's results instead.

# %% [markdown]
# ## Exercises
#
# ```{exercise} Four shapes
# :label: ex-05-shapes
# *5 minutes, easy.* Write `head_shapes(d_model, n_heads, d_head)`: a dictionary with the keys `w_q`,
# `w_k`, `w_v` and `w_o`, and the shape of each weight **as `nn.Linear` stores it**.
#
# *Hint.* Which numbers go into `w_o`, and which come out? `nn.Linear(a, b)` stores `[b, a]`.
# ```

# %% [markdown]
# ```{solution-start} ex-05-shapes
# :class: dropdown
# ```


# %%
def head_shapes(
    d_model: int, n_heads: int, d_head: int
) -> dict[str, tuple[int, int]]:
    ### BEGIN SOLUTION
    width = n_heads * d_head
    inner = (width, d_model)
    return {"w_q": inner, "w_k": inner, "w_v": inner, "w_o": inner[::-1]}
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch05.check_head_shapes(head_shapes)

# %% [markdown]
# ```{exercise} Split without mixing
# :label: ex-05-split
# *10 minutes, medium.* Write `split_heads(x, n_heads)`: from `[B, T, H * K]` to `[B, H, T, K]`. Try it
# with `reshape` and `permute`. Head {math}`i` gets the numbers {math}`iK` to {math}`(i+1)K - 1` of
# every position.
#
# *Hint.* A `reshape` may split an axis in two, or join two neighbours. It never exchanges axes.
# ```

# %% [markdown]
# ```{solution-start} ex-05-split
# :class: dropdown
# ```


# %%
def split_heads(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    ### BEGIN SOLUTION
    n_rows, length, width = x.shape
    split = x.reshape(n_rows, length, n_heads, width // n_heads)
    return split.permute(0, 2, 1, 3)
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch05.check_split_heads(split_heads)

# %% [markdown]
# ```{exercise} A layer without one head
# :label: ex-05-without
# *15 minutes, medium.* `heads` has the shape `[H, T, K]`, the results of the heads, and `w_o` is
# {math}`W^O` with the shape `[H * K, D]`. Write `without_head(heads, w_o, silent)`: the output
# `[T, D]` of the layer when the head `silent` is left out. Do not change `heads`.
#
# *Hint.* Which rows of {math}`W^O` does head {math}`i` meet in {eq}`eq-head-sum`?
# ```

# %% [markdown]
# ```{solution-start} ex-05-without
# :class: dropdown
# ```


# %%
def without_head(
    heads: torch.Tensor, w_o: torch.Tensor, silent: int
) -> torch.Tensor:
    ### BEGIN SOLUTION
    n_heads, length, d_head = heads.shape
    output = torch.zeros(length, w_o.shape[1], dtype=w_o.dtype)
    for i in range(n_heads):
        if i != silent:
            output = output + heads[i] @ w_o[i * d_head : (i + 1) * d_head]
    return output
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch05.check_without_head(without_head)

# %% [markdown]
# ```{exercise} Heads that look back
# :label: ex-05-back
# *15 minutes, medium.* Write `looks_back(weights, steps)` for weights of the shape `[B, H, T, T]`:
# for each head the mean weight that a position gives to the one `steps` before it, over all rows and
# all positions that have such a key. With `steps=1` it finds heads of the previous token. Do not use
# `relation_mass`.
#
# *Hint 1.* Which diagonal of a {math}`T \times T` matrix is it? *Hint 2.* `torch.diagonal` takes an
# `offset`, and two axes.
# ```

# %% [markdown]
# ```{solution-start} ex-05-back
# :class: dropdown
# ```


# %%
def looks_back(weights: torch.Tensor, steps: int) -> torch.Tensor:
    ### BEGIN SOLUTION
    band = weights.diagonal(offset=-steps, dim1=-2, dim2=-1)  # [B, H, T - n]
    return band.mean(dim=(0, 2))
    ### END SOLUTION


# %% [markdown]
# Queries are rows and keys are columns, so a key that is earlier lies below the main diagonal, and
# the offset is negative.
#
# ```{solution-end}
# ```

# %%
ch05.check_looks_back(looks_back)

# %% [markdown]
# ## What to keep
#
# A head gives one average, and an average forgets which part came from where; several heads look for
# several things at once. Each head has its own matrices {math}`W_i^Q, W_i^K, W_i^V`, and the layer
# is the concatenation of the heads times {math}`W^O`, which is the same as a sum with one term for
# each head. Programs hold the matrices of all heads in one, and reshape; a `view` in place of the
# `transpose` keeps the shapes and mixes positions. At a fixed total width the number of heads
# changes neither the parameters nor the work of the matrix products, but more heads are narrower, and
# the rank of the scores of a head is at most {math}`d_k`. What a head does can be measured, against even attention and
# against untrained weights; what it is worth shows only when it is removed.
#
# The layer still does not know the order of its inputs. [Chapter 06](06_positions_norms_ff.ipynb)
# gives it positions, and builds the rest of the block around it.
