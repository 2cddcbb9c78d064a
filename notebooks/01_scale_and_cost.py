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
# # 01 What is large, and what does it cost?
#
# BADGE
#
# **You will** compute from a configuration how many parameters a model has, how many operations
# it takes to train it, how much memory it fills, how long a token takes, and what all of this
# costs in money. You will compare your results with what the papers report, and put a number on
# each of four difficulties of large models.
#
# **Needs** Python, matrix products, the surprise of [chapter 00](00_setup.ipynb).
# **Runs** in 30 seconds on one core.
# **Source** {cite:p}`kaplan2020,brown2020`; `llm_lab/costs`.

# %% [markdown]
# COLAB

# %%
import time
import zlib

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_course import GPT, BERTConfig, GPTConfig, T5Config, Tokenizer
from llm_course.losses.causal import causal_lm_loss
from llm_lab import costs
from llm_lab.checks import ch01
from llm_lab.costs import DEVICES, Device
from llm_lab.pictures.measured import measured
from llm_town import generate_documents

generator = torch.Generator().manual_seed(0)
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, ORANGE = "#CC79A7", "#E69F00"

# %% [markdown]
# ## What is a large language model?
#
# A **language model** is a function. Its input is a row of **tokens**: words, or parts of words,
# each with a number, its id. Its output is a probability for each token of its vocabulary: how
# well would this token fit in the place that is asked for?
#
# The function has **parameters**: numbers that are not written by anybody but found by training.
# Training shows the model texts and compares its probabilities with the tokens that really stand
# there. The **loss** says in one number how far off they are: it is the mean surprise, minus the
# logarithm of the probability of the right token. Then training changes each parameter a little so
# that the loss falls. How the loss depends on a parameter is told by its **gradient**. After this
# **pretraining** the same parameters serve many tasks, sometimes after a short further training
# on examples of the task, which is called **fine-tuning**. Almost all of the cost lies in the
# pretraining, and it is this cost that makes a model *large*.
#
# We shall count published models. **BERT** guesses words in the middle of a text. **GPT**, in its
# versions GPT-2 and GPT-3, and **Llama 2** guess the next word, and so they can write. **T5**
# reads one text and writes another. Words such as *small*, *base*, *large* and *XL* name the sizes
# in which one model was published. [Chapter 02](02_families_and_masks.ipynb) tells these families
# apart; here only their size counts.
#
# "Large" has no definition. What was large in 2018 runs on a telephone today. So this chapter
# does not use the word as a name but as a question with four answers: how many parameters, how
# many operations, how much memory, how much text? Each of them can be computed before a single
# weight exists.
#
# The article that this course follows names four difficulties of large models. **C1** is the cost
# of computing, **C2** the need for data, **C3** training that goes unstable, and **C4** slow
# inference and models that are too large for the place where they should run. Each has a section
# below. (Names such as C1 are ids; the [source map](../book/source_map.md) lists all of them.)

# %% [markdown]
# ## Parameters
#
# All models of this course consist of three parts. The **embedding** is a table with one row of
# {math}`D` numbers for each of the {math}`V` tokens. BERT and GPT have another table, with a row
# for each position in a text. Then comes a stack of {math}`L` equal **blocks**. A **head** turns
# the last vectors into scores for all tokens. In most models it is the embedding table, used a
# second time: the two are *tied*, and the head costs nothing extra. {math}`D` is the *width* of
# the model, `d_model` in the code, and {math}`L` its `n_layers`.
#
# A block has two layers. The *attention* layer has four matrices of {math}`D \times D`, called
# {math}`W^Q, W^K, W^V` and {math}`W^O`. They are divided among `n_heads` heads, which does not
# change their size. The *feed-forward* layer has one matrix of {math}`D
# \times F` and one of {math}`F \times D`; in most models {math}`F = 4D`. You do not have to know
# yet what they do. Each matrix also has a **bias**, a vector that is added to its result. And
# each of the two layers has a *norm*, with two vectors of {math}`D` numbers, called gain and bias.
#
# Add it up for one block of BERT or GPT:
#
# $$
# \begin{aligned}
# N_\text{block} ={} & 4D^2 + 4D \quad\text{(1)} \\
# & + 2DF + F + D \quad\text{(2)} \\
# & + 4D \quad\text{(3)}
# \end{aligned}
# $$ (eq-block-parameters)
#
# Line (1) is attention, line (2) the feed-forward layer, and line (3) are both norms.
#
# As a list of shapes, this is the same formula without any algebra:


# %%
def shapes_of_block(d: int, f: int) -> dict[str, tuple[int, ...]]:
    shapes = dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), (d, d))
    shapes |= {f"{name} bias": (d,) for name in shapes}
    shapes |= {"w_1": (d, f), "w_1 bias": (f,)}
    shapes |= {"w_2": (f, d), "w_2 bias": (d,)}
    for norm in ("attention norm", "feed-forward norm"):
        shapes |= {f"{norm} gain": (d,), f"{norm} bias": (d,)}
    return shapes


def plain_block_parameters(d: int, f: int) -> int:
    total = 0
    for shape in shapes_of_block(d, f).values():
        numbers = 1
        for size in shape:
            numbers *= size
        total += numbers
    return total


d, f = 768, 3072  # BERT-base and the smallest GPT-2
by_formula = 4 * d**2 + 4 * d + 2 * d * f + f + d + 4 * d
assert by_formula == plain_block_parameters(d, f)
print(f"one block: {by_formula:,} parameters")

# %% [markdown]
# Does a real model have this number? We build one on the `meta` device. A tensor there has a
# shape and no numbers, so that even a model of 175 billion parameters is made in a moment. The
# package does the same arithmetic for all families, and it does not need to build anything.

# %%
with torch.device("meta"):
    model = GPT(GPTConfig())
block = sum(p.numel() for p in model.decoder[0].parameters())
assert block == by_formula
whole = sum(p.numel() for p in model.parameters())
assert whole == costs.count_parameters(GPTConfig())
print(f"the smallest GPT-2: {whole:,}")

untied = costs.count_parameters(GPTConfig(tied=False))
assert untied != whole  # a head of its own is another model
print(f"with a head of its own: {untied:,}")
for part, count in costs.parameter_table(GPTConfig()).items():
    print(f"{part:>20} {count:12,} {count / whole:6.1%}")

# %% [markdown]
# Formula, list and model agree to the last parameter. A check like this one finds a forgotten
# bias at once, and forgotten biases are frequent.
#
# Now the published models. Their configurations stand in the papers: BERT's in section 3 of
# {cite:p}`devlin2019`, GPT-2's in Table 2 of {cite:p}`radford2019`, GPT-3's in Table 2.1 of
# {cite:p}`brown2020`, T5's in section 3.7 of {cite:p}`raffel2020`. The column *paper* has the
# numbers that the papers give, in millions and rounded by their authors, and the last column the
# difference.
#
# T5 is built differently. It has two stacks of {math}`L` blocks: one reads the given text, the
# other writes. A block of the second stack has a third layer, **cross-attention**, with four more
# matrices, which looks at the result of the first stack. There are no biases, and the
# width of a head, `d_head`, is chosen freely, so its attention matrices need not be square.


# %%
def t5_config(n_layers, d_model, n_heads, d_ff, d_head=64):
    return T5Config(
        n_layers=n_layers,
        n_decoder_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_ff=d_ff,
        d_head=d_head,
    )


