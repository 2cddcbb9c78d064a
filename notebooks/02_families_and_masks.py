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
# # 02 Three families and their masks
#
# BADGE
#
# **You will** pretrain a small model and fine-tune it on a few labelled stories, cut one sentence
# into training examples in two ways, draw the mask matrix of each family of models, measure on
# BERT, GPT and T5 which output depends on which token, and see what happens without a mask.
#
# **Needs** Python, matrices, the softmax of [chapter 00](00_setup.ipynb), and the words *loss* and
# *block* of [chapter 01](01_scale_and_cost.ipynb). **Runs** in 40 seconds on one core.
# **Source** {cite:p}`vaswani2017,radford2018,devlin2019,raffel2020`;
# `llm_course/models/layers.py`, `bert.py`, `gpt.py` and `t5.py`.

# %% [markdown]
# COLAB

# %%
import copy
import inspect
import math
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap, LogNorm
from torch import nn
from torch.nn.functional import cross_entropy

from llm_course import BERT, GPT, T5, BERTConfig, GPTConfig, T5Config
from llm_course.configs import TrainConfig
from llm_course.losses.causal import causal_lm_loss, causal_loss_fn
from llm_course.models.layers import causal_mask
from llm_course.training.loop import train
from llm_lab.checks import ch02
from llm_lab.pictures.measured import measured
from llm_town import generate_documents, tokenize
from llm_town.tasks import entities

# %% [markdown]
# ## Pretraining and fine-tuning
#
# Suppose that you want a program which finds the persons, places, jobs and events in a text. The
# usual way is to write labels by hand and to train a model on them. Labels are expensive: somebody
# has to read each story and to mark each word. Text without labels is cheap.
#
# Here is one labelled story of *Town*, the invented text that this course trains on. The tag
# `B-PERSON` means that a person begins at this word, `I-PERSON` would mean that the name goes on, and
# `O` means that the word is none of the four.

# %%
example = next(entities.examples(1, seed=7))
tagged = [f"{w}/{t}" for w, t in zip(example.tokens, example.tags) if t != "O"]
print(example.text)
print()
print(*tagged)

# %% [markdown]
# A model that has seen only a few such stories meets a difficulty in the next one: most of its names
# and jobs are words that had no label so far. Nothing says whether "Belford" is a person or a place.
# Somebody who has *read* many stories of Town knows it, even without any label, because "Belford"
# stands where names of places stand.
#
# This is the idea of two steps. In **pretraining** a model learns from a large amount of text
# without labels. It gets a task for which the text itself contains the answers: for example, to guess
# the next word. In **fine-tuning** the same weights are trained further on a small number of
# labelled examples of the task that one cares for. Radford et al. {cite:p}`radford2018` did this with
# GPT, and Devlin et al. {cite:p}`devlin2019` with BERT.
#
# We try it. First the text: 4,000 stories without labels. Each of the 2,996 most frequent words gets
# a number, its **id**. Four more ids belong to special tokens. Every other word gets the id of
# `<unk>`, "unknown". A story begins with the token `<bos>`, ends with `<eos>`, and is filled up with
# `<pad>`, the *padding*, so that all rows have the same length.

# %%
CONTEXT = 96
stories = list(generate_documents(4000, seed=1, split="train"))
texts = [tokenize(story.text) for story in stories]
frequency = Counter(word for text in texts for word in text)
special = ["<pad>", "<unk>", "<bos>", "<eos>"]
PAD, UNK, BOS, EOS = range(4)
words = special + [word for word, _ in frequency.most_common(2996)]
id_of = {word: i for i, word in enumerate(words)}


def row_of(tokens: list[str], length: int = CONTEXT) -> list[int]:
    ids = [BOS, *(id_of.get(token, UNK) for token in tokens), EOS]
    return (ids + [PAD] * length)[:length]


unlabelled = torch.tensor([row_of(text) for text in texts])
print(f"{len(stories)} stories, ids of shape {tuple(unlabelled.shape)}")
print(f"{len(frequency)} different words, {len(words)} ids")

# %% [markdown]
# The model is a GPT with two blocks. `train` is the training loop of the package: it takes batches
# and a loss, and gives back one record for each step. The **labels** are the ids that should be
# guessed, and −100 means *not counted*: padding is not to be guessed. The loss is minus the logarithm
# of the probability that the model gave to the right word, in **nats**; [chapter
# 12](12_gpt_objective.ipynb) derives it.


# %%
class Batches:
    """Endless random batches of the rows."""

    def __init__(self, rows: torch.Tensor, size: int, seed: int) -> None:
        self.rows, self.size, self.seed = rows, size, seed

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        while True:
            chosen = torch.randint(len(self.rows), (self.size,), generator=g)
            ids = self.rows[chosen]
            labels = ids.masked_fill(ids == PAD, -100)
            yield {"input_ids": ids, "labels": labels}


torch.manual_seed(0)
gpt_config = GPTConfig(
    vocab_size=len(words),
    n_layers=2,
    d_model=64,
    n_heads=4,
    n_positions=CONTEXT,
    dropout=0.0,
)
untrained = GPT(gpt_config)
pretrained = copy.deepcopy(untrained)
settings = TrainConfig(max_steps=300, lr=3e-3, warmup_steps=20, device="cpu")
batches = Batches(unlabelled, size=8, seed=0)
losses = []
for step in train(pretrained, batches, causal_loss_fn, settings):
    losses.append(step.loss)

start, end = losses[0], sum(losses[-20:]) / 20
with measured():
    print(f"first loss {start:.2f}, last 20 steps {end:.2f} nats per token")
