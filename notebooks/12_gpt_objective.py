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
# # 12 GPT: predicting the next token
#
# BADGE
#
# **You will** turn the probability of a text into a product of guesses, derive the loss that
# trains every GPT, find out why labels must be shifted exactly once, look at the model that makes
# the guesses, and learn in which units to compare two language models.
#
# **Needs** Python, matrices, the softmax of [chapter 00](00_setup.ipynb). **Runs** in 40 seconds on one core.
# **Source** {cite:p}`radford2018,radford2019`; `llm_course/losses/causal.py`,
# `llm_course/models/gpt.py`.
#
# Names such as F12 and F13 in docstrings are ids of formulas in the article that this course
# follows. The [source map](../book/source_map.md) lists them.

# %% [markdown]
# COLAB

# %%
import copy
import inspect
import itertools
import math
import random
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm

from llm_course import GPT, GPTConfig
from llm_course.losses.causal import causal_lm_loss, cross_entropy_sum
from llm_lab.checks import ch12
from llm_lab.pictures.measured import measured
from llm_town import generate_documents

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## The probability of a text
#
# A language model answers one question: *how probable is this text?* The first idea is to count.
# Take a large library, count how often the text occurs, and divide by the number of texts. But most
# texts of fifty words have never been written before. The count of a new text is zero, and so is
# the count of every other new text. A model that counts whole texts cannot compare two new ones.
#
# Here is a story from *Town*, the text that this course trains on. A program writes these stories,
# so we can have as many as we want. We take 2,000 others as the library.

# %%
story = next(generate_documents(1, seed=2, split="train"))
print(story.text)

library = [d.text for d in generate_documents(2000, seed=1, split="train")]
assert story.text not in library
print(f"\nthis story occurs {library.count(story.text)} times in the library")
opening = "Beside the library of"
times = sum(text.startswith(opening) for text in library)
print(f"stories that begin with {opening!r}: {times}")
history = story.text.rsplit(" ", 1)[0]  # all words but the last
times = sum(text.startswith(history) for text in library)
print(f"stories that begin with all its words but the last: {times}")
assert times == 0

# %% [markdown]
# The second idea is to read the text from left to right, and to ask a smaller question at each word:
# *given what I have read, which word comes next?* The beginning of the story can be counted, even
# though the whole story cannot.
#
# The rule that puts the small answers together is the chain rule of probability:
#
# $$p(w) = \prod_{i=1}^{n} p(w_i \mid w_{<i})$$ (eq-gpt-product)
#
# Here {math}`w = (w_1, \dots, w_n)` is the text, {math}`w_i` its {math}`i`-th token, and
# {math}`w_{<i}` are all tokens before it. Nothing is approximated: {eq}`eq-gpt-product` holds for
# every probability distribution over texts. It is the definition of conditional probability,
# applied {math}`n` times.
#
# But the chain rule only moves the problem. Near the end of the text the history {math}`w_{<i}` is
# almost as long as the text, and just as new: the last line above counts zero of them. A model has to decide what it
# forgets. The simplest one keeps a single word, the last. It is called a **bigram** model: count
# which word follows which, and divide by how often the first word occurs. A word is here what
# stands between two spaces, so that "Dalden," with its comma is one word.

# %% tags=["covers-F13"]
START, END = "<start>", "<end>"
follows = defaultdict(Counter)  # follows[a][b]: how often b comes after a
for text in library:
    for first, second in itertools.pairwise([START, *text.split(), END]):
        follows[first][second] += 1

words = [START, *story.sentences[0].split()]
guesses = []
for previous, word in itertools.pairwise(words):
    seen, all_seen = follows[previous][word], follows[previous].total()
    guesses.append(seen / all_seen)
    print(f"{word:>12}  {seen:4d} of {all_seen:4d}  {guesses[-1]:.3f}")
assert guesses.count(0) == 1
assert follows["lived"].total() > 1000
print(f"product: {math.prod(guesses)}")
print(f"different words seen after 'a': {len(follows['a'])}")

# %% [markdown]
# The product is zero. "lived" occurs more than a thousand times in the library, but never before
# "Dalden,". One pair that was never seen makes the whole sentence impossible, although it is an
# ordinary sentence of Town. **Counting pairs fails in the same way as counting texts, only later.**
# A softmax does not have this fault: {math}`e^z` is positive for every score {math}`z`, so no word
# gets the probability zero.

# %%
#| alt: Bar chart on a logarithmic axis with a bar for each of the nine words of the sentence.
#|   "the" reaches 1. The other bars lie between 0.02 and 0.5, except the last one: "carpenter." has
#|   0.002. In the place of "Dalden," there is no bar but the text "never seen".
figure, axes = plt.subplots(figsize=(7, 3.2))
axes.bar(range(len(guesses)), guesses, color="#0072B2")
axes.set_yscale("log")
axes.set_ylim(1e-3, 1.5)
hole = guesses.index(0)
red = "#D55E00"
axes.text(hole, 1.3e-3, "never seen", rotation=90, ha="center", color=red)
axes.set_xticks(range(len(guesses)), words[1:], rotation=60, ha="right")
axes.set_ylabel("probability, given the word before")
axes.set_title("One pair that was never seen makes the product zero")
plt.show()