GPT3 = GPTConfig(n_layers=96, d_model=12288, n_heads=96, n_positions=2048)
BERT_LARGE = BERTConfig(n_layers=24, d_model=1024, n_heads=16, d_ff=4096)
T5_11B = t5_config(24, 1024, 128, 65_536, d_head=128)
GPT2_XL = GPTConfig(n_layers=48, d_model=1600, n_heads=25)
zoo = {  # configuration, millions of parameters in the paper
    "BERT-base": (BERTConfig(), 110),
    "BERT-large": (BERT_LARGE, 340),
    "GPT-2 XL": (GPT2_XL, 1542),
    "GPT-3": (GPT3, 175_000),
    "T5-small": (T5Config(), 60),
    "T5-base": (t5_config(12, 768, 12, 3072), 220),
    "T5-large": (t5_config(24, 1024, 16, 4096), 770),
    "T5-3B": (t5_config(24, 1024, 32, 16_384, d_head=128), 2800),
    "T5-11B": (T5_11B, 11_000),
}
print(f"{'':>10} {'computed':>8} {'paper':>8}")
for name, (config, paper) in zoo.items():
    count = costs.count_parameters(config)
    off = count / (paper * 1e6) - 1
    row = f"{count / 1e6:7,.0f}M {paper:7,}M {off:+6.1%}"
    print(f"{name:>10} {row}")
    assert abs(off) < 0.05
assert abs(costs.count_parameters(GPT3) / 175e9 - 1) < 0.0025

# %% [markdown]
# GPT-3 is within a quarter of a percent, and all but one of the others within three percent.
# T5-large differs by four. There the weights that were published with this configuration have
# the computed number. When a paper and a file disagree, believe the file: it can be counted.
#
# Where do the parameters sit?

# %%
#| alt: Six horizontal bars, each divided into the shares of tables, attention, cross-attention and
#|   feed-forward. Tables take 32 % of GPT-2 small, 27 % of T5-small, 22 % of BERT-base, 5 % of
#|   GPT-2 XL, and nothing that can be seen of T5-11B and GPT-3. In the four models without
#|   cross-attention the feed-forward part is twice the attention part. In T5-11B it is 57 %.
#| caption: Where the parameters sit.
#| name: fig-01-parameters
shown = {"GPT-2 small": GPTConfig()}
for name in ("T5-small", "BERT-base", "GPT-2 XL", "T5-11B", "GPT-3"):
    shown[name] = zoo[name][0]
groups = {
    "tables": ("token embedding", "position embedding", "segment embedding"),
    "attention": ("attention",),
    "cross-attention": ("cross-attention",),
    "feed-forward": ("feed-forward",),
}
colors = [ORANGE, BLUE, PINK, GREEN]
shares = {}
for name, config in shown.items():
    table = costs.parameter_table(config)
    whole = sum(table.values())
    for group, members in groups.items():
        part = sum(table.get(member, 0) for member in members)
        shares[name, group] = part / whole
figure, axes = plt.subplots(figsize=(6.5, 3.4))
left = dict.fromkeys(shown, 0.0)
for group, color in zip(groups, colors):
    widths = [shares[name, group] for name in shown]
    starts = list(left.values())
    axes.barh(list(shown), widths, left=starts, color=color, label=group)
    left = {name: left[name] + shares[name, group] for name in shown}
axes.invert_yaxis()
axes.set_xlabel("share of the parameters")
axes.set_title("Large models are nearly all blocks")
axes.legend(
    fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.2)
)
plt.show()

# %%
print(f"{'':>11} tables attn cross ff")
for name in shown:
    row = [f"{shares[name, group]:.0%}" for group in groups]
    print(f"{name:>11} {row[0]:>6} {row[1]:>4} {row[2]:>5} {row[3]}")
assert shares["GPT-3", "tables"] < 0.01
assert shares["GPT-2 small", "tables"] > 0.25
ratio = shares["GPT-3", "feed-forward"] / shares["GPT-3", "attention"]
assert abs(ratio - 2) < 0.01

# %% [markdown]
# (The bar of BERT ends a little before 1. What is missing are its norms and the additional
# matrices of its heads.)
#
# The tables grow with {math}`D`, the blocks with {math}`D^2` and with the number of blocks. So
# the tables are a third of the smallest GPT-2 and almost nothing of GPT-3. Inside of a block the
# feed-forward layer has {math}`8D^2` weights and attention {math}`4D^2`: two thirds and one
# third. T5-11B is different. Its width is only 1024, as in T5-large; its authors made {math}`F`
# and the number of heads very large instead.
#
# With {math}`F = 4D`, and without tables, biases and norms, equation {eq}`eq-block-parameters`
# becomes a rule that you can compute in your head:
#
# $$N \approx 12 \, L D^2$$ (eq-rough-parameters)

# %%
for name in ("GPT-3", "GPT-2 XL", "GPT-2 small"):
    config = shown[name]
    rough = costs.rough_parameters(config.n_layers, config.d_model)
    by_loop = 0
    for _ in range(config.n_layers):
        by_loop += (
            4 * config.d_model**2 + 2 * config.d_model * 4 * config.d_model
        )
    assert rough == by_loop
    exact = costs.count_parameters(config)
    millions = f"{rough / 1e6:,.0f}M of {exact / 1e6:,.0f}M"
    print(f"{name:>11}: {millions}, {rough / exact:.1%}")
assert rough / exact < 0.7  # the control: the rule fails for a small model

# %% [markdown]
# ## Operations
#
# A **FLOP** is one floating-point operation: an addition or a multiplication of two numbers with
# a decimal point. FLOPs, with a small s, are a *quantity*, like kilometres. **FLOP/s** is a
# *speed*: operations per second, like kilometres per hour. Many texts write "FLOPS" for both, so
# look twice. Large counts have prefixes: giga is {math}`10^9`, tera {math}`10^{12}`, peta
# {math}`10^{15}`.
#
# Nearly all operations of a language model are matrix products. How many does one take? A product
# of an {math}`n \times a` matrix and an {math}`a \times b` matrix has {math}`nb` results, and
# each result is a sum of {math}`a` products:
#
# $$\text{FLOPs} = 2 \, n \, a \, b$$ (eq-matmul-flops)
#
# The factor 2 counts the multiplication and the addition. We count with three loops, and PyTorch
# counts with its own counter:


# %%
def count_product(x: list[list[float]], w: list[list[float]]) -> int:
    """Multiply two matrices, and count what is done."""
    operations = 0
    for row in x:
        for j in range(len(w[0])):
            total = 0.0
            for i in range(len(w)):
                total += row[i] * w[i][j]
                operations += 2  # one multiplication, one addition
    return operations


x = torch.ones(5, 7, dtype=torch.float64)
w = torch.ones(7, 3, dtype=torch.float64)
with FlopCounterMode(display=False) as counter:
    x @ w
loops = count_product(x.tolist(), w.tolist())
assert loops == 2 * 5 * 7 * 3 == counter.get_total_flops()
assert loops != 5 * 7 * 3  # "multiply-adds" are half as many
print(f"{loops} FLOPs for a product of 5 x 7 and 7 x 3")