assert abs(start - math.log(len(words))) < 0.2  # all words equally likely
assert 2.4 < end < 3.8

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The first loss is close to 8.0, the logarithm of the number of ids: the model finds all words equally
# likely. The mean of the last 20 losses is between 2.4 and 3.8 nats per token.
# ```
#
# Now the labelled task. The last block returns a vector for each word; these vectors are called
# the last *hidden states*. We take away the head, which turned them into scores for the next word, and
# call the rest the *body*. A new matrix with random weights turns each hidden state into a
# score for each tag. All weights are trained, those of the body too. We do this with 2, 8 and 32
# labelled stories, from two different bodies, and with 8 stories from a third one:
#
# - *pretrained*: the model that has read the stories;
# - *from scratch*: the same model with the random weights that pretraining began with;
# - *wrong words*: the pretrained model, but with the rows of its embedding table in random order, so
#   that a word has the vector of another one. It is a control. All other matrices are as good as
#   before; only what the model knew about each single word is lost.
#
# We measure on 200 other stories. How should the result be one number? Most words are `O`, so
# a program that always says `O` would be right most of the time. So two shares are taken: of the words
# that got another tag than `O`, how many have the right one? And of the words that should get one, how
# many did? **F1** is the harmonic mean of the two, from 0 to 1. We also look at the words
# that did not occur in any of the labelled stories: what share of them gets the right tag? In the table these are the
# *new words*.


# %%
class Tagger(nn.Module):
    def __init__(self, body: GPT) -> None:
        super().__init__()
        self.body = body
        self.tag_head = nn.Linear(body.config.d_model, len(entities.TAGS))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tag_head(self.body.hidden(ids))


def tag_loss_fn(model, batch):
    scores, labels = model(batch["input_ids"]), batch["labels"]
    total = cross_entropy(
        scores.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    return {"tags": (total, (labels != -100).sum())}


def as_batch(examples: list) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row_of(e.tokens) for e in examples])
    labels = torch.full_like(ids, -100)
    for row, e in enumerate(examples):
        numbers = [entities.TAGS.index(tag) for tag in e.tags]
        numbers = torch.tensor(numbers[: CONTEXT - 1])
        labels[row, 1 : 1 + len(numbers)] = numbers  # place 0 is <bos>
    return {"input_ids": ids, "labels": labels}


labelled = list(entities.examples(32, seed=7))
held_out = list(entities.examples(200, seed=3, split="validation"))
assert not {e.text for e in labelled} & {e.text for e in held_out}
test = as_batch(held_out)

# %%
torch.manual_seed(1)
wrong_words = copy.deepcopy(pretrained)
with torch.no_grad():
    table = wrong_words.token_embedding.weight
    table[4:] = table[4:][torch.randperm(len(words) - 4)]
bodies = {
    "pretrained": pretrained,
    "from scratch": untrained,
    "wrong words": wrong_words,
}


def fine_tune(body: GPT, examples: list) -> Tagger:
    torch.manual_seed(0)
    model = Tagger(copy.deepcopy(body))
    settings = TrainConfig(max_steps=30, lr=1e-3, warmup_steps=5, device="cpu")
    for _ in train(model, [as_batch(examples)], tag_loss_fn, settings):
        pass
    return model.eval()


def scores(model: Tagger, examples: list) -> tuple[float, float]:
    """F1, and the share found of the words that had no label."""
    ids, tags = test["input_ids"], test["labels"]
    with torch.no_grad():
        guess = model(ids).argmax(dim=-1)
    entity, counted = tags > 0, tags != -100  # tag 0 is O
    right = (guess == tags) & entity
    found = (guess > 0) & counted
    seen = {id_of.get(w, UNK) for e in examples for w in e.tokens}
    known = torch.zeros(len(words), dtype=torch.bool)
    known[[UNK, *seen]] = True
    new = entity & ~known[ids]
    f1 = 2 * right.sum() / (found.sum() + entity.sum())
    return f1.item(), (right[new].sum() / new.sum()).item()


# %% tags=["covers-K1"]
results = {}
for name, body in bodies.items():
    sizes = (2, 8, 32) if name != "wrong words" else (8,)
    for size in sizes:
        model = fine_tune(body, labelled[:size])
        results[name, size] = scores(model, labelled[:size])
with measured():
    print(f"{'':>12} stories   F1 new words")
    for (name, size), (f1, unseen) in results.items():
        print(f"{name:>12} {size:7d} {f1:4.2f} {unseen:9.2f}")
assert results["pretrained", 8][0] > results["from scratch", 8][0] + 0.15
assert results["pretrained", 8][0] > results["wrong words", 8][0] + 0.1
assert results["pretrained", 8][0] > results["from scratch", 32][0] - 0.1
assert results["wrong words", 8][0] < results["from scratch", 8][0]
assert results["pretrained", 8][1] > 0.3
assert results["from scratch", 8][1] < 0.25

# %%
#| alt: F1 against the number of labelled stories, 2, 8 and 32, on a logarithmic axis. Two rising
#|   lines. The one of the pretrained model is above the one from scratch at each of the three
#|   points. A single cross at 8 stories, the control with wrong words, lies below both lines.
#| caption: The same model and the same labels, with and without pretraining.
#| name: fig-02-pretraining
figure, axes = plt.subplots(figsize=(6, 3.6))
styles = {"pretrained": ("#0072B2", "o"), "from scratch": ("#D55E00", "s")}
for name, (color, marker) in styles.items():
    f1 = [results[name, size][0] for size in (2, 8, 32)]
    axes.plot((2, 8, 32), f1, color=color, marker=marker, label=name)