# %% [markdown]
# The heights differ by a factor of several hundred. After "Beside" only one word was ever seen.
# After "a" hundreds of words are possible, and one word of memory does not tell which. How much is
# forgotten becomes visible when the model writes. Start at the start, draw the next word with the
# counted probabilities, and repeat until a full stop.

# %%
draw = random.Random(5)
sentence = [START]
while not sentence[-1].endswith((".", END)):
    choices = follows[sentence[-1]]
    sentence += draw.choices(list(choices), list(choices.values()))
print(" ".join(sentence[1:]))

# %% [markdown]
# Each pair of neighbours stands somewhere in the library, but the sentence as a whole has no
# meaning. The model remembers one word. When it writes "his", it does not know who was named
# before, or whether it was a man. When it writes "called", it does not know that somebody lives
# somewhere.
#
# To count longer histories does not help much, since fewer of them occur twice. A neural network
# reads the whole history, turns it into a vector, and learns **which histories are alike**: what
# it has learnt about one name can serve for another name. Most of this chapter is about the loss of
# such a model; its parts come near the end.

# %% [markdown]
# ## Do the probabilities sum to one?
#
# Equation {eq}`eq-gpt-product` makes a promise that we can test. If each conditional distribution
# sums to one over the vocabulary, the products must sum to one over *all texts of {math}`n`
# tokens*. (For texts of all lengths together, the end must be a token as well: a text of three
# tokens is then three guesses and the guess END.) For a vocabulary of 50,000 tokens nobody can add
# them all up. For a vocabulary of five tokens and texts of four tokens there are
# {math}`5^4 = 625` texts, and we can.
#
# We need a model that gives us the conditional distributions. This is a GPT with random weights.
# It returns **logits**: at each position one score for every token of the vocabulary, which a softmax turns
# into probabilities. `log_softmax` gives their logarithms. Token 0 is the *beginning-of-sequence*
# token, BOS: it stands before the first word, so that the first factor
# {math}`p(w_1 \mid w_{<1})` has something to be conditioned on.

# %%
BOS = 0
torch.manual_seed(0)
config = GPTConfig(
    vocab_size=5,
    n_layers=2,
    d_model=16,
    n_heads=2,
    n_positions=8,
    dropout=0.0,
)
tiny = GPT(config)
tiny = tiny.double().eval()

texts = torch.tensor(list(itertools.product(range(5), repeat=4)))
rows = torch.cat([torch.full((len(texts), 1), BOS), texts], dim=1)
with torch.no_grad():
    log_p = tiny(rows).log_softmax(dim=-1)
print(f"{len(texts)} texts, log-probabilities of shape {tuple(log_p.shape)}")

# %% [markdown]
# `log_p[b, i, v]` is the log-probability that token `v` comes after the tokens `rows[b, : i +
# 1]`. Notice the position: **the output at position i speaks about the token at position i + 1**.
# So we pick the outputs at positions 0 to 3, and look up the tokens at positions 1 to 4. `gather`
# does the looking up.

# %% tags=["covers-F13"]
picked = log_p[:, :-1].gather(-1, rows[:, 1:, None]).squeeze(-1)
p_text = picked.sum(dim=1).exp()
total = p_text.sum().item()
assert abs(total - 1) < 1e-12  # the chain rule keeps its promise
print(f"sum over all {len(texts)} texts: {total:.6f}")

own_place = log_p[:, 1:].gather(-1, rows[:, 1:, None]).squeeze(-1)
misaligned = own_place.sum(dim=1).exp().sum().item()
print(f"the same sum with each token's own output: {misaligned:.3f}")
assert abs(misaligned - 1) > 0.5

# %% [markdown]
# The sum is one to twelve digits. The second number comes from a mistake of one place: it looks
# up each token in the output *at its own position*, that is, in a distribution which has already
# seen it. Those products are no longer a probability distribution, and their sum is about two. This
# test needs no training and takes a fraction of a second.

# %%
#| alt: Heat map with five rows, one for each first token, and five columns, one for each second
#|   token. All 25 squares lie between 0.03 and 0.07. The first row is the brightest, and in every
#|   row the square on the diagonal is brighter than the other four. The pair of token 0 and token
#|   0 is the brightest of all.
pair_p = p_text.reshape(5, 5, 25).sum(dim=2)
figure, axes = plt.subplots(figsize=(4, 3.4))
image = axes.imshow(pair_p, cmap="cividis", vmin=0)
figure.colorbar(image, label="probability of the pair")
axes.set_xlabel("second token")
axes.set_ylabel("first token")
axes.set_title("All texts that begin with this pair")
plt.show()

# %%
diagonal = torch.arange(5)
assert (pair_p.argmax(dim=1) == diagonal).all()  # the largest of each row
assert pair_p.sum(dim=1).argmax() == BOS
print(f"smallest {pair_p.min():.3f}, largest {pair_p.max():.3f}")