# %% [markdown]
# Mind the last assertion. Some papers count a multiplication together with its addition as one
# *multiply-add*, and get half as many. When two sources differ by a factor of two, this is
# usually the reason.
#
# Now a whole model reads a row of {math}`T` tokens. Each of its weights meets each token once, in
# one multiplication and one addition. That gives {math}`2N` operations a token, where {math}`N`
# counts the weights of the matrices. But there is one part that has no weights: attention
# compares each position with each other one, and then adds up what it found. Per block, these are
# a product of {math}`T \times D` and {math}`D \times T` numbers and one of {math}`T \times T` and
# {math}`T \times D`: {math}`4T^2D` operations together. The sum is
#
# $$
# \begin{aligned}
# \text{FLOPs} ={} & 8LTD^2 \quad\text{(1)} \\
# & + 4LT^2D \quad\text{(2)} \\
# & + 4LTDF \quad\text{(3)} \\
# & + 2TDV \quad\text{(4)}
# \end{aligned}
# $$ (eq-forward-flops)
#
# for {math}`L` blocks. Line (1) are the products with {math}`W^Q, W^K, W^V` and {math}`W^O`, called
# *projections*. Line (2) is the comparison of positions, line (3) the feed-forward layer, and line (4)
# the head.
#
# Softmax, norms and biases are left out. They add a handful of operations to each number that a
# product returns, and in the models above such a number has cost 128 operations or more. All pairs of positions are counted, also
# in a model whose positions only look back, although some programs skip the others. Here is the
# formula as loops over tokens and blocks. We compare it with the package and with PyTorch's counter
# on a small GPT:


# %% tags=["covers-C1"]
def plain_forward_flops(n_layers, d, f, v, t) -> int:
    total = 0
    for _token in range(t):
        for _block in range(n_layers):
            total += 4 * 2 * d * d  # Q, K, V and O of this token
            for _other in range(t):
                total += 2 * d  # how well do the two tokens fit?
                total += 2 * d  # add the other one's value
            total += 2 * d * f + 2 * f * d
        total += 2 * d * v  # the scores of all tokens of the vocabulary
    return total


small = GPTConfig(
    vocab_size=50,
    n_layers=2,
    d_model=16,
    n_heads=2,
    n_positions=12,
    dropout=0.0,
)
with torch.device("meta"):
    model = GPT(small)
    ids = torch.zeros(1, 12, dtype=torch.long)
with FlopCounterMode(display=False) as forward:
    loss = model(ids).sum()
with FlopCounterMode(display=False) as backward:
    loss.backward()

parts = costs.forward_flops(small, 12)
total = sum(parts.values())
assert total == plain_forward_flops(2, 16, 64, 50, 12)
assert total == forward.get_total_flops()
assert total - parts["attention"] != forward.get_total_flops()
for part, count in parts.items():
    print(f"{part:>13} {count:8,}")
print(f"backward is {backward.get_total_flops() / total:.1f} times as much")

# %% [markdown]
# Three ways to count, one number. This computation, from the tokens to the scores, is called the
# *forward pass*. The last line says what training adds. The *backward pass* computes the
# gradients, and for each product of the forward pass it needs two: one for the gradient of the
# weights, and one for the gradient of the input, from which it goes back further. So one
# step of training costs three forward passes. (To change the weights afterwards takes a few
# operations for each weight, once a batch. This is not counted.)
#
# Three times {math}`2N` is {math}`6N` operations a token. For a text of {math}`D_\text{tokens}`
# tokens this is the best known formula of the field {cite:p}`kaplan2020`, usually written
# {math}`C = 6ND`:
#
# $$C \approx 6 \, N \, D_\text{tokens}$$ (eq-6nd)
#
# (The {math}`D` of this name is a number of tokens, not the width of the model.) The formula leaves
# out the {math}`T^2` part. And with all parameters as {math}`N`, as we take it here, it counts
# tables from which only a row is looked up; Kaplan et al. leave those out. When is
# this allowed? We divide the exact sum by the approximation, for rows of growing length.

# %%
#| alt: Three rising curves on a logarithmic axis of row lengths from 128 to 131,072. All begin
#|   near 1. GPT-2 small rises first and ends near 20. GPT-2 XL follows close below it and ends near
#|   14. The curve of GPT-3 stays near 1 up to 4,096 and ends near 3.
#| caption: Exact operations of training, divided by 6ND.
#| name: fig-01-6nd
lengths = [2**k for k in range(7, 18)]
curves = {}
for name in ("GPT-2 small", "GPT-2 XL", "GPT-3"):
    config = shown[name]
    n = costs.count_parameters(config)
    curves[name] = [
        costs.training_flops(config, 1, t) / costs.six_nd(n, t)
        for t in lengths
    ]
figure, axes = plt.subplots(figsize=(6.5, 3.3))
for (name, curve), color in zip(curves.items(), (BLUE, GREEN, RED)):
    axes.plot(lengths, curve, "o-", ms=3, color=color, label=name)
axes.axhline(1, color="grey", ls="--", lw=1)
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
axes.set_xlabel("tokens in a row, T")
axes.set_ylabel("exact / 6ND")
axes.set_title("Long rows cost more than 6ND")
axes.legend()
plt.show()

# %%
n = costs.count_parameters(GPT3)
tokens = 2048
plain = 0
for _token in range(tokens):
    plain += 2 * n + 4 * n  # forward and backward, each token
assert plain == costs.six_nd(n, tokens)
print("exact / 6ND at T = 1,024 and 131,072")
for name, curve in curves.items():
    at = dict(zip(lengths, curve))
    print(f"{name:>11}: {at[1024]:.2f} and {at[131_072]:.2f}")
at_2048 = curves["GPT-3"][lengths.index(2048)]
print(f"GPT-3 at its 2,048 tokens: {at_2048:.3f}")
assert abs(at_2048 - 1) < 0.03
assert curves["GPT-2 small"][-1] > 5  # the control: here 6ND is wrong

# %% [markdown]
# At the length that it was trained with, GPT-3 is within three percent of {math}`6ND`. The
# attention part is {math}`4T^2D` against {math}`24TD^2` for the rest of a block: they are equal
# at {math}`T = 6D`. For GPT-3 this is far beyond its rows. For a small model with long rows the
# formula is useless. **The wider the model, the less its row length matters.**

# %% [markdown]
# ## What a machine does in a second
#
# To turn operations into time we need a speed. The maker of a processor gives its **peak**: the
# FLOP/s when all its arithmetic units are busy in every cycle. No program reaches it for long.
# The share that a training run does reach is called **MFU**, for *model FLOPs utilisation*
# {cite:p}`chowdhery2023`: the operations that the model needs, divided by what the machine could
# have done in the same time.
#
# How large is it here? You will hardly know the peak of the machine that runs this notebook, so
# we measure. We multiply 1 to 512 rows with the same matrix of 1024 × 1024 weights, on one core
# and in 32-bit numbers, and call the fastest of these products the peak. What share of it is left
# when there are few rows?


# %% tags=["covers-C4"]
def flops_per_second(rows: int, least: float = 0.15) -> float:
    """Multiply for a while; count the processor's time, not the clock's."""
    x = torch.randn(rows, 1024, generator=generator)
    x @ w  # the first call is slower
    calls, start, spent = 0, time.process_time(), 0.0
    while spent < least:
        x @ w
        calls += 1
        spent = time.process_time() - start
    return calls * 2 * rows * 1024 * 1024 / spent


w = torch.randn(1024, 1024, generator=generator)
rows_tried = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
speeds = [flops_per_second(rows) for rows in rows_tried]
peak = max(speeds)
with measured():
    print(f"fastest product: {peak / 1e9:.0f} GFLOP/s on one core")
    print(f"with one row: {speeds[0] / 1e9:.1f} GFLOP/s")
    print(f"one row reaches {speeds[0] / peak:.0%} of the fastest")
assert 1e9 < peak < 5e12
assert speeds[0] < 0.6 * peak
assert max(speeds[-3:]) > 0.6 * peak

