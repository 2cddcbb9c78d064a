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
# # 07 Encoder, decoder, cross-attention: the whole Transformer
#
# BADGE
#
# **You will** take an encoder block and a decoder block apart and compute both by hand, measure what
# the decoder does without its causal mask, connect the two stacks by cross-attention, count every
# parameter of the model of 2017, meet the two tricks with which its authors trained it, and train
# a small one that reverses words.
#
# **Needs** chapters [04](04_attention.ipynb), 05 and [06](06_positions_norms_ff.ipynb): attention,
# heads, norms and the feed-forward layer. **Runs** in 45 seconds on one core. **Source** {cite:p}`vaswani2017`; `llm_course/models/transformer.py`,
# `llm_course/models/encoder_decoder.py`, `llm_course/losses/seq2seq.py`.
#
# Names such as F4 and F8 in the code are ids of formulas in the article that this course follows.
# The [source map](../book/source_map.md) lists them.

# %% [markdown]
# COLAB

# %%
import copy
import functools
import inspect
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from llm_course import (
    TrainConfig,
    Transformer,
    TransformerConfig,
    generate,
    train,
)
from llm_course.batches.pairs import shift_right
from llm_course.losses.seq2seq import seq2seq_loss, seq2seq_loss_fn
from llm_course.models.layers import MultiHeadAttention
from llm_course.models.transformer import (
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from llm_course.training.optim import learning_rate
from llm_lab.checks import ch07
from llm_lab.pictures.attention import (
    attention_maps,
    attention_view,
    plot_attention,
)
from llm_lab.pictures.curves import plot_losses
from llm_lab.pictures.head_measures import best_head, relation_mass
from llm_lab.pictures.measured import measured

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Two stacks for two texts
#
# Some tasks have two texts: one that is given, the **source**, and one that is wanted, the
# **target**. A translation is the usual example. The two texts need different rules. The source is
# complete before the work begins, so each of its words may be read in the light of all others. The
# target does not exist yet. It is written word by word, and a word may depend only on what is
# already written, and on the source.
#
# The Transformer of 2017 gives each text its own stack of blocks. The **encoder** reads the source and turns
# each of its tokens into a vector. The **decoder** writes the target. In every one of its blocks
# it looks at these vectors through a second attention layer, the **cross-attention**.

# %% tags=["hide-input"]
#| alt: Two columns of boxes. Left, the encoder: source tokens and positions at the bottom, then a
#|   block of self-attention, add and norm, feed-forward, add and norm. Right, the decoder: target
#|   so far and positions, then a block of causal self-attention, cross-attention and feed-forward,
#|   each with add and norm, and above it the head with softmax. An arrow marked K, V goes from the
#|   top of the encoder to the cross-attention of the decoder.
#| caption: The parts of the Transformer. Each grey frame is one block and is repeated.
#| name: fig-07-parts
figure, axes = plt.subplots(figsize=(6.4, 5.4))


def box(column: float, level: float, text: str, color: str) -> None:
    style = {"boxstyle": "round,pad=0.3", "fc": color, "ec": "black"}
    place = {"ha": "center", "va": "center", "fontsize": 10, "bbox": style}
    axes.text(column, level, text, **place)


def column_of(column: float, texts: list[tuple[str, str]]) -> None:
    for level, (text, color) in enumerate(texts):
        box(column, level, text, color)
        if level:
            ends = {
                "xy": (column, level - 0.3),
                "xytext": (column, level - 0.7),
            }
            axes.annotate("", **ends, arrowprops={"arrowstyle": "<-"})


blue, orange, green, white = "#CFE3F1", "#F8DCC8", "#CBE8DF", "white"
norm = ("add, then norm", white)
encoder_part = [("source tokens + positions", white)]
encoder_part += [("self-attention", blue), norm, ("feed-forward", green), norm]
decoder_part = [("target so far + positions", white)]
decoder_part += [("causal self-attention", blue), norm]
decoder_part += [("cross-attention", orange), norm]
decoder_part += [("feed-forward", green), norm, ("head, softmax", white)]
column_of(0, encoder_part)
column_of(1, decoder_part)
line = {"arrowstyle": "->", "color": "#D55E00", "lw": 2}
axes.annotate("", xy=(0.72, 3), xytext=(0.24, 4.05), arrowprops=line)
axes.text(0.42, 3.9, "K, V", color="#B04A00", fontsize=11)
frame = {"fill": False, "ec": "grey", "ls": "--"}
axes.add_patch(plt.Rectangle((-0.36, 0.55), 0.72, 3.8, **frame))
axes.add_patch(plt.Rectangle((0.6, 0.55), 0.8, 5.85, **frame))
axes.text(0, 4.5, "encoder", ha="center", fontsize=12, weight="bold")
axes.text(0.56, 6.1, "decoder", ha="right", fontsize=12, weight="bold")
axes.set_xlim(-0.45, 1.5)
axes.set_ylim(-0.5, 7.5)
axes.axis("off")
plt.show()

# %% [markdown]
# Read {numref}`fig-07-parts` from the bottom to the top. You know all boxes but one from the chapters
# before: attention from chapters [04](04_attention.ipynb) and 05, norms, residual sums and the
# feed-forward layer from [chapter 06](06_positions_norms_ff.ipynb). The new box is the
# cross-attention, and the orange arrow is the only way by which the source reaches the target. It
# begins above the *last* block of the encoder, and it leads into *every* block of the decoder: all
# of them look at the same vectors, and each makes its own keys and values from them.
#
# We work with a model that is small enough for loops in Python, in 64-bit numbers, so that rounding
# cannot be mistaken for a difference. A new model has norms that multiply by 1 and biases of 0. If our
# formulas forgot one of these, the result would still be right. So we add noise to all weights.


# %%
def small_model(seed: int = 0, **changes) -> Transformer:
    """A model for calculations: float64, and no weight is 0 or 1."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 13,
        "n_layers": 2,
        "n_decoder_layers": 2,
        "d_model": 24,
    }
    sizes |= {"n_heads": 3, "d_ff": 40, "n_positions": 32, "dropout": 0.0}
    model = Transformer(TransformerConfig(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.double().eval().requires_grad_(False)


model = small_model()
source_ids = torch.randint(3, 13, (1, 6), generator=generator)
target_ids = torch.randint(3, 13, (1, 4), generator=generator)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


# %% [markdown]
# ## The encoder block, taken apart
#
# An encoder block has two parts, called **sub-layers**: self-attention and a feed-forward layer. The
# formulas of the first are those of chapters 04 and 05. They appear here again because now they stand
# at their place. Let {math}`X` be the vectors that enter the block, one row a token. Head
# {math}`i` projects them three times with its own matrices, and attends:
#
# $$\text{head}_i = \text{Attention}(X W_i^Q,\; X W_i^K,\; X W_i^V)$$ (eq-07-head)
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\Bigl(\frac{QK^\top}{\sqrt{d_k}}\Bigr)\,V$$ (eq-07-attention)
#
# Here {math}`d_k` is the width of a query and of a key. The outputs of all heads are put side by side, and one more matrix mixes them:
#
# $$\text{MultiHead}(X) = \text{Concat}(\text{head}_1, \dots, \text{head}_h)\, W^O$$ (eq-07-multihead)
#
# Here are the three formulas as loops over queries and keys. The function takes *two* lists of vectors: those that
# ask, `queries`, and those that are looked at, `source`. In the encoder both are {math}`X`. The
# argument `visible` says whether a query may look at a key. The decoder needs these two freedoms.


# %% tags=["covers-F4", "covers-F5", "covers-F6"]
def everything(query: int, key: int) -> bool:
    return True


def one_head(queries, source, w_q, w_k, w_v, visible=everything):
    """F6 and F4: one query after the other, one key after the other."""
    d_k = w_q.shape[1]
    rows = []
    for t in range(len(queries)):
        q = queries[t] @ w_q
        powers = []
        for s in range(len(source)):
            score = (q * (source[s] @ w_k)).sum().item() / math.sqrt(d_k)
            powers.append(math.exp(score) if visible(t, s) else 0.0)
        row = torch.zeros(w_v.shape[1], dtype=source.dtype)
        for s in range(len(source)):
            row += powers[s] / sum(powers) * (source[s] @ w_v)
        rows.append(row)
    return torch.stack(rows)


def multi_head(attn, queries, source, visible=everything):
    """F5: the heads side by side, times the output matrix."""
    heads = []
    for i in range(attn.n_heads):
        rows = slice(i * attn.d_head, (i + 1) * attn.d_head)
        w_q, w_k, w_v = (
            w.weight[rows].T for w in (attn.w_q, attn.w_k, attn.w_v)
        )
        heads.append(one_head(queries, source, w_q, w_k, w_v, visible))
    return torch.cat(heads, dim=1) @ attn.w_o.weight.T


# %% [markdown]
# The block adds the result to {math}`X` and normalises the sum. Then comes the feed-forward layer,
# again with a sum and a norm:
#
# $$\begin{aligned}
# Y &= \text{LayerNorm}\bigl(X + \text{MultiHead}(X)\bigr) \\
# Z &= \text{LayerNorm}\bigl(Y + \text{FFN}(Y)\bigr) \\
# \text{FFN}(y) &= \max(0,\, yW_1 + b_1)\, W_2 + b_2
# \end{aligned}$$ (eq-07-encoder-block)
#
# The norm comes *after* the sum: this model is post-norm. {math}`Z` is what the block returns. In
# the package the block looks like this.

# %%
print(inspect.getsource(inspect.unwrap(TransformerEncoderBlock)))


# %% [markdown]
# Each formula has its line. We write the rest of the transcription, give it the weights of the
# package's own block, and compare.


# %% tags=["covers-F4", "covers-F5", "covers-F6", "covers-F7"]
def layer_norm(norm, x):
    rows = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append((row - mean) / math.sqrt(variance + norm.eps))
    return torch.stack(rows) * norm.weight + norm.bias


def feed_forward(ff, x):
    rows = []
    for row in x:
        inner = row @ ff.w_1.weight.T + ff.w_1.bias
        inner = torch.stack([max(value, 0 * value) for value in inner])
        rows.append(inner @ ff.w_2.weight.T + ff.w_2.bias)
    return torch.stack(rows)


def encoder_block(block, x):
    y = layer_norm(block.attn_norm, x + multi_head(block.attn, x, x))
    return layer_norm(block.ff_norm, y + feed_forward(block.ff, y))


block = model.encoder[0]
x = torch.randn(6, 24, generator=generator, dtype=torch.float64)
of_package = block(x[None])[0]
assert difference(encoder_block(block, x), of_package) < 1e-10
attended = multi_head(block.attn, x, x)
assert difference(attended, block.attn(x[None])[0]) < 1e-10

# Controls: what a wrong reading of the formulas gives.
no_sum = layer_norm(block.attn_norm, attended)
no_sum = layer_norm(block.ff_norm, no_sum + feed_forward(block.ff, no_sum))
normed = layer_norm(block.attn_norm, x)
pre = x + multi_head(block.attn, normed, normed)
pre = pre + feed_forward(block.ff, layer_norm(block.ff_norm, pre))
parallel = layer_norm(block.ff_norm, x + attended + feed_forward(block.ff, x))
wrong = {"no sum": no_sum, "pre-norm": pre, "side by side": parallel}
for name, result in wrong.items():
    print(
        f"{name:>13}: largest difference {difference(result, of_package):.2f}"
    )
    assert difference(result, of_package) > 0.1

# %% [markdown]
# The transcription agrees to ten digits. The three controls do not: without the residual sum around
# attention, with the norm before the sub-layer, or with both sub-layers computed from {math}`X` at the same time.
#
# What do the two sums and the two norms do to the size of the vectors? We follow the six tokens
# through the block and measure the length of each vector at every station.

# %%
#| alt: Bar chart with seven bars, the mean length of a token's vector. X, the input, has about 5,
#|   close to a dashed line at the root of d_model. What attention adds has about 7, the sum about
#|   9, and after the norm it is 5 again. The feed-forward layer repeats this with 7, 9 and 5.
y = block.attn_norm(x + attended)
added = feed_forward(block.ff, y)
stations = {
    "X": x,
    "attention": attended,
    "X + att.": x + attended,
    "norm: Y": y,
    "FFN(Y)": added,
    "Y + FFN": y + added,
    "norm: Z": of_package,
}
lengths = {name: v.norm(dim=1).mean().item() for name, v in stations.items()}
kinds = ["#0072B2", "#E69F00", "#999999", "#0072B2"]
kinds += ["#009E73", "#999999", "#0072B2"]
figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.bar(list(lengths), list(lengths.values()), color=kinds)
axes.axhline(24**0.5, color="black", ls="--", lw=1)
axes.text(-0.4, 24**0.5 + 0.2, r"$\sqrt{d_{model}}$")
axes.set_ylabel("mean length of a vector")
axes.tick_params(axis="x", rotation=40)
axes.set_title("A post-norm block returns vectors of one size")
plt.show()

# %%
for name, length in lengths.items():
    print(f"{name:>9}: {length:.2f}")
for name in ("norm: Y", "norm: Z"):
    assert 0.8 * 24**0.5 < lengths[name] < 1.3 * 24**0.5

# %% [markdown]
# Both sub-layers of this model add vectors that are longer than what came in, and the sums are longer
# still. The norm after the sum brings every token back to about {math}`\sqrt{d_\text{model}}`, the length of a vector
# whose numbers have the mean 0 and the variance 1. (It is not exactly this length here, because the norms of this model multiply by weights near 1.) So every block gets
# input of the same size. The price is that the residual stream passes through a norm in
# each block; [chapter 06](06_positions_norms_ff.ipynb) shows what this means for gradients.

# %% [markdown]
# ## The decoder needs a mask
#
# The first sub-layer of a decoder block is self-attention over the target. In training the whole
# target is known, and all its positions are computed at once. The decoder's input is the target moved
# to the right by one place, behind a start token. So position {math}`t` reads token
# {math}`t-1` and must predict token {math}`t`. (A later section treats this shift; the function
# `shift_right` does it.) Position {math}`t+1` reads token {math}`t`, the answer. So position
# {math}`t` must not look at the positions after it:
#
# $$\begin{gathered}
# \text{softmax}\Bigl(\frac{QK^\top}{\sqrt{d_k}} + M\Bigr)V \\
# M_{ts} = \begin{cases} 0 & s \le t \\ -\infty & s > t \end{cases}
# \end{gathered}$$ (eq-07-causal)
#
# The article that this course follows describes the decoder without {math}`M`. We compute both
# versions. In our loops, the mask is a function that compares two positions, and
# a forbidden key gets the weight 0, which is {math}`e^{-\infty}`.

# %%
decoder_attn = model.decoder[0].attn
y = torch.randn(4, 24, generator=generator, dtype=torch.float64)


def causal(query: int, key: int) -> bool:
    return key <= query


masked = multi_head(decoder_attn, y, y, visible=causal)
assert difference(masked, decoder_attn(y[None], causal=True)[0]) < 1e-10
unmasked = multi_head(decoder_attn, y, y)
print(f"without the mask: {difference(masked, unmasked):.2f} away")
assert difference(masked, unmasked) > 0.1
assert difference(masked[-1], unmasked[-1]) < 1e-10

# %% [markdown]
# Only the last position is the same in both, since nothing comes after it. Now the effect on the whole
# model. We change one token of the decoder's input, and measure how much each output
# moves. The blocks take another mask as an argument; a mask of ones hides nothing.


# %%
def decode_without_mask(model, states, decoder_input_ids):
    length = decoder_input_ids.shape[1]
    ones = torch.ones(length, length, dtype=torch.bool)
    x = model.token_embedding(decoder_input_ids)  # the input: see below
    x = x * model.config.d_model**0.5 + model.position_table[:length]
    for block in model.decoder:
        x = block(x, states, mask=ones)
    return model.head(x)


def influence(decode, states, row):
    """Row j: how far each output moves when token j is changed."""
    before, moved = decode(states, row), []
    for j in range(row.shape[1]):
        changed = row.clone()
        changed[0, j] = (row[0, j] + 1) % 13
        after = decode(states, changed)
        moved.append((after - before).abs().amax(dim=-1)[0])
    return torch.stack(moved)


states = model.encode(source_ids)
row = torch.randint(3, 13, (1, 8), generator=generator)
with_mask = influence(model.decode, states, row)
free = functools.partial(decode_without_mask, model)
no_mask = influence(free, states, row)
earlier = torch.ones(8, 8).tril(-1).bool()
assert (with_mask[earlier] == 0).all()  # exactly zero
assert (with_mask[~earlier] > 0).all()
assert (no_mask > 0).all()
print(
    f"outputs before the changed token, mask: {with_mask[earlier].max():.2f}"
)
print(f"outputs before it, no mask: up to {no_mask[earlier].max():.2f}")

# %%
#| alt: Two square heat maps side by side, eight changed tokens down, eight outputs across. With
#|   the causal mask all squares below the diagonal are empty, the rest are coloured. Without the
#|   mask every square is coloured.
figure, panels = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
top = max(with_mask.max(), no_mask.max()).item()
for axes, moved, title in zip(
    panels, (with_mask, no_mask), ("causal mask", "no mask")
):
    shown = moved.masked_fill(moved == 0, float("nan"))
    image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=top)
    axes.set_title(title)
    axes.set_xlabel("output at position t")
panels[0].set_ylabel("changed token j")
figure.colorbar(image, ax=panels, label="largest change of a logit")
plt.show()

# %% [markdown]
# Rows are causes, columns are effects. With the mask, nothing before the changed token moves, not
# even by a rounding error. Without it, every output depends on every token of the target, including
# the token that this output has to guess.
#
# What does training make of that? Here is a task that nobody can do: the target is eight
# random digits, which have nothing to do with the source. Each digit is one of ten, so a model that
# does not see the answer cannot get below {math}`\log 10` nats per token, except by chance. We train
# one model with the mask and one without.


# %%
def random_pairs(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randint(3, 13, (2, 64, 8), generator=g)
    return both[0], both[1]


def train_on_noise(decode, steps: int = 250) -> list[float]:
    torch.manual_seed(0)
    sizes = {"n_layers": 1, "n_decoder_layers": 1, "d_model": 32, "n_heads": 2}
    config = TransformerConfig(
        vocab_size=13, d_ff=64, n_positions=16, dropout=0.0, **sizes
    )
    model, g = Transformer(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        source, labels = random_pairs(g)
        inputs = shift_right(labels, config.bos_token_id, config.pad_token_id)
        logits = decode(model, model.encode(source), inputs)
        total, count = seq2seq_loss(logits, labels)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    return losses


honest = train_on_noise(Transformer.decode)
cheating = train_on_noise(decode_without_mask)
ends = [sum(losses[-25:]) / 25 for losses in (honest, cheating)]
with measured():
    print(f"mean loss of the last 25 steps, with mask: {ends[0]:.3f}")
    print(f"without mask: {ends[1]:.3f}")
print(f"floor: log(10) = {math.log(10):.3f}")
print(f"log(10) / 8 = {math.log(10) / 8:.3f}")
assert abs(ends[0] - math.log(10)) < 0.03
assert ends[1] < 0.6

# %%
#| alt: Two loss curves over 250 steps. Both begin near 3 and fall to the line at 2.30, the floor,
#|   within 20 steps. The one with the mask stays on it. The one without the mask leaves it before
#|   step 75, falls steeply and ends near 0.3.
plot_losses(
    {
        "with mask": list(enumerate(honest, start=1)),
        "without mask": list(enumerate(cheating, start=1)),
    },
    floor=math.log(10),
    title="Random digits cannot be guessed",
)
plt.show()

# %% [markdown]
# The model without a mask seems to guess random digits. It has learnt to copy each answer
# from the place to its right, where the decoder's input contains it. The last digit of a row stands in no input, and this
# one digit of eight is what keeps the loss above zero:
# {math}`\log(10)/8`. When it has to write, there is nothing to its right, and it knows
# nothing. The causal mask is not a detail of the decoder. Without it, training and writing are
# different tasks.

# %% [markdown]
# ## Cross-attention
#
# The second sub-layer of a decoder block connects the two texts. It is the same attention with one
# change: the queries come from the decoder, the keys and values from the encoder. Let
# {math}`Y` be the {math}`T` vectors of the decoder, and {math}`Z` the {math}`S` vectors that the
# last block of the encoder returned:
#
# $$\text{CrossAttention}(Y, Z) = \text{softmax}\Bigl(
# \frac{(Y W^Q)(Z W^K)^\top}{\sqrt{d_k}}\Bigr)\,(Z W^V)$$ (eq-07-cross)
#
# Follow the shapes; {math}`K` in a shape is the width of a head, {math}`d_k`. {math}`YW^Q` is
# {math}`[T, K]` and {math}`ZW^K` is {math}`[S, K]`, so the weights are {math}`[T, S]`: a row for each
# target position, a column for each source position. Times the values {math}`[S, K]` this gives {math}`[T, K]`: the output is as long as the *target*. The two texts may
# have different lengths. There is no causal mask here, because the whole source is known.
#
# In words: each target position asks a question, each source position says what it is about (its
# key), and the answer is a mixture of what the matching positions have to say (their values).
# Formula {eq}`eq-07-cross` is written for one head; heads are put together as in
# {eq}`eq-07-multihead`. Our loops can do it already.

# %% tags=["covers-F8"]
cross = model.decoder[0].cross_attn
by_hand = multi_head(cross, y, states[0])
of_package = cross(y[None], states)[0]
assert by_hand.shape == (4, 24)
assert difference(by_hand, of_package) < 1e-10

# Controls: queries and keys exchanged, and attention of the target to itself.
exchanged = multi_head(cross, states[0], y)
print("exchanged:", tuple(exchanged.shape), "instead of", tuple(by_hand.shape))
assert exchanged.shape != by_hand.shape
to_itself = multi_head(cross, y, y)
print(
    f"keys and values of the decoder: {difference(to_itself, by_hand):.2f} away"
)
assert difference(to_itself, by_hand) > 0.1

# %% [markdown]
# The package uses one class for both kinds of attention. `source` is where keys and values come
# from; when it is missing, they come from `x` itself. (A cache is the subject of a later section.)

# %%
print(inspect.getsource(inspect.unwrap(MultiHeadAttention.keys_values)))
forward = inspect.getsource(inspect.unwrap(MultiHeadAttention.forward))
print(forward[forward.index("        q = ") :])

# %% [markdown]
# The complete decoder block has three sub-layers, each followed by a residual sum and a norm:
#
# $$\begin{aligned}
# A &= \text{LayerNorm}\bigl(Y + \text{CausalMultiHead}(Y)\bigr) \\
# B &= \text{LayerNorm}\bigl(A + \text{CrossMultiHead}(A, Z)\bigr) \\
# C &= \text{LayerNorm}\bigl(B + \text{FFN}(B)\bigr)
# \end{aligned}$$ (eq-07-decoder-block)


# %% tags=["covers-F8"]
def decoder_block(block, y, states, visible=causal):
    a = layer_norm(block.attn_norm, y + multi_head(block.attn, y, y, visible))
    b = a + multi_head(block.cross_attn, a, states)
    b = layer_norm(block.cross_attn_norm, b)
    return layer_norm(block.ff_norm, b + feed_forward(block.ff, b))


block = model.decoder[0]
of_package = block(y[None], states)[0]
by_hand = decoder_block(block, y, states[0])
assert difference(by_hand, of_package) < 1e-10
leaking = decoder_block(block, y, states[0], visible=everything)
assert difference(leaking, of_package) > 0.1
swapped = copy.deepcopy(block)  # two sub-layers in the wrong order
swapped.attn, swapped.cross_attn = block.cross_attn, block.attn
assert difference(swapped(y[None], states)[0], of_package) > 0.1
print(inspect.getsource(inspect.unwrap(TransformerDecoderBlock.forward)))

# %% [markdown]
# ### Padding of the source
#
# Rows of a batch have the same length, so short sources are filled up with padding. The encoder
# must not read it, and neither may the decoder: in *both* places the padding is hidden by a mask. A
# source with padding must then give the same logits as the source alone. As a control we leave out
# one of the two masks, or both.

# %%
padding = torch.full((1, 3), 7)  # could be any token
padded = torch.cat([source_ids, padding], dim=1)
attention_mask = torch.tensor([[1] * 6 + [0] * 3])
alone = model(source_ids, decoder_input_ids=target_ids)
hidden_padding = model(
    padded, decoder_input_ids=target_ids, attention_mask=attention_mask
)
assert difference(hidden_padding, alone) < 1e-10

nowhere = model(padded, decoder_input_ids=target_ids)
encoder_only = model.decode(
    model.encode(padded, attention_mask=attention_mask), target_ids
)
decoder_only = model.decode(
    model.encode(padded), target_ids, attention_mask=attention_mask
)
for name, logits in (
    ("no mask at all", nowhere),
    ("mask in the encoder only", encoder_only),
    ("mask in the decoder only", decoder_only),
):
    print(
        f"{name:>25}: logits change by up to {difference(logits, alone):.2f}"
    )
    assert difference(logits, alone) > 0.01

# %%
#| alt: Three heat maps, one for each head of the first decoder block: four target positions down,
#|   nine source positions across. The first six columns have blue squares of different darkness.
#|   The last three columns, the padding, are grey: their weight is exactly zero.
maps = attention_maps(
    model,
    padded,
    part="cross",
    decoder_input_ids=target_ids,
    attention_mask=attention_mask,
)
assert (maps[0][..., 6:] == 0).all()
assert torch.allclose(maps[0].sum(dim=-1), torch.ones(()).double())
plot_attention(
    maps,
    [f"t{i}" for i in range(4)],
    key_tokens=[f"s{i}" for i in range(6)] + ["pad"] * 3,
    layer=0,
    title="Cross-attention of random weights",
)
plt.show()

# %% [markdown]
# Each of the three controls gives other logits: one mask is not enough.
#
# `attention_maps` returns the weights of {eq}`eq-07-cross`, one tensor for each block of the decoder.
# The picture shows the first block; its titles say *layer* for block, and count blocks and heads from 0.
# A row is a target position, and its weights sum to 1. Grey columns are padding. With
# random weights the rest has no meaning yet; at the end of this chapter it will have one.

# %% [markdown]
# ### The keys and values of the source are computed once
#
# A Transformer writes one token at a time. At each step, the self-attention of the decoder gets one
# more key and one more value. The keys {math}`ZW^K` and values {math}`ZW^V` of the source are different:
# nothing in them depends on the target. They are the same at every step, so they need to be computed only
# once. The package keeps both kinds in a cache, as in [chapter 01](01_scale_and_cost.ipynb). We count
# how many vectors pass through the matrices `w_k` and `w_v` of the cross-attention. For this we use a
# **hook**, a function that PyTorch calls each time a layer has computed something.

# %% tags=["covers-F8"]
counted = []
hooks = [
    matrix.register_forward_hook(
        lambda m, a, out: counted.append(out.shape[1])
    )
    for block in model.decoder
    for matrix in (block.cross_attn.w_k, block.cross_attn.w_v)
]


def vectors_so_far() -> int:
    return sum(counted)


steps = 10
written = torch.randint(3, 13, (1, steps), generator=generator)
counted.clear()
recomputed, by_recomputing = [], []
for t in range(1, steps + 1):  # all of it again at each step
    by_recomputing.append(model.decode(states, written[:, :t])[:, -1])
    recomputed.append(vectors_so_far())

counted.clear()
cache = model.new_cache(1, steps)
cached, by_cache = [], []
for t in range(steps):  # only the new token
    new = written[:, t : t + 1]
    by_cache.append(model.decode(states, new, cache=cache)[:, -1])
    cached.append(vectors_so_far())
    if t == 0:
        first = [(k.clone(), v.clone()) for k, v in cache.source]
for hook in hooks:
    hook.remove()

for (k0, v0), (k, v) in zip(first, cache.source):
    assert torch.equal(k0, k)  # bit for bit, after ten steps
    assert torch.equal(v0, v)
assert difference(torch.cat(by_cache), torch.cat(by_recomputing)) < 1e-10
per_step = 2 * 2 * 6  # two matrices, two blocks, six source positions
assert cached == [per_step] * steps
assert recomputed == [per_step * t for t in range(1, steps + 1)]
print(f"vectors through w_k and w_v: {recomputed[-1]} and {cached[-1]}")

# %%
#| alt: Two lines over ten decoding steps. Without a cache the number of vectors grows in a straight
#|   line from 24 to 240. With a cache it stays at 24.
figure, axes = plt.subplots(figsize=(6.4, 3.2))
ticks = range(1, steps + 1)
axes.plot(ticks, recomputed, "o-", color="#D55E00", label="without a cache")
axes.plot(ticks, cached, "s--", color="#0072B2", label="with a cache")
axes.set_xlabel("tokens written")
axes.set_ylabel("source vectors multiplied")
axes.set_title("The source is projected once")
axes.legend()
plt.show()

# %% [markdown]
# The logits are the same, and the tensors in the cache do not change by a single bit from the first
# step to the last. Without the cache, the source is projected again at each step. The encoder
# runs once in both cases, because we kept its `states`.

# %% [markdown]
# ## The whole model
#
# ### One matrix for three places
#
# Tokens become vectors by a table {math}`E` of shape {math}`[V, d_\text{model}]`, where {math}`V` is
# now the size of the vocabulary. The Transformer uses one table for the source, for the target, and as
# the head: there, the vector that the last block of the decoder returns at a position is multiplied
# with each row of the table, and the {math}`V` products are the logits. One table is enough because both
# texts share one vocabulary. The input of both stacks is
#
# $$x_t = \sqrt{d_\text{model}}\; E_{w_t} + PE_t$$ (eq-07-embedding)
#
# with the sines and cosines of [chapter 06](06_positions_norms_ff.ipynb) as {math}`PE_t`. Why the
# factor? The paper does not say. One reason is that the table has two uses. As a head, it should
# have small numbers: a vector with {math}`d_\text{model}` numbers of variance 1, times a row of
# variance {math}`1/d_\text{model}`, gives logits of variance 1. As an input, a row of that size would be
# much shorter than the position beside it, and the model would see where a token stands but hardly which
# one it is. The factor {math}`\sqrt{d_\text{model}}` makes up for it.

# %%
captured = []
hook = model.encoder[0].register_forward_hook(
    lambda module, arguments, out: captured.append(arguments[0])
)
model.encode(source_ids)
hook.remove()

table, positions = model.token_embedding.weight, model.position_table
expected = torch.zeros(6, 24, dtype=torch.float64)
for t, token in enumerate(source_ids[0].tolist()):
    for c in range(24):
        scaled = math.sqrt(24) * table[token, c].item()
        expected[t, c] = scaled + positions[t, c].item()
assert difference(captured[0][0], expected) < 1e-10
no_factor = table[source_ids[0]] + positions[:6]
assert difference(captured[0][0], no_factor) > 0.1
assert model.lm_head.weight is model.token_embedding.weight

torch.manual_seed(0)
new = Transformer(TransformerConfig(n_layers=1, n_decoder_layers=1))
row_length = new.token_embedding.weight.norm(dim=1).mean().item()
position_length = new.position_table.norm(dim=1).mean().item()
print(f"d_model = 512: a row of the table has the length {row_length:.2f},")
print(f"times the factor {512**0.5 * row_length:.2f},")
print(f"and a position {position_length:.2f}")
assert row_length < position_length / 10
assert position_length < 512**0.5 * row_length

# %% [markdown]
# Without the factor, a position is more than ten times as long as the row of the table beside it. With
# the factor the token is the longer of the two.
#
# ### Equal to PyTorch's own Transformer
#
# PyTorch has the two stacks as `torch.nn.Transformer`. If our model is right, it must give the same
# logits with the same weights. The names differ: PyTorch keeps the matrices of queries, keys and
# values in one, and numbers its norms. Its attention has biases, which the formulas of the paper do
# not have, so we set them to zero. Its masks say where *not* to look. And PyTorch adds a norm at the
# end of each stack that the paper does not have; stacks that we build ourselves leave it out.
# The code does nothing else, so you may skip it and look at the result.


# %% tags=["hide-input"]
def copy_attention(ours, theirs) -> None:
    joined = [w.weight for w in (ours.w_q, ours.w_k, ours.w_v)]
    theirs.in_proj_weight.data = torch.cat(joined)
    theirs.out_proj.weight.data = ours.w_o.weight.clone()
    theirs.in_proj_bias.data.zero_()
    theirs.out_proj.bias.data.zero_()


def copy_block(ours, theirs) -> None:
    copy_attention(ours.attn, theirs.self_attn)
    norms = [ours.attn_norm, ours.ff_norm]
    if isinstance(ours, TransformerDecoderBlock):
        copy_attention(ours.cross_attn, theirs.multihead_attn)
        norms.insert(1, ours.cross_attn_norm)
    theirs.linear1.load_state_dict(ours.ff.w_1.state_dict())
    theirs.linear2.load_state_dict(ours.ff.w_2.state_dict())
    for i, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{i}").load_state_dict(norm.state_dict())


def torch_twin(model: Transformer) -> nn.Transformer:
    c = model.config
    shape = {
        "d_model": c.d_model,
        "nhead": c.n_heads,
        "dim_feedforward": c.d_ff,
    }
    shape |= {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    twin = nn.Transformer(
        c.d_model,
        c.n_heads,
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shape),
            c.n_layers,
            enable_nested_tensor=False,
        ),
        custom_decoder=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**shape), c.n_decoder_layers
        ),
        batch_first=True,
    )
    for ours, theirs in zip(model.encoder, twin.encoder.layers):
        copy_block(ours, theirs)
    for ours, theirs in zip(model.decoder, twin.decoder.layers):
        copy_block(ours, theirs)
    return twin


def twin_logits(twin, model, input_ids, decoder_input_ids, mask):
    def embedded(ids):
        vectors = model.token_embedding(ids) * model.config.d_model**0.5
        return vectors + model.position_table[: ids.shape[1]]

    n = decoder_input_ids.shape[1]
    out = twin(
        embedded(input_ids),
        embedded(decoder_input_ids),
        tgt_mask=torch.ones(n, n).triu(1).bool(),  # True: do not look
        src_key_padding_mask=mask == 0,
        memory_key_padding_mask=mask == 0,
    )
    return out @ model.token_embedding.weight.T


# %%
twin = torch_twin(model)
batch = torch.randint(3, 13, (5, 9), generator=generator)
targets = torch.randint(3, 13, (5, 7), generator=generator)
mask = (torch.arange(9) < torch.tensor([[9], [4], [6], [1], [8]])).long()
ours = model(batch, decoder_input_ids=targets, attention_mask=mask)
theirs = twin_logits(twin, model, batch, targets, mask)
assert difference(ours, theirs) < 1e-10
print(f"{ours.numel()} logits agree")

second, third = twin.decoder.layers[0].norm2, twin.decoder.layers[0].norm3
twin.decoder.layers[0].norm2, twin.decoder.layers[0].norm3 = third, second
theirs = twin_logits(twin, model, batch, targets, mask)
print(f"two norms exchanged: {difference(ours, theirs):.2f} away")
assert difference(ours, theirs) > 0.1

# %% [markdown]
# The five rows have different amounts of padding, and all logits agree to ten digits. The control
# exchanges two norms of one block, which is enough to be noticed. The tests of the package repeat the comparison, with
# gradients, for random configurations.

# %% [markdown]
# ### How many parameters?
#
# Count matrix by matrix, with {math}`d = d_\text{model}`. An attention layer has four matrices
# {math}`d \times d` for all its heads together, and no biases: {math}`4d^2`. A feed-forward layer has
# {math}`2\,d\,d_\text{ff}` weights and {math}`d_\text{ff} + d` biases. A norm has {math}`2d`
# numbers. An encoder block has one attention layer and two norms, a decoder block has two and three. With
# {math}`N` encoder blocks, {math}`N'` decoder blocks and the shared table:
#
# $$\begin{aligned}
# P &= V d + N\,(4d^2 + f + 4d) \\
# &\quad + N'\,(8d^2 + f + 6d) \\
# f &= 2\,d\,d_\text{ff} + d_\text{ff} + d
# \end{aligned}$$ (eq-07-parameters)
#
# The positions are computed, not learnt, and add nothing. The number of heads does not occur:
# more heads are narrower heads.


# %%
def parameter_formula(vocab, n_encoder, n_decoder, d, d_ff) -> int:
    f = 2 * d * d_ff + d_ff + d
    encoder = n_encoder * (4 * d**2 + f + 4 * d)
    return vocab * d + encoder + n_decoder * (8 * d**2 + f + 6 * d)


def count(model: nn.Module) -> int:
    total = 0
    for parameter in model.parameters():
        total += parameter.numel()
    return total


base = {"vocab_size": 37_000, "n_layers": 6, "n_decoder_layers": 6}
sizes = {
    "base": base | {"d_model": 512, "n_heads": 8, "d_ff": 2048},
    "big": base | {"d_model": 1024, "n_heads": 16, "d_ff": 4096},
    "small": small_model().config.to_dict(),
}
published = {"base": 65e6, "big": 213e6}
for name, settings in sizes.items():
    with torch.device("meta"):
        counted_model = Transformer(TransformerConfig(**settings))
    names = ("vocab_size", "n_layers", "n_decoder_layers", "d_model", "d_ff")
    by_formula = parameter_formula(*(settings[n] for n in names))
    assert by_formula == count(counted_model)
    without_cross = by_formula - settings["n_decoder_layers"] * (
        4 * settings["d_model"] ** 2
    )
    assert without_cross != count(counted_model)  # the control
    paper = ""
    if name in published:
        off = by_formula / published[name] - 1
        paper = f", paper {published[name] / 1e6:.0f} million: {off:+.1%}"
        assert abs(off) < 0.035
    print(f"{name:>5}: {by_formula:>11,}{paper}")
assert parameter_formula(37_000, 6, 6, 512, 2048) == 63_045_632
rest = parameter_formula(0, 6, 6, 512, 2048)
print(f"base model without its table: {rest:,}")
rows = (65e6 - rest) / 512
print(f"rows that a table would need for 65 million: {rows:,.0f}")
biases = (6 + 2 * 6) * 4 * 512  # 18 attention layers, 4 projections each
print(f"biases in all attention layers would add {biases:,}")

# %% [markdown]
# The `meta` device knows the shapes of tensors and reserves no memory for them. The formula agrees
# exactly with the sum over all tensors. The paper prints rounded numbers, 65 and 213 million, and
# says that the vocabulary has *about* 37,000 tokens. Both of our numbers are close to the printed ones,
# and neither is equal. A larger table would explain the base model; the cell prints how many rows it
# would need. The difference is hardly hidden in the blocks. The formulas of the paper do not show
# whether attention has biases, but the last line says how little they would add.

# %%
#| alt: Two horizontal stacked bars, in millions of parameters. The base model: about 19 for the
#|   table, 19 for attention, of which a third is cross-attention, and 25 for the feed-forward
#|   layers. The big model: about 38, 76 and 101. In both, feed-forward layers are the largest part.
parts = {}
for name, tables in (("base", (512, 2048)), ("big", (1024, 4096))):
    d, d_ff = tables
    parts[name] = {
        "table": 37_000 * d,
        "self-attention": 12 * 4 * d**2,
        "cross-attention": 6 * 4 * d**2,
        "feed-forward": 12 * (2 * d * d_ff + d_ff + d),
    }
figure, axes = plt.subplots(figsize=(6.4, 2.8))
left = {"base": 0.0, "big": 0.0}
colors = ["#999999", "#0072B2", "#D55E00", "#009E73"]
for part, color in zip(parts["base"], colors):
    for name in parts:
        width = parts[name][part] / 1e6
        label = part if name == "base" else None
        axes.barh(name, width, left=left[name], color=color, label=label)
        left[name] += width
axes.set_xlabel("million parameters")
axes.legend(fontsize=9, loc="lower right")
axes.set_title("Where the parameters are")
plt.show()

# %% [markdown]
# The feed-forward layers are the largest part of both models. Cross-attention is a third of all
# attention: eighteen attention layers, six of them in the middle of a decoder block. In the base
# model the table is as large as all attention. In the big model {math}`d^2` is four times as large
# and the table only twice, so its share is smaller. (The norms are left out: no bar could show them.)

# %% [markdown]
# ## Shift right, and teacher forcing
#
# In training the decoder reads the target and predicts it. To predict token {math}`y_t` it may read
# {math}`y_1, \dots, y_{t-1}`. So its input is the target moved by one place: first a start token,
# then all tokens but the last.

# %%
labels = torch.tensor([[5, 9, 4, 2], [7, 2, -100, -100]])  # 2 is EOS
decoder_input_ids = shift_right(labels, start_id=1, pad_id=0)
print("labels:        ", labels.tolist())
print("decoder input: ", decoder_input_ids.tolist())
assert decoder_input_ids.tolist() == [[1, 5, 9, 4], [1, 7, 2, 0]]

# %% [markdown]
# Compare the two lists, place by place. Having read the start token 1, the decoder must say 5; having read 1 and 5, it
# must say 9; at the end it must say 2, the end of the sequence. The second row is shorter. Its labels of −100
# are not counted, and since −100 is not a token, the input has padding there.
#
# Two conditions must hold together. The causal mask hides the positions *after* {math}`t`; position {math}`t` itself
# is visible. The shift takes care of that one: position {math}`t` of the input holds token
# {math}`t-1`. Forget the shift, and each position sees its own answer, as in the experiment
# with random digits.
#
# In training the input always holds the *right* tokens, even where the model would have written
# something else. This is **teacher forcing**. It makes training fast, because all positions are computed in
# one pass. But it means that the model never sees its own mistakes. When it writes, it reads what it
# has written itself.
#
# Does it matter? It depends on the task, so we take one in which each token depends on the one before: a
# walk on a clock with ten hours. The source gives the first hour, and then for each step whether
# to go forward or back. The target is the list of hours. We train for a short time only, since a model
# without mistakes would have nothing to show. (A later section explains the schedule of the learning
# rate.)

# %%
PAD, BOS, EOS = 0, 1, 2
FORWARD, BACK = 13, 14  # tokens 3 to 12 are the hours 0 to 9


def clock_walks(number: int, seed: int, length: int = 8) -> dict:
    g = torch.Generator().manual_seed(seed)
    hour = torch.randint(10, (number, 1), generator=g)
    back = torch.randint(2, (number, length - 1), generator=g)
    walk = torch.cat([hour, 1 - 2 * back], dim=1).cumsum(dim=1) % 10
    labels = walk + 3
    return {
        "input_ids": torch.cat([hour + 3, FORWARD + back], dim=1),
        "labels": labels,
        "decoder_input_ids": shift_right(labels, BOS, PAD),
    }


class Stream:
    """Endless batches: the same function with another seed each time."""

    def __init__(self, make) -> None:
        self.make = make

    def __iter__(self):
        seed = 0
        while True:
            yield self.make(64, seed)
            seed += 1


example = clock_walks(1, seed=3)
print("source:", example["input_ids"][0].tolist())
print("target:", example["labels"][0].tolist())

sizes = {
    "n_layers": 1,
    "n_decoder_layers": 1,
    "d_model": 32,
    "n_heads": 2,
    "d_ff": 64,
}
torch.manual_seed(0)
walker = Transformer(
    TransformerConfig(vocab_size=15, n_positions=16, dropout=0.0, **sizes)
)
settings = {
    "schedule": "inverse_sqrt",
    "warmup_steps": 100,
    "weight_decay": 0.0,
}
settings |= {"beta2": 0.98}
config = TrainConfig(max_steps=150, lr=5e-3, **settings)
for _ in train(walker, Stream(clock_walks), seq2seq_loss_fn, config):
    pass
walker = walker.eval().requires_grad_(False)

# %% [markdown]
# Token 3 stands for hour 0, token 12 for hour 9; 13 is a step forward, 14 a step back. The target
# begins with the first hour, too.
#
# Now compare two ways of running the same model on the same 1,000 new walks. *Forced*: it reads the
# right hours. *Free*: it reads what it has written. Then a third run, in which we interfere: the
# first three hours are right, but the third is replaced by the hour opposite to it before the model reads it. From
# there on it runs freely.

# %%
test = clock_walks(1000, seed=100_000)
labels, source = test["labels"], test["input_ids"]
encoded = walker.encode(source)
forced = walker.decode(encoded, test["decoder_input_ids"]).argmax(-1) == labels
written = generate(walker, source, max_new_tokens=8, eos_token_id=[])
own = written == labels
assert torch.equal(forced.all(dim=1), own.all(dim=1))

wrong = (~forced).cumsum(dim=1) - (~forced).long() > 0  # after the first error
inputs = test["decoder_input_ids"][:, :4].clone()
inputs[:, 3] = (inputs[:, 3] - 3 + 5) % 10 + 3  # five hours away
for _ in range(5):
    guess = walker.decode(encoded, inputs)[:, -1:].argmax(dim=-1)
    inputs = torch.cat([inputs, guess], dim=1)
disturbed = inputs[:, 4:] == labels[:, 3:]

after_forced = forced[wrong].float().mean().item()
after_own = own[wrong].float().mean().item()
with measured():
    print(f"rows without an error: {own.all(dim=1).float().mean():.3f}")
    print(f"right after the first error, forced: {after_forced:.2f}")
    print(f"right after the first error, free:   {after_own:.2f}")
    print(f"right after a disturbance, free: {disturbed.float().mean():.3f}")
assert 0.5 < forced.float().mean() < 0.95
assert after_forced - after_own > 0.1
assert disturbed.float().mean() < 0.1

# %%
#| alt: Three lines over positions 1 to 8, the share of right tokens. The forced one falls from 1
#|   to 0.7 at position 2 and stays between 0.6 and 0.75. The free one is equal at positions 1 and 2
#|   and then falls below it, to less than 0.5. The disturbed one begins at position 4 and lies at
#|   zero.
figure, axes = plt.subplots(figsize=(6.4, 3.4))
places = range(1, 9)
axes.plot(
    places, forced.float().mean(0), "o-", color="#0072B2", label="forced"
)
axes.plot(places, own.float().mean(0), "s--", color="#D55E00", label="free")
after = disturbed.float().mean(0)
axes.plot(places[3:], after, "^:", color="#009E73", label="free, disturbed")
axes.set_ylim(-0.05, 1.05)
axes.set_xlabel("position in the target")
axes.set_ylabel("share of right tokens")
axes.set_title("Mistakes are read again")
axes.legend()
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# Forced, 50 to 95 % of all tokens are right. After the first error of a row, the free run is right
# clearly less often than the forced one, by at least 10 points. After the disturbance fewer than 10 % of the hours are
# right.
# ```
#
# One number is equal in both runs, and the cell asserts it: the share of rows *without any* error. As
# long as everything is right, the two runs read the same. After the first error they part. The
# forced run is put back on the right hour. The free run goes on from the wrong hour, one step forward or
# back as the source says. Each *step* may be right, and yet the hours stay wrong, until a second
# error happens to undo the first. The disturbed walk starts five hours away, too far for an error
# to bring it back.
#
# So a token accuracy measured with teacher forcing is too high. Judge a model by what it writes. The clock
# is an extreme case. Where a token depends more on the source than on the token before, a wrong
# token does less harm.

# %% [markdown]
# ## The loss, and label smoothing
#
# The loss of an encoder-decoder is the one of every language model, with the source {math}`x` as a further
# condition: {math}`-\sum_t \log p(y_t \mid y_{<t}, x)`. Here the wanted distribution at each position
# has its whole probability on the right token. The paper wants another one, {math}`q_t`:
#
# $$\begin{aligned}
# q_t(v) &= (1-\epsilon)\,[v = y_t] + \frac{\epsilon}{V} \\
# \mathcal L &= -\sum_t \sum_{v} q_t(v) \log p(v \mid y_{<t}, x)
# \end{aligned}$$ (eq-07-smoothing)
#
# The bracket is 1 for the right token and 0 for all others. A share {math}`\epsilon = 0.1` of the
# probability is spread evenly over the whole vocabulary, the right token included. This is **label
# smoothing**. With {math}`\epsilon = 0` the usual loss comes back.


# %%
def plain_smoothed_loss(logits, labels, epsilon: float) -> float:
    total = 0.0
    for row_logits, row_labels in zip(logits.tolist(), labels.tolist()):
        for scores, y in zip(row_logits, row_labels):
            if y == -100:
                continue
            normaliser = sum(math.exp(score) for score in scores)
            for v, score in enumerate(scores):
                q = (1 - epsilon) * (v == y) + epsilon / len(scores)
                total -= q * math.log(math.exp(score) / normaliser)
    return total


logits = torch.randn(3, 5, 13, generator=generator, dtype=torch.float64)
labels = torch.randint(13, (3, 5), generator=generator)
labels[1, 3:] = -100
for epsilon in (0.0, 0.1, 0.5):
    total, n = seq2seq_loss(logits, labels, smoothing=epsilon)
    by_hand = plain_smoothed_loss(logits, labels, epsilon)
    assert abs(total.item() - by_hand) < 1e-10
    assert n == 13
    print(f"smoothing {epsilon}: {total / n:.3f} nats per token")
    other = plain_smoothed_loss(logits, labels, epsilon + 0.01)
    assert abs(total.item() - other) > 1e-3  # the control

# %% [markdown]
# Position {math}`t` of the logits belongs to position {math}`t` of the labels: `seq2seq_loss` shifts
# nothing, because the input was shifted before.
#
# Why would one aim at a wrong distribution? Look at the logits. Without smoothing the loss falls as
# long as the logit of the right token rises above the others, and it never reaches its lowest value:
# greater certainty is always rewarded. With smoothing, the sum {math}`-\sum_v q(v) \log p(v)` is
# lowest when {math}`p` equals {math}`q`. This lowest value, {math}`-\sum_v q(v) \log q(v)`, is called the
# **entropy** of {math}`q`. The distance between the right logit and any other one is then
#
# $$\begin{aligned}
# z_y - z_v &= \log\frac{1-\epsilon+\epsilon/V}{\epsilon/V} \\
# &= \log\Bigl(1 + \frac{(1-\epsilon)V}{\epsilon}\Bigr)
# \end{aligned}$$ (eq-07-gap)
#
# which is finite. We let gradient descent change the thirteen logits of one position.


# %%
def descend(epsilon: float, steps: int = 2000) -> list[float]:
    z = torch.zeros(1, 1, 13, dtype=torch.float64, requires_grad=True)
    label, gaps = torch.tensor([[4]]), []
    for _ in range(steps):
        loss, _ = seq2seq_loss(z, label, smoothing=epsilon)
        (gradient,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            z -= 2.0 * gradient
        gaps.append((z[0, 0, 4] - z[0, 0, 0]).item())
    return gaps


best_gap = math.log(1 + 0.9 * 13 / 0.1)
gaps = {epsilon: descend(epsilon) for epsilon in (0.0, 0.1)}
assert abs(gaps[0.1][-1] - best_gap) < 1e-10
assert gaps[0.0][-1] > gaps[0.0][999] + 0.5  # still growing
best_logits = torch.full((1, 1, 13), 0.0, dtype=torch.float64)
best_logits[0, 0, 4] = best_gap
floor = seq2seq_loss(best_logits, torch.tensor([[4]]), smoothing=0.1)[0]
print(f"best distance for V = 13: {best_gap:.3f}")
print(f"lowest smoothed loss for V = 13: {floor:.3f} nats")
print(f"best distance for V = 37,000: {math.log(1 + 0.9 * 37_000 / 0.1):.1f}")

# %%
#| alt: Two curves over 2,000 steps on a logarithmic axis, the distance between the right logit and
#|   another one. With smoothing the dashed curve reaches the dotted line at 4.77 and stays there. Without
#|   smoothing it crosses the line and rises in a straight line to about 11.
figure, axes = plt.subplots(figsize=(6.4, 3.4))
places = range(1, 2001)
axes.plot(places, gaps[0.0], color="#D55E00", label="no smoothing")
axes.plot(places, gaps[0.1], "--", color="#0072B2", label="smoothing 0.1")
axes.axhline(best_gap, color="black", ls=":", lw=1)
axes.set_xscale("log")
axes.set_xlabel("step of gradient descent")
axes.set_ylabel("right logit minus another")
axes.set_title("Smoothing sets a limit to certainty")
axes.legend()
plt.show()

# %% [markdown]
# Without smoothing the distance grows like the logarithm of the number of steps, without an end.
# With smoothing it stops at {eq}`eq-07-gap`. The paper reports that this made the perplexity
# worse (the exponential of the mean loss per token: a model that is less sure has a higher one), but the
# translations better. Two things follow for you. The lowest
# smoothed loss is not zero but the entropy of {math}`q`, so a smoothed loss cannot be compared with
# an ordinary one. And evaluation must be done *without* smoothing.

# %% [markdown]
# ## The learning rate of the paper
#
# The learning rate rises from almost zero in a straight line for {math}`w` steps, the **warm-up**. Then
# it falls, in proportion to one over the square root of the step {math}`t`:
#
# $$\eta_t = d_\text{model}^{-1/2} \cdot
# \min\bigl(t^{-1/2},\; t \cdot w^{-3/2}\bigr)$$ (eq-07-warmup)
#
# Both expressions are equal at {math}`t = w`, where the rate is highest:
# {math}`(d_\text{model}\, w)^{-1/2}`. The first steps are small because at the beginning gradients
# can be large, and the averages of them that the optimizer Adam keeps rest on a few batches.
# [Chapter 06](06_positions_norms_ff.ipynb) shows a deep post-norm model that learns only with a warm-up.
# In the package the schedule is called `inverse_sqrt`, and `lr` is its highest value.

# %%
d_model, warmup = 512, 4000
peak = (d_model * warmup) ** -0.5
shared = {"lr": peak, "warmup_steps": warmup, "max_steps": 100_000}
paper = TrainConfig(schedule="inverse_sqrt", **shared)
rates = []
for t in range(1, 30_001):
    by_formula = d_model**-0.5 * min(t**-0.5, t * warmup**-1.5)
    rates.append(learning_rate(t, paper))
    assert abs(rates[-1] - by_formula) < 1e-10
assert max(rates) == rates[warmup - 1]
linear = TrainConfig(schedule="linear", **shared)
assert abs(learning_rate(16_000, linear) - rates[15_999]) > 1e-4  # control
print(f"highest rate {peak * 1e3:.3f}e-3, at step {warmup}")
print(f"at step 16,000 it is {rates[15_999] / peak:.2f} of that")

# %%
#| alt: The learning rate over 30,000 steps for three settings. Each rises in a straight line to a
#|   sharp peak and falls slowly after it. With d_model 512 and a warm-up of 4,000 steps the peak is
#|   0.0007. A warm-up of 8,000 has a lower and later peak; after it the two curves are one. With
#|   d_model 1024 the peak is lower and at the same step as the first.
figure, axes = plt.subplots(figsize=(6.4, 3.4))
for (d, w), color, dash in zip(
    ((512, 4000), (512, 8000), (1024, 4000)),
    ("#0072B2", "#D55E00", "#009E73"),
    ("-", "--", ":"),
):
    config = TrainConfig(
        lr=(d * w) ** -0.5,
        warmup_steps=w,
        max_steps=100_000,
        schedule="inverse_sqrt",
    )
    curve = [learning_rate(t, config) for t in range(1, 30_001, 50)]
    label = f"d_model {d}, warm-up {w}"
    axes.plot(range(1, 30_001, 50), curve, dash, color=color, label=label)
axes.set_xlabel("step")
axes.set_ylabel("learning rate")
axes.set_title("Up in a line, down with the square root")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# Four times as many steps halve the rate. A longer warm-up gives a lower peak, and so does
# a wider model. After the peak the curves with 4,000 and 8,000 steps of warm-up are the same: the
# falling part of {eq}`eq-07-warmup` does not contain {math}`w`. In the paper the height of the peak follows from the
# warm-up and the width. The package keeps the shape and lets you choose peak and warm-up freely.

# %% [markdown]
# ## A Transformer that reverses words
#
# Now everything comes together. The task: read four to eight letters and write them backwards.
# A model that does it must know which source letter it needs at each step, and this we can
# look at. The letters are drawn at random from ten, so they cannot be guessed: a model that ignores
# the source has one letter in ten right.

# %%
LETTERS = "abcdefghij"


def reversals(number: int, seed: int, longest: int = 8) -> dict:
    g = torch.Generator().manual_seed(seed)
    letters = torch.randint(3, 13, (number, longest), generator=g)
    lengths = torch.randint(4, longest + 1, (number,), generator=g).tolist()
    source = torch.full((number, longest + 1), PAD)
    labels = torch.full((number, longest + 1), -100)
    for i, n in enumerate(lengths):
        source[i, :n], source[i, n] = letters[i, :n], EOS
        labels[i, :n], labels[i, n] = letters[i, :n].flip(0), EOS
    return {
        "input_ids": source,
        "attention_mask": (source != PAD).long(),
        "labels": labels,
        "decoder_input_ids": shift_right(labels, BOS, PAD),
    }


def text(ids: torch.Tensor) -> str:
    return "".join(LETTERS[i - 3] for i in ids.tolist() if i >= 3)


example = reversals(2, seed=1)
for ids, answer in zip(example["input_ids"], example["labels"]):
    print(f"{text(ids):>8} -> {text(answer)}")

# %%
torch.manual_seed(0)
sizes = {
    "n_layers": 2,
    "n_decoder_layers": 2,
    "d_model": 48,
    "n_heads": 2,
    "d_ff": 96,
}
reverser = Transformer(
    TransformerConfig(vocab_size=13, n_positions=16, dropout=0.0, **sizes)
)
smoothed = functools.partial(seq2seq_loss_fn, smoothing=0.1)
config = TrainConfig(max_steps=600, lr=3e-3, **settings)
curve = [
    (step.step, step.loss)
    for step in train(reverser, Stream(reversals), smoothed, config)
]
reverser.eval().requires_grad_(False)
last = sum(loss for _, loss in curve[-50:]) / 50
with measured():
    print(f"smoothed loss, mean of the last 50 steps: {last:.3f}")
    print(f"lowest possible: {floor:.3f}")
assert floor - 0.001 < last < floor + 0.15

# %%
#| alt: The training loss over 600 steps. It falls from about 3 to about 0.6 within 300 steps and
#|   then lies just above the dashed line at 0.54, the lowest smoothed loss.
plot_losses(
    curve,
    baselines={"entropy of q": floor.item()},
    title="Reversing words, with label smoothing",
)
plt.show()

# %% [markdown]
# The curve comes to rest near the entropy of {math}`q` and not near zero. Next, let the model write. `generate` runs the encoder once and then the decoder step by step, and
# takes the likeliest token each time (*greedy* decoding) until EOS.

# %%
test = reversals(500, seed=100_000)
written = generate(
    reverser,
    test["input_ids"],
    attention_mask=test["attention_mask"],
    max_new_tokens=9,
)
right = [
    text(ids) == text(answer) for ids, answer in zip(written, test["labels"])
]
share = sum(right) / len(right)
with measured():
    for i in range(4):
        print(f"{text(test['input_ids'][i]):>8} -> {text(written[i])}")
    print(f"{share:.1%} of 500 new words are right")
assert share > 0.8

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# More than 80 % of the new words are reversed without a mistake.
# ```
#
# *Where* does it look? To write letter {math}`t` of a word of {math}`n` letters, it needs source
# letter {math}`n - 1 - t` (counted from 0). This is a relation between target and source
# positions. `relation_mass` computes for each head how much of its attention lies on the needed
# letter, averaged over all letters to be written, and `best_head` takes the largest. It counts blocks
# and heads from 0.

# %%
relation = torch.zeros(500, 9, 9, dtype=torch.bool)
for i, n in enumerate((test["input_ids"] >= 3).sum(dim=1).tolist()):
    for t in range(n):
        relation[i, t, n - 1 - t] = True

inputs = {name: test[name] for name in ("decoder_input_ids", "attention_mask")}
maps = attention_maps(reverser, test["input_ids"], part="cross", **inputs)
mass = relation_mass(maps, relation)
layer, head = best_head(mass)

n_keys = test["attention_mask"].sum(dim=1)
even = (1 / n_keys).repeat_interleave(n_keys - 1).mean().item()
torch.manual_seed(0)
untrained = Transformer(reverser.config)
before = relation_mass(
    attention_maps(untrained, test["input_ids"], part="cross", **inputs),
    relation,
)
with measured():
    for block_mass, name in zip(mass, ("first block", "second block")):
        values = ", ".join(f"{value:.2f}" for value in block_mass.tolist())
        print(f"{name:>12}: {values}")
    print(f"best head: block {layer}, head {head}, counted from 0")
    print(
        f"before training at most {before.max():.2f}; evenly spread {even:.2f}"
    )
assert layer == 1  # the last block, next to the head
assert mass[layer, head] > 0.45
assert mass[0].max() < mass[1].max() - 0.1
assert before.max() < 0.3

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The best head stands in the second block and gives more than 45 % of its attention to the
# letter that is needed. No head of the first block comes near it: at least 10 points are missing.
# Before training no head gives the needed letter 30 %.
# ```
#
# The second block is the last before the head: there, a position has to know its letter. Nobody
# told the model where to look. It has learnt this from pairs of words, because it lowers the loss. Here is
# the best head for one word.

# %%
#| alt: Heat map of the best head for one word of eight letters: the letters written, with EOS, down,
#|   the source letters across. The dark squares lie on a line from the upper right to the lower
#|   left: each letter written looks at its own place in the source. Near the lower end the
#|   weights spread over two or three letters, and EOS looks at the first two.
chosen = next(
    i
    for i, word in enumerate(test["input_ids"])
    if right[i] and len(text(word)) == 8
)
source_tokens = [*text(test["input_ids"][chosen]), "EOS"]
target_tokens = [*text(test["labels"][chosen]), "EOS"]
plot_attention(
    maps,
    target_tokens,
    key_tokens=source_tokens,
    layer=layer,
    head=head,
    row=chosen,
    title="The letter to write, and where it looks",
)
plt.show()

# %% [markdown]
# The labels on the left are the letters that each position *writes*, not those that it reads. Follow
# the dark squares: the first letter written looks at the last letter of the source, the second at
# the one before it.
#
# The same weights follow as a view that you can explore. Point at a letter, or move to it with the Tab
# key and the arrow keys. It begins with the best head.

# %%
attention_view(
    maps,
    target_tokens,
    key_tokens=source_tokens,
    row=chosen,
    layer=layer,
    head=head,
    title="Cross-attention of the reversing model",
)

# %% [markdown]
# Now choose the first block in the view. Its heads spread their attention over several letters around
# the needed one. How can they help? Attention is only one way in which information moves: a vector of
# the encoder may also contain something about the letters beside it, and each block of the decoder
# adds to what the blocks before it have found.

# %% [markdown]
# ## Exercises
#
# ```{exercise} Cross-attention by hand
# :label: ex-07-cross
# *10 minutes, easy.* Write `cross_attention(y, states, w_q, w_k, w_v, source_mask)` for one head:
# formula {eq}`eq-07-cross` with a padding mask. `y` is `[T, D]`, `states` `[S, D]`, the matrices are
# `[D, K]`, and `source_mask` `[S]` is `True` where there is a token. Use matrices, no loops.
#
# *Hint 1.* Which of the two texts do queries come from? *Hint 2.* `masked_fill` with `-torch.inf`
# before the softmax. Which axis must sum to 1?
# ```

# %% [markdown]
# ```{solution-start} ex-07-cross
# :class: dropdown
# ```


# %%
def cross_attention(y, states, w_q, w_k, w_v, source_mask) -> torch.Tensor:
    ### BEGIN SOLUTION
    q, k, v = y @ w_q, states @ w_k, states @ w_v
    scores = q @ k.T / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~source_mask, -torch.inf)
    return scores.softmax(dim=-1) @ v
    ### END SOLUTION


# %% [markdown]
# The mask has the shape `[S]` and is applied to every row of `[T, S]`: padding is hidden from all
# queries alike.
#
# ```{solution-end}
# ```

# %%
ch07.check_cross_attention(cross_attention)

# %% [markdown]
# ```{exercise} The two masks of the decoder
# :label: ex-07-masks
# *10 minutes, easy.* Write `decoder_masks(n_target, source_mask)`. It returns two bool tensors,
# `True` where a position may attend: the mask of the self-attention, `[T, T]`, and that of the
# cross-attention, `[T, S]`. `source_mask` is `[S]`, `True` where there is a token.
#
# *Hint.* Rows are queries. Which of the two masks depends on the order of the target?
# ```

# %% [markdown]
# ```{solution-start} ex-07-masks
# :class: dropdown
# ```


# %%
def decoder_masks(
    n_target: int, source_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    ### BEGIN SOLUTION
    to_itself = torch.ones(n_target, n_target).tril().bool()
    to_source = source_mask.bool().expand(n_target, -1)
    return to_itself, to_source
    ### END SOLUTION


# %% [markdown]
# A position sees itself, so the diagonal belongs to the first mask. The second has equal rows: the
# whole source is known at every step.
#
# ```{solution-end}
# ```

# %%
ch07.check_decoder_masks(decoder_masks)

# %% [markdown]
# ```{exercise} Count the parameters
# :label: ex-07-count
# *15 minutes, medium.* Equation {eq}`eq-07-parameters` is for a shared table and for attention
# without biases. Write `count_parameters` for the general case. Its arguments stand in the cell
# below: when `tied` is `False`, the head has a table of its own (source and target still share
# one); when `attention_bias` is `True`, each of the four projections of an attention layer has a
# bias, as in PyTorch.
#
# *Hint.* How many attention layers has a decoder block?
# ```

# %% [markdown]
# ```{solution-start} ex-07-count
# :class: dropdown
# ```


# %%
def count_parameters(
    vocab_size: int,
    n_layers: int,
    n_decoder_layers: int,
    d_model: int,
    d_ff: int,
    tied: bool,
    attention_bias: bool,
) -> int:
    ### BEGIN SOLUTION
    d = d_model
    attention = 4 * d**2 + (4 * d if attention_bias else 0)
    feed_forward = 2 * d * d_ff + d_ff + d
    norm = 2 * d
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    tables = (1 if tied else 2) * vocab_size * d
    return tables + n_layers * encoder + n_decoder_layers * decoder
    ### END SOLUTION


# %% [markdown]
# With biases the base model has 36,864 parameters more: eighteen attention layers with
# {math}`4 \cdot 512` each. That is too little to explain the 65 million of the paper.
#
# ```{solution-end}
# ```

# %%
ch07.check_count_parameters(count_parameters)

# %% [markdown]
# ```{exercise} Label smoothing by hand
# :label: ex-07-smoothing
# *15 minutes, medium.* Write `smoothed_loss(logits, labels, epsilon)`: the **mean** of
# {eq}`eq-07-smoothing` over counted labels, without loops. `logits` are `[B, T, V]`, `labels`
# `[B, T]`, and −100 is not counted.
#
# *Hint.* The sum over {math}`v` has two parts: {math}`1-\epsilon` times the log-probability of the
# right token, and {math}`\epsilon` times the *mean* of all log-probabilities.
# ```

# %% [markdown]
# ```{solution-start} ex-07-smoothing
# :class: dropdown
# ```


# %%
def smoothed_loss(
    logits: torch.Tensor, labels: torch.Tensor, epsilon: float
) -> torch.Tensor:
    ### BEGIN SOLUTION
    log_p = logits.log_softmax(dim=-1)
    counted = labels != -100
    picked = log_p.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    wanted = (1 - epsilon) * picked + epsilon * log_p.mean(dim=-1)
    return -(wanted * counted).sum() / counted.sum()
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch07.check_smoothed_loss(smoothed_loss)

# %% [markdown]
# ```{exercise} Shift right
# :label: ex-07-shift
# *5 minutes, easy.* Write `decoder_input(labels, start_id, pad_id)` for labels `[B, T]`, in which
# −100 stands where nothing is counted. The labels themselves must not change. What would go wrong if −100 stayed in
# the input?
#
# *Hint.* The last label of a row is never read.
# ```

# %% [markdown]
# ```{solution-start} ex-07-shift
# :class: dropdown
# ```


# %%
def decoder_input(
    labels: torch.Tensor, start_id: int, pad_id: int
) -> torch.Tensor:
    ### BEGIN SOLUTION
    start = torch.full_like(labels[:, :1], start_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_id)
    ### END SOLUTION


# %% [markdown]
# The embedding table has no row −100, so the model would refuse the input. Which token replaces it
# does not matter: with the causal mask it can only reach positions after it, and their labels are
# not counted.
#
# ```{solution-end}
# ```

# %%
ch07.check_decoder_input(decoder_input)

# %% [markdown]
# ## What to keep
#
# The encoder reads a complete text, so each of its positions sees all others. The decoder writes, so
# its self-attention has a causal mask; without it training teaches copying. Cross-attention is the
# same formula with queries of the decoder and keys and values of the encoder, and the latter are
# computed once. Padding of the source is hidden in both stacks. The decoder's input is the target
# shifted right, always with the right tokens in training, never in use. Label smoothing limits how sure
# a model becomes, and its loss has a floor above zero.
#
# In [chapter 08](08_translate.ipynb) this model learns to translate.