# %% [markdown]
# Each square adds up the 25 texts that begin with one pair of tokens. The untrained model is near
# {math}`1/25` on each pair, but not equal to it. In each row the diagonal is the brightest square:
# the model prefers to repeat the token that it has just read. The reason is that its head scores a
# vector against the embedding of each token, and the vector still contains the embedding of the
# last token. The first row is the brightest for the same reason: before the first token the model
# has read BOS, which is token 0 here.
#
# Training moves probability from texts that nobody writes to texts that somebody does. The sum
# stays one: what one text gains, others lose.

# %% [markdown]
# ## From a product to a loss
#
# We want a model that gives high probability to the texts we have. A product of many small numbers
# is difficult to compute with. Even the program that wrote the story above, which knows all its
# rules, gives it a very small probability. And a product of fifty factors of one tenth is already
# too small for a 32-bit number:

# %%
power = story.log_prob / math.log(10)
print(f"the story: log p = {story.log_prob:.1f} nats, p = 10 ** {power:.1f}")
factors = torch.full((50,), 0.1)
print(f"product of 50 factors 0.1: {factors.prod().item()}")
print(f"sum of their logarithms: {factors.log().sum().item():.2f}")
assert factors.prod() == 0

# %% [markdown]
# The logarithm turns the product into a sum, and the text with the larger product also has the
# larger sum. With the sign turned around it becomes a number to make small:
#
# $$\mathcal L_\text{GPT} = -\sum_{i=1}^{n} \log p(w_i \mid w_{<i})$$ (eq-gpt-loss)
#
# Its unit is the **nat**. A token that the model expected with probability 1 costs nothing. A
# token that it gave probability {math}`1/e` costs one nat. A token of probability zero, such as
# "Dalden," in the bigram model, costs infinitely much. With a softmax every cost is finite.
#
# In a program the text is a row of {math}`T` tokens. The first one is given and not guessed; it is
# BOS in most programs. So a row of {math}`T` tokens has {math}`T - 1` guesses, and {math}`n = T - 1` in
# {eq}`eq-gpt-loss`. The formula as two loops:


# %% tags=["covers-F12"]
def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """F12 as two loops and a softmax: slow, but close to the formula."""
    total = 0.0
    for row_logits, row_labels in zip(logits.tolist(), labels.tolist()):
        for i in range(1, len(row_labels)):
            if row_labels[i] == -100:
                continue
            scores = row_logits[i - 1]  # the output before token i
            normaliser = sum(math.exp(score) for score in scores)
            total -= math.log(math.exp(scores[row_labels[i]]) / normaliser)
    return total


# %% [markdown]
# And the function of the package, which the labs train with, and the one that does its sum:

# %%
print(inspect.getsource(inspect.unwrap(causal_lm_loss)))
print(inspect.getsource(inspect.unwrap(cross_entropy_sum)))

# %% [markdown]
# Two words of its docstring are new. A **micro-batch** is a part of a batch, computed by itself
# because the whole does not fit into memory. A **rank** is one of several processes that train
# together. These lines contain three decisions.
#
# The labels arrive **unshifted**: `labels[i]` is the token at position `i`. The function itself
# puts outputs and labels one place apart, and nobody else does. A label of **−100** means *do not
# count this one*. And the function returns a **sum and a count**, not a mean; the section [The mean
# is over counted labels](#the-mean-is-over-counted-labels) shows why.
#
# Formula and function must agree. In 64-bit numbers the difference is below {math}`10^{-10}`.

# %% tags=["covers-F12"]
logits = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
labels = torch.randint(11, (3, 7), generator=generator)
labels[1, 4:] = -100  # this row is shorter: its last three places are padding
loss, count = causal_lm_loss(logits, labels)
assert abs(loss.item() - plain_loss(logits, labels)) < 1e-10
assert count == 3 * 6 - 3
print(f"{loss:.3f} nats over {count} labels, mean {loss / count:.3f}")

again, fewer = causal_lm_loss(logits[:, :-1], labels[:, 1:])  # shifted before
assert fewer == 3 * 5 - 3
assert abs(again / fewer - loss / count) > 1e-3
print(f"{again:.3f} nats over {fewer} labels, mean {again / fewer:.3f}: twice")

# %% [markdown]
# Three rows of seven tokens have {math}`3 \cdot 6 = 18` guesses, and three of the labels are −100:
# 15 count. When the caller shifts too, each row loses one more guess, and 12 count. Sums over
# different counts cannot be compared, but the means differ as well: it is another function.
#
# The gradient of this loss has a short formula. For one guess with the logits {math}`z` and
# the right token {math}`y`, the derivative is
# {math}`\partial \mathcal L / \partial z_v = \operatorname{softmax}(z)_v - [v = y]`, where the
# bracket is 1 for the right token and 0 for all others. Autograd, the part of PyTorch that computes
# derivatives, must find the same.