# %%
#| alt: A curve of speed in GFLOP/s against the number of rows, which is on a logarithmic axis. It
#|   is low at the left, where one row is multiplied, rises, and becomes roughly flat at the right.
#| caption: Speed of a product with a 1024 × 1024 matrix on one core. Measured; yours will differ.
#| name: fig-01-speed
figure, axes = plt.subplots(figsize=(6.5, 3))
axes.plot(rows_tried, [s / 1e9 for s in speeds], "o-", color=BLUE)
axes.set_xscale("log", base=2)
axes.set_ylim(bottom=0)
axes.set_xlabel("rows that are multiplied at once")
axes.set_ylabel("GFLOP/s")
axes.set_title("One row at a time wastes the processor")
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The speed with one row is less than 60 % of the fastest. The curve rises with the number of rows
# and flattens out at the right. The fastest product is between 1 and 5,000 GFLOP/s.
# ```
#
# Why is one row so slow? The processor must read all 1024 × 1024 weights from memory, and with
# each of them it does only two operations. It waits for memory most of the time. With 512 rows,
# each weight that has been read is used 512 times, and the arithmetic becomes the slower part. So
# there are two limits, and the time is at least the larger one. This is called the **roofline
# model** {cite:p}`williams2009`:
#
# $$
# \begin{aligned}
# t &\ge \text{FLOPs} \,/\, \text{peak} \\
# t &\ge \text{bytes} \,/\, \text{bandwidth}
# \end{aligned}
# $$ (eq-roofline)
#
# The *bandwidth* is the number of bytes that come from memory in a second.
#
# Remember the left end of this curve. A model that writes a text does exactly this: it multiplies
# one row, the newest token, with all its weights. The section on C4 comes back to it.
#
# The package knows a few graphics processors (**GPUs**) by their data sheets. A GPU has thousands
# of small arithmetic units. The names in the table, T4 to H200, are products of NVIDIA. The speeds are those of 16-bit numbers, and without *sparsity*, a
# mode for matrices that are half zeros; data sheets like to print the doubled number with it. One
# GB is {math}`10^9` bytes.

# %%
print(f"{'':>5} {'TFLOP/s':>8} {'memory GB':>10} {'GB/s':>6}")
for name, device in DEVICES.items():
    print(
        f"{name:>5} {device.flops / 1e12:8.0f} {device.memory / 1e9:10.0f} "
        f"{device.bandwidth / 1e9:6.0f}"
    )

A100 = DEVICES["A100"]


def plain_bound(flops: float, n_bytes: float, device: Device) -> float:
    arithmetic = flops / device.flops
    transfer = n_bytes / device.bandwidth
    return arithmetic if arithmetic > transfer else transfer


for flops, n_bytes in ((1e12, 1e6), (1e6, 1e9)):
    bound = costs.lower_bound(flops, n_bytes, A100)
    assert bound.seconds == plain_bound(flops, n_bytes, A100)
    print(f"{flops:.0e} FLOPs, {n_bytes:.0e} bytes: {bound.limit}")
assert bound.compute != bound.seconds  # here the other limit counts

# %% [markdown]
# ## C1: training costs money
#
# Now a price can be computed. The hours of all devices together are
#
# $$
# \begin{aligned}
# \text{hours} &= \frac{C}{\text{peak} \cdot \text{MFU} \cdot 3600} \\
# \text{money} &= \text{hours} \cdot \text{price}
# \end{aligned}
# $$ (eq-device-hours)
#
# Two of these numbers are **assumptions**, and they stand in the cell as variables: change them
# and run it again. The price is what an hour of an A100 may cost when you rent it; offers
# differ widely, and change. Large runs report an MFU between 0.2 and 0.5 {cite:p}`chowdhery2023`.
#
# The tokens come from the papers. (A *batch* is the rows that are read before the weights change
# once; this is one *step*.) GPT-3 was trained on 300 billion tokens {cite:p}`brown2020`. T5 saw a
# million batches of 2,048 rows of 512 tokens {cite:p}`raffel2020`; its targets have 114 tokens,
# which chapter 16 derives. BERT made a million steps with 256 rows, and to save time it used rows
# of 128 tokens for nine tenths of them and 512 for the last tenth {cite:p}`devlin2019`. Llama 2
# 7B has 6.74 billion parameters (the first exercise counts them), and was trained on 2 trillion tokens {cite:p}`touvron2023`. The
# smallest GPT-2 was trained again in the open by nanoGPT: 600,000 steps of 491,520 tokens
# {cite:p}`karpathy_nanogpt`.

# %% tags=["covers-C1"]
PRICE = 2.0  # an assumption: US dollars for one A100 and one hour
MFU = 0.4  # an assumption: share of the peak that is reached

# BERT guesses 15 % of its tokens, and only these need the head.
bert_flops = costs.training_flops(
    BERTConfig(), 900_000 * 256, 128, n_predictions=20
) + costs.training_flops(BERTConfig(), 100_000 * 256, 512, n_predictions=77)
LLAMA = 6_738_415_616
runs = {  # FLOPs of the whole training
    "BERT-base": bert_flops,
    "GPT-2 small": costs.training_flops(GPTConfig(), 600_000 * 480, 1024),
    "T5-11B": costs.training_flops(T5_11B, 1_000_000 * 2048, 512, 114),
    "Llama 2 7B": costs.six_nd(LLAMA, 2e12),
    "GPT-3": costs.training_flops(GPT3, round(300e9 / 2048), 2048),
}
print(f"{'':>11} {'FLOPs':>7} {'hours':>8} {'dollars':>10}")
plans = {}
for name, flops in runs.items():
    plan = costs.training_cost(flops, A100, mfu=MFU, price=PRICE)
    plans[name] = plan
    row = f"{flops:7.1e} {plan.device_hours:8,.0f} {plan.money:10,.0f}"
    print(f"{name:>11} {row}")
    by_hand = flops / (A100.flops * MFU) / 3600
    assert abs(by_hand / plan.device_hours - 1) < 1e-10
ratio = plans["GPT-3"].money / plans["BERT-base"].money
assert 1_000 < ratio < 100_000
print(f"GPT-3 costs {ratio:,.0f} BERT-bases")
one_gpu = plans["GPT-3"].device_hours / 24 / 365
print(f"GPT-3 on a single A100: {one_gpu:.0f} years")

# %% [markdown]
# This is the first difficulty, **C1: the cost of computing**. A single GPU would
# need longer than a working life for GPT-3. It was trained on thousands at once, and then the
# parts of the model, the data and the gradients have to be moved between machines; chapter 21 is
# about that. The table also says what you *can* do: with these two assumptions, BERT-base is a
# matter of a hundred dollars, and the small GPT-2 of about a thousand. And it counts one successful run. Papers seldom tell
# how many runs failed before.
#
# Are these hours right? Some papers state how long they took, on which devices. We divide what
# the model needed by what the devices could have done: their MFU. If our operations were wrong by
# a factor of ten, it would come out above one or absurdly small.
#
# - Llama 2 7B: 184,320 hours of an A100 {cite:p}`touvron2023`.
# - GPT-3: 10,000 V100s for 14.8 days; T5-11B: 512 TPU v3 chips for 20 days
#   {cite:p}`patterson2021`.
# - BERT-base: 16 TPU chips for 4 days {cite:p}`devlin2019`. The paper does not say which version;
#   in 2018 this was probably the second, so this row is uncertain.
# - GPT-2 small: 8 A100s for about 4 days {cite:p}`karpathy_nanogpt`.
#
# A TPU is Google's processor for such work; a chip of the second version has a peak of 45
# TFLOP/s, and one of the third 123.