axes.plot(
    8,
    results["wrong words", 8][0],
    "X",
    color="#009E73",
    ms=9,
    ls="none",
    label="pretrained, wrong words",
)
axes.set_xscale("log", base=2)
axes.set_xticks((2, 8, 32), ("2", "8", "32"))
axes.set_xlabel("labelled stories")
axes.set_ylabel("F1 on other stories")
axes.legend(fontsize=8, loc="upper left")
axes.set_ylim(0, 1.15)
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# With 8 labelled stories, F1 is higher by at least 0.15 after pretraining. Of the words without a label
# the pretrained model finds more than 30 %, and the model from scratch fewer than 25 %.
# ```
#
# Compare the two lines of {numref}`fig-02-pretraining`. Pretraining replaces labels: 8 labelled stories
# with it are worth at least about as much as 32 without it. The last column of the table says where the
# gain comes from: the pretrained model also finds names that had no label. How can it? In fine-tuning
# it learns which vectors belong to persons. If pretraining has given similar vectors to words that are used
# alike, this helps with the other names too. The control supports this explanation: with the wrong
# vectors nothing of the gain is left. The result is even below the model from scratch, since the matrices
# rely on vectors that now belong to other words.
#
# The gain has a price. Pretraining took ten times as many steps as fine-tuning, on 4,000 stories. It is
# paid once, and the same weights can then serve for many tasks.

# %% [markdown]
# ## Two ways to hide a word
#
# Pretraining needs a task that the text answers itself. All such tasks hide a part of the text and
# let the model guess it from the rest. The families differ in *what* is hidden and *from what
# context* it is guessed.
#
# An **autoregressive** model guesses each word from the words before it. ("Regressive" comes from
# regression: a value is predicted from values. "Auto" says that they are earlier values of the same
# series.) Its loss for a sentence {math}`w_1, \dots, w_n` is, with {math}`w_{<i}` for all words before
# {math}`w_i`,
#
# $$\mathcal L_\text{AR} = -\sum_{i=1}^{n} \log p(w_i \mid w_{<i})$$ (eq-autoregressive)
#
# An **autoencoding** model gets a damaged sentence {math}`\tilde w` and restores it. At some positions,
# the set {math}`A`, the word is replaced by a token `[MASK]`; elsewhere {math}`\tilde w_i = w_i`. The
# model sees all other words, on both sides, and guesses the hidden ones:
#
# $$\mathcal L_\text{AE} = -\sum_{i \in A} \log p(w_i \mid \tilde w)$$ (eq-autoencoding)
#
# (The `[MASK]` of this task hides a word in the text. The masks of the next section are something
# else: they say which positions a layer may use.) We cut one sentence into training examples in both ways. BERT hides 15 % of the tokens
# {cite:p}`devlin2019`. (It sometimes puts another word in place of `[MASK]`; [chapter 09](09_bert_objectives.ipynb) tells why.)

# %% tags=["covers-K2"]
sentence = tokenize(
    "Marton served some bread and put some nectar on the table."
)
n = len(sentence)
hidden = (3, 9)  # 15 % of 12 words are 1.8
assert len(hidden) == round(0.15 * n)

print("autoregressive: words before -> next")
for i, word in enumerate(sentence):
    seen = ["<bos>", *sentence[:i]]
    if len(seen) > 4:
        seen = ["…", *seen[-4:]]
    print(f"{' '.join(seen):>26} -> {word}")
print("\nautoencoding: the others -> hidden ones")
damaged = ["[MASK]" if i in hidden else w for i, w in enumerate(sentence)]
print(f"  {' '.join(damaged)}")
for i in hidden:
    print(f"  position {i} -> {sentence[i]}")
print(f"\npredictions: {n} and {len(hidden)} of {n} words")

# %% [markdown]
# (Long contexts are cut on the left, at "…", so that they fit on the page. The model sees all of it.)
# The autoregressive way makes one prediction for each word, the autoencoding way one for each hidden
# word: {math}`n` against {math}`0.15\,n`. This is why an autoencoding model needs more text, or more passes over the
# same text, to get the same number of signals. Why not hide more? Each hidden word is also missing
# from the context of all others.
#
# Here are the two formulas as loops, on the logits of a GPT and of a BERT with random weights. A
# **logit** is the score that a model gives to a word; a softmax turns the scores into probabilities.
# BERT calls its logits `mlm_logits`, for *masked language model*. The package computes both losses
# in the same way: from logits and labels, and only the labels differ.


# %% tags=["covers-K2"]
def plain_autoregressive(logits: torch.Tensor, ids: list[int]) -> float:
    """The output at place i - 1 guesses the token at place i."""
    total = 0.0
    for i in range(1, len(ids)):
        p = logits[i - 1].softmax(dim=-1)
        total -= math.log(p[ids[i]])
    return total


def plain_autoencoding(logits: torch.Tensor, ids: list[int], places) -> float:
    """The output at a hidden place guesses the token at this place."""
    total = 0.0
    for i in places:
        p = logits[i].softmax(dim=-1)
        total -= math.log(p[ids[i]])
    return total


VOCAB, MASK = 40, 39
small = {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "dropout": 0.0}
torch.manual_seed(0)
gpt = GPT(GPTConfig(n_layers=2, n_positions=16, **small)).double().eval()
bert_config = BERTConfig(n_layers=2, d_ff=64, n_positions=16, **small)
bert = BERT(bert_config).double().eval()

ids = torch.randint(4, MASK, (1, n + 1))
ids[0, 0] = BOS
places = [i + 1 for i in hidden]
with torch.no_grad():
    ar_logits = gpt(ids)
    masked_ids = ids.clone()
    masked_ids[0, places] = MASK
    ae_logits = bert(masked_ids).mlm_logits

ar, ar_count = causal_lm_loss(ar_logits, ids)
ae_labels = torch.full_like(ids, -100)
ae_labels[0, places] = ids[0, places]
ae = cross_entropy(ae_logits[0], ae_labels[0], reduction="sum")
ae_count = (ae_labels != -100).sum()
row = ids[0].tolist()
assert abs(ar - plain_autoregressive(ar_logits[0], row)) < 1e-10
assert abs(ae - plain_autoencoding(ae_logits[0], row, places)) < 1e-10
print(f"autoregressive: {ar:.2f} nats for {ar_count} words")
print(f"autoencoding:   {ae:.2f} nats for {ae_count} words")

