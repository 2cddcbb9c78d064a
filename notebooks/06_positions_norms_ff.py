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
# # 06 Positions, residuals, norms, feed-forward
#
# BADGE
#
# **You will** see that attention alone cannot tell one order of words from another, and give it
# positions in three ways; write the feed-forward layer, LayerNorm, RMSNorm and GELU as plain
# loops and compare them with the package; measure what the residual sum and the place of the norm
# do in a deep model; and train one that fails.
#
# **Needs** attention, from [chapter 04](04_attention.ipynb). **Runs** in 60 seconds on one core.
# **Source** {cite:p}`vaswani2017,ba2016,xiong2020`; `llm_course/models/transformer.py`,
# `llm_course/models/layers.py`, `llm_course/models/t5.py`.
#
# The article that this course follows gives no formula for positions, for the norm, or for GELU. They
# stand here with numbers, because a program needs them exactly. Names in the code such as F7 are ids of
# the article's formulas; the [source map](../book/source_map.md) lists them.

# %% [markdown]
# COLAB

# %%
import copy
import inspect
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from llm_course import BERT, GPT, BERTConfig, GPTConfig
from llm_course.losses.causal import causal_lm_loss
from llm_course.models.bert import BERTBlock
from llm_course.models.gpt import GPTBlock
from llm_course.models.layers import FeedForward, MultiHeadAttention
from llm_course.models.t5 import RMSNorm, decoder_buckets, encoder_buckets
from llm_course.models.transformer import sinusoids
from llm_lab.checks import ch06
from llm_lab.pictures.measured import measured
from llm_town import generate_documents

generator = torch.Generator().manual_seed(0)
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW = "#CC79A7", "#E69F00"

# %% [markdown]
# ## Attention does not know the order
#
# The two sentences *the cook called the baker* and *the baker called the cook* have the same words
# and different meanings. Only the order says who called. So we ask of each part of the Transformer:
# does it notice the order?
#
# Attention gives a position a weighted average of vectors from other positions. The weight depends
# on a query and a key, and both are computed from the vectors that stand there. The number of the
# position does not occur in the formula. If you shuffle the inputs, the same pairs of query and
# key meet as before, only in other places. The outputs are the same vectors, shuffled in the same
# way:
#
# $$f(x_\pi)_t = f(x)_{\pi(t)}$$ (eq-equivariant)
#
# Here {math}`\pi` is a permutation, that is, a list of all positions in another order, and
# {math}`x_\pi = (x_{\pi(1)}, \dots, x_{\pi(T)})` are the inputs in that order. A function with this
# property is called **permutation-equivariant**. [Chapter 04](04_attention.ipynb) showed it for the bare formula. We test
# the attention layer of the package, in 64-bit numbers. `MultiHeadAttention(16, 4)` has the width 16
# and 4 **heads**: four small attentions side by side, each with its own queries, keys and values, whose
# outputs a last matrix combines. ([Chapter 05](05_several_heads.ipynb) is about heads.) The second test adds a vector to each
# position, a different one at each place, before the layer.


# %% tags=["covers-X2"]
def random_numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


torch.manual_seed(0)
layer = MultiHeadAttention(16, 4).double()
x, order = random_numbers(2, 6, 16), torch.tensor([3, 0, 5, 1, 4, 2])
with torch.no_grad():
    difference = (layer(x[:, order]) - layer(x)[:, order]).abs().max().item()
    place = random_numbers(6, 16)  # one vector for each position
    moved = layer(x[:, order] + place) - layer(x + place)[:, order]
assert difference < 1e-12
assert moved.abs().max() > 0.1
print("without positions: below 1e-12")
print(f"with positions:    {moved.abs().max():.2f}")

# %% [markdown]
# The first difference is only rounding. The second is real: with positions the layer does notice
# the order.
#
# Is it the same for a whole model? The other parts of a block, which this chapter explains below,
# work on each position by itself, so they cannot see the order either. We take a small BERT of the
# package and set its table of positions to zero. Its other weights are made larger than a new model
# has them, so that differences are easy to see.

# %%
people = """actor baker barber builder carpenter clerk cook dancer dentist
doctor driver farmer gardener guard judge lawyer miner nurse painter pilot
sailor singer teacher waiter"""
WORDS = ["the", "called", *people.split()]
number_of = {word: i for i, word in enumerate(WORDS)}