# %%
z = torch.tensor([2.0, 1.0, 0.0, -1.0], requires_grad=True)
right_token = torch.tensor(1)
torch.nn.functional.cross_entropy(z, right_token).backward()
one_hot = torch.nn.functional.one_hot(right_token, 4)
by_hand = z.detach().softmax(dim=0) - one_hot
assert torch.allclose(z.grad, by_hand, atol=1e-6)
print("autograd:         ", [f"{value:.3f}" for value in z.grad])
print("softmax - one-hot:", [f"{value:.3f}" for value in by_hand])

# %% [markdown]
# A step against the gradient raises the score of the right token and lowers the others, each in
# proportion to the probability that it had. The numbers sum to zero.
#
# The loss of a text and its probability contain the same information: {math}`e^{-\mathcal L}` is
# the probability. We compare the function with the 625 probabilities from before.

# %% tags=["covers-F12", "covers-F13"]
with torch.no_grad():
    for index in (0, 123, 624):
        one = rows[index : index + 1]
        total, n = causal_lm_loss(tiny(one), one)
        assert n == 4
        assert abs(math.exp(-total) - p_text[index].item()) < 1e-12
        p = math.exp(-total)
        print(f"text {index:3d}: {total:.3f} nats, exp(-loss) = {p:.6f}")

# %% [markdown]
# ## Shift exactly once
#
# What happens when the shift is forgotten, or done twice? There is no error message. The shapes fit,
# the loss goes down, and the model is useless. So we make both mistakes on purpose and look at the
# curves.
#
# The text is one that a model can learn in seconds: in each row the tokens go up by a fixed step
# from 1 to 5, modulo 12. Two tokens determine all that follow.


# %%
def counting_rows(number: int, seed: int) -> torch.Tensor:
    """Rows such as 5 8 11 2 5: random start, random step from 1 to 5."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randint(12, (number, 1), generator=g)
    step = torch.randint(1, 6, (number, 1), generator=g)
    return (start + step * torch.arange(10)) % 12


def unshifted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    flat = logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, labels.flatten())


def once(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    total, n = causal_lm_loss(logits, labels)
    return total / n


def twice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return once(logits[:, :-1], labels[:, 1:])  # shifted here, and in once


def train_counting(loss_fn, steps: int = 500) -> tuple[list[float], GPT]:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=12,
        n_layers=2,
        d_model=48,
        n_heads=4,
        n_positions=10,
        dropout=0.0,
    )
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = counting_rows(64, seed=step)
        loss = loss_fn(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.eval()


curves, models = {}, {}
programs = {"once": once, "not at all": unshifted_loss, "twice": twice}
for name, loss_fn in programs.items():
    curves[name], models[name] = train_counting(loss_fn)

# %% [markdown]
# How low can the loss of a correct program be here? The step is one of five, and the second token of
# a row depends on it. Nobody can guess this token for less than {math}`\log 5` nats on average. All later tokens
# can be known exactly. With one shift a row of ten tokens has nine guesses, and one of them costs
# {math}`\log 5`: the floor is {math}`\log 5 / 9`. With two shifts there are eight guesses. The first
# of them is the guess of the third token, when only the first token is known. It also costs
# {math}`\log 5`, and the floor is {math}`\log 5 / 8`.

# %%
#| alt: Three loss curves over 500 steps on a logarithmic axis, and two dashed lines, the floors
#|   0.179 and 0.201. The curves begin between 2 and 2.6. The one without a shift crosses both lines
#|   before step 100 and ends below 0.01. Those with one shift and with two shifts stay close
#|   together, become nearly flat after step 300, and end just above the dashed lines.
floors = {"once": math.log(5) / 9, "twice": math.log(5) / 8}
colors = {"once": "#0072B2", "not at all": "#D55E00", "twice": "#009E73"}
figure, axes = plt.subplots(figsize=(7, 3.6))
for name, losses in curves.items():
    axes.plot(losses, color=colors[name], lw=1, label=f"shifted {name}")
for name, floor in floors.items():
    label = f"floor, shifted {name}"
    axes.axhline(floor, color=colors[name], ls="--", lw=1, label=label)
axes.set_yscale("log")
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per token")
axes.set_title("The lowest loss belongs to the wrong program")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The run without a shift has by far the lowest loss. Its task is to predict the token that it has
# just read, and copying is easy. The run with two shifts learns to predict the token *after* the
# next one, which is a possible task, so its curve looks like the right one.
#
# The curves do not show which program is right. A test does: give each model the first four tokens
# of a row, and look at the token that it finds likeliest.


# %%
def shares(model: GPT, rows: torch.Tensor, given: int = 4) -> list[float]:
    """How often the guess is the last token, the next, the next but one."""
    with torch.no_grad():
        guess = model(rows[:, :given])[:, -1].argmax(dim=-1)
    places = range(given - 1, given + 2)
    return [(guess == rows[:, i]).float().mean().item() for i in places]


unseen = counting_rows(500, seed=10_000)
found = {name: shares(model, unseen) for name, model in models.items()}
ends = {name: sum(losses[-50:]) / 50 for name, losses in curves.items()}
with measured():
    print(f"{'shifted':>10}  last loss  the last  next  next but one")
    for name, (last, following, later) in found.items():
        accuracies = f"{last:9.2f} {following:5.2f} {later:13.2f}"
        print(f"{name:>10} {ends[name]:10.3f} {accuracies}")
assert found["once"][1] > 0.95
assert found["once"][2] < 0.05
assert found["not at all"][0] > 0.95
assert found["not at all"][1] < 0.05
assert found["twice"][2] > 0.95
assert found["twice"][1] < 0.05
floor = floors["once"]
assert floor - 0.01 < ends["once"] < 1.2 * floor
assert floors["twice"] - 0.01 < ends["twice"] < 1.2 * floors["twice"]
assert ends["not at all"] < 0.1 * floor

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# With one shift, the guess is the next token in more than 95 % of unseen rows. With two shifts it is
# the next but one in more than 95 %, and the next in fewer than 5 %. Without a shift it repeats the
# last token. The mean loss of the last 50 steps with one shift is less than 1.2 times the floor of
# 0.179.
# ```
#
# Why can no model go below the floor? Let {math}`q` be the distribution that the text comes from,
# and {math}`p` that of the model. The average loss is the cross-entropy of the two, and
#
# $$-\sum_w q(w)\log p(w) = -\sum_w q(w)\log q(w) + \sum_w q(w)\log\frac{q(w)}{p(w)}
# \;\ge\; -\sum_w q(w)\log q(w)$$ (eq-entropy-floor)
#
# The last sum on the left of the sign {math}`\ge` is the Kullback-Leibler divergence, which is never
# negative. What remains is the entropy of the text: this is the **floor**.
#
# On unseen text, averaged over enough of it, a loss **below the floor is a proof of a bug**. The two
# conditions matter. A model can memorise its training text, and the loss of a single batch can
# be low by chance. This is why this course trains on text whose floor is known.

# %% [markdown]
# ## The mask that makes it honest
#
# This section and the next need the parts of the model, so here is one sentence for each. An
# **embedding** is a table with a vector for each token, and a second one with a vector for each
# position; their sum is the vector that a position begins with. The **residual stream** is this
# vector on its way through the model: every layer adds something to it. **Attention** gives each
# position a weighted average of vectors computed from other positions; the weights are a softmax
# of scores, and the scores depend on what stands at both positions. The **feed-forward layer** is
# a small network with one inner layer, applied to each position by itself. **LayerNorm** shifts
# and scales a vector so that its numbers have mean 0 and variance 1, and then multiplies and adds
# learnt numbers. The **head** turns the last vector into logits.
#
# In training, all positions of a row are computed at once. Position 3 must predict token 4, and
# token 4 is part of the input. The **causal mask** prevents the model from using it: in every
# attention layer, position {math}`i` may attend to positions {math}`j \le i` only. The scores of
# all other positions are set to {math}`-\infty` before the softmax.
#
# What would happen without it? We call the blocks of the tiny model with a mask of ones, which
# hides nothing, and add up the 625 texts again. We also do it with all matrices ten times as large,
# because attention does little in a model with very small weights.


# %%
def enlarged(model: GPT, factor: float) -> GPT:
    """A copy in which every matrix is multiplied by the factor."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model