shifted = plain_autoregressive(ae_logits[0], row)  # the other family's rule
assert abs(ae - shifted) > 1

# %% [markdown]
# An autoregressive output speaks about the *next* position, an autoencoding output about *its own*
# position, where the input says `[MASK]`. The last assertion is the control: with the rule of the
# other family the sum is another number.
#
# What is the context on both sides worth? We need no neural network to see it. Hide each word of 1,000
# other stories, and guess it by counting in our 4,000 stories: first from the word on its left, then
# from the words on its left and right. A context that never occurred in them gives no guess, and counts
# as wrong.

# %% tags=["covers-K2"]
from_left = defaultdict(Counter)
from_both = defaultdict(Counter)
for text in texts:
    for left, word, right in zip(text, text[1:], text[2:]):
        from_left[left][word] += 1
        from_both[left, right][word] += 1

total = left_right = both_right = 0
for story in generate_documents(1000, seed=3, split="validation"):
    text = tokenize(story.text)
    for left, word, right in zip(text, text[1:], text[2:]):
        total += 1
        if left in from_left:
            left_right += from_left[left].most_common(1)[0][0] == word
        if (left, right) in from_both:
            both_right += from_both[left, right].most_common(1)[0][0] == word
print(f"{total} hidden words")
print(f"guessed right from the left:      {left_right / total:.2f}")
print(f"guessed right from left and right: {both_right / total:.2f}")
assert both_right / total > left_right / total + 0.15

# %% [markdown]
# The word on the right helps a great deal. So a model that has to *understand* a finished text should
# look at both sides. But a model that has to *write* cannot: when it writes a word, the words on the right
# do not exist yet. The two ways of training suit different uses. This is why there are families.

# %% [markdown]
# ## A family is a mask
#
# All models of this course are built around attention. [Chapter 04](04_attention.ipynb) derives it;
# here you need two sentences. In an attention layer each position, called the **query**, takes a
# weighted average of vectors of all positions, called the **keys**. A **mask** says which keys each
# query may use. It is a matrix {math}`M` of true and false, written as 1 and 0, with a row for each
# query and a column for each key.
#
# An **encoder**, such as BERT, reads a finished text. Every position may look at every position:
#
# $$M_{ij} = 1 \text{ for all } i, j$$ (eq-mask-encoder)
#
# A **decoder**, such as GPT, writes from left to right. Position {math}`i` may look at itself and at what came before.
# This is the **causal mask**:
#
# $$M_{ij} = [\, j \le i \,]$$ (eq-mask-causal)
#
# The bracket is 1 where the condition holds, and 0 elsewhere. An **encoder-decoder**, such as T5 and the
# first Transformer {cite:p}`vaswani2017`, has two stacks of blocks. The
# encoder reads the *source*, for example an English sentence. The decoder writes the *target*, its
# translation. It looks at what it has written so far, and by *cross-attention* at the whole source. Count
# the {math}`S` positions of the source first and those of the target after them. Then all its masks fit
# into one matrix of four parts:
#
# $$M = \begin{pmatrix} 1 & 0 \\ 1 & C \end{pmatrix}$$ (eq-mask-encoder-decoder)
#
# Here 1 and 0 are whole parts filled with ones and zeros, and {math}`C` is the causal mask {eq}`eq-mask-causal`.
# The upper rows are those of the source: it sees itself and nothing of the target. The lower rows are
# those of the target: it sees the source, and of itself the past. A fourth kind uses one stack only: a **prefix language model** is a decoder that
# sees the first {math}`P` positions, the prefix, as an encoder would:
#
# $$M_{ij} = [\, j \le i \text{ or } j < P \,]$$ (eq-mask-prefix)
#
# Positions are counted from 0, as in Python. The four formulas as loops, with a prefix as long as the
# source, {math}`P = S`:


# %% tags=["covers-K3"]
def plain_mask(n: int, may_look) -> torch.Tensor:
    """One row for each query i, one column for each key j."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            mask[i, j] = may_look(i, j)
    return mask


S, T = 4, 5  # source and target; the other masks have S + T positions
N = S + T


def encoder_decoder(i: int, j: int) -> bool:
    if i < S:
        return j < S  # a row of the source sees the source
    return j < S or j <= i


masks = {
    "encoder": plain_mask(N, lambda i, j: True),
    "decoder": plain_mask(N, lambda i, j: j <= i),
    "encoder-decoder": plain_mask(N, encoder_decoder),
    "prefix LM": plain_mask(N, lambda i, j: j <= i or j < S),
}
print(inspect.getsource(inspect.unwrap(causal_mask)))
assert torch.equal(masks["decoder"], causal_mask(N, N))
assert not torch.equal(masks["decoder"], causal_mask(N, N).T)  # keys as rows
corner = torch.zeros(S, T, dtype=torch.bool)
below = torch.ones(T, S, dtype=torch.bool)
square = torch.ones(S, S, dtype=torch.bool)
upper = torch.cat([square, corner], dim=1)
lower = torch.cat([below, causal_mask(T, T)], dim=1)
assert torch.equal(masks["encoder-decoder"], torch.cat([upper, lower]))
assert torch.equal(masks["encoder-decoder"], masks["prefix LM"])
print("fields that may be looked at:")
for name, mask in masks.items():
    print(f"{name:>16}: {mask.sum():2d} of {mask.numel()}")

# %%
#| alt: Four square matrices of nine rows and nine columns, queries as rows and keys as columns.
#|   Encoder: every field is filled. Decoder: the diagonal and the fields below it are filled. Encoder-decoder:
#|   the square of the four source positions is filled, the fields to the right of it are empty, the
#|   five target rows see all four source columns and a triangle of the target columns. Prefix LM: the same
#|   fields as in the encoder-decoder. Lines between positions 3 and 4 divide the last two.
#| caption: Who may look at whom. Filled: the query of this row may use the key of this column.
#| name: fig-02-masks
two = ListedColormap(["#FFFFFF", "#0072B2"])


def draw(axes, mask: torch.Tensor, title: str, cut: bool) -> None:
    axes.pcolormesh(mask.float(), cmap=two, vmin=0, vmax=1, ec="#999999")
    if cut:
        axes.axhline(S, color="#D55E00", lw=2)
        axes.axvline(S, color="#D55E00", lw=2)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=11)


figure, grid = plt.subplots(2, 2, figsize=(6, 6.2), layout="constrained")
for axes, (name, mask) in zip(grid.flat, masks.items()):
    draw(axes, mask, name, cut=name in ("encoder-decoder", "prefix LM"))
    axes.set_xlabel("key (looked at)")
    axes.set_ylabel("query (looks)")
plt.show()

# %% [markdown]
# Read a row of {numref}`fig-02-masks` from left to right: these are the positions that one query may
# use. The encoder's matrix is full. In that of the decoder all fields above the diagonal are empty; they
# are the future. The third and the fourth matrix are equal, and the cell asserts it. An encoder-decoder
# and a prefix language model differ in something that a mask does not show: the encoder-decoder has
# one set of weights for the source and another for the target, the prefix model has one set for both.
# Raffel et al. {cite:p}`raffel2020` draw the same masks, and compare the models by experiments.
#
# The masks and the two tasks belong together. Guessing hidden words needs both sides, so BERT is an
# encoder. Guessing the next word forbids the future, so GPT is a decoder. T5 does both: its encoder
# reads a text with gaps, and its decoder writes what was in the gaps, word after word; chapter 16
# shows how.

# %% [markdown]
# ## Which output moves?
#
# A mask is a promise about one layer. What counts in the end is the whole model: *if I change this
# token, which outputs change?* We do not have to believe the formulas. We change one token of the input,
# run the model again, and look.
#
# The models have random weights. This is enough, since the mask is not learnt. They run in **double
# precision**, numbers of 64 bits, so that even a tiny effect can be told from none. GPT and BERT read
# nine tokens. T5 reads four tokens in its encoder and five in its decoder, and its outputs are the
# states of the encoder and the logits of the decoder. The prefix model is our BERT, with the prefix mask
# given as `attention_mask`.


# %% tags=["covers-K3"]
def movement(outputs, ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """[i, j]: how far the output at i moves when token j changes."""
    n = ids.shape[1]
    moved = torch.zeros(n, n, dtype=torch.float64)
    with torch.no_grad():
        before = outputs(ids)
        for j in range(n):
            changed = ids.clone()
            changed[0, j] = (ids[0, j] + 1) % vocab_size
            for i, vector in enumerate(outputs(changed)):
                moved[i, j] = (vector - before[i]).abs().max()
    return moved


t5_config = T5Config(
    n_layers=2, n_decoder_layers=2, d_head=8, d_ff=64, **small
)
t5 = T5(t5_config).double().eval()


def t5_outputs(ids: torch.Tensor) -> list[torch.Tensor]:
    source, target = ids[:, :S], ids[:, S:]
    states = t5.encode(source)
    logits = t5(source, decoder_input_ids=target)
    return [*states[0], *logits[0]]


def bert_outputs(ids: torch.Tensor) -> torch.Tensor:
    return bert(ids).mlm_logits[0]


def prefix_outputs(ids: torch.Tensor) -> torch.Tensor:
    mask = masks["prefix LM"][None]
    return bert(ids, attention_mask=mask).mlm_logits[0]


ids = torch.randint(4, MASK - 1, (1, N))
moved = {
    "encoder": movement(bert_outputs, ids, VOCAB),
    "decoder": movement(lambda ids: gpt(ids)[0], ids, VOCAB),
    "encoder-decoder": movement(t5_outputs, ids, VOCAB),
    "prefix LM": movement(prefix_outputs, ids, VOCAB),
}
models = dict(zip(moved, ("BERT", "GPT", "T5", "BERT + mask")))
print("fields that moved, largest forbidden change:")
for name, change in moved.items():
    assert torch.equal(change != 0, masks[name])  # exactly the mask
    forbidden = change[~masks[name]].tolist()
    largest = f"{max(forbidden):.1f}" if forbidden else "none"
    fields = (change != 0).sum().item()
    print(f"{name:>15} {models[name]:>11} {fields} {largest:>4}")
    assert change[masks[name]].min() > 1e-12  # far above rounding
assert not torch.equal(moved["encoder"] != 0, masks["decoder"])

# %%
#| alt: Four rows of two square matrices: BERT, GPT, T5, and BERT with a prefix mask. On the left is the
#|   mask. On the right a logarithmic colour scale shows how much each output moved. In each row the filled
#|   fields on the right are those on the left, and all others are empty. In both matrices of BERT and in
#|   that of GPT the diagonal is much brighter than the other fields. In that of T5 all filled fields are bright.
#| caption: Left the mask. Right what moved in the model when one token was changed.
#| name: fig-02-moved
figure, grid = plt.subplots(4, 2, figsize=(5.6, 9.6), layout="constrained")
for (left, right), (name, change) in zip(grid, moved.items()):
    cut = name in ("encoder-decoder", "prefix LM")
    draw(left, masks[name], f"{name}: mask", cut=cut)
    left.set_ylabel("query")
    shown = change.masked_fill(change == 0, float("nan"))
    scale = LogNorm(1e-5, 1)
    image = right.pcolormesh(shown, cmap="cividis", norm=scale, ec="#999999")
    right.set_aspect("equal")
    right.invert_yaxis()
    right.set_xticks([])
    right.set_yticks([])
    right.set_title(f"{models[name]}: measured", fontsize=11)
    right.set_ylabel("output that moved")
grid[-1, 0].set_xlabel("key")
grid[-1, 1].set_xlabel("changed token")
figure.colorbar(image, ax=grid, label="largest change", shrink=0.5)
plt.show()

# %% [markdown]
# The measured matrix and the mask are equal, field by field; the assertion compares them. In BERT
# every output moves, whichever token is changed. In GPT exactly nothing before the changed token
# moves: not a small change, but zero. (A forbidden key has the weight {math}`e^{-\infty} = 0`.) In T5
# a change of the source moves every output: all states of the encoder and all logits of the decoder. A
# change of a target token moves no state of the encoder and no logit before it.
#
# The brightness depends on the weights, and not on the mask. BERT and GPT begin with small weights, so a token
# moves its own output most. T5 begins with larger ones, and everything that may move moves far. Training
# changes the colours. It cannot fill an empty field.
#
# The last row has the weights of BERT. We changed its mask and nothing else, and it became a model
# of another family. But a mask does not change what the weights have learnt: a trained BERT has never
# had to guess the next word, and with a causal mask it would do this badly.

# %% [markdown]
# ## Several layers
#
# A model has many attention layers, one in each block, and information can travel in steps: from key to
# query in the first layer, from there to another query in the second. Which outputs can a token reach
# after {math}`L` layers? Let {math}`R^{(L)}_{ij}` be true if output {math}`i` can depend on token
# {math}`j`. For two layers there must be a position {math}`k` in between: {math}`i` may look at
# {math}`k`, and {math}`k` may look at {math}`j`. One layer reaches what its mask allows,
# {math}`R^{(1)} = M`, and each further layer, with {math}`\wedge` for *and*, and {math}`\bigvee_k` for
# *there is a k with*:
#
# $$R^{(L)}_{ij} = \bigvee_{k} M_{ik} \wedge R^{(L-1)}_{kj}$$ (eq-mask-reach)
#
# This is a matrix product in which *and* takes the place of the product and *or* that of the sum. The
# causal mask times itself is the causal mask again: if {math}`k` is not after {math}`i`, and {math}`j`
# not after {math}`k`, then {math}`j` is not after {math}`i`. This is why depth cannot break the
# promise. Other masks grow. In a
# **sliding window** each position sees itself and only the {math}`w - 1` before it. It saves work in long texts:
# a row has {math}`w` fields instead of {math}`i + 1`. Does such a model forget everything that is further
# away?


# %% tags=["covers-K3"]
def plain_reach(mask: torch.Tensor, layers: int) -> torch.Tensor:
    reach = mask.clone()
    n = len(mask)
    for _ in range(layers - 1):
        following = torch.zeros_like(mask)
        for i in range(n):
            for j in range(n):
                following[i, j] = any(
                    mask[i, k] and reach[k, j] for k in range(n)
                )
        reach = following
    return reach


def reach_of(mask: torch.Tensor, layers: int) -> torch.Tensor:
    """The same by a power of the matrix: how many ways, then: any?"""
    return torch.linalg.matrix_power(mask.double(), layers) > 0


LENGTH, WIDTH = 12, 3
window = plain_mask(LENGTH, lambda i, j: i - WIDTH < j <= i)
ids = torch.randint(4, MASK - 1, (1, LENGTH))
reached = {}
for layers in (1, 2, 4):
    torch.manual_seed(0)
    config = BERTConfig(n_layers=layers, d_ff=64, n_positions=16, **small)
    model = BERT(config).double().eval()

    def outputs(ids: torch.Tensor, model: BERT = model) -> torch.Tensor:
        return model(ids, attention_mask=window[None]).mlm_logits[0]

    reached[layers] = movement(outputs, ids, VOCAB) != 0
    assert torch.equal(reached[layers], reach_of(window, layers))
    assert torch.equal(reached[layers], plain_reach(window, layers))
    back = reached[layers][-1].sum() - 1
    assert back == min(layers * (WIDTH - 1), LENGTH - 1)
    print(f"{layers} layers: the last output sees {back} back")
for name in masks:  # the four families do not grow with depth
    assert torch.equal(reach_of(masks[name], 12), masks[name])
assert not torch.equal(reach_of(window, 2), window)

# %%
#| alt: Three square matrices of twelve rows and twelve columns. With one layer, a band of three fields along and
#|   below the diagonal is filled. With two layers the band is five fields wide, with four layers nine
#|   fields. The fields above the diagonal are empty in all three.
figure, grid = plt.subplots(1, 3, figsize=(7.5, 3), layout="constrained")
for axes, (layers, seen) in zip(grid, reached.items()):
    draw(axes, seen, f"{layers} layer{'s' * (layers > 1)}", cut=False)
    axes.set_xlabel("changed token")
grid[0].set_ylabel("output that moved")
plt.show()

# %% [markdown]
# These matrices are measured on models of one, two and four layers, and they are equal to
# {eq}`eq-mask-reach`. Each layer adds {math}`w - 1` positions, so {math}`L` layers see
# {math}`L\,(w - 1)` positions back. With a window of 4,096 and 32 layers that is:

# %%
print(f"{32 * (4096 - 1):,} positions")

# %% [markdown]
# The reach says that something *can* arrive, not that much does. A token that is reached only by the longest
# way is passed on by every layer, and mixed with others each time.

# %% [markdown]
# ## What goes wrong without the mask
#
# Suppose that somebody forgets the causal mask. Training guesses the next word at all positions at
# once, and the next word stands in the input. Without a mask the model can look at it. We
# train the same model twice on sentences of Town, from the same weights and with the same batches. The
# only difference is the mask. (The class below is built on our BERT, because our GPT always has its
# mask.)

# %%
SHORT = 14
short_texts = [s for d in stories for s in d.sentences]
short_texts = [tokenize(s) for s in short_texts]
short_texts = [s for s in short_texts if len(s) <= SHORT - 2]
common = Counter(word for s in short_texts for word in s)
names = special + [word for word, _ in common.most_common(396)]
number = {word: i for i, word in enumerate(names)}
rows = torch.full((len(short_texts), SHORT), PAD)
for r, s in enumerate(short_texts):
    ids = [BOS, *(number.get(word, UNK) for word in s), EOS]
    rows[r, : len(ids)] = torch.tensor(ids)
unseen_rows, training_rows = rows[:500], rows[500:]
print(f"{len(training_rows)} sentences, {len(names)} ids")


# %%
class Writer(nn.Module):
    """One block that guesses the next word, with the causal mask or none."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        config = BERTConfig(
            vocab_size=len(names),
            n_layers=1,
            d_model=64,
            n_heads=4,
            d_ff=128,
            n_positions=SHORT,
            dropout=0.0,
        )
        self.stack = BERT(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        n = input_ids.shape[1]
        mask = causal_mask(n, n)[None] if self.masked else None
        if mask is not None:
            mask = mask.expand(len(input_ids), n, n)
        return self.stack(input_ids, attention_mask=mask).mlm_logits


curves, writers = {}, {}
settings = TrainConfig(max_steps=250, lr=1e-2, warmup_steps=20, device="cpu")
for name, masked in (("with mask", True), ("without mask", False)):
    torch.manual_seed(0)
    writers[name] = Writer(masked)
    batches = Batches(training_rows, size=32, seed=0)
    steps = train(writers[name], batches, causal_loss_fn, settings)
    curves[name] = [step.loss for step in steps]
    writers[name].eval()

# %% [markdown]
# Now two measurements on 500 other sentences. First as in training: the whole sentence is in
# the input, and we count how often the likeliest next word is right. Then as in writing: the input ends
# where the guess begins. The table has the last loss of the training, and the two shares of right words.


# %% tags=["covers-K3"]
def as_in_training(model: Writer) -> float:
    with torch.no_grad():
        guess = model(unseen_rows)[:, :-1].argmax(dim=-1)
    right = (guess == unseen_rows[:, 1:]) & (unseen_rows[:, 1:] != PAD)
    return (right.sum() / (unseen_rows[:, 1:] != PAD).sum()).item()


def as_in_writing(model: Writer) -> float:
    right = total = 0
    for i in range(1, SHORT):
        with torch.no_grad():
            guess = model(unseen_rows[:, :i])[:, -1].argmax(dim=-1)
        wanted = unseen_rows[:, i]
        right += ((guess == wanted) & (wanted != PAD)).sum().item()
        total += (wanted != PAD).sum().item()
    return right / total


def write(model: Writer) -> str:
    ids = [BOS]
    while len(ids) < SHORT and ids[-1] != EOS:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        ids.append(logits.argmax().item())
    return " ".join(names[i] for i in ids[1:])


ends = {name: sum(c[-20:]) / 20 for name, c in curves.items()}
training = {name: as_in_training(m) for name, m in writers.items()}
writing = {name: as_in_writing(m) for name, m in writers.items()}
with measured():
    print(f"{'':>12}  loss training writing")
    for name, end in ends.items():
        share = f"{training[name]:8.2f} {writing[name]:7.2f}"
        print(f"{name:>12} {end:5.3f} {share}")
    for name, model in writers.items():
        print(f"{name}: {write(model)}")
assert ends["without mask"] < 0.1
assert ends["with mask"] > 0.8
assert training["without mask"] > 0.95
assert writing["without mask"] < 0.3
assert writing["with mask"] > writing["without mask"] + 0.2
assert abs(training["with mask"] - writing["with mask"]) < 0.005

# %%
#| alt: Two loss curves over 250 steps on a logarithmic axis. Both begin near 6 nats. The one with the mask falls
#|   quickly at first, then slowly, and ends a little above 1. The one without the mask
#|   falls far below it and ends below 0.01.
figure, axes = plt.subplots(figsize=(7, 3.4))
colors = {"with mask": "#0072B2", "without mask": "#D55E00"}
for name, curve in curves.items():
    axes.plot(curve, color=colors[name], lw=1.2, label=name)
axes.set_yscale("log")
axes.set_xlabel("step")
axes.set_ylabel("training loss, nats per token")
axes.set_title("The better curve belongs to the broken model")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# Without the mask the loss ends below 0.1, and more than 95 % of the words are right as in training, but
# fewer than 30 % as in writing. With the mask both shares are the same, up to rounding.
# ```
#
# Without the mask the model has learnt to copy its right neighbour. It looks perfect for as long as the
# answer stands in the input. When it has to write there is no right neighbour, and most of its guesses
# are wrong. No error message appears, and the curve is better than that of the
# correct program. So do not judge a mask by the loss: change a token and look which outputs move.
#
# The mask has a second merit. In the correct model the measurement "as in training" gives what the model does
# in writing, because no output depends on what comes later. One pass over a sentence trains all its
# predictions at once.

# %% [markdown]
# ## Exercises
#
# ```{exercise} Prefixes of different lengths
# :label: ex-02-prefix
# *10 minutes, easy.* Write `prefix_mask(lengths, n)`. `lengths` has the shape [B] and holds the length
# {math}`P` of each row's prefix. Return {eq}`eq-mask-prefix` for each row, bool, of the shape
# [B, n, n]. No loop is needed.
#
# *Hint 1.* `torch.arange(n)` compared with itself, once as a column and once as a row, is a causal mask.
# *Hint 2.* `lengths[:, None, None]` can be compared with a row of keys.
# ```

# %% [markdown]
# ```{solution-start} ex-02-prefix
# :class: dropdown
# ```


# %%
def prefix_mask(lengths: torch.Tensor, n: int) -> torch.Tensor:
    ### BEGIN SOLUTION
    place = torch.arange(n)
    causal = place[None, :] <= place[:, None]
    return causal | (place < lengths[:, None, None])
    ### END SOLUTION


# %% [markdown]
# With {math}`P = 0` or {math}`P = 1` it is the causal mask: the first position sees itself anyhow. With
# {math}`P = n` it is the mask of an encoder.
#
# ```{solution-end}
# ```

# %%
ch02.check_prefix_mask(prefix_mask)

# %% [markdown]
# ```{exercise} Three masks for one model
# :label: ex-02-seq2seq
# *15 minutes, medium.* An encoder-decoder translates a batch of sentences of different lengths, filled up
# with padding on the right. `source_real` [B, S] and `target_real` [B, T] are bool, true for a real token.
# Write `three_masks(source_real, target_real)`: return the mask of the encoder [B, S, S], that of the
# decoder [B, T, T], and that of cross-attention [B, T, S]. No query may look at padding, and the decoder
# not at the future. What the rows of padded queries contain does not matter here, since nobody uses
# their outputs: let them look at the same real keys as others would.
#
# *Hint.* In all three masks padding forbids columns, not rows. In cross-attention the keys
# come from the source.
# ```

# %% [markdown]
# ```{solution-start} ex-02-seq2seq
# :class: dropdown
# ```


# %%
def three_masks(
    source_real: torch.Tensor, target_real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ### BEGIN SOLUTION
    rows, n_source = source_real.shape
    n_target = target_real.shape[1]
    encoder = source_real[:, None, :].expand(rows, n_source, n_source)
    cross = source_real[:, None, :].expand(rows, n_target, n_source)
    causal = torch.ones(n_target, n_target, dtype=torch.bool).tril()
    decoder = causal & target_real[:, None, :]
    return encoder, decoder, cross
    ### END SOLUTION


# %% [markdown]
# Cross-attention is not causal: the whole source is there before the first target word is written. A row
# without a single true field would be a trap, since its softmax is 0 / 0. Here it cannot happen as long as
# each sentence has at least one real token and padding is on the right.
#
# ```{solution-end}
# ```

# %%
ch02.check_three_masks(three_masks)

# %% [markdown]
# ```{exercise} Which family is this?
# :label: ex-02-family
# *15 minutes, medium.* You are given a measured matrix `moved`, bool of the shape [n, n]: `moved[i, j]` says
# that output `i` moved when token `j` was changed. Write `family(moved)`. Return
# `"encoder"` when everything depends on everything, `"decoder"` when each output depends on itself and
# everything before, and on nothing else, `"prefix"` when there is a prefix of at least 2 and fewer than `n` positions as in
# {eq}`eq-mask-prefix`, and `"none"` for every other matrix, for example one that leaks in a single field.
#
# *Hint.* The first row tells the length of the prefix, if there is one. Then build the matrix that you
# expect, and compare.
# ```

# %% [markdown]
# ```{solution-start} ex-02-family
# :class: dropdown
# ```


# %%
def family(moved: torch.Tensor) -> str:
    ### BEGIN SOLUTION
    n = len(moved)
    prefix = int(moved[0].sum())
    expected = prefix_mask(torch.tensor([prefix]), n)[0]
    if not torch.equal(moved, expected):
        return "none"
    if prefix == n:
        return "encoder"
    return "decoder" if prefix == 1 else "prefix"
    ### END SOLUTION


# %% [markdown]
# One family with a parameter contains all three: the prefix of length 1 is the decoder, the prefix of length
# {math}`n` is the encoder. The comparison must look at every field. A function that looks only at the first
# row would call a model with a leak in the middle a decoder.
#
# ```{solution-end}
# ```

# %%
ch02.check_family(family)

# %% [markdown]
# ```{exercise} Count the signals
# :label: ex-02-signals
# *5 minutes, easy.* Write `epochs_for_equal_signals(rate)`: an autoencoding model hides the share `rate` of
# all words, newly drawn in each pass over the text. How many passes does it need for as many
# predictions as an autoregressive model makes in one pass? (A pass over the whole text is called an
# **epoch**.) Return the number without rounding it. How large is it with BERT's rate of 0.15?
# ```

# %% [markdown]
# ```{solution-start} ex-02-signals
# :class: dropdown
# ```


# %%
def epochs_for_equal_signals(rate: float) -> float:
    ### BEGIN SOLUTION
    return 1 / rate
    ### END SOLUTION


# %%
print(f"{epochs_for_equal_signals(0.15):.1f} passes")

# %% [markdown]
# One pass makes {math}`n` predictions in the first case and {math}`\text{rate} \cdot n` in the second.
# The two kinds are not worth the same, since the second guesses from both sides. So this number says
# how many predictions there are, not how much is learnt.
#
# ```{solution-end}
# ```

# %%
ch02.check_epochs_for_equal_signals(epochs_for_equal_signals)

# %% [markdown]
# ## What to keep
#
# Pretraining learns from text without labels, and fine-tuning goes on from its weights with few
# labels. An autoregressive model guesses each word from the words before it, and can write. An
# autoencoding model guesses hidden words from both sides, with fewer predictions in each pass. The family
# of a model is the mask of its attention: everything (encoder), the past (decoder), the source and the past of the target
# (encoder-decoder). Depth does not break these masks, and it widens a window. Test a mask by
# changing a token: outputs that must not see it move by exactly zero. A loss cannot replace this test.
#
# Which family suits which task is measured later, in chapter 19. Before that, a text
# must become ids; this is the subject of [chapter 03](03_tokenizers.ipynb).
