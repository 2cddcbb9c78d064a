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
# [![Open in Colab](../book/_static/colab-badge.svg)](https://colab.research.google.com/github/llm-course/llm_course/blob/student/12_gpt_objective.ipynb)
#
# **You will** turn the probability of a text into a product of guesses, derive the loss that
# trains every GPT, find out why labels must be shifted exactly once, build the model that makes
# the guesses, and learn in which units to compare two language models.
#
# **Needs** Python, matrices, the softmax. **Runs** in 30 seconds on one core.
# **Source** {cite:p}`radford2018,radford2019`; `llm_course/objectives/causal.py`,
# `llm_course/models/gpt.py`.

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
import itertools
import math
from collections import Counter

import matplotlib.pyplot as plt
import torch

from llm_course import GPT, GPTConfig
from llm_course.checks import ch12
from llm_course.corpus.town import generate_documents
from llm_course.objectives.causal import causal_lm_loss

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## The probability of a text
#
# A language model answers one question: *how probable is this text?* It looks like a question for
# a dictionary. Count how often the text occurs in a large library, and divide. But a text of
# twenty words has almost surely never been written before. Its count is zero, and the count of
# every other new text is zero as well. A model that can only count whole texts knows nothing
# about new ones.
#
# Here is a story from *Town*, the small world of this course. A program writes these stories, so
# we can have as many as we want.

# %%
story = next(generate_documents(1, seed=12, split="train"))
print(story.text)

# %% [markdown]
# The way out is to read the text from left to right, and to ask a smaller question at each word:
# *given what I have read, which word comes next?* Each of the small questions can be answered
# from experience. "He mended the" has been seen before, even when the whole story has not.
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
# The simplest model of this kind looks at one word only. Count which word follows which, and
# divide by how often the first word occurs. We do this on 2,000 stories.

# %% tags=["covers-F13"]
START, END = "<start>", "<end>"
pairs, firsts = Counter(), Counter()
for document in generate_documents(2000, seed=1, split="train"):
    words = [START, *document.text.split(), END]
    pairs.update(itertools.pairwise(words))
    firsts.update(words[:-1])


def bigram_probability(word: str, previous: str) -> float:
    return pairs[previous, word] / firsts[previous] if firsts[previous] else 0.0


words = [START, *story.sentences[0].split()]
guesses = [bigram_probability(word, previous) for previous, word in itertools.pairwise(words)]
for word, guess in zip(words[1:], guesses):
    print(f"{word:>14}  {guess:.3f}")

# %% [markdown]
# The table shows why the small questions are easier, and also why one word of memory is not
# enough. After "a" hundreds of words are possible, and the model cannot know what the sentence is
# about. The product of the column is the probability of the sentence. It is tiny, and this is as
# it should be: there are very many sentences, and they share one unit of probability.

# %% mystnb={"image": {"alt": "Bar chart. For each word of the first sentence, a bar shows the probability that the bigram model gave it, on a logarithmic axis. Words that follow almost surely have bars near 1, names and nouns have bars thousands of times shorter."}}
figure, axes = plt.subplots(figsize=(7, 3))
axes.bar(range(len(guesses)), [max(guess, 1e-5) for guess in guesses], color="#0072B2")
axes.set_yscale("log")
axes.set_xticks(range(len(guesses)), words[1:], rotation=60, ha="right")
axes.set_ylabel("probability, given the word before")
axes.set_title("Some words are easy to guess, a few words carry the news")
plt.show()

# %% [markdown]
# Look at the heights. A full stop after a long sentence is nearly certain. A name or a thing is a
# surprise. Most of the work of a language model goes into the few words that carry the news.

# %% [markdown]
# ## Do the probabilities sum to one?
#
# Equation {eq}`eq-gpt-product` makes a promise that we can test. If each conditional distribution
# sums to one over the vocabulary, the products must sum to one over *all possible texts*. For a
# vocabulary of 50,000 tokens nobody can add them all up. For a vocabulary of five tokens and
# texts of four tokens there are {math}`5^4 = 625` texts, and we can.
#
# We need a model that gives us the conditionals. This is a GPT with random weights. It knows
# nothing yet, but its outputs are probabilities all the same. Token 0 is the
# *beginning-of-sequence* token, BOS: it stands before the first word, so that the first factor
# {math}`p(w_1 \mid w_{<1})` has something to be conditioned on.