# %% tags=["covers-C1"]
tpu_peak = {"TPU v2": 45e12, "TPU v3": 123e12}
peaks = {name: device.flops for name, device in DEVICES.items()} | tpu_peak
published = {  # device, hours of all devices
    "BERT-base": ("TPU v2", 16 * 4 * 24),
    "GPT-2 small": ("A100", 8 * 4 * 24),
    "T5-11B": ("TPU v3", 512 * 20 * 24),
    "Llama 2 7B": ("A100", 184_320),
    "GPT-3": ("V100", 10_000 * 14.8 * 24),
}
reached = {}
print(f"{'':>11} {'device':>7} {'device-hours':>13} {'MFU':>5}")
for name, (device, hours) in published.items():
    reached[name] = runs[name] / (peaks[device] * 3600 * hours)
    print(f"{name:>11} {device:>7} {hours:13,.0f} {reached[name]:5.0%}")
a100_share = costs.utilisation(runs["Llama 2 7B"], A100, 184_320)
assert abs(a100_share - reached["Llama 2 7B"]) < 1e-10
assert all(0.05 < share < 0.6 for share in reached.values())

# %%
#| alt: Five bars on a logarithmic axis, the computed hours: they rise from about 50 for BERT-base
#|   to 700,000 for GPT-3. Each has a point for the published hours. The points of T5-11B and Llama 2
#|   7B lie on the ends of their bars, that of GPT-2 small is a little above, those of GPT-3 and
#|   BERT-base are above by factors of 2 and 4.
#| caption: Computed hours (bars) and published hours (points), both as hours of an A100.
#| name: fig-01-hours
figure, axes = plt.subplots(figsize=(6.5, 3.3))
names = list(runs)
hours = [plans[name].device_hours for name in names]
axes.bar(names, hours, color=BLUE, label=f"computed, MFU {MFU}")
converted = [
    published[name][1] * peaks[published[name][0]] / A100.flops
    for name in names
]
axes.plot(names, converted, "D", color=RED, label="published, converted")
axes.set_yscale("log")
axes.set_ylabel("A100-hours")
axes.tick_params(axis="x", rotation=30)
axes.set_title("A page of arithmetic meets the reports")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Each published run used between a tenth and a half of its peak. The oldest one, BERT, is the
# lowest, and two of the larger ones are near our assumption. So a page of arithmetic, with no
# access to any of these models, gives their training time within a factor of five, while the times
# themselves differ by a factor of several thousand. The points were converted by the ratio of the
# peaks: one V100-hour is {math}`125/312` of an A100-hour.

# %% [markdown]
# ## C2: data, and what 45 TB means
#
# The article that this course follows says that GPT-3 was trained on 45 TB of text. The paper
# says something else {cite:p}`brown2020`: its largest source, a crawl of the web, was 45 TB of
# *compressed* text **before filtering**. After low quality and duplicates had been removed 570 GB
# remained, about 400 billion tokens. And of the whole collection the model saw 300 billion
# tokens. These are four different numbers, and the first is the least useful one. What do they
# imply?

# %% tags=["covers-C2"]
before, after = 45e12, 570e9  # bytes
tokens_after, seen = 400e9, 300e9
bytes_per_token = after / tokens_after
print(f"kept by the filter: {after / before:.2%} of the bytes")
print(f"bytes per token after filtering: {bytes_per_token:.2f}")
in_45_tb = before / bytes_per_token
print(f"45 TB at that rate: {in_45_tb / 1e12:.1f} trillion tokens")
print(f"the model saw {seen / in_45_tb:.2%} of that")
assert abs(after / before - 0.0127) < 1e-4
assert in_45_tb > 100 * seen

# %% [markdown]
# Only one byte of eighty was kept, and the model saw about a hundredth of what "45 TB" suggests.
# But look at the second line. A token of English text has about four letters, and a letter is a
# byte. How can a token have fewer than one and a half bytes? We measure it on Town, the text that
# this course trains on: with a tokenizer, and with a program that compresses text.

# %% tags=["covers-C2"]
stories = [d.text for d in generate_documents(3000, seed=1, split="train")]
tokenizer = Tokenizer.train(stories, vocab_size=2048)
text = "\n".join(stories)
raw = len(text.encode())
n_tokens = sum(len(ids) for ids in tokenizer.encode_documents(stories))
# Another version of zlib packs a little differently: print one decimal.
packed = len(zlib.compress(text.encode(), level=9))
print(f"bytes per token: {raw / n_tokens:.2f}")
print(f"bytes per token when compressed: {packed / n_tokens:.1f}")
assert 3 < raw / n_tokens < 6
assert 0.7 < packed / n_tokens < 1.7

# %% [markdown]
# Plain text has about four bytes a token here too, and compressed text about one. (Town repeats
# itself, and compresses better than other English.) The most likely
# reading is that the 570 GB are compressed as well, as the paper says of the 45 TB. **A data size
# in bytes means little**: it can be before or after filtering, compressed or not. Tokens are what
# a model is trained on, so ask for the tokens.
#
# And ask how often each was seen. GPT-3's sources were not read equally often: Table 2.2 of its
# paper gives the size of each and its share of the training.

# %% tags=["covers-C2"]
mixture = {  # billions of tokens, share of the training
    "Common Crawl": (410, 0.60),
    "WebText2": (19, 0.22),
    "Books1": (12, 0.08),
    "Books2": (55, 0.08),
    "Wikipedia": (3, 0.03),
}
print(f"{'':>13} {'tokens':>7} {'share':>6} {'times read':>11}")
times_read = {}
for name, (billions, share) in mixture.items():
    times_read[name] = share * 300 / billions
    print(f"{name:>13} {billions:6}B {share:6.0%} {times_read[name]:11.2f}")
assert times_read["Common Crawl"] < 0.5
assert times_read["Wikipedia"] > 2.5
n = costs.count_parameters(GPT3)
print(f"\nGPT-3: {300e9 / n:.1f} tokens per parameter")
print(f"Llama 2 7B: {2e12 / LLAMA:.0f} tokens per parameter")
wanted = 20 * n
assert wanted > 10 * 300e9
print(f"20 for each of GPT-3's: {wanted / 1e12:.1f} trillion tokens")

# %% [markdown]
# The shares are rounded in the paper, so they sum to 101 percent, and the paper's own column of
# times differs from ours in places: 2.9 for WebText2, 3.4 for Wikipedia. The picture is the same.
# More than half of the crawl was never read, and Wikipedia three times: text of good quality is
# scarce. This is **C2, the need for data**. It has become harder since. With the same operations
# a smaller model on more text is better: about 20 tokens for each parameter, as was measured two
# years later {cite:p}`hoffmann2022`. By this rule GPT-3's parameters would have wanted more than
# ten times the tokens that it got. Chapter 21 takes up how model and data should grow together,
# and [chapter 03](03_tokenizers.ipynb) what a token is. The labs of this course escape the difficulty: Town has as many
# stories as you like.

# %% [markdown]
# ## C3: training goes wrong
#
# A long training run can fail in the middle. Two simple causes can be computed and tried out
# here: numbers that become too large, and steps that become too long.
#
# **Numbers.** A computer stores a number in a fixed count of bits: its **precision**. The
# *exponent* bits say how large it may be, and the *fraction* bits how finely it is divided. With
# {math}`e` bits of exponent and {math}`m` of fraction the largest number is
#
# $$x_\text{max} = (2 - 2^{-m}) \cdot 2^{\,2^{e-1}-1}$$ (eq-largest)
#
# Fewer bits mean less memory and, on a GPU, far more FLOP/s, so large models are trained in 16
# bits. There are two ways to divide 16 bits, called **bf16** and **fp16**, and one of them is
# dangerous. (**fp32** are the usual 32 bits.)