def without_mask(model: GPT, rows: torch.Tensor) -> torch.Tensor:
    length = rows.shape[1]
    everything = torch.ones(length, length, dtype=torch.bool)
    x = model.token_embedding(rows) + model.position_embedding.weight[:length]
    for block in model.decoder:
        x = block(x, mask=everything)
    return model.head(model.norm(x))


def sum_over_texts(logits: torch.Tensor) -> float:
    log_p = logits[:, :-1].log_softmax(dim=-1)
    picked = log_p.gather(-1, rows[:, 1:, None]).squeeze(-1)
    return picked.sum(dim=1).exp().sum().item()


for factor in (1, 10):
    model = enlarged(tiny, factor)
    with torch.no_grad():
        masked = sum_over_texts(model(rows))
        unmasked = sum_over_texts(without_mask(model, rows))
    assert abs(masked - 1) < 1e-12
    assert abs(unmasked - 1) > 1e-3
    print(f"weights x {factor:2d}: mask {masked:.3f}, no mask {unmasked:.3f}")

# %% [markdown]
# Without the mask the sum is not one. The guess of a token depends on that token, so the numbers are
# not conditional probabilities, and their product is not the probability of the text. A loss
# computed from them means nothing.
#
# There is a second test, which needs no sum. Change one token, and see which outputs move.

# %%
length = 8
row = torch.randint(1, 5, (1, length), generator=generator)
moved = torch.zeros(length, length, dtype=torch.float64)
with torch.no_grad():
    before = tiny(row)
    for j in range(length):
        changed = row.clone()
        changed[0, j] = (row[0, j] + 1) % 5
        moved[j] = (tiny(changed) - before).abs().amax(dim=-1)[0]

past = torch.ones(length, length).tril(-1).bool()  # outputs i < j
assert (moved[past] == 0).all()  # not small: exactly zero
assert (moved[~past] > 0).all()
print("largest change before the changed token:", moved[past].max().item())
later = torch.ones(length, length).triu(1).bool()
print(f"smallest change at the token itself: {moved.diagonal().min():.3f}")
print(f"largest change after it: {moved[later].max():.3f}")
assert moved.diagonal().min() > 5 * moved[later].max()