# %%
BOS = 0
torch.manual_seed(0)
tiny = GPT(GPTConfig(vocab_size=5, n_layers=2, d_model=16, n_heads=2, n_positions=8, dropout=0.0))
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

misaligned = log_p[:, 1:].gather(-1, rows[:, 1:, None]).squeeze(-1).sum(dim=1).exp()
print(f"the same sum with outputs and tokens one place apart: {misaligned.sum().item():.3f}")
assert abs(misaligned.sum().item() - 1) > 1e-6

# %% [markdown]
# The sum is one to twelve digits. The second number comes from a mistake of one place: it looks
# up each token in the output *at its own position*, that is, in a distribution which has already
# seen it. Those products are no longer a probability distribution, and their sum is not one. This
# is the first test that a language model must pass, and one of the cheapest.

# %% mystnb={"image": {"alt": "Heat map with five rows and five columns, one for each first and second token. Each square shows the probability of that pair of tokens. All squares are close to one twenty-fifth, some a little brighter."}}
pair_p = torch.zeros(5, 5, dtype=torch.float64)
for text, p in zip(texts, p_text):
    pair_p[text[0], text[1]] += p
figure, axes = plt.subplots(figsize=(4, 3.4))
image = axes.imshow(pair_p, cmap="cividis")
figure.colorbar(image, label="probability of the pair")
axes.set_xlabel("second token")
axes.set_ylabel("first token")
axes.set_title("All texts that begin with this pair")
plt.show()

# %% [markdown]
# Each square adds up the 25 texts that begin with one pair of tokens. An untrained model spreads
# its probability almost evenly, about {math}`1/25 = 0.04` on each pair. Training will move
# probability from texts that nobody writes to texts that somebody does. It cannot create any:
# what one text gains, others lose.

# %% [markdown]
# ## From a product to a loss
#
# We want a model that gives high probability to the texts we have. A product of many small
# numbers is a bad thing to compute with: a story of a hundred words has a probability near
# {math}`10^{-150}`, and a longer one is rounded to zero. The logarithm turns the product into a
# sum, and does not move the maximum. With the sign turned around it becomes a number to make
# small:
#
# $$\mathcal L_\text{GPT} = -\sum_{i=1}^{n} \log p(w_i \mid w_{<i})$$ (eq-gpt-loss)
#
# Its unit is the **nat**. A token that the model expected with probability 1 costs nothing. A
# token that it gave probability {math}`1/e` costs one nat. A token that it thought impossible
# costs infinitely much, and that is why a softmax, which never gives exactly zero, stands at the
# end of every model.
#
# The formula, written down as plainly as possible:


# %% tags=["covers-F12"]
def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Equation F12 as two loops and a softmax: slow, and easy to believe."""
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
# And the function of the package, which the labs train with:

# %%
print(inspect.getsource(inspect.unwrap(causal_lm_loss)))

# %% [markdown]
# Three decisions hide in these lines, and each of them is a place where real programs have gone
# wrong.
#
# The labels arrive **unshifted**: `labels[i]` is the token at position `i`. The function itself
# puts outputs and labels one place apart, and nobody else does. A label of **−100** means *do not
# count this one*. And the function returns a **sum and a count**, not a mean. The last section
# but two of this chapter shows why.
#
# Formula and function must agree, to all digits that a 64-bit number has.

# %% tags=["covers-F12"]
logits = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
labels = torch.randint(11, (3, 7), generator=generator)
labels[1, 4:] = -100  # this row is shorter: its last three places are padding
loss, count = causal_lm_loss(logits, labels)
assert abs(loss.item() - plain_loss(logits, labels)) < 1e-10
print(f"{loss.item():.3f} nats over {count.item()} counted labels")

again, _ = causal_lm_loss(logits[:, :-1], labels[:, 1:])  # somebody has shifted before
assert abs(again.item() - loss.item()) > 0.1
print(f"{again.item():.3f} nats when the caller shifts as well: another function")

# %% [markdown]
# Loss and product are the same thing in two coats. {math}`e^{-\mathcal L}` of a text is its
# probability. Let us hold the function against the 625 probabilities from before.

# %% tags=["covers-F12", "covers-F13"]
with torch.no_grad():
    for index in (0, 123, 624):
        total, n = causal_lm_loss(tiny(rows[index : index + 1]), rows[index : index + 1])
        assert n == 4
        assert abs(math.exp(-total.item()) - p_text[index].item()) < 1e-12
        print(
            f"text {index:3d}: loss {total.item():.3f} nats, exp(-loss) = {p_text[index].item():.6f}"
        )

# %% [markdown]
# ## Shift exactly once
#
# What happens when the shift is forgotten, or done twice? Nothing crashes. The shapes fit, the
# loss goes down, and a long training run is wasted. So we commit the crime on purpose and look at
# the curves.
#
# The text is a loop that a model can learn in seconds: in each row the tokens go up by a fixed
# step from 1 to 5, and start again at zero after the last one. From two tokens you know all
# others.


# %%
def counting_rows(number: int, seed: int) -> torch.Tensor:
    """Rows such as 5 8 11 2 5: start and step (1 to 5) are random, tokens are modulo 12."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randint(12, (number, 1), generator=g)
    step = torch.randint(1, 6, (number, 1), generator=g)
    return (start + step * torch.arange(10)) % 12