# %% tags=["covers-C3"]
def plain_largest(exponent_bits: int, fraction_bits: int) -> float:
    """All fraction bits are ones: 1 + 1/2 + 1/4 + ..., then doubled."""
    largest, bit = 1.0, 1.0
    for _ in range(fraction_bits):
        bit /= 2
        largest += bit
    for _ in range(2 ** (exponent_bits - 1) - 1):
        largest *= 2
    return largest


types = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
print("largest number, step after 1:")
for name, (e, m) in costs.FLOAT_BITS.items():
    largest = costs.largest_finite(name)
    assert largest == plain_largest(e, m) == torch.finfo(types[name]).max
    step = torch.finfo(types[name]).eps
    print(f"{name}: {largest:.5g}, {step:.2g}")  # the next one is 1 + step
assert plain_largest(5, 10) != plain_largest(8, 7)

x = torch.tensor(256.0)
print("256 * 256 overflows, 1e-8 becomes 0:")
for name, dtype in types.items():
    square = x.to(dtype) * x.to(dtype)
    gradient = torch.tensor(1e-8).to(dtype)
    print(f"{name}: {bool(square.isinf())}, {bool(gradient == 0)}")
assert (x.half() * x.half()).isinf()
assert (x.bfloat16() * x.bfloat16()).isfinite()

# %% [markdown]
# In fp16 the largest number is 65,504, and {math}`256^2 = 65{,}536` is already too large: the
# result is infinite. The difference of two infinite numbers is not a number at all, and a
# step of training with such gradients spoils every weight. At the other end a small gradient becomes zero, and
# its weight stops learning. bf16 has the range of fp32 with fewer digits, and does not have these
# faults. Older GPUs have only fp16; there the loss is multiplied by a large number before the
# backward pass, and the gradients are divided by it afterwards {cite:p}`micikevicius2018`.
#
# **Steps.** Training moves each weight against its gradient, by a distance that the *learning
# rate* sets. (The rule of the move is called the *optimizer*; AdamW is the usual one.) How sensitive
# is the result? We train a small GPT for 60 steps, with eleven learning rates that grow by a
# factor of about three. In each row of the data the tokens go up by a fixed step modulo 12, such
# as 3, 7, 11, 3, 7, so there is something to learn. A model that has learnt nothing finds all 12
# tokens equally likely; its loss is {math}`\log 12`, the loss of guessing.

# %% tags=["covers-C3"]
tiny = GPTConfig(
    vocab_size=12,
    n_layers=2,
    d_model=32,
    n_heads=2,
    n_positions=10,
    dropout=0.0,
)