# %%
#| alt: Square heat map with eight rows and eight columns and a logarithmic colour scale. Row j
#|   shows how much each output moved when token j was changed. The squares on the diagonal are
#|   bright, between 0.2 and 0.4. Those to the right of it are darker, below 0.03, but none of them is
#|   empty. Everything to the left of the diagonal is empty.
figure, axes = plt.subplots(figsize=(4.4, 3.6))
shown = moved.masked_fill(past, float("nan"))
image = axes.imshow(shown, cmap="cividis", norm=LogNorm())
figure.colorbar(image, label="largest change of a logit")
axes.set_xlabel("output at position i")
axes.set_ylabel("changed token j")
axes.set_title("Nothing before the change moves")
plt.show()

# %% [markdown]
# The rows are causes and the columns are effects. Read a row from left to right. Until the changed
# token is reached there is exactly nothing, not even a rounding error. Why exactly zero? The softmax
# weight of the score {math}`-\infty` is {math}`e^{-\infty} = 0`, and zero times a finite number adds
# nothing to a sum. From the changed token on, every output moves. The diagonal is much brighter: the
# output at the changed token gets the new embedding directly through the residual stream, while
# later positions get it only through attention, whose weights are still small.
#
# The article that this course follows describes the decoder without its mask. A model built from
# that description can look at its own labels, and its loss can fall below the floor as in the
# experiment above.

# %% [markdown]
# ## The model
#
# GPT-2 consists of three parts: embeddings, a stack of equal blocks, and a head that turns vectors
# into logits. This is the block:

# %% tags=["covers-G2"]
from llm_course.models.gpt import GPTBlock

print(inspect.getsource(inspect.unwrap(GPTBlock)))

# %% [markdown]
# The last lines of `forward` are the block. `x` is the residual stream. First, attention lets
# each position collect information from earlier positions. Then the feed-forward layer works on
# each position by itself. Both read a normalised copy of the stream, and both add their result to
# the stream itself. This is called *pre-norm*. From the head back to the embeddings the stream
# consists of additions and one last norm, so a gradient can reach the first block without passing
# through the layers between. (`cache` is for writing text, and not needed here.)
#
# How large is it? With the published sizes the number of parameters must be that of the published
# weights. The `meta` device counts without reserving memory.

# %%
with torch.device("meta"):
    gpt2 = GPT(GPTConfig())
parameters = sum(p.numel() for p in gpt2.parameters())
assert parameters == 124_439_808
d, f, v, n, layers = 768, 3072, 50_257, 1024, 12
attention, feed_forward, norms = 4 * d * d + 4 * d, 2 * d * f + f + d, 4 * d
block = attention + feed_forward + norms
assert parameters == v * d + n * d + layers * block + 2 * d
print(f"{parameters:,} parameters, {block:,} in each of {layers} blocks")
print(f"an untied head would add {v * d:,}")

# %% [markdown]
# The sum in the cell follows the structure: a table of tokens, a table of positions, twelve
# blocks and a last norm. The head has no parameters of its own. It is the token table, used a
# second time: a vector is scored against the embedding of every token. This is called *tying*, and
# the second line says what it saves. The paper of GPT-2 gives 117 million parameters for this model.
# The weights that were released have 124,439,808, and this is the number that the cell checks.

# %% [markdown]
# ## Before any training
#
# A new model has learnt nothing, and the best that it can do is to give every token the probability
# {math}`1/V`. Its loss is then {math}`\log V` nats per token. Weights that are too large make a new
# model sure of something, and it is usually wrong. We multiply all matrices by 1, 10 and 20.

# %%
torch.manual_seed(0)
config = GPTConfig(
    vocab_size=1000,
    n_layers=4,
    d_model=64,
    n_heads=4,
    n_positions=64,
)
fresh = GPT(config)
fresh.eval()
ids = torch.randint(1000, (8, 64), generator=generator)
print(f"log V = {math.log(1000):.2f}")
starts = {}
for factor in (1, 10, 20):
    with torch.no_grad():
        total, count = causal_lm_loss(enlarged(fresh, factor)(ids), ids)
    starts[factor] = (total / count).item()
    print(f"matrices times {factor:2d}: loss {starts[factor]:.2f}")
assert abs(starts[1] - math.log(1000)) < 0.1
assert starts[1] + 1 < starts[10]
assert starts[10] + 1 < starts[20]

# %% [markdown]
# With the matrices as they are, the loss is close to {math}`\log V`. With larger ones it is far above. So look at the first loss of every training run: if it is well above {math}`\log V`, then
# the weights are too large.

# %% [markdown]
# ## The mean is over counted labels
#
# Equation {eq}`eq-gpt-loss` is a sum, and a program reports a mean. Which mean? Rows have
# different lengths, so batches have different numbers of counted labels. Suppose that a step is
# computed in two parts, because the whole batch does not fit into memory. The first part has 10
# counted labels, the second 990. Taking the mean of each part, and then the mean of the two
# means, gives each of the 10 tokens the weight 1/20 and each of the 990 the weight 1/1980. That is
# 99 times as much.