def unshifted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def once(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    total, n = causal_lm_loss(logits, labels)
    return total / n


def twice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return once(logits[:, :-1], labels[:, 1:])  # the labels were shifted already: once more


def train_counting(loss_fn, steps: int = 250) -> tuple[list[float], GPT]:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=12, n_layers=2, d_model=48, n_heads=4, n_positions=10, dropout=0.0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
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
for name, loss_fn in {"once": once, "not at all": unshifted_loss, "twice": twice}.items():
    curves[name], models[name] = train_counting(loss_fn)

# %% mystnb={"image": {"alt": "Three loss curves over 250 steps. The run without a shift drops to almost zero within a few dozen steps. The run with one shift and the run with two shifts fall more slowly and end at a higher level."}}
figure, axes = plt.subplots(figsize=(7, 3.4))
for (name, losses), color in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73")):
    axes.plot(losses, color=color, label=f"shifted {name}")
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per token")
axes.set_title("The most beautiful curve belongs to the broken program")
axes.legend()
plt.show()

# %% [markdown]
# The run without a shift wins by far. Its task is to predict the token that it has just read, and
# copying is easy. The run with two shifts learns to predict the token *after* the next one. That
# is a harder but possible task, so its curve looks healthy too.
#
# Curves cannot tell these programs apart. A test can: give each model the beginning of a row and
# let it continue. The right answer is known.


# %%
def continues_correctly(model: GPT, rows: torch.Tensor, given: int = 4) -> float:
    """The share of rows in which the likeliest next token is the right one."""
    with torch.no_grad():
        guess = model(rows[:, :given])[:, -1].argmax(dim=-1)
    return (guess == rows[:, given]).float().mean().item()


unseen = counting_rows(500, seed=10_000)
right = {name: continues_correctly(model, unseen) for name, model in models.items()}
assert right["once"] > 0.9
assert right["not at all"] < 0.3
assert right["twice"] < 0.3
for name in right:
    verdict = "continues the rows" if right[name] > 0.9 else "cannot continue the rows"
    print(f"shifted {name:>10}: {verdict}")

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The model that was trained with one shift continues more than 90 % of unseen rows. The two
# others are right in fewer than 30 %, though one of them has the lowest loss of all. When a loss
# is better than you hoped, look for a leak before you celebrate.
# ```
#
# How low may an honest loss be here? The step is one of five, and the second token of a row
# depends on it, so nobody can guess this token for less than {math}`\ln 5` nats. All later tokens
# can be known exactly. With one shift there are nine guesses in a row, one of which costs
# {math}`\ln 5`. The floor is {math}`\ln 5 / 9`.

# %%
floor = math.log(5) / 9
assert min(curves["not at all"]) < floor < min(curves["once"]) + 0.02
print(f"floor {floor:.3f} nats per token: the run without a shift went below it")

# %% [markdown]
# A loss **below the floor is a proof of a bug**. That is why this course trains on text whose
# floor is known.

# %% [markdown]
# ## The mask that makes it honest
#
# In training, all positions of a row are computed at once. Position 3 must predict token 4, and
# token 4 stands right there in the input. What stops the model from looking? The **causal mask**:
# in every attention layer, position {math}`i` may attend to positions {math}`j \le i` only.
#
# The claim "a model cannot see the future" is easy to test. Change one token, and see which
# outputs move.

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

past = torch.ones(length, length).tril(-1).bool()  # outputs i before the changed token j: i < j
assert (moved[past] == 0).all()  # not small: exactly zero
assert (moved.diagonal() > 0).all()
print("largest change before the changed token:", moved[past].max().item())

# %% mystnb={"image": {"alt": "Square heat map with eight rows and columns. Row j shows how much each output moved when token j was changed. Everything left of the diagonal is empty: no output before the changed token moves at all."}}
figure, axes = plt.subplots(figsize=(4.4, 3.6))
image = axes.imshow(moved.masked_fill(past, float("nan")), cmap="cividis")
figure.colorbar(image, label="largest change of a logit")
axes.set_xlabel("output at position i")
axes.set_ylabel("changed token j")
axes.set_title("Nothing before the change moves")
plt.show()

# %% [markdown]
# Read a row from left to right. Until the changed token is reached there is nothing at all, not
# even a rounding error. From there on, every output is touched. The white triangle is the causal
# mask, seen from outside. The article that this course follows describes the decoder without its
# mask; a model built from that description would see its own labels, and its loss would fall to
# zero as in the experiment above.

# %% [markdown]
# ## The model
#
# GPT-2 consists of three parts: embeddings, a stack of equal blocks, and a head that turns
# vectors into scores. The block is the heart:

# %% tags=["covers-G2"]
from llm_course.models.gpt import GPTBlock

print(inspect.getsource(inspect.unwrap(GPTBlock)))

# %% [markdown]
# The last two lines of the block are the architecture. `x` is the *residual stream*: a vector for
# each position that the block reads and adds to. First, attention lets each position collect
# information from earlier positions. Then the feed-forward layer works on each position by
# itself. Both read a normalised copy of the stream. This is called *pre-norm*, and it keeps the
# path from the last layer to the first one free of obstacles, so that gradients reach the bottom
# of a deep stack.
#
# How large is it? With the published sizes the number of parameters must be the published one.
# The `meta` device counts without reserving memory.

# %%
with torch.device("meta"):
    gpt2 = GPT(GPTConfig())
parameters = sum(p.numel() for p in gpt2.parameters())
assert parameters == 124_439_808
d, f, v, n, layers = 768, 3072, 50_257, 1024, 12
block = (4 * d * d + 4 * d) + (2 * d * f + f + d) + 2 * (2 * d)  # attention, feed-forward, norms
assert parameters == v * d + n * d + layers * block + 2 * d
print(f"{parameters:,} parameters, {block:,} in each of {layers} blocks")

# %% [markdown]
# The sum in the cell follows the structure: a table of tokens, a table of positions, twelve
# blocks and a last norm. The head has no parameters of its own. It is the token table, used a
# second time: a vector is scored against the embedding of every token. This is called *tying*. It
# saves 38 million parameters here.

# %% [markdown]
# ## Before any training
#
# A new model should know nothing, and a model that knows nothing gives every token the
# probability {math}`1/V`. Its loss is {math}`\ln V` nats per token. If a fresh model starts far
# above that, its weights are too large, and it begins by being confidently wrong.

# %%
torch.manual_seed(0)
fresh = GPT(GPTConfig(vocab_size=1000, n_layers=4, d_model=64, n_heads=4, n_positions=64))
fresh.eval()
ids = torch.randint(1000, (8, 64), generator=generator)
with torch.no_grad():
    total, count = causal_lm_loss(fresh(ids), ids)
start = (total / count).item()
assert abs(start - math.log(1000)) < 0.1
print(f"loss of a fresh model {start:.2f}, ln V = {math.log(1000):.2f}")

# %% [markdown]
# ## The mean is over counted labels
#
# Equation {eq}`eq-gpt-loss` is a sum, and a program reports a mean. Which mean? Rows have
# different lengths, so batches have different numbers of counted labels. Suppose that a step is
# computed in two parts, because the whole batch does not fit into memory. The first part has 10
# counted labels, the second 990. Taking the mean of each part, and then the mean of the two
# means, gives each of the 10 tokens a hundred times the weight of the others.

# %%
sums, counts = [35.0, 1980.0], [10, 990]  # nats; the short part happens to be harder
mean_of_means = sum(s / c for s, c in zip(sums, counts)) / 2
mean = sum(sums) / sum(counts)
print(f"mean of means {mean_of_means:.3f}, mean over counted labels {mean:.3f}")

# %% [markdown]
# The first number is wrong by a third. It is the most frequent silent error in training programs:
# large libraries had it for years. So in this package a loss function returns sums and counts,
# and only the training loop divides, after it has added them up over all parts and all machines.

# %% [markdown]
# ## Perplexity and bits per byte
#
# Two more units are in use, and both are the loss in another dress. The **perplexity** is
#
# $$\text{PPL} = \exp\Bigl(\frac{\mathcal L_\text{GPT}}{n}\Bigr)$$ (eq-perplexity)
#
# It says between how many equally likely tokens the model hesitates, on average. A model that
# knows nothing has the perplexity {math}`V`. A model that is always sure and right has 1.
#
# Perplexity per token has a trap: it depends on the tokenizer. Cut a text into longer tokens, and
# each of them is harder to guess, but there are fewer. Two models with different tokenizers must
# be compared on something that both share: the text itself. Take the nats of the whole text, turn
# them into bits, and divide by the number of bytes:
#
# $$\text{bits per byte} = \frac{\mathcal L_\text{GPT}}{\ln 2 \cdot \text{bytes}}$$ (eq-bits-per-byte)
#
# Here are two models of the same story. Both are unigram models: they know how frequent each
# token is, and nothing else. One reads characters, the other reads words.


# %%
def unigram_nats(tokens: list[str]) -> float:
    """The loss of the model that knows the frequencies in this very text."""
    frequency = Counter(tokens)
    return -sum(math.log(frequency[token] / len(tokens)) for token in tokens)


text = " ".join(document.text for document in generate_documents(300, seed=3, split="train"))
size = len(text.encode())
for name, tokens in {"characters": list(text), "words": text.split(" ")}.items():
    nats = unigram_nats(tokens)
    perplexity = math.exp(nats / len(tokens))
    print(
        f"{name:>10}: perplexity {perplexity:6.1f}, bits per byte {nats / math.log(2) / size:.2f}"
    )

# %% [markdown]
# By perplexity the character model looks far better. It is the other way round: to describe the
# text byte by byte, it needs more bits. Perplexities of different tokenizers cannot be compared.
# Bits per byte can.

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
def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
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
# *5 minutes, easy.* Write `bits_per_byte(nats_per_token, n_tokens, text)`. A model with 2.31 nats
# per token on 400 tokens is compared with a model of characters on the same text. Mind that a
# character may have more than one byte.
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


# %% [markdown]
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
    row = torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
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
# Its loss is the negative logarithm of that product. Output {math}`i` speaks about token {math}`i
# + 1`, so labels are shifted once, in one place. The causal mask keeps the guesses honest,
# exactly. A sum and a count travel together until the very end. A loss below the floor is a bug.
#
# In [the next chapter](13_gpt_pretrain.ipynb) the model gets something to read.