def train_tiny(lr: float, steps: int = 60) -> list[float]:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = GPT(tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        start = torch.randint(12, (32, 1), generator=g)
        step = torch.randint(1, 6, (32, 1), generator=g)
        rows = (start + step * torch.arange(10)) % 12
        total, count = causal_lm_loss(model(rows), rows)
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


rates = [10 ** (k / 2) for k in range(-9, 2)]
ends = []
for lr in rates:
    losses = train_tiny(lr)
    ends.append(sum(losses[-10:]) / 10)
guessing = torch.tensor(12.0).log().item()
with measured():
    for lr, end in zip(rates, ends):
        print(f"rate {lr:8.5f}: last loss {end:6.2f}")
print(f"guessing: {guessing:.2f}")
assert min(ends) < 0.7 * guessing
assert ends[0] > 0.9 * guessing
assert ends[-1] > 1.2 * guessing

# %%
#| alt: The loss after 60 steps against the learning rate, both axes logarithmic, with a dashed line
#|   at 2.48, the loss of guessing. At the lowest rate the curve is on the line. It falls to its
#|   lowest point between 0.003 and 0.1, climbs back to the line, and is far above it at the two
#|   highest rates.
#| caption: One setting decides whether anything is learnt. Measured; the shape is what counts.
#| name: fig-01-rates
figure, axes = plt.subplots(figsize=(6.5, 3))
axes.plot(rates, ends, "o-", color=BLUE)
axes.axhline(guessing, color=RED, ls="--", lw=1, label="guessing")
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlabel("learning rate")
axes.set_ylabel("loss after 60 steps, nats")
axes.set_title("Too small learns nothing, too large destroys")
axes.legend()
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# At the lowest rate the loss is still near that of guessing, 2.48. Somewhere in the middle it is
# less than 70 % of that. At the highest rate it is worse than guessing: the model has become sure
# of wrong answers.
# ```
#
# This is **C3, unstable training**. Here a wrong setting costs a second. In the run of GPT-3 it
# would cost millions of GPU-hours. And the right setting moves when the model grows: the paper of
# GPT-3 has {math}`6 \cdot 10^{-4}` for its smallest model and a tenth of that for its largest
# {cite:p}`brown2020`. Chapter 20 shows how to recognise
# such failures from the curves and what helps.

# %% [markdown]
# ## Memory of training
#
# A byte is eight bits. One **GB** is {math}`10^9` bytes, one **GiB** {math}`2^{30}`, which is 7 %
# more. Many programs print GiB and write GB. A small difference, until a model needs 79 of 80. This
# chapter takes GB as {math}`10^9` everywhere.
#
# For each parameter, training with the usual optimizer, AdamW {cite:p}`loshchilov2019`, keeps
# more than the weight: its gradient, and two running means, of the gradient and of its square. In
# fp32 these are four numbers of 4 bytes. With *mixed precision* weights and gradients have 2
# bytes, and a copy of the weights in fp32 is kept, because small changes would be lost in 16
# bits. Both ways it is **16 bytes per parameter** {cite:p}`rajbhandari2020`.

# %%
print(f"80 GB are {80e9 / 2**30:.1f} GiB")
for kind in ("fp32", "mixed"):
    parts = costs.training_bytes(1, kind)
    sizes = " + ".join(str(size) for size in parts.values())
    print(f"{kind}: {sizes} = {sum(parts.values()):.0f} bytes")

model = GPT(tiny)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
optimizer.step()
held = 0
for p in model.parameters():
    held += p.nbytes + p.grad.nbytes
    for name in ("exp_avg", "exp_avg_sq"):
        held += optimizer.state[p][name].nbytes
expected = sum(costs.training_bytes(tiny, "fp32").values())
assert held == expected == 16 * costs.count_parameters(tiny)
assert held != sum(costs.training_bytes(tiny, "fp32").values()) / 2
print(f"a tiny GPT holds {held:,} bytes")
print(f"computed         {expected:,.0f} bytes")

# %% [markdown]
# On top of this come the **activations**: results of the forward pass that the backward pass
# needs again. Per token and block these are about {math}`8D + 2F = 16D` numbers, which you can
# count in the code of the block: the input and output of the two norms, three projections, the
# result of attention, and the inner layer before and after its activation. At the end come the
# scores, {math}`V` numbers for each token. Activations grow with the number of tokens in a batch,
# while the 16 bytes do not. The tests of the package compare the formula with what PyTorch really
# keeps for three of our models: it is within 2 percent. This holds for programs that do not keep the
# {math}`T^2` comparisons of attention. For those that keep them, {cite:p}`korthikanti2023` has a
# formula.

# %%
#| alt: Stacked bars of memory in GB for four models trained with 16 rows: weights and gradients,
#|   optimizer, activations. GPT-2 small needs 9 GB, most of it activations, GPT-2 medium 20 GB.
#|   GPT-2 XL needs 67 GB, below a dashed line at 80 GB. GPT-3 is cut off by the axis and carries
#|   its number, 4,036 GB.
#| caption: Memory of a training step, mixed precision, 16 rows.
#| name: fig-01-memory
trained = {
    "GPT-2 small": (GPTConfig(), 1024),
    "GPT-2 medium": (
        GPTConfig(n_layers=24, d_model=1024, n_heads=16),
        1024,
    ),
    "GPT-2 XL": (GPT2_XL, 1024),
    "GPT-3": (GPT3, 2048),
}
memory = {}
for name, (config, length) in trained.items():
    parts = costs.training_bytes(config)
    memory[name] = {
        "weights": parts["weights"] + parts["gradients"],
        "optimizer": parts["fp32 weights"] + parts["two moments"],
        "activations": costs.activation_bytes(config, 16, length),
    }
figure, axes = plt.subplots(figsize=(6.5, 3.4))
bottom = dict.fromkeys(memory, 0.0)
labels = {"weights": "weights and gradients"}
for part, color in zip(("weights", "optimizer", "activations"), colors):
    sizes = [memory[name][part] / 1e9 for name in memory]
    starts = list(bottom.values())
    label = labels.get(part, part)
    axes.bar(list(memory), sizes, bottom=starts, color=color, label=label)
    for name in memory:
        bottom[name] += memory[name][part] / 1e9
axes.axhline(80, color=RED, ls="--", lw=1, label="one A100")
axes.set_ylim(0, 110)
for place, name in enumerate(memory):
    height = min(bottom[name], 102)
    axes.text(place, height, f"{bottom[name]:,.0f}", ha="center", va="bottom")
axes.set_ylabel("GB")
axes.set_title("GPT-3 does not fit, by far")
axes.legend(fontsize=8, loc="upper left")
plt.show()

# %%
print(f"{'':>12} {'GB':>6} weights opt. act.")
for name, parts in memory.items():
    whole = sum(parts.values())
    row = [f"{part / whole:.0%}" for part in parts.values()]
    sizes = f"{whole / 1e9:6,.0f} {row[0]:>7} {row[1]:>4} {row[2]:>4}"
    print(f"{name:>12} {sizes}")
gpt3 = sum(costs.training_bytes(GPT3).values())
print(f"GPT-3 without activations: {gpt3 / A100.memory:.0f} A100s")
assert sum(memory["GPT-2 small"].values()) < A100.memory
assert gpt3 > 30 * A100.memory

# %% [markdown]
# For a small model the activations are most of the memory: to save some, take fewer rows at once.
# For a large one the 16 bytes count, and fewer rows help little. GPT-3 needs dozens of GPUs only
# to hold its weights, gradients and optimizer, before it reads a token. Chapter 21 divides them
# among devices.

# %% [markdown]
# ## C4: slow inference, large models
#
# To use a trained model is called **inference**. It needs the weights only, 2 bytes each in 16
# bits. But a model that writes has to remember something. For the next token, attention looks at
# all tokens before it: at their *keys* and *values*, two vectors of {math}`D` numbers in each
# block. To compute them again for each new token would be a waste, so they are kept in the **KV
# cache**:
#
# $$\text{bytes} = 2 L D \cdot T \cdot R \cdot b$$ (eq-kv-cache)
#
# for {math}`R` rows of {math}`T` tokens, with {math}`b` bytes for a number. The 2 stands for key and
# value.

# %% tags=["covers-C4"]
real = GPT(small).new_cache(3, 10)  # 3 rows, room for 10 tokens, fp32
held = real.keys.nbytes + real.values.nbytes
plain = 0
for _block in range(small.n_layers):
    for _row in range(3):
        for _position in range(10):
            for _vector in ("key", "value"):
                plain += small.d_model * 4
assert plain == held == costs.kv_cache_bytes(small, 10, 3, "fp32")
assert held != costs.kv_cache_bytes(small, 11, 3, "fp32")

llama = costs.cache_bytes(32, 4096, 1)
gpt3 = costs.kv_cache_bytes(GPT3, 1)
print(f"a token of Llama 2 7B: {llama / 2**20:.2f} MiB")
print(f"a token of GPT-3: {gpt3 / 2**20:.2f} MiB")
weights = costs.weight_bytes(LLAMA)
print(f"Llama's weights: {weights / 1e9:.1f} GB")
users = (A100.memory - weights) / (4096 * llama)
print(f"rows of 4,096 tokens beside them: {int(users)}")
print(f"GPT-3's weights: {costs.weight_bytes(GPT3) / 1e9:.0f} GB")
assert int(users) < 40

# %% [markdown]
# One token of a conversation with the 7B model takes half a MiB. An A100 that holds the model has
# room for about thirty conversations of full length, and then it is full. GPT-3's weights alone
# need five of these GPUs.
#
# And how fast can it write? For each new token, every weight is read once, and used for two
# operations; this is the left end of the curve that you measured. The two sides of the roofline
# {eq}`eq-roofline` for a batch of {math}`R` rows:
#
# $$
# \begin{aligned}
# t_\text{compute} &= \frac{R\,(2N + 4LTD)}{\text{peak}} \\
# t_\text{bandwidth} &= \frac{2N + R \cdot \text{cache}(T)}{\text{bandwidth}}
# \end{aligned}
# $$ (eq-decode)
#
# (In the second fraction, 2 is the bytes of a 16-bit weight, and {math}`\text{cache}(T)` is
# {eq}`eq-kv-cache` for one row.)


# %% tags=["covers-C4"]
def llama_step(device: Device, rows: int, context: int) -> costs.Bound:
    flops = rows * (2 * LLAMA + 4 * 32 * context * 4096)
    cache = costs.cache_bytes(32, 4096, context, rows)
    return costs.lower_bound(flops, 2 * LLAMA + cache, device)


print("Llama 2 7B, one row: tokens per second")
for name, device in DEVICES.items():
    step = llama_step(device, 1, 200)
    print(f"{name:>5}: at most {1 / step.seconds:5.0f}, limit: {step.limit}")
    assert step.limit == "bandwidth"
    assert step.bandwidth > 50 * step.compute
at_most = 1 / llama_step(A100, 1, 200).seconds
print(f"published, A100: 104.9, {104.9 / at_most:.0%} of it")
assert 0.5 < 104.9 / at_most < 1

config = GPTConfig(n_layers=32, d_model=4096, n_heads=32, n_positions=4096)
bound = costs.decode_bound(config, A100, context=200)
matrices = 32 * 12 * 4096**2 + 50_257 * 4096
step = costs.lower_bound(
    2 * matrices + 4 * 32 * 200 * 4096,
    2 * matrices + costs.cache_bytes(32, 4096, 200),
    A100,
)
assert abs(bound.seconds / step.seconds - 1) < 1e-10
assert bound.seconds < costs.decode_bound(config, A100, context=201).seconds

# %% [markdown]
# The GPU could do more than fifty times as many operations while it waits for the weights. The
# published speed of a program that was made to be fast, on an A100 {cite:p}`gptfast2023`, is
# about 70 % of the bound: no program can be twice as fast on the same device unless it reads fewer
# bytes for each token. The last lines compare the package's function with the formula on a
# GPT of similar shape.
#
# The way out is to serve several rows at once: the weights are read once for all of them.

# %% tags=["covers-C4"]
#| alt: Tokens per second for all rows together against the number of rows, both axes logarithmic,
#|   for an A100 and an H100 and two lengths of text. With 50 tokens both curves rise in a straight
#|   line, and the A100's is flat from 256 rows on. With 4,000 tokens they begin a little lower, bend
#|   after a few rows, and level off below 2,000.
#| caption: The bound on Llama 2 7B's speed in a batch.
#| name: fig-01-decode
figure, axes = plt.subplots(figsize=(6.5, 3.3))
row_counts = [2**k for k in range(11)]
speed = {}
for context, style in ((50, "-"), (4000, "--")):
    for name, color in (("A100", BLUE), ("H100", RED)):
        speed[name, context] = [
            rows / llama_step(DEVICES[name], rows, context).seconds
            for rows in row_counts
        ]
        label = f"{name}, {context:,} tokens"
        values = speed[name, context]
        axes.plot(row_counts, values, style, color=color, label=label)
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_xlabel("rows in the batch")
axes.set_ylabel("tokens per second, at most")
axes.set_title("A batch is nearly free, until it is not")
axes.legend(fontsize=8)
plt.show()

# %%
gain = speed["A100", 50][5] / speed["A100", 50][0]
late = speed["A100", 4000][5] / speed["A100", 4000][0]
print("tokens per second of 32 rows, of one row:")
print(f"short texts: {gain:.1f} times, long texts: {late:.1f}")
assert gain > 20 > late
assert llama_step(A100, 1024, 50).limit == "compute"
assert llama_step(A100, 1024, 4000).limit == "bandwidth"

# %% [markdown]
# With short texts, thirty-two rows take little more time than one. The curve bends for two different
# reasons. With short texts the arithmetic becomes the limit at last. With long ones the cache
# does: it belongs to one row each, and no batch shares it. (For some points on the right the
# cache would not even fit into the memory: the curves only show the times.)
#
# This is **C4: slow inference, and models too large for the place where they should run.**
# Whatever makes the bytes fewer helps: weights of 8 or 4 bits, fewer keys and values, smaller
# models that imitate large ones. Chapter 22 measures what each of them gains and what it costs.

# %% [markdown]
# ## Exercises
#
# ```{exercise} A model that is not in the package
# :label: ex-01-gated
# *10 minutes, medium.* Llama 2 is a GPT with other parts. No matrix has a bias. Its feed-forward
# layer has **three** matrices: two of {math}`D \times F` and one of {math}`F \times D`. Each norm
# has one vector instead of two; there are two norms in each block and one at the end. There is no
# table of positions, and the head is not tied: it is a second table of {math}`V \times D`. Write
# `gated_parameters(n_layers, d_model, d_ff, vocab_size)`. For 32 blocks, {math}`D = 4096`,
# {math}`F = 11008` and {math}`V = 32000` it must return exactly the number that was used above.
#
# *Hint.* Begin with one block: four matrices for attention, three for the feed-forward layer, two
# vectors.
# ```

# %% [markdown]
# ```{solution-start} ex-01-gated
# :class: dropdown
# ```


# %%
def gated_parameters(
    n_layers: int, d_model: int, d_ff: int, vocab_size: int
) -> int:
    ### BEGIN SOLUTION
    attention = 4 * d_model**2
    feed_forward = 3 * d_model * d_ff
    block = attention + feed_forward + 2 * d_model
    return n_layers * block + d_model + 2 * vocab_size * d_model
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch01.check_gated_parameters(gated_parameters)

# %% [markdown]
# ```{exercise} How many days?
# :label: ex-01-days
# *5 minutes, easy.* Write `training_days(n_parameters, n_tokens, n_devices, peak, mfu)` with
# {eq}`eq-6nd`. `peak` is the FLOP/s of one device. Then use it: how long would a model with 1
# billion parameters and 20 billion tokens take on a single A100 at 40 %?
# ```

# %% [markdown]
# ```{solution-start} ex-01-days
# :class: dropdown
# ```


# %%
def training_days(
    n_parameters: float,
    n_tokens: float,
    n_devices: int,
    peak: float,
    mfu: float,
) -> float:
    ### BEGIN SOLUTION
    seconds = 6 * n_parameters * n_tokens / (n_devices * peak * mfu)
    return seconds / 86_400
    ### END SOLUTION


# %%
print(f"{training_days(1e9, 20e9, 1, A100.flops, 0.4):.1f} days")

# %% [markdown]
# About eleven days: within reach of one person with one rented GPU.
#
# ```{solution-end}
# ```

# %%
ch01.check_training_days(training_days)

# %% [markdown]
# ```{exercise} How long a text fits?
# :label: ex-01-context
# *10 minutes, medium.* A device has `memory` bytes. It holds the weights of a model, `weights`
# bytes, and the KV caches of `rows` texts of equal length. Write `longest_text(memory, weights,
# n_layers, d_model, rows)`: the largest number of tokens for which everything fits, with 16-bit
# caches. If the weights alone do not fit, return 0.
#
# *Hint.* How many bytes does one more token need, in all rows together?
# ```

# %% [markdown]
# ```{solution-start} ex-01-context
# :class: dropdown
# ```


# %%
def longest_text(
    memory: float, weights: float, n_layers: int, d_model: int, rows: int
) -> int:
    ### BEGIN SOLUTION
    per_token = 2 * n_layers * d_model * 2 * rows
    return max(0, int((memory - weights) // per_token))
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch01.check_longest_text(longest_text)

# %% [markdown]
# ```{exercise} Where the curve bends
# :label: ex-01-bend
# *15 minutes, hard.* In {numref}`fig-01-decode` the solid curves bend where the arithmetic takes
# as long as reading the weights. Write `rows_at_bend(peak, bandwidth, bytes_per_weight)`: the
# number of rows {math}`R` at which the two sides of {eq}`eq-decode` are equal, when attention and
# caches are left out. Why does {math}`N` not occur in the answer? Where does the bend move when
# the weights have 4 bits?
#
# *Hint 1.* Each weight has two operations per row. *Hint 2.* Set the two times equal and solve
# for {math}`R`.
# ```

# %% [markdown]
# ```{solution-start} ex-01-bend
# :class: dropdown
# ```


# %%
def rows_at_bend(
    peak: float, bandwidth: float, bytes_per_weight: float
) -> float:
    ### BEGIN SOLUTION
    # rows * 2 * N / peak == N * bytes_per_weight / bandwidth
    return peak * bytes_per_weight / (2 * bandwidth)
    ### END SOLUTION


# %%
for name, device in DEVICES.items():
    bend = rows_at_bend(device.flops, device.bandwidth, 2)
    print(f"{name:>5}: {bend:.0f} rows")

# %% [markdown]
# Both times are proportional to {math}`N`, so it cancels: the bend belongs to the device, not to
# the model. With 4 bits a weight has half a byte, a quarter of 16 bits, and the bend comes at a
# quarter of the rows, if the arithmetic is as fast as before.
#
# ```{solution-end}
# ```

# %%
ch01.check_rows_at_bend(rows_at_bend)

# %% [markdown]
# ## What to keep
#
# A block has about {math}`12D^2` parameters, so a model has {math}`12LD^2` and
# its tables. A token costs {math}`2N` operations to read, {math}`6N` to train, and a part that
# grows with the square of the row. A training run takes {math}`6ND` operations, divided by the
# share of the peak that is reached. Training keeps 16 bytes per parameter, and activations;
# inference 2 bytes, and a cache that grows with each token. A single row waits for memory, a
# batch for arithmetic. Data sizes are to be compared in tokens. Each of these is a
# multiplication, and you can do it before you believe a claim.
#
# [Chapter 02](02_families_and_masks.ipynb) looks at the three families of models, and at what each position may see.