# %%
sums, counts = [35.0, 1980.0], [10, 990]  # nats; the short part is harder
mean_of_means = sum(s / c for s, c in zip(sums, counts)) / 2
mean = sum(sums) / sum(counts)
print(f"mean of means {mean_of_means:.3f}, mean over labels {mean:.3f}")
print(f"too high by {mean_of_means / mean - 1:.0%}")
weight = (1 / 2 / counts[0]) / (1 / 2 / counts[1])
print(f"a token of the short part weighs {weight:.0f} times as much")

# %% [markdown]
# The first number is too high by 36 percent, and the program runs without any message. So in this
# package a loss function returns sums and counts, and only the training loop divides, after it has
# added them up over all parts and all machines.

# %% [markdown]
# ## Perplexity and bits per byte
#
# Two more units are in use, and both are computed from the loss. The **perplexity** is
#
# $$\text{PPL} = \exp\Bigl(\frac{\mathcal L_\text{GPT}}{n}\Bigr)$$ (eq-perplexity)
#
# A perplexity of 20 means: the loss is that of a choice among 20 equally likely tokens. A model that
# gives each token {math}`1/V` has the perplexity {math}`V`. A model that is always sure and right
# has 1.
#
# Perplexity per token depends on the tokenizer. Cut a text into longer tokens, and
# each of them is harder to guess, but there are fewer. Two models with different tokenizers must
# be compared on something that both share: the text itself. Take the nats of the whole text, turn
# them into bits, and divide by the number of bytes:
#
# $$\text{bits per byte} = \frac{\mathcal L_\text{GPT}}{\log 2 \cdot \text{bytes}}$$ (eq-bits-per-byte)
#
# Here are two models of the same text. Both are unigram models: they know how frequent each token
# is, and nothing else. One reads characters, the other reads words. They count on our library and
# are scored on 300 stories of another split, which they have not seen. Each token is counted once
# more than it occurs (*add-one smoothing*), and one place is kept for a token that is not in the
# table, so that nothing has the probability zero. The end of a story is a token too.
#
# Bits per byte is fair only if each model can give every text a probability. A word model that says
# "here is an unknown word" has not yet said which one. So there is a third row: it spells an
# unknown word with the character model, and a space at its end. The last row is the floor, from the
# probabilities that Town itself gives.


# %%
class Unigram:
    def __init__(self, stories: list[list[str]]) -> None:
        self.counts = Counter(t for story in stories for t in [*story, END])
        self.total = self.counts.total() + len(self.counts) + 1  # 1: unknown

    def nats(self, token: str) -> float:
        return -math.log((self.counts[token] + 1) / self.total)


held_out = list(generate_documents(300, seed=3, split="validation"))
as_characters = [[*document.text, END] for document in held_out]
as_words = [[*document.text.split(" "), END] for document in held_out]
characters = Unigram([list(text) for text in library])
by_words = Unigram([text.split(" ") for text in library])

all_words = [word for story_words in as_words for word in story_words]
unknown = [word for word in all_words if word not in by_words.counts]
spelling = sum(characters.nats(c) for word in unknown for c in word + " ")
n_characters = sum(len(row) for row in as_characters)
character_nats = sum(characters.nats(c) for row in as_characters for c in row)
word_nats = sum(by_words.nats(word) for word in all_words)
floor_nats = -sum(document.log_prob for document in held_out)
size = sum(len(document.text.encode()) for document in held_out)

print(f"{len(unknown)} of {len(all_words)} words are unknown\n")
print(f"{'':>22}  perplexity  bits per byte")
bits = {}
for name, nats, n in (
    ("characters", character_nats, n_characters),
    ("words, not spelt", word_nats, len(all_words)),
    ("words, unknown spelt", word_nats + spelling, len(all_words)),
    ("floor, per word", floor_nats, len(all_words)),
):
    bits[name] = nats / math.log(2) / size
    print(f"{name:>22}  {math.exp(nats / n):10.1f}  {bits[name]:13.2f}")
full = bits["words, unknown spelt"]
assert bits["floor, per word"] < full < bits["characters"] / 2
assert bits["words, not spelt"] < full

# %% [markdown]
# By perplexity the character model looks far better than the word models. By bits per byte it is the
# other way round: to describe the same text, it needs more than twice as many bits. The row
# "not spelt" looks better than it is, because it leaves out the letters of the unknown words. Both
# models are far above the floor, since neither looks at any word before.

# %% [markdown]
# ## Exercises
#
# ```{exercise} The loss by hand
# :label: ex-12-loss
# *10 minutes, easy.* Write `next_token_loss(logits, labels)`: the mean of {eq}`eq-gpt-loss` over
# counted labels, as one number. `labels` are unshifted, and −100 is not counted. Use only
# `log_softmax`, indexing and arithmetic; no loop is needed.
#
# *Hint 1.* Which outputs speak about which labels? *Hint 2.* `gather` refuses −100: replace it
# before, and leave it out after.
# ```