def new_bert(seed: int = 0, positions: bool = True) -> BERT:
    """A BERT of one block; without positions their table is 0 and stays 0."""
    torch.manual_seed(seed)
    config = BERTConfig(
        vocab_size=len(WORDS),
        n_layers=1,
        d_model=32,
        n_heads=2,
        d_ff=64,
        n_positions=5,
        dropout=0.0,
    )
    model = BERT(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if not positions:
        model.position_embedding.weight.data.zero_()
        model.position_embedding.requires_grad_(False)
    return model


def ids_of(sentence: str) -> torch.Tensor:
    return torch.tensor([[number_of[word] for word in sentence.split()]])


first = ids_of("the cook called the baker")
second = ids_of("the baker called the cook")
swap = torch.tensor([0, 4, 2, 3, 1])
assert torch.equal(first[:, swap], second)
hidden = {}
for positions in (False, True):
    model = new_bert(positions=positions).double()
    with torch.no_grad():
        a, b = model.hidden(first), model.hidden(second)
    hidden[positions] = a[0], b[0]
    gap = (a[:, swap] - b).abs().max().item()
    assert gap > 0.1 if positions else gap < 1e-12
    shown = f"{gap:.2f}" if positions else "below 1e-12"
    print(f"positions {positions!s:>5}: largest difference {shown}")

# %%
#| alt: Two heat maps one above the other, each with a row for each of five words and a column for
#|   each of the first 16 numbers of its vector. The upper one belongs to "the cook called the
#|   baker", the lower to "the baker called the cook". The rows of "cook" and "baker" have changed
#|   places with their vectors, and the other rows are the same in both. The two rows of "the"
#|   are also the same.
figure, axes = plt.subplots(2, 1, figsize=(6, 4.6), layout="constrained")
sentences = (
    ["the", "cook", "called", "the", "baker"],
    ["the", "baker", "called", "the", "cook"],
)
for panel, words, vectors in zip(axes, sentences, hidden[False]):
    image = panel.imshow(vectors[:, :16], cmap="cividis", vmin=-2, vmax=2)
    panel.set_yticks(range(5), words)
    panel.set_xticks([])
axes[1].set_xlabel("first 16 numbers of each vector")
figure.suptitle("Without positions: the same vectors in another order")
figure.colorbar(image, ax=axes, shrink=0.8, label="value")
plt.show()

# %% [markdown]
# Each row is the vector of a word after the model. "cook" has exactly the same vector in both
# sentences, though it called in one and was called in the other. Even the two words "the" of one
# sentence cannot be told apart. A text without positions is a **bag of words**: the model knows
# which words are there, and nothing about where.
#
# What does that cost? We make a task whose answer is in the order alone. The model reads *the X
# called the Y*, and its output at the word "called" has to name the one who called. Each pair of
# people occurs in both orders. A third of the pairs is kept for the test.
#
# A model without positions gives the same output for both sentences of a pair. If it answers "cook"
# for one, it answers "cook" for the other, and one of the two answers is wrong. So its accuracy can
# never be above one half. There is a limit for the loss as well. When {math}`p` is the probability
# of the first answer, the other gets at most {math}`1 - p`, and the mean of the two losses,
# {math}`-\frac12(\log p + \log(1-p))`, is smallest at {math}`p = \frac12`. There it is
# {math}`\log 2`. This holds for any amount of training.


# %%
def both_orders(pairs: torch.Tensor) -> torch.Tensor:
    """Sentences "the X called the Y" for each pair, in both orders."""
    pairs = torch.cat([pairs, pairs.flip(1)])
    rows = torch.full((len(pairs), 5), number_of["the"])
    rows[:, 1], rows[:, 2], rows[:, 4] = pairs[:, 0], 1, pairs[:, 1]
    return rows


pairs = torch.combinations(torch.arange(2, len(WORDS)))
pairs = pairs[torch.randperm(len(pairs), generator=generator)]
third = len(pairs) // 3
test_rows, train_rows = both_orders(pairs[:third]), both_orders(pairs[third:])
print(f"{len(train_rows)} sentences to learn, {len(test_rows)} to test")


def who_called(model: BERT, rows: torch.Tensor) -> torch.Tensor:
    """Logits of the answer: the model's output at the word "called"."""
    return model.mlm_head(model.hidden(rows)[:, 2])


def learn_order(positions: bool, steps: int = 400) -> tuple[list, BERT]:
    model = new_bert(positions=positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(train_rows), (64,), generator=draw)
        rows = train_rows[chosen]
        logits = who_called(model, rows)
        loss = nn.functional.cross_entropy(logits, rows[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.eval()


order_losses, order_scores = {}, {}
for positions in (True, False):
    order_losses[positions], model = learn_order(positions)
    with torch.no_grad():
        logits = who_called(model, test_rows)
    right = (logits.argmax(dim=-1) == test_rows[:, 1]).float().mean().item()
    loss = nn.functional.cross_entropy(logits, test_rows[:, 1]).item()
    order_scores[positions] = right, loss

with measured():
    for positions, (right, loss) in order_scores.items():
        print(
            f"positions {positions!s:>5}: {right:.3f} right, loss {loss:.3f}"
        )
assert order_scores[True][0] > 0.95
assert order_scores[False][0] <= 0.5
assert order_scores[False][1] > math.log(2) - 1e-6
assert order_scores[True][1] < 0.2

# %%
#| alt: Two loss curves over 400 steps on a logarithmic axis and a dashed line at log 2. Both begin
#|   near 3.5. The curve with positions falls below the line within 100 steps and ends below
#|   0.01. The curve without positions comes down to about 1, becomes flat, and stays above the line.
figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.plot(order_losses[True], color=BLUE, label="with positions")
axes.plot(order_losses[False], color=RED, label="without positions")
axes.axhline(math.log(2), color="black", ls="--", lw=1, label="log 2")
axes.set_yscale("log")
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats")
axes.set_title("Who called? The order is the only way to know")
axes.legend()
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# With positions more than 95 % of the test sentences are right. Without them at most 50 % are, and
# the loss stays above {math}`\log 2 = 0.69`.
# ```
#
# The model without positions learns what a bag of words contains: one of the two people must be the
# answer. Which one, it cannot learn. On new pairs its loss is well above {math}`\log 2`: it gives some
# probability to people who are not in the sentence, and it is sometimes sure of the wrong one of the
# two.
#
# A causal mask changes this. In a GPT a position sees only itself and the positions before it, so the
# *number* of things it sees depends on where it stands. Is this enough to know the order? We set the
# position table of a GPT to zero and look at the last output, after exchanging two earlier tokens. (Its
# matrices are ten times as large as in a new model, so that a difference is easy to see.)

# %%
gaps = {}
for n_layers in (1, 2):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=20,
        n_layers=n_layers,
        d_model=16,
        n_heads=2,
        n_positions=8,
        dropout=0.0,
    )
    gpt = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
        gpt.position_embedding.weight.zero_()
        straight = gpt(torch.tensor([[3, 7, 11, 5]]))[0, -1]
        exchanged = gpt(torch.tensor([[7, 3, 11, 5]]))[0, -1]
    gaps[n_layers] = (straight - exchanged).abs().max().item()
assert gaps[1] < 1e-12
assert gaps[2] > 1e-3
print(f"one block: no difference; two blocks: {gaps[2]:.2f}")

# %% [markdown]
# With one block the last position sees a bag of all tokens before it. With two blocks it sees more:
# in the first block, token 7 at the second place has seen token 3, and token 7 at the first
# place has not. So a deep causal model can learn something about order from its mask alone
# {cite:p}`haviv2022`. It has to spend layers on this, and nearly all models are given positions.

# %% [markdown]
# ## Sinusoidal positions
#
# The simplest idea is to add the number of the position to the word's vector. But the number of the 400th
# position is 400, and the numbers in a word's vector are near 1: the sum would contain the position
# and hardly any word. Dividing by the length of the text is no better, because one step would then
# mean something else in each text.
#
# What Vaswani et al. add can be read as a clock with many hands. A hand that turns quickly tells neighbours apart, a
# slow one tells the beginning from the end, and all numbers stay between −1 and 1. A hand is a point
# on a circle, so it has two numbers, a sine and a cosine:
#
# $$\begin{aligned}
# PE_{p,\,2i} &= \sin(\omega_i\, p) \\
# PE_{p,\,2i+1} &= \cos(\omega_i\, p) \\
# \omega_i &= 10000^{-2i/D}
# \end{aligned}$$ (eq-sinusoids)
#
# Here {math}`p` is the position, counted from 0, and {math}`i` numbers the hands from 0 to
# {math}`D/2 - 1`. {math}`\omega_i` is the angle by which hand {math}`i` turns in one step. It is one
# radian for the first hand, and almost 10,000 times less for the last. The formula as a plain loop, and
# the function of the package:


# %% tags=["covers-X2"]
def plain_sinusoids(n_positions: int, d_model: int) -> list[list[float]]:
    table = []
    for p in range(n_positions):
        row = []
        for column in range(d_model):
            i = column // 2
            angle = p / 10_000 ** (2 * i / d_model)
            even = column % 2 == 0
            row.append(math.sin(angle) if even else math.cos(angle))
        table.append(row)
    return table


print(inspect.getsource(inspect.unwrap(sinusoids)))

table = sinusoids(100, 64)
by_loops = torch.tensor(plain_sinusoids(100, 64), dtype=torch.float64)
assert (table - by_loops).abs().max() < 1e-10

# Two mistakes: i in place of 2i, and all sines before all cosines.
halves = torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)
slow = sinusoids(100, 128)[:, :64]  # as if D were twice as large
assert (halves - by_loops).abs().max() > 1
assert (slow - by_loops).abs().max() > 1

# %%
#| alt: Heat map of the position table, 100 rows for positions and 64 columns. The columns on the
#|   left change between dark and bright every few rows. Further to the right the stripes become
#|   longer, and from about column 36 on a column hardly changes: bright and dark columns alternate,
#|   the cosines near 1 and the sines near 0.
figure, axes = plt.subplots(figsize=(6, 4.4))
image = axes.imshow(table, cmap="cividis", aspect="auto")
figure.colorbar(image, label="value")
axes.set_xlabel("column: sine, cosine, sine, cosine, …")
axes.set_ylabel("position")
axes.set_title("Each row is the mark of one position")
plt.show()

# %% [markdown]
# Read a row from left to right: it is the vector which is added at that position. Columns on the left
# are the fast hands. On the right, the slow hands have hardly moved after 100 positions: their sine
# is still near 0 and their cosine near 1. They would be needed in a text of many thousands of tokens.
#
# Why two numbers for each hand? With the sine alone, the angles {math}`\alpha` and
# {math}`\pi - \alpha` look alike. And there is a better reason: with both, **a shift is a
# rotation**. To go {math}`k` positions on, turn each hand by the angle {math}`\alpha = \omega_i k`.
# With {math}`s_p = \sin \omega_i p` and {math}`c_p = \cos \omega_i p`, the two numbers of the hand:
#
# $$\begin{aligned}
# \begin{pmatrix} s_{p+k} \\ c_{p+k} \end{pmatrix} &= R \begin{pmatrix} s_p \\ c_p \end{pmatrix} \\
# R &= \begin{pmatrix} \cos \alpha & \sin \alpha \\ -\sin \alpha & \cos \alpha \end{pmatrix}
# \end{aligned}$$ (eq-rotation)
#
# The matrix {math}`R` contains {math}`k` and not {math}`p`. This helps attention. A query is made by a fixed
# matrix {math}`W^Q`, and such a matrix can turn the position of the query back by three places. Then
# the query fits the key of the token three places before it, wherever it stands.


# %% tags=["covers-X2"]
def shift(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Rows of the table, moved on by k positions by a rotation."""
    d_model = rows.shape[1]
    moved = torch.empty_like(rows)
    for i in range(d_model // 2):
        angle = k * 10_000 ** (-2 * i / d_model)
        cos, sin = math.cos(angle), math.sin(angle)
        for row, new in zip(rows, moved):
            new[2 * i] = cos * row[2 * i] + sin * row[2 * i + 1]
            new[2 * i + 1] = -sin * row[2 * i] + cos * row[2 * i + 1]
    return moved


rows = table[:20]
assert (shift(rows, 7) - table[7:27]).abs().max() < 1e-10
assert (shift(rows, -7)[7:] - table[:13]).abs().max() < 1e-10
assert (shift(rows, 6) - table[7:27]).abs().max() > 0.1  # another shift
print("a shift by 7 is the same rotation at each of 20 positions")

# %%
#| alt: Two panels, each with a circle. On the left 12 points of a fast hand go around the circle,
#|   one radian apart. On the right 12 points of a slower hand cover only a part of it. In each panel
#|   three arrows join positions 0 and 3, 4 and 7, 8 and 11. The three arrows of a panel have
#|   the same length and span the same angle.
figure, axes = plt.subplots(1, 2, figsize=(7, 3.8), layout="constrained")
for panel, hand in zip(axes, (0, 5)):
    sine, cosine = table[:12, 2 * hand], table[:12, 2 * hand + 1]
    panel.add_patch(plt.Circle((0, 0), 1, fill=False, color="#BBBBBB"))
    panel.scatter(cosine, sine, color=BLUE, s=16, zorder=3)
    for p in range(12):
        at = 1.17 * cosine[p].item(), 1.17 * sine[p].item()
        panel.text(*at, str(p), fontsize=8, ha="center", va="center")
    for start in (0, 4, 8):
        ends = [(cosine[q].item(), sine[q].item()) for q in (start + 3, start)]
        arrow = {"arrowstyle": "->", "color": RED, "lw": 1.4}
        panel.annotate("", xy=ends[0], xytext=ends[1], arrowprops=arrow)
    panel.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    panel.set(xlabel="cosine", ylabel="sine", title=f"hand {hand}")
figure.suptitle("Three steps on are the same turn everywhere")
plt.show()

# %% [markdown]
# The numbers at the points are positions. Each arrow goes three positions on. Within one panel all
# arrows span the same angle, wherever they begin. The hand on the right is slower, so its arrows are
# shorter.
#
# Attention compares vectors by their dot product. For two rows of the table it is
#
# $$PE_p \cdot PE_{p+k} = \sum_{i=0}^{D/2-1} \cos(\omega_i k)$$ (eq-position-dot)
#
# because {math}`\sin a \sin b + \cos a \cos b = \cos(a - b)`. Again only the distance {math}`k`
# remains, and its sign does not matter.

# %%
products = table @ table.T
frequencies = [10_000 ** (-2 * i / 64) for i in range(32)]
for p, q in ((0, 0), (3, 10), (50, 43), (99, 0)):
    by_formula = sum(math.cos(w * (q - p)) for w in frequencies)
    assert abs(products[p, q].item() - by_formula) < 1e-10
assert abs((products[3, 10] - products[50, 43]).item()) < 1e-10
assert abs((products[3, 10] - products[3, 11]).item()) > 0.1
print(f"distance 0: {products[0, 0]:.2f}, distance 7: {products[3, 10]:.2f}")

# %%
#| alt: Curve of the dot product of two rows of the table against their distance from minus 49 to
#|   plus 49. It is symmetric. At distance 0 it has its peak of 32. It falls steeply to below 24 at
#|   a distance of 7 and to below 20 at 15. Further out it goes up and down in waves between about
#|   14 and 20.
figure, axes = plt.subplots(figsize=(6.4, 3.2))
axes.plot(range(-49, 50), products[49, :99], color=BLUE)
axes.set_xlabel("distance k")
axes.set_ylabel("dot product")
axes.set_ylim(0, 33)
axes.set_title("Rows of near positions are more alike")
plt.show()

# %% [markdown]
# The peak is {math}`D/2 = 32`, the dot product of a row with itself. Near positions have similar
# rows, far ones less. The curve has waves, because the fast hands come around again: among far positions
# the product does not tell which is farther. For near ones it does, and in language near words matter
# most.
#
# One detail is easy to forget. The table has numbers of the size 1, and the embeddings of the
# package's Transformer begin with numbers of the size {math}`1/\sqrt{D}`. If both were simply added,
# hardly anything of the word would be left beside its position. The paper multiplies the embedding by
# {math}`\sqrt D`. It gives no reason, but here is the effect on the lengths of the two vectors:

# %%
word = random_numbers(512) * 512**-0.5
position = sinusoids(10, 512)[9]
for factor, name in ((1.0, "1"), (512**0.5, "sqrt(D)")):
    share = (factor * word).norm() / position.norm()
    print(f"embedding times {name:>7}: {share:.2f} times the position")

# %% [markdown]
# Without the factor the word has a small part of the sum. With it the two are of similar length.

# %% [markdown]
# ## Learned and relative positions
#
# BERT and GPT do not use sines. They have a second embedding table, with one row for each position,
# and learn it like the table of words. This is simpler, and in the experiments of Vaswani et al. it
# was about as good. It has one disadvantage: a position that has no row cannot be used.

# %%
with torch.device("meta"):  # counts without reserving memory
    tables = {"BERT-base": BERT(), "GPT-2": GPT()}
for name, model in tables.items():
    rows, width = model.position_embedding.weight.shape
    print(f"{name:>9}: {rows:5d} positions, {rows * width:,} parameters")
try:
    new_bert()(torch.zeros(1, 6, dtype=torch.int64))
except ValueError as error:
    print(f"our BERT has a table of 5: {error}")

# %% [markdown]
# T5 takes a third way: it adds nothing to the words. Often it does not matter where a word stands, but
# how far it is from another. So each head has a table with one number for each
# *distance*, and adds this number to the score of query and key before the softmax. To keep the
# table short, distances share entries: near distances have one each, far ones share on a logarithmic
# scale up to 128, and everything beyond shares the last. Such an entry is called a **bucket**. The
# encoder uses half of its 32 buckets for each direction. The decoder looks only back, and uses all of
# them for that.

# %%
#| alt: Step curves of the bucket number against the distance of the key from the query, from minus
#|   150 to 150. The encoder's curve has two arms. To the left of 0 it goes up from bucket 0 to 15, to
#|   the right from bucket 17 to 31. Both arms are steep at small distances and have longer and longer
#|   steps further out. The decoder's curve goes up only to the left, from bucket 0 to 31, and is 0 on
#|   the right.
distance = torch.arange(-150, 151)
in_encoder = encoder_buckets(distance, 32, 128)
in_decoder = decoder_buckets(distance, 32, 128)
figure, axes = plt.subplots(figsize=(6.6, 3.4))
axes.step(distance, in_encoder, where="mid", color=BLUE, label="encoder")
axes.step(distance, in_decoder, where="mid", color=RED, label="decoder")
axes.set_xlabel("position of the key − position of the query")
axes.set_ylabel("bucket")
axes.set_title("T5: near distances have a bucket of their own")
axes.legend()
plt.show()

# %%
for name, buckets in (("encoder", in_encoder), ("decoder", in_decoder)):
    back = buckets[:151].flip(0)  # the bucket of 0, 1, 2, ... steps back
    assert (back[128:] == back.max()).all()
    near = int((back.bincount() == 1).sum()) - 1  # without distance 0
    last = int((back == back.max()).nonzero()[0])
    assert len(set(back[: near + 1].tolist())) == near + 1
    print(f"{name}: 1 to {near} steps back, a bucket for each")
    print(f"{name}: from {last} steps on, the last bucket")

# %% [markdown]
# The printed numbers are the ends of the steep part and of the last step in the picture. A model of this
# kind has no longest position: any distance has a bucket. Part V of the course returns to T5.

# %% [markdown]
# ## The feed-forward layer
#
# A Transformer repeats one unit, the **block**. Its first half is attention, which moves information
# between positions. Attention computes averages, and an average of values is a linear function of them.
# The second half works on a single position, and it is not linear. Vaswani et al. call it the *position-wise feed-forward network*:
#
# $$\begin{aligned}
# \mathrm{FFN}(x) &= h W_2 + b_2 \\
# h &= \max(0,\; x W_1 + b_1)
# \end{aligned}$$ (eq-ff)
#
# {math}`x` is the vector of one position, of width {math}`D`. {math}`W_1` makes it wider, to
# {math}`F` numbers, usually {math}`F = 4D`. The function {math}`\max(0, z)` sets negative numbers to
# zero; it is called **ReLU**. {math}`W_2` goes back to the width {math}`D`. You can read it as
# {math}`F` small rules. A column of {math}`W_1` is a pattern that {math}`x` is compared with. If the
# pattern fits, the number is positive, and the corresponding row of {math}`W_2`, multiplied by this
# number, is added to the output.


# %% tags=["covers-F7"]
def plain_ff(x, w_1, b_1, w_2, b_2) -> list[float]:
    """F7 for one position, as loops: w_1 is [D, F], w_2 is [F, D]."""
    inner = []
    for f in range(len(b_1)):
        z = sum(x[d] * w_1[d][f] for d in range(len(x))) + b_1[f]
        inner.append(max(0.0, z))
    output = []
    for d in range(len(b_2)):
        y = sum(inner[f] * w_2[f][d] for f in range(len(inner))) + b_2[d]
        output.append(y)
    return output


print(inspect.getsource(inspect.unwrap(FeedForward)))

torch.manual_seed(0)
ff = FeedForward(8, 32, "relu").double()
x = random_numbers(1, 6, 8)
matrices = [ff.w_1.weight.T, ff.w_1.bias, ff.w_2.weight.T, ff.w_2.bias]
numbers = [matrix.tolist() for matrix in matrices]
with torch.no_grad():
    y = ff(x)
    no_relu = ff.w_2(ff.w_1(x))
for t in range(6):
    by_loops = plain_ff(x[0, t].tolist(), *numbers)
    by_loops = torch.tensor(by_loops, dtype=torch.float64)
    assert (y[0, t] - by_loops).abs().max() < 1e-10
    assert (no_relu[0, t] - by_loops).abs().max() > 0.01
print("six positions: loops and layer agree; without ReLU they do not")

# %% [markdown]
# The loops saw one position at a time, and that was enough to compute all outputs. So the layer is
# **position-wise**: permuting the positions permutes the outputs, and changing one input changes one
# output. Attention has the first property and not the second.


# %% tags=["covers-F7"]
def outputs_that_move(layer, x: torch.Tensor, changed: int) -> list[int]:
    other = x.clone()
    other[:, changed] += 1.0
    with torch.no_grad():
        moved = (layer(other) - layer(x)).abs().amax(dim=(0, 2))
    return (moved > 0).nonzero().flatten().tolist()


torch.manual_seed(0)
attn = MultiHeadAttention(8, 2).double()
with torch.no_grad():
    assert (ff(x[:, order]) - ff(x)[:, order]).abs().max() < 1e-12
assert outputs_that_move(ff, x, 2) == [2]
assert outputs_that_move(attn, x, 2) == [0, 1, 2, 3, 4, 5]
print(f"feed-forward: input 2 moves outputs {outputs_that_move(ff, x, 2)}")
print(f"attention:    input 2 moves outputs {outputs_that_move(attn, x, 2)}")

# %% [markdown]
# The layer has many parameters. Attention has four matrices of the size {math}`D \times D`: for
# queries, keys, values, and for the output. The feed-forward layer has two of the size {math}`D \times
# 4D`, which is twice as much. So it holds two thirds of the matrices of every block.

# %%
for name, model in tables.items():
    total = sum(p.numel() for p in model.parameters())
    stack = sum(p.numel() for b in model.blocks() for p in b.parameters())
    inner = sum(p.numel() for b in model.blocks() for p in b.ff.parameters())
    assert 0.66 < inner / stack < 0.67
    print(f"{name:>9}: {inner:,} parameters in feed-forward layers,")
    print(f"{inner / stack:16.1%} of the blocks, {inner / total:.1%} of all")

# %% [markdown]
# ## The residual sum
#
# A Transformer has many blocks, one after the other. Training them has a difficulty that
# one layer does not have. The gradient reaches the first layer only through all the others, and each
# multiplies it by its own derivative. A product of many factors below 1 is nearly 0, and a product
# of many factors above 1 is huge.
#
# The remedy is a sum {cite:p}`he2016`. A layer does not replace its input. It adds something to it:
#
# $$y = x + f(x), \qquad \frac{\partial y}{\partial x} = I + \frac{\partial f}{\partial x}$$ (eq-residual)
#
# The identity {math}`I` lets the gradient pass, even where the derivative of {math}`f` is nearly 0. The vector that is passed on
# from sum to sum is called the **residual stream**: each layer reads it and adds its result. We check
# {eq}`eq-residual` with the derivative that PyTorch computes, and then put 24 feed-forward layers in a
# row, with and without the sum. Their matrices begin as those of the first Transformer, with **Xavier**
# weights: uniform random numbers between {math}`-r` and {math}`r` with {math}`r = \sqrt{6/(a+b)}`, where
# {math}`a` and {math}`b` are the numbers of rows and columns of the matrix. This size is chosen so that
# a matrix changes the length of a vector little.

# %% tags=["covers-X4"]
point = random_numbers(8)
of_layer = torch.autograd.functional.jacobian(ff, point)
of_sum = torch.autograd.functional.jacobian(lambda x: x + ff(x), point)
identity = torch.eye(8, dtype=torch.float64)
assert (of_sum - (identity + of_layer)).abs().max() < 1e-10
assert (of_sum - of_layer).abs().max() > 0.5


def xavier(module: nn.Module) -> nn.Module:
    """The start of the first Transformer: Xavier uniform, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return module.double()


torch.manual_seed(0)
layers = [xavier(FeedForward(64, 256)) for _ in range(24)]
start, direction = random_numbers(16, 64), random_numbers(16, 64)
chains = {}
for residual in (True, False):
    gradients, sizes = [], []
    for depth in range(1, 25):
        x = start.clone().requires_grad_()
        y = x
        for one in layers[:depth]:
            y = y + one(y) if residual else one(y)
        (y * direction).sum().backward()
        gradients.append((x.grad.norm() / direction.norm()).item())
        sizes.append((y.norm() / x.norm()).item())
    chains[residual] = gradients, sizes
print("after 24 layers, relative to the input")
for residual, name in ((True, "with the sum"), (False, "without")):
    gradient, size = chains[residual][0][-1], chains[residual][1][-1]
    print(f"{name:>12}: gradient {gradient:.2g}, output {size:.2g}")
assert chains[True][0][-1] > 10
assert chains[False][0][-1] < 1e-5

# %%
#| alt: Four curves on a logarithmic axis against the number of layers from 1 to 24. Without the
#|   sum, the gradient at the input and the size of the output fall together on a straight line, from
#|   about 0.5 to 10 to the minus 6. With the sum both rise together on a nearly straight line, from
#|   about 1 to between 20 and 30.
figure, axes = plt.subplots(figsize=(6.6, 3.6))
for residual, name in ((True, "with the sum"), (False, "without")):
    gradients, sizes = chains[residual]
    color = BLUE if residual else RED
    axes.plot(range(1, 25), gradients, color=color, label=f"gradient, {name}")
    axes.plot(
        range(1, 25), sizes, color=color, ls=":", label=f"output, {name}"
    )
axes.set_yscale("log")
axes.set_xlabel("layers")
axes.set_ylabel("size, relative to the input")
axes.set_title("A product of small factors, and a sum")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# A straight line on a logarithmic axis is a product of equal factors. Without the sum each layer
# multiplies the gradient by a little more than one half, and after 24 layers about a millionth is
# left. The first layer would not learn. With the sum nothing is lost. But now there is the opposite
# problem: every layer adds to the stream, and after 24 of them it is about 20 times as large as in the
# beginning. The gradient has grown in the same way. Something must keep the sizes in order.

# %% [markdown]
# ## LayerNorm
#
# That is the task of the norm. It takes the vector of one position, shifts it so that its mean is
# 0, and scales it so that its variance is 1 {cite:p}`ba2016`:
#
# $$\begin{aligned}
# y_d &= g_d\, \frac{x_d - \mu}{\sqrt{\sigma^2 + \epsilon}} + b_d \\
# \mu &= \frac1D \sum_{d=1}^{D} x_d \\
# \sigma^2 &= \frac1D \sum_{d=1}^{D} (x_d - \mu)^2
# \end{aligned}$$ (eq-layernorm)
#
# Here {math}`y = \mathrm{LayerNorm}(x)`. The gain {math}`g` and the bias {math}`b` are learnt, one pair for each of the {math}`D` columns;
# they begin at 1 and 0. {math}`\epsilon` is a small number that prevents a division by zero. Mean and
# variance are taken over the numbers of *one* position. No other position and no other text of the
# batch has an influence.
#
# Three details decide whether a program computes this function or another one. The variance is
# divided by {math}`D`, not by {math}`D - 1`. {math}`\epsilon` stands inside the root. And the sums go
# over the last axis. We check the first two here, and an exercise checks all three.


# %% tags=["covers-X4"]
def plain_layer_norm(x, gain, bias, eps, *, minus=0, outside=False):
    """One position as loops; minus=1 and outside=True are two mistakes."""
    n = len(x)
    mean = sum(x) / n
    variance = sum((value - mean) ** 2 for value in x) / (n - minus)
    if outside:
        root = math.sqrt(variance) + eps
    else:
        root = math.sqrt(variance + eps)
    return [g * (v - mean) / root + b for v, g, b in zip(x, gain, bias)]


norm = nn.LayerNorm(8, eps=1e-5).double()
with torch.no_grad():
    norm.weight.copy_(1 + 0.3 * random_numbers(8))
    norm.bias.copy_(0.3 * random_numbers(8))
x = 0.01 * random_numbers(8)  # small numbers: epsilon has some weight
with torch.no_grad():
    y = norm(x)
values = x.tolist(), norm.weight.tolist(), norm.bias.tolist(), 1e-5


def off_by(**mistake) -> float:
    wrong = torch.tensor(
        plain_layer_norm(*values, **mistake), dtype=torch.float64
    )
    return (wrong - y).abs().max().item()


assert off_by() < 1e-10
assert off_by(minus=1) > 0.01
assert off_by(outside=True) > 0.01
print(f"divided by D - 1: wrong by up to {off_by(minus=1):.2f}")
print(f"epsilon outside the root: wrong by up to {off_by(outside=True):.2f}")

# %% [markdown]
# `torch.var` divides by {math}`D - 1` unless you tell it otherwise, so the first mistake is a common
# one. It makes the outputs smaller by the factor {math}`\sqrt{(D-1)/D}`, which is near 1 for a wide
# vector. If the model is trained with the mistake, the gain adapts, and nobody notices. It becomes
# visible when you load weights that somebody else has trained. Then every norm in the model is a little
# wrong. We give norms with this mistake to a BERT of 12 blocks with random weights, by multiplying
# their gains by the factor.

# %%
torch.manual_seed(0)
config = BERTConfig(
    vocab_size=50,
    n_layers=12,
    d_model=32,
    n_heads=4,
    d_ff=128,
    n_positions=16,
    dropout=0.0,
)
right_model = xavier(BERT(config)).eval()
wrong_model = copy.deepcopy(right_model)
for module in wrong_model.modules():
    if isinstance(module, nn.LayerNorm):
        module.weight.data *= math.sqrt(31 / 32)
ids = torch.randint(50, (4, 16), generator=generator)
with torch.no_grad():
    right_logits = right_model(ids).mlm_logits
    wrong_logits = wrong_model(ids).mlm_logits
off = ((wrong_logits - right_logits).norm() / right_logits.norm()).item()
print(f"one norm off by {1 - math.sqrt(31 / 32):.1%}")
print(f"logits off by   {off:.1%}")
assert off > 0.01

# %% [markdown]
# The logits are off by a few percent: too little to be seen in a sentence that the model writes, and far
# too much for a comparison with the published model.
#
# The place of {math}`\epsilon` matters where the vector is small. We multiply a random vector by
# factors from {math}`10^{-8}` to 1, and measure how large the output is. Without {math}`\epsilon` it
# would have the size 1 for every factor.

# %%
#| alt: Three curves of the output's standard deviation against that of the input, from 10 to the
#|   minus 8 to 1 on a logarithmic axis. All go from 0 up to 1 in an S-shape. The curve of epsilon
#|   1e-5 inside the root rises near 0.002. The curve of epsilon 1e-5 outside the root rises near
#|   0.00001. The curve of epsilon 1e-12 inside the root, which BERT has, rises near 0.000001.
scales = torch.logspace(-8, 0, 161, dtype=torch.float64)
vector = random_numbers(256)
vector = (vector - vector.mean()) / vector.std(correction=0)
figure, axes = plt.subplots(figsize=(6.6, 3.4))
for eps, color in ((1e-5, BLUE), (1e-12, GREEN)):
    normed = nn.functional.layer_norm(
        scales[:, None] * vector, (256,), eps=eps
    )
    deviation = normed.std(dim=1, correction=0)
    label = f"ε = {eps:.0e} inside"
    axes.plot(scales, deviation, color=color, label=label)
    half = scales[(deviation - 0.5).abs().argmin()].item()
    assert 0.4 * math.sqrt(eps) < half < 0.8 * math.sqrt(eps)
axes.plot(
    scales, scales / (scales + 1e-5), color=RED, label="ε = 1e-05 outside"
)
axes.set_xscale("log")
axes.set_xlabel("standard deviation of the input")
axes.set_ylabel("standard deviation of the output")
axes.set_title("The norm does not raise what is smaller than √ε")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Inside the root, {math}`\epsilon` is compared with the variance, so the norm gives way where the
# standard deviation is near {math}`\sqrt\epsilon`: at about 0.003 for {math}`\epsilon = 10^{-5}`.
# Outside, it is compared with the standard deviation itself, and the same number acts only at
# {math}`10^{-5}`. That is a factor of about 300. GPT-2 has {math}`\epsilon = 10^{-5}`, BERT
# {math}`10^{-12}`. A model must be run with the value it was trained with.

# %% [markdown]
# ## RMSNorm
#
# T5 leaves out two things: the mean and the bias. What remains divides by the *root mean square*, and
# it is called **RMSNorm** {cite:p}`zhang2019`:
#
# $$\begin{aligned}
# y_d &= g_d\, \frac{x_d}{r} \\
# r &= \sqrt{\frac1D \sum_{d=1}^{D} x_d^2 + \epsilon}
# \end{aligned}$$ (eq-rmsnorm)
#
# Here {math}`y = \mathrm{RMSNorm}(x)`. It is cheaper, and models trained with it are about as good; many newer models have it. On a
# vector whose mean is zero, and with {math}`b = 0`, the two norms are the same function.


# %%
def plain_rms_norm(x, gain, eps) -> list[float]:
    root = math.sqrt(sum(value * value for value in x) / len(x) + eps)
    return [g * value / root for value, g in zip(x, gain)]


rms = RMSNorm(8, eps=1e-6).double()
with torch.no_grad():
    rms.weight.copy_(1 + 0.3 * random_numbers(8))
x = 2 + random_numbers(8)  # its mean is not zero
numbers = plain_rms_norm(x.tolist(), rms.weight.tolist(), 1e-6)
by_loops = torch.tensor(numbers, dtype=torch.float64)
layer_norm = nn.LayerNorm(8, eps=1e-6).double()
with torch.no_grad():
    layer_norm.weight.copy_(rms.weight)
    assert (rms(x) - by_loops).abs().max() < 1e-10
    assert (layer_norm(x) - by_loops).abs().max() > 0.1
    centred = x - x.mean()
    assert (layer_norm(centred) - rms(centred)).abs().max() < 1e-10
    apart = (layer_norm(x) - rms(x)).abs().max()
print(f"mean {x.mean():.2f}: LayerNorm and RMSNorm differ by {apart:.2f}")
print("mean 0: they are equal")

# %% [markdown]
# ## Before the layer or after the sum
#
# Sum and norm can be put together in two ways. The first Transformer and BERT apply the norm to the
# sum. This is **post-norm**:
#
# $$x \leftarrow \mathrm{LayerNorm}(x + f(x))$$ (eq-post-norm)
#
# GPT-2 and T5 apply it to what the layer reads, and only add to the stream. This is **pre-norm**:
#
# $$x \leftarrow x + f(\mathrm{LayerNorm}(x))$$ (eq-pre-norm)
#
# Each block does this twice, with attention and with the feed-forward layer as {math}`f`. In pre-norm
# no norm ever acts on the stream itself, so one last norm stands after all blocks, before the matrix
# that makes the logits. Here is `forward` of the two blocks of the package. (`dropout` sets random
# numbers to zero in training; here it is off. A `cache` saves work when a model writes.)

# %% tags=["covers-X4"]
print(inspect.getsource(inspect.unwrap(BERTBlock.forward)))
print(inspect.getsource(inspect.unwrap(GPTBlock.forward)))

# %% [markdown]
# Both blocks have the same parts with the same names, so one can take over the weights of the other.
# We build both stacks with the same weights and compare them with the formulas. Attention of
# `GPTBlock` is causal by default. A mask of ones makes it see everything, as `BERTBlock` does.


# %% tags=["covers-X4"]
def two_stacks(n: int, d: int, d_ff: int, seed: int) -> dict[str, nn.Module]:
    """Post-norm and pre-norm blocks with equal weights (Xavier)."""
    torch.manual_seed(seed)
    shared = {"d_model": d, "n_heads": 4, "d_ff": d_ff, "dropout": 0.0}
    shared |= {"activation": "relu", "norm_eps": 1e-5}
    post = [xavier(BERTBlock(BERTConfig(**shared))) for _ in range(n)]
    pre = [GPTBlock(GPTConfig(**shared)).double() for _ in range(n)]
    for ours, other in zip(pre, post):
        ours.load_state_dict(other.state_dict())
    return {"post-norm": nn.ModuleList(post), "pre-norm": nn.ModuleList(pre)}


def post_norm(x, block):
    x = block.attn_norm(x + block.attn(x))
    return block.ff_norm(x + block.ff(x))


def pre_norm(x, block):
    x = x + block.attn(block.attn_norm(x))
    return x + block.ff(block.ff_norm(x))


stacks = two_stacks(1, 16, 64, seed=0)
x, ones = random_numbers(2, 6, 16), torch.ones(6, 6, dtype=torch.bool)
with torch.no_grad():
    post, pre = stacks["post-norm"][0], stacks["pre-norm"][0]
    assert (post(x, None) - post_norm(x, post)).abs().max() < 1e-10
    assert (pre(x, ones) - pre_norm(x, pre)).abs().max() < 1e-10
    distance = (post_norm(x, post) - pre_norm(x, pre)).abs().max()
assert distance > 0.1
print(f"same weights, other place of the norm: differ by {distance:.2f}")

# %% [markdown]
# The two formulas look almost the same, yet deep models behave differently. We look at stacks
# of 2 to 24 blocks before any training. The input is random, and the loss is a cross-entropy with
# random labels. After one backward pass we record four things:
#
# - *ff*: the size of the gradient of {math}`W_1` in each feed-forward layer;
# - *queries*: the same for {math}`W^Q` in each attention layer;
# - *alike*: how alike the positions have become. It is the mean cosine between the vectors of two
#   positions: 0 when they have nothing in common, 1 when they point in the same direction;
# - *size*: the standard deviation of the numbers in the stream after the last block.
#
# For comparison there is a third stack, with norms and without sums.


# %% tags=["covers-X4"]
def no_sum(x, block):
    x = block.attn_norm(block.attn(x))
    return block.ff_norm(block.ff(x))


def likeness(x: torch.Tensor) -> float:
    """Mean cosine between two different positions."""
    unit = nn.functional.normalize(x.detach(), dim=-1)
    length = x.shape[1]
    pairs = (unit @ unit.mT).sum() / len(x) - length
    return pairs.item() / (length * (length - 1))


draw = torch.Generator().manual_seed(1)
inputs = torch.randn(8, 16, 64, generator=draw, dtype=torch.float64)
targets = torch.randint(100, (8, 16), generator=draw)
readout = torch.randn(64, 100, generator=draw, dtype=torch.float64) / 8


def look(stack: nn.Module, step) -> dict[str, list[float]]:
    stack.zero_grad()
    x, alike = inputs, []
    for block in stack:
        x = step(x, block)
        alike.append(likeness(x))
    size = x.detach().std().item()
    if step is pre_norm:
        x = nn.functional.layer_norm(x, (64,))
    logits = (x @ readout).flatten(0, 1)
    nn.functional.cross_entropy(logits, targets.flatten()).backward()
    ff = [block.ff.w_1.weight.grad.norm().item() for block in stack]
    queries = [block.attn.w_q.weight.grad.norm().item() for block in stack]
    return {"ff": ff, "queries": queries, "alike": alike, "size": [size]}


steps = {"post-norm": post_norm, "pre-norm": pre_norm, "no sum": no_sum}
found = {}
print("the last block of each stack")
print("blocks         ff  queries alike size")
for n in (2, 6, 12, 24):
    stacks = two_stacks(n, 64, 256, seed=0)
    for name, step in steps.items():
        stack = stacks["pre-norm" if name == "pre-norm" else "post-norm"]
        r = found[n, name] = look(stack, step)
        last = r["queries"][-1]
        shown = f"{last:.4f}" if last > 1e-4 else "< 0.0001"
        alike, size = r["alike"][-1], r["size"][0]
        print(f"{n:2d} {name:>9} {r['ff'][-1]:.2f} {shown:>8}", end="")
        print(f" {alike:5.2f} {size:.2f}")

# %%
deep_post, deep_pre = found[24, "post-norm"], found[24, "pre-norm"]
assert deep_post["ff"][-1] > 3 * deep_pre["ff"][-1]
assert found[2, "pre-norm"]["ff"][-1] > 2.5 * deep_pre["ff"][-1]
assert deep_post["queries"][-1] < 1e-5 < 1e-3 < deep_pre["queries"][-1]
assert deep_post["alike"][-1] > 0.999
assert found[6, "no sum"]["alike"][-1] > 0.999
assert deep_pre["alike"][-1] < 0.95
assert deep_pre["size"][0] > 2 * found[2, "pre-norm"]["size"][0]

# %%
#| alt: Three panels, one above the other, for a stack of 24 blocks, against the block. At the top
#|   the gradient of the feed-forward weights: post-norm goes up and down between 0.5 and 1.1 without a
#|   trend after block 6, pre-norm falls from 0.55 to 0.15. In the middle the gradient of the queries on a
#|   logarithmic axis: post-norm falls nearly in a straight line from 0.2 to below 10 to the minus
#|   5, pre-norm only to about 0.01. At the bottom how alike the positions are: without the sum they
#|   are close to 1 from the second block on, with post-norm they come close to 1 near block 12, and with pre-norm they
#|   end below 0.9.
figure, axes = plt.subplots(
    3, 1, figsize=(6.4, 8), sharex=True, layout="constrained"
)
colors = {"post-norm": RED, "pre-norm": BLUE, "no sum": "#777777"}
blocks = range(1, 25)
for name in ("post-norm", "pre-norm"):
    for panel, key in zip(axes, ("ff", "queries")):
        panel.plot(
            blocks, found[24, name][key], color=colors[name], label=name
        )
for name, color in colors.items():
    axes[2].plot(blocks, found[24, name]["alike"], color=color, label=name)
axes[0].set(title="gradient of the feed-forward weights", ylim=(0, None))
axes[1].set(title="gradient of the queries", yscale="log")
axes[2].set(title="how alike positions are", ylim=(0, 1.05), xlabel="block")
for panel in axes:
    panel.legend(fontsize=8)
plt.show()

# %% [markdown]
# Begin at the top. In post-norm the feed-forward layers of all blocks have gradients of about the same
# size, and the table says that it does not shrink in the last block when the stack becomes deeper. In
# pre-norm it does. The reason is in the last column of the table: the stream of pre-norm grows with
# every block, and the norms divide by its size, so the late blocks of a deep stack get a
# smaller gradient. Xiong et al. derive
# this: with {math}`N` blocks the gradient of the last one falls like {math}`1/\sqrt N` in pre-norm,
# and stays the same in post-norm {cite:p}`xiong2020`. A deep post-norm model thus changes more blocks
# in each step than a shallow one, and each as strongly. A learning rate that suits the shallow model
# may be too large for the deep one.
#
# The panel at the bottom shows something that the formulas do not suggest. Attention averages, so its
# outputs are more alike than its inputs. Without the sum all positions have nearly the same vector from
# the third block on, and what was said at which position is lost {cite:p}`dong2021`. The sum keeps each
# position's own vector. But in post-norm each norm divides the sum by its size. So the own part shrinks
# again and again, while each attention layer adds something that is nearly the same everywhere. After
# 24 blocks hardly any difference is left. When all keys are alike, it does not matter where a query
# looks, so its gradient is nearly zero: that is the panel in the middle {cite:p}`noci2022`. It is not
# true that *all* gradients vanish in a deep post-norm model: those of the feed-forward layers do not.
#
# All this depends on the start weights. We used Xavier weights. With matrices of a tenth of their size
# each layer adds little to the stream, and the two kinds of stack are nearly the same:

# %%
stacks = two_stacks(24, 64, 256, seed=0)
print("matrices times 0.1")
small = {}
for name, stack in stacks.items():
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(0.1 if parameter.ndim == 2 else 1)
    small[name] = r = look(stack, steps[name])
    last, alike = r["ff"][-1], r["alike"][-1]
    print(f"{name:>9}: ff {last:.3f}, alike {alike:.2f}")
assert 0.8 < small["post-norm"]["ff"][-1] / small["pre-norm"]["ff"][-1] < 1.25
assert small["post-norm"]["alike"][-1] < 0.1

# %% [markdown]
# So whoever speaks about post-norm must also say which start weights are meant.

# %% [markdown]
# ## Training a deep model
#
# Does this matter for training? The task is to write eight random tokens in reverse order.
# It needs attention to the right position and nothing else. We train 12 blocks with each kind of
# norm, once with the full learning rate from the first step, and once with a **warm-up**, in which the
# learning rate rises from zero in 100 steps. As a control, a fifth run has 6 blocks of post-norm and no
# warm-up. Everything else is the same: start weights, batches, optimizer and learning rate.


# %% tags=["covers-X4"]
class Reverser(nn.Module):
    """Embeddings, a stack of one kind, a head: 16 tokens, 8 positions."""

    def __init__(self, kind: str, n: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.token_embedding = nn.Embedding(16, 32)
        self.position_embedding = nn.Embedding(8, 32)
        self.blocks = two_stacks(n, 32, 64, seed)[kind]
        self.norm = nn.LayerNorm(32) if kind == "pre-norm" else nn.Identity()
        self.head = xavier(nn.Linear(32, 16))
        self.float()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.position_embedding.weight
        everything = torch.ones(8, 8, dtype=torch.bool)
        for block in self.blocks:
            x = block(x, everything)
        return self.head(self.norm(x))


def train_reverser(
    kind: str, n: int, warmup: int, steps: int = 200, seed: int = 0
) -> list[float]:
    model = Reverser(kind, n, seed)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=3e-3, betas=(0.9, 0.98), fused=True
    )
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, step / max(warmup, 1))
        ids = torch.randint(16, (32, 8), generator=draw)
        logits = model(ids).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, ids.flip(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


runs = {}
for kind, n, warmup in (
    ("post-norm", 12, 0),
    ("post-norm", 12, 100),
    ("pre-norm", 12, 0),
    ("pre-norm", 12, 100),
    ("post-norm", 6, 0),
):
    runs[kind, n, warmup] = train_reverser(kind, n, warmup)

ends = {key: sum(losses[-10:]) / 10 for key, losses in runs.items()}
with measured():
    for (kind, n, warmup), end in ends.items():
        print(f"{kind:>9}, {n:2d} blocks, warm-up {warmup:3d}: {end:.2f}")
assert ends["post-norm", 12, 0] > 2.55
assert 1.8 < ends["post-norm", 12, 100] < ends["post-norm", 12, 0] - 0.1
assert ends["pre-norm", 12, 0] < 0.2
assert ends["pre-norm", 12, 100] < 0.3
assert ends["post-norm", 6, 0] < 2.2

# %%
#| alt: Five loss curves over 200 steps and a dashed line at log 16 = 2.77. Post-norm with 12
#|   blocks and no warm-up stays at the dashed line. With a warm-up it goes down slowly, to about 2.4.
#|   Post-norm with 6 blocks and no warm-up goes down slowly for 120 steps, then quickly to almost 0.
#|   Pre-norm without a warm-up reaches almost 0 after about 100 steps, with a warm-up after about 150.
styles = {
    ("post-norm", 12, 0): (RED, "-"),
    ("post-norm", 12, 100): (RED, "--"),
    ("pre-norm", 12, 0): (BLUE, "-"),
    ("pre-norm", 12, 100): (BLUE, "--"),
    ("post-norm", 6, 0): (YELLOW, "-"),
}
figure, axes = plt.subplots(figsize=(7, 4.6))
for key, losses in runs.items():
    color, line = styles[key]
    label = f"{key[0]}, {key[1]} blocks, warm-up {key[2]}"
    axes.plot(losses, color=color, ls=line, lw=1.3, label=label)
axes.axhline(math.log(16), color="black", ls=":", lw=1, label="log 16: chance")
axes.set_ylim(0, 4.9)
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per token")
axes.set_title("The same weights and batches, another place of the norm")
axes.legend(fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# Both pre-norm runs end below 0.3. Post-norm with 12 blocks ends above 2.55 without a warm-up, which is
# close to chance, and at least 0.1 lower with it. Post-norm with 6 blocks ends below 2.2.
# ```
#
# The same data and the same start weights: one model solves the task, the other learns nothing. With
# a warm-up post-norm learns, but in 200 steps it does not come far. With half of the blocks it learns
# even without. Pre-norm does not need the warm-up here; it only loses time by it.
#
# This is one small task, and a single learning rate. It does not say that post-norm is bad. The first
# Transformer and BERT are post-norm and were trained well, with a warm-up, a small learning rate and
# many steps. It says that post-norm needs this care, and more of it when the model is deeper. Most
# later models are pre-norm.

# %% [markdown]
# ## ReLU or GELU
#
# The article describes the feed-forward layer with ReLU, as in {eq}`eq-ff`. BERT and GPT have another
# function in its place, the *Gaussian error linear unit*, **GELU** {cite:p}`hendrycks2016`:
#
# $$\begin{aligned}
# \mathrm{GELU}(z) &= z\,\Phi(z) \\
# \Phi(z) &= \tfrac12 \left(1 + \mathrm{erf}(z/\sqrt2)\right)
# \end{aligned}$$ (eq-gelu)
#
# {math}`\Phi(z)` is the probability that a normally distributed number is below {math}`z`. ReLU
# multiplies {math}`z` by 0 or 1. GELU multiplies it by something in between, so it has no kink. The
# paper of GELU also gives an approximation that needs no `erf`, the *error function*:
#
# $$\begin{aligned}
# & \mathrm{GELU}(z) \approx \tfrac12\, z\, (1 + \tanh u) \\
# & u = \sqrt{2/\pi}\,(z + 0.044715\, z^3)
# \end{aligned}$$ (eq-gelu-tanh)
#
# The two forms are different functions. A model must be run with the one it was trained with. In the
# published configurations BERT has the first and GPT-2 the second. In the package they are called
# `gelu` and `gelu_tanh`.


# %%
def plain_gelu(z: float) -> float:
    return z / 2 * (1 + math.erf(z / math.sqrt(2)))


def plain_gelu_tanh(z: float) -> float:
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    return z / 2 * (1 + math.tanh(inner))


z = torch.linspace(-5, 5, 1001, dtype=torch.float64)
functions = {
    name: FeedForward(1, 1, name).activation(z)
    for name in ("relu", "gelu", "gelu_tanh")
}
exact = torch.tensor([plain_gelu(v) for v in z.tolist()], dtype=z.dtype)
near = torch.tensor([plain_gelu_tanh(v) for v in z.tolist()], dtype=z.dtype)
assert (functions["gelu"] - exact).abs().max() < 1e-10
assert (functions["gelu_tanh"] - near).abs().max() < 1e-10
form_gap = (exact - near).abs().max().item()
assert 1e-4 < form_gap < 1e-3  # so each form is a control of the other
print(f"the two forms differ by at most {form_gap:.5f}")
print(f"ReLU and GELU by at most {(functions['relu'] - exact).max():.3f}")

# %%
#| alt: Two panels. In the upper one ReLU and GELU from minus 4 to 4: ReLU is 0 up to 0 and then a straight
#|   line. GELU is a smooth curve that dips to about minus 0.17 near minus 0.75 and meets ReLU further
#|   out. In the lower one the difference of the two forms of GELU: a curve that is the same on both
#|   sides of 0. It is 0 in the middle, dips to minus 0.0002 near 1.3, rises to 0.0005 near 2.7, and
#|   comes back to 0 near 5.
figure, axes = plt.subplots(2, 1, figsize=(5.6, 6), layout="constrained")
axes[0].plot(z, functions["relu"], color=RED, label="ReLU")
axes[0].plot(z, functions["gelu"], color=BLUE, label="GELU")
axes[0].set(
    xlim=(-4, 4), ylim=(-0.5, 4), xlabel="z", title="A kink or a curve"
)
axes[0].legend()
axes[1].plot(z, near - exact, color=GREEN)
axes[1].axhline(0, color="black", lw=0.6)
axes[1].set(xlabel="z", title="tanh form − exact form")
plt.show()

# %% [markdown]
# The largest difference of the two forms is below 0.0005. It is small, but thousands of times the
# rounding of 32-bit numbers. Whoever compares logits with a published model will find it.
#
# Does it matter which of ReLU and GELU a model has? We train a small GPT on the letters of Town, the
# text of this course, for 120 steps, with three seeds each. We do it from two starts. The first is that
# of GPT-2: every matrix begins with numbers of the size 0.02. In the second, {math}`W_1` begins with
# numbers of the size {math}`1/\sqrt D`. Then {math}`x W_1` has the size 1, because the norm before it
# gives {math}`x` that size.

# %%
library = "\n".join(d.text for d in generate_documents(600, seed=1))
held_out = "\n".join(
    d.text for d in generate_documents(60, seed=3, split="validation")
)
letters = sorted(set(library + held_out))
index = {letter: i for i, letter in enumerate(letters)}
train_ids = torch.tensor([index[letter] for letter in library])
test_ids = torch.tensor([index[letter] for letter in held_out])
test_ids = test_ids[: len(test_ids) // 48 * 48].view(-1, 48)[:200]


def train_letters(
    activation: str, wide_start: bool, seed: int, steps: int = 120
) -> float:
    """The loss on held-out text, in nats per letter."""
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=len(letters),
        n_layers=2,
        d_model=48,
        n_heads=4,
        n_positions=48,
        dropout=0.0,
        activation=activation,
    )
    model = GPT(config)
    if wide_start:
        for block in model.decoder:
            nn.init.normal_(block.ff.w_1.weight, std=48**-0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rate = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(len(train_ids) - 48, (16, 1), generator=draw)
        batch = train_ids[starts + torch.arange(48)]
        total, count = causal_lm_loss(model(batch), batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    with torch.no_grad():
        total, count = causal_lm_loss(model(test_ids), test_ids)
    return (total / count).item()


letter_losses = {
    (wide, activation): [train_letters(activation, wide, s) for s in range(3)]
    for wide in (False, True)
    for activation in ("relu", "gelu")
}
means = {key: sum(v) / len(v) for key, v in letter_losses.items()}
with measured():
    print("start      three seeds         mean")
    for (wide, activation), losses in letter_losses.items():
        start = "wide" if wide else "0.02"
        three = " ".join(f"{loss:.3f}" for loss in losses)
        mean = means[wide, activation]
        print(f"{start} {activation} {three}  {mean:.3f}")
assert means[False, "gelu"] > means[False, "relu"] + 0.08
assert abs(means[True, "gelu"] - means[True, "relu"]) < 0.08
assert means[True, "gelu"] < means[False, "gelu"] - 0.1
assert all(2.2 < mean < 3 for mean in means.values())

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# From the start with 0.02, GELU is behind ReLU by more than 0.08 nats per letter. From the start with
# {math}`1/\sqrt D`, the two means are less than 0.08 apart.
# ```
#
# So the answer depends on the start. Why is GELU slow from the first one? With {math}`D = 48` the
# numbers in {math}`x W_1` have the size {math}`0.02\,\sqrt{48} = 0.14`. So close to zero, GELU is nearly
# a straight line: {math}`\mathrm{GELU}(z) \approx z/2`. A feed-forward layer with a straight line in
# the middle is a single matrix, and it has to grow before it can do more. ReLU has its kink at zero,
# and the kink looks the same at every scale: {math}`\mathrm{ReLU}(cz) = c\,\mathrm{ReLU}(z)` for
# {math}`c > 0`. GPT-2 has {math}`D = 768`, and there the same 0.02 gives numbers of the size 0.55.
#
# We can measure how straight a function is: fit a line to {math}`(z, \mathrm{GELU}(z))` for normally
# distributed {math}`z` of a given size, and see which share of the variance the line leaves over.


# %%
def not_linear(activation: str, size: float) -> float:
    """Share of the variance that no straight line explains."""
    z = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    weight = weight / weight.sum()
    y = FeedForward(1, 1, activation).activation(size * z)
    y = y - (weight * y).sum()
    slope = (weight * z * y).sum() / (weight * z * z).sum()
    left_over = (weight * (y - slope * z) ** 2).sum()
    return (left_over / (weight * y * y).sum()).item()


print("size of z   ReLU   GELU")
for size in (0.14, 0.55, 1.0):
    shares = [not_linear(name, size) for name in ("relu", "gelu")]
    print(f"{size:9.2f} {shares[0]:6.3f} {shares[1]:6.3f}")
assert abs(not_linear("relu", 0.14) - not_linear("relu", 1.0)) < 1e-10
assert not_linear("gelu", 0.14) < 0.1 * not_linear("relu", 0.14)

# %% [markdown]
# For ReLU the share is the same at each size. For GELU at the size 0.14 it is less than a tenth of
# that. The lesson is not that ReLU is better. From a fitting start the difference is small here: less
# than a tenth of a nat after 120 steps of a tiny model. The article describes ReLU only, and this
# simplification costs little. **Start weights that were chosen for a wide model can cost more than the
# choice of the function.**

# %% [markdown]
# ## Exercises
#
# ```{exercise} The table without loops
# :label: ex-06-sinusoids
# *10 minutes, easy.* Write `position_table(n_positions, d_model)`: the table of {eq}`eq-sinusoids` as a
# float64 tensor of the shape `[n_positions, d_model]`, for an even `d_model`, without a Python loop.
#
# *Hint 1.* A column of positions times a row of frequencies is a matrix of angles. *Hint 2.* Sine and
# cosine alternate: `table[:, 0::2]` are the even columns.
# ```

# %% [markdown]
# ```{solution-start} ex-06-sinusoids
# :class: dropdown
# ```


# %%
def position_table(n_positions: int, d_model: int) -> torch.Tensor:
    ### BEGIN SOLUTION
    positions = torch.arange(n_positions, dtype=torch.float64)
    columns = torch.arange(0, d_model, 2, dtype=torch.float64)
    angles = positions[:, None] * 10_000 ** (-columns / d_model)
    table = torch.empty(n_positions, d_model, dtype=torch.float64)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()
    return table
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch06.check_position_table(position_table)

# %% [markdown]
# ```{exercise} Move on without knowing where you are
# :label: ex-06-shift
# *15 minutes, medium.* Write `moved_on(rows, k)`: given any rows of the sinusoid table, return the rows
# that stand `k` positions further on ({math}`k` may be negative). You are not told which positions
# they are. Use {eq}`eq-rotation`, and no loop.
#
# *Hint.* The width of the rows tells {math}`D`, and so all {math}`\omega_i`. `rows[..., 0::2]` are all
# sines, `rows[..., 1::2]` all cosines.
# ```

# %% [markdown]
# ```{solution-start} ex-06-shift
# :class: dropdown
# ```


# %%
def moved_on(rows: torch.Tensor, k: int) -> torch.Tensor:
    ### BEGIN SOLUTION
    d_model = rows.shape[-1]
    columns = torch.arange(0, d_model, 2, dtype=rows.dtype)
    angles = k * 10_000 ** (-columns / d_model)
    sine, cosine = rows[..., 0::2], rows[..., 1::2]
    moved = torch.empty_like(rows)
    moved[..., 0::2] = angles.cos() * sine + angles.sin() * cosine
    moved[..., 1::2] = angles.cos() * cosine - angles.sin() * sine
    return moved
    ### END SOLUTION


# %% [markdown]
# Later models build on this. They do not add the table to the words. They turn queries and keys by
# these angles, so that the score of a pair depends on its distance. This is called *rotary position
# embedding*.
#
# ```{solution-end}
# ```

# %%
ch06.check_moved_on(moved_on)

# %% [markdown]
# ```{exercise} LayerNorm by hand
# :label: ex-06-layernorm
# *10 minutes, easy.* Write `layer_norm(x, gain, bias, eps)` for `x` of the shape `[B, T, D]`, after
# {eq}`eq-layernorm`, with sums, means and roots only. Do not call PyTorch's own norm.
#
# *Hint.* `mean(dim=-1, keepdim=True)` keeps the last axis, so that the result can be subtracted.
# ```

# %% [markdown]
# ```{solution-start} ex-06-layernorm
# :class: dropdown
# ```


# %%
def layer_norm(
    x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    ### BEGIN SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return gain * centred / (variance + eps).sqrt() + bias
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch06.check_layer_norm(layer_norm)

# %% [markdown]
# ```{exercise} From post-norm to pre-norm
# :label: ex-06-prenorm
# *10 minutes, easy.* Write `pre_norm_block(x, attn, attn_norm, ff, ff_norm)`: a whole pre-norm block,
# {eq}`eq-pre-norm` first with attention and then with the feed-forward layer. The last four arguments
# are layers, to be called with one tensor.
# ```

# %% [markdown]
# ```{solution-start} ex-06-prenorm
# :class: dropdown
# ```


# %%
def pre_norm_block(x, attn, attn_norm, ff, ff_norm) -> torch.Tensor:
    ### BEGIN SOLUTION
    x = x + attn(attn_norm(x))
    return x + ff(ff_norm(x))
    ### END SOLUTION


# %% [markdown]
# The second line must add to the *new* `x`. If both sub-layers read the old one, it is another
# architecture, which some models have on purpose and call parallel blocks.
#
# ```{solution-end}
# ```

# %%
ch06.check_pre_norm_block(pre_norm_block)

# %% [markdown]
# ```{exercise} What kind of layer is it?
# :label: ex-06-kind
# *20 minutes, medium.* Write `kind_of_layer(layer, d_model, length)` that finds out by experiment what a
# layer does with positions. The layer maps `[B, T, D]` to `[B, T, D]` in 64-bit numbers. Return
#
# - `"position-wise"`: each output depends on the input at its own position alone, and the layer does the
#   same at every position;
# - `"equivariant"`: outputs depend on other positions too, but {eq}`eq-equivariant` holds;
# - `"order matters"`: everything else.
#
# *Hint 1.* One permutation is not enough: a layer that treats the first position differently is not
# noticed when the first position stays where it is. *Hint 2.* Compare with a tolerance of
# {math}`10^{-9}`: sums in another order round differently.
# ```

# %% [markdown]
# ```{solution-start} ex-06-kind
# :class: dropdown
# ```


# %%
def kind_of_layer(layer, d_model: int, length: int) -> str:
    ### BEGIN SOLUTION
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, length, d_model, generator=g, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        for turn in range(1, length):  # every position goes everywhere
            shifted = torch.arange(length).roll(turn)
            mixed = torch.randperm(length, generator=g)
            for order in (shifted, mixed):
                gap = (layer(x[:, order]) - y[:, order]).abs().max()
                if gap > 1e-9:
                    return "order matters"
        for j in range(length):
            other = x.clone()
            other[:, j] += 1.0
            moved = (layer(other) - y).abs().amax(dim=(0, 2))
            moved[j] = 0.0
            if moved.max() > 1e-9:
                return "equivariant"
    return "position-wise"
    ### END SOLUTION


# %% [markdown]
# A layer that adds a table of positions is a trap. Each of its outputs depends on one input alone, but
# it does something else at each position, so the order matters.
#
# ```{solution-end}
# ```

# %%
ch06.check_kind_of_layer(kind_of_layer)

# %% [markdown]
# ## What to keep
#
# Attention and feed-forward layers do not see the order, so positions have to be put in: by sines whose
# shift is a rotation, by a learned table, or by a number for each distance. The feed-forward layer
# works on each position alone and holds two thirds of a block's matrices. The residual sum keeps the
# gradient, and each position's own vector; the norm keeps the sizes. Its variance is divided by
# {math}`D`, and its {math}`\epsilon` stands inside the root. Post-norm needs a warm-up, the more so the
# deeper the model; pre-norm is easier to train. Start weights that suit one width may not suit another.
#
# [Chapter 07](07_encoder_decoder.ipynb) puts these parts together into the whole Transformer.