# %% [markdown]
# ```{solution-start} ex-12-loss
# :class: dropdown
# ```


# %%
def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    ### BEGIN SOLUTION
    outputs, targets = logits[:, :-1], labels[:, 1:]
    counted = targets != -100
    log_p = outputs.log_softmax(dim=-1)
    picked = log_p.gather(-1, targets.clamp_min(0)[..., None]).squeeze(-1)
    return -(picked * counted).sum() / counted.sum()
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch12.check_next_token_loss(next_token_loss)

# %% [markdown]
# ```{exercise} All texts of three tokens
# :label: ex-12-sum
# *10 minutes, easy.* Write `total_probability(model, vocab_size, n, bos)`: the sum of
# {eq}`eq-gpt-product` over all {math}`V^n` texts of `n` tokens. The result must be 1 for every
# model with a correct causal mask. What does it become when you forget BOS?
#
# *Hint.* `itertools.product(range(vocab_size), repeat=n)` lists all texts.
# ```

# %% [markdown]
# ```{solution-start} ex-12-sum
# :class: dropdown
# ```


# %%
def total_probability(model: GPT, vocab_size: int, n: int, bos: int) -> float:
    ### BEGIN SOLUTION
    texts = torch.tensor(list(itertools.product(range(vocab_size), repeat=n)))
    rows = torch.cat([torch.full((len(texts), 1), bos), texts], dim=1)
    with torch.no_grad():
        log_p = model(rows).log_softmax(dim=-1)
    picked = log_p[:, :-1].gather(-1, rows[:, 1:, None]).squeeze(-1)
    return picked.sum(dim=1).exp().sum().item()
    ### END SOLUTION


# %% [markdown]
# Without BOS the first token is never predicted, only used: its factor is missing from the
# product. The sum becomes {math}`V`, since each first token brings a whole unit of probability
# with it.
#
# ```{solution-end}
# ```

# %%
ch12.check_total_probability(total_probability)

# %% [markdown]
# ```{exercise} One scale for two models
# :label: ex-12-bits
# *5 minutes, easy.* Write `bits_per_byte(nats_per_token, n_tokens, text)`. Then compare two models
# of the same text of 1,600 bytes: the first has 2.31 nats per token on 400 tokens, the second reads
# characters and has 0.62 nats per character on 1,600 characters. Which one is better? Mind that in
# other texts a character may have more than one byte.
# ```

# %% [markdown]
# ```{solution-start} ex-12-bits
# :class: dropdown
# ```


# %%
def bits_per_byte(nats_per_token: float, n_tokens: int, text: str) -> float:
    ### BEGIN SOLUTION
    return nats_per_token * n_tokens / math.log(2) / len(text.encode("utf-8"))
    ### END SOLUTION


# %%
print(f"tokens:     {bits_per_byte(2.31, 400, 'a' * 1600):.3f} bits per byte")
print(f"characters: {bits_per_byte(0.62, 1600, 'a' * 1600):.3f} bits per byte")

# %% [markdown]
# The model of tokens is better, although 2.31 is more than 0.62.
#
# ```{solution-end}
# ```

# %%
ch12.check_bits_per_byte(bits_per_byte)

# %% [markdown]
# ```{exercise} Find the leak
# :label: ex-12-leak
# *15 minutes, medium.* Write `sees_the_future(model, vocab_size, length)`: return `True` if any
# output at a position before a changed token moves. It must say `False` for an honest GPT and
# `True` for a model with a broken mask, even when the leak reaches only one position ahead, or
# sits only at the end of the row.
# ```

# %% [markdown]
# ```{solution-start} ex-12-leak
# :class: dropdown
# ```


# %%
def sees_the_future(model, vocab_size: int, length: int) -> bool:
    ### BEGIN SOLUTION
    g = torch.Generator().manual_seed(0)
    row = torch.randint(vocab_size, (1, length), generator=g)
    with torch.no_grad():
        before = model(row)
        for j in range(1, length):
            changed = row.clone()
            changed[0, j] = (row[0, j] + 1) % vocab_size
            if not torch.equal(model(changed)[0, :j], before[0, :j]):
                return True
    return False
    ### END SOLUTION


# %% [markdown]
# Every position has to be changed once. A test that changes only the last token would miss a leak
# in the middle, and a test that compares with a tolerance could miss a small one: an honest mask
# gives differences of exactly zero.
#
# ```{solution-end}
# ```

# %%
ch12.check_sees_the_future(sees_the_future)

# %% [markdown]
# ## What to keep
#
# A language model gives a probability to every text, as a product of guesses from left to right.
# Its loss is the negative logarithm of that product. Output {math}`i` speaks about token
# {math}`i + 1`, so labels are shifted once, in one place. With the causal mask no output depends on
# a later token, and the probabilities of all texts of one length sum to one. Loss functions return
# a sum and a count, and the division comes last. On unseen text, averaged over enough of it, a loss
# below the floor is a bug.
#
# In [the next chapter](13_gpt_pretrain.ipynb) the model is trained on Town.
