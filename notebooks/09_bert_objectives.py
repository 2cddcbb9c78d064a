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
# # 09 BERT: two tasks without labels
#
# BADGE
#
# **You will** see why a model that reads both sides needs a mask of another kind, build BERT's input
# from sentences, hide tokens by its rule, check both of its losses against plain loops, and study two
# known bugs that no error message shows: their curves, and the tests that find them.
#
# **Needs** encoders and their masks from [chapter 02](02_families_and_masks.ipynb), WordPiece from
# [chapter 03](03_tokenizers.ipynb), norms and the residual stream from
# [chapter 06](06_positions_norms_ff.ipynb). **Runs** in 60 seconds on one core.
# **Source** {cite:p}`devlin2019`; `llm_course/losses/masked.py`,
# `llm_course/batches/sentence_pairs.py`.
#
# Names such as F10 and F11 are ids of formulas in the article that this course follows. The
# [source map](../book/source_map.md) lists them.

# %% [markdown]
# COLAB

# %%
import inspect
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from llm_course import BERT, BERTConfig, Tokenizer, TrainConfig, train
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import FixedPairs, SentencePairs
from llm_course.losses.masked import bert_loss_fn, mlm_loss, nsp_loss
from llm_course.recipes.pretrain_bert import encoded, masking_of
from llm_lab.checks import ch09
from llm_lab.pictures.masking import masking_view
from llm_lab.pictures.measured import measured
from llm_town import generate_documents

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## A model that can copy
#
# A GPT guesses the next token, and its causal mask hides the answer from it. An encoder has no such
# mask: every position sees every other one, and itself. This is good for *understanding* a text. In
# "the bank of the river", the words after "bank" decide what "bank" means, and a model that reads
# from left to right has not seen them yet.
#
# But what should such a model be trained to do? Suppose that we ask it for the token at each
# position. The token is in the input, so the model can copy it. [Chapter
# 02](02_families_and_masks.ipynb) trained a model without a causal mask, and its loss fell to nearly
# nothing. We repeat this with an encoder, because we want to know what such a model has learnt.
#
# First the text. The stories are from *Town*, the generated text that this course trains on, and a
# WordPiece tokenizer cuts them into tokens. To keep this chapter fast, a row is the first two
# sentences of a story. `encoded` returns the ids of each sentence. `masking_of` collects the ids of
# the special tokens and the settings of BERT's rule in one object, `masking`.

# %% tags=["covers-B1"]
stories = list(generate_documents(3000, seed=1, split="train"))
others = list(generate_documents(300, seed=3, split="validation"))
tokenizer = Tokenizer.train(
    [story.text for story in stories], kind="wordpiece", vocab_size=1000
)
V = len(tokenizer)
masking = masking_of(tokenizer)
PAD, CLS, SEP, MASK = masking.special_ids
print({tokenizer.token(i): i for i in masking.special_ids})

T = 48


def rows_of(documents: list) -> torch.Tensor:
    """[CLS], the first two sentences, [SEP], padding."""
    rows = []
    sentences = [list(document.sentences) for document in documents]
    for first, second, *_ in encoded(tokenizer, sentences):
        ids = [CLS, *(first + second)[: T - 2], SEP]
        rows.append(ids + [PAD] * (T - len(ids)))
    return torch.tensor(rows)


rows, held_out = rows_of(stories), rows_of(others)
assert not (rows == tokenizer.unk_id).any()  # no [UNK] in Town
print(f"{len(rows)} rows of {T} tokens, {V} different tokens")
print(" ".join(tokenizer.token(i) for i in rows[8].tolist() if i != PAD))

# %% [markdown]
# The tokens in square brackets are **special**. `[CLS]` stands at the beginning of each row; `[SEP]`
# closes a piece of text; `[PAD]` fills a row up. `[MASK]` is the token that this chapter is about.
# (The id 1 is `[UNK]`, for a word with an unknown character. Town has no such word, so no text here contains it.) A token
# that begins with `##` continues a word: the tokenizer knows this word only in parts.
#
# The model is a small BERT with two blocks. We train it twice. The first time its input is the text,
# and the label of each position is the token that stands there. The second time about 15 % of the
# tokens are **chosen**. Most of them are hidden behind `[MASK]`, by a rule that is explained below, and
# only the chosen ones have a label. All other labels are −100, *not counted*. `masking.apply` draws which
# tokens are chosen, and returns what the model reads and the labels.
#
# Both models are judged on the same stories, which they have not seen. Tokens are chosen there too,
# and the loss is the mean over the positions where the model reads `[MASK]`. (The code also measures a
# second loss, at tokens that are replaced by wrong ones. A later section needs it.)


# %%
def small_bert() -> BERT:
    torch.manual_seed(0)
    return BERT(
        BERTConfig(
            vocab_size=V,
            n_layers=2,
            d_model=64,
            n_heads=4,
            d_ff=256,
            n_positions=112,
            dropout=0.0,
        )
    )


class MaskedRows:
    """Endless batches of 32 rows; `hide` turns ids into input and labels."""

    def __init__(self, hide) -> None:
        self.hide = hide

    def __iter__(self):
        g = torch.Generator().manual_seed(1)
        while True:
            ids = rows[torch.randint(len(rows), (32,), generator=g)]
            read, labels = self.hide(ids, g)
            yield as_batch(ids, read, labels)


def as_batch(ids, read, labels) -> dict[str, torch.Tensor]:
    seen = ids != PAD
    return {"input_ids": read, "labels": labels, "attention_mask": seen}


def hide_nothing(ids, g):
    special = torch.isin(ids, torch.tensor(masking.special_ids))
    return ids, ids.masked_fill(special, -100)


g = torch.Generator().manual_seed(7)
test_read, test_labels = masking.apply(held_out, g)
test = as_batch(held_out, test_read, test_labels)
is_mask = test_read == MASK  # where the model reads [MASK]
all_wrong = replace(masking, masked=0.0, replaced=1.0)
wrong_read, wrong_labels = all_wrong.apply(held_out, g)
misread = as_batch(held_out, wrong_read, wrong_labels)


def mean_loss(model: BERT, batch: dict, where=None) -> float:
    """The loss per chosen token; `where`: count these positions only."""
    labels = batch["labels"]
    if where is not None:
        labels = labels.masked_fill(~where, -100)
    with torch.no_grad():
        total, count = bert_loss_fn(model, {**batch, "labels": labels})["mlm"]
    return (total / count).item()


def on_held_out(model: BERT) -> tuple[float, float]:
    """The loss where the model reads [MASK], and where a wrong token."""
    return mean_loss(model, test, is_mask), mean_loss(model, misread)


def train_bert(hide, loss_fn=bert_loss_fn, steps: int = 200):
    """A trained model, its training losses, its losses on held-out rows."""
    model = small_bert()
    settings = TrainConfig(
        max_steps=steps,
        lr=5e-3,
        warmup_steps=40,
        schedule="linear",
        beta2=0.98,
        weight_decay=0.01,
        device="cpu",
    )
    losses, checked = [], {0: on_held_out(model)}
    for step in train(model, MaskedRows(hide), loss_fn, settings):
        losses.append(step.loss)
        if step.step % 40 == 0:
            checked[step.step] = on_held_out(model)
    return model.eval(), losses, checked


copier, copier_losses, copier_test = train_bert(hide_nothing)
honest, honest_losses, honest_test = train_bert(masking.apply)

# %% [markdown]
# As a baseline we take a model that knows nothing but how frequent each token is. A model that does
# not even know this, and finds all {math}`V` tokens equally likely, has a loss of {math}`\log V`.

# %% tags=["covers-P1"]
frequency = torch.bincount(rows[rows > MASK], minlength=V) + 1.0
log_p = (frequency / frequency.sum()).log()
baseline = -log_p[test_labels[is_mask]].mean().item()


def last(losses: list[float]) -> float:
    return sum(losses[-20:]) / 20


with measured():
    print(f"{'':>14}  training  hidden tokens")
    for name, losses, checked in (
        ("hides nothing", copier_losses, copier_test),
        ("hides 15 %", honest_losses, honest_test),
    ):
        print(f"{name:>14} {last(losses):9.2f} {checked[200][0]:14.2f}")
print(f"baseline: {baseline:.2f}, log V: {math.log(V):.2f}")
assert last(copier_losses) < 0.4
assert copier_test[200][0] > math.log(V)
assert honest_test[200][0] < baseline - 0.5

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The model that hides nothing ends below 0.4 nats per token in training, and above {math}`\log V` on
# hidden tokens. The model that hides 15 % has a much higher training loss, and is better than the
# baseline by more than 0.5 nats.
# ```
#
# The first task can be solved without looking at any other position: the embedding of the token is in
# the residual stream from the beginning, and the head only has to find it there. A model that has learnt this is
# of no use where it reads `[MASK]`. It is worse than one that finds all tokens equally likely, because
# it is sure of something wrong. **A low loss on a task that can be copied says nothing about
# understanding.** At nine of ten counted positions the second model cannot copy, so it has to use the words around.
#
# The hiding has a price. In a row of {math}`T` tokens a GPT makes {math}`T - 1` predictions at once.
# BERT makes about {math}`0.15\,T`. So BERT needs several passes over a text to get as many predictions
# as a GPT gets in one. They are counted below.

# %% [markdown]
# ## What BERT reads
#
# BERT has two tasks, and both are asked in one row. In the first it guesses hidden tokens, as above. In
# the second it says whether one piece of text follows another. So the row has two **segments**, A and B: pieces of
# text, of one or several sentences. The model sees `[CLS]` A `[SEP]` B `[SEP]`, and three numbers
# for each token: its id, its segment (0 for A, 1 for B) and its position. Each number selects a row
# of a table. The three vectors are added, and their sum, normed by a LayerNorm, is what the first block
# receives. The cell prints the position, the segment and the id of each token of one row, and checks the
# sum on it. Without the segment vector the sum must be wrong.
#
# To keep the rows short we use the first four sentences of each story. `SentencePairs` makes a pair of them. It
# divides them at a random place between two sentences: A is the part before, B the part after. With
# probability one half, B is replaced by the second part of another story. The label says which it is: 0 if
# B follows A, 1 if B is from another story.

# %% tags=["covers-B1", "covers-P2"]
N_SENTENCES, CONTEXT = 4, 112


def sentences_of(documents: list) -> list:
    """The ids of the first sentences of each document."""
    return encoded(
        tokenizer, [list(d.sentences[:N_SENTENCES]) for d in documents]
    )


ids_of_stories = sentences_of(stories)
maker = SentencePairs(ids_of_stories, CONTEXT, masking)
pairs = maker.pairs(np.random.default_rng(0))
print(f"{'label':>5}  {'stories':>12}  A ... | B ...")
for pair in pairs[:6]:
    end = tokenizer.decode(pair.first[-5:])
    begin = tokenizer.decode(pair.second[:6])
    print(f"{pair.label:5d}  {pair.sources!s:>12}  ... {end} | {begin} ...")

shortest = min(pairs, key=lambda pair: len(pair.ids(masking)))
ids, segments = shortest.ids(masking), shortest.segments()
print()
print("position segment   id token")
for place, (i, segment) in enumerate(zip(ids, segments)):
    print(f"{place:8d} {segment:7d} {i:4d} {tokenizer.token(i)}")

received = []  # what the first block receives
model = small_bert().eval()
model.encoder[0].register_forward_pre_hook(
    lambda block, inputs: received.append(inputs[0][0])
)
segment_ids = torch.tensor([segments])
with torch.no_grad():
    model.hidden(torch.tensor([ids]), token_type_ids=segment_ids)
    vectors = model.token_embedding.weight[ids]
    vectors = vectors + model.position_embedding.weight[: len(ids)]
    without_segments = model.embedding_norm(vectors)
    vectors = vectors + model.segment_embedding.weight[segments]
    by_hand = model.embedding_norm(vectors)
assert torch.allclose(received[0], by_hand, atol=1e-5)
assert not torch.allclose(received[0], without_segments, atol=1e-2)

# %% [markdown]
# The numbering is that of the published models: 0 means *B follows A in the text*. It is
# easy to turn around by mistake, because one expects 1 for "yes".
#
# A pair with label 1 must not be a true pair by accident. `sources` are the numbers of the two
# stories, and we test many pairs: a true pair has one source, a false pair two. In a true pair, A and
# B together are the four sentences of one story. And the share of false pairs is one half, up to chance.

# %%
labels_seen = []
for seed in range(20):
    for pair in maker.pairs(np.random.default_rng(seed)):
        one_source = pair.sources[0] == pair.sources[1]
        assert one_source == (pair.label == 0)
        if one_source:
            story = ids_of_stories[pair.sources[0]]
            whole = [i for sentence in story for i in sentence]
            assert pair.first + pair.second == whole
        labels_seen.append(pair.label)
n = len(labels_seen)
assert abs(sum(labels_seen) - n / 2) < 4 * math.sqrt(n / 4)
print(f"{n} pairs, {sum(labels_seen) / n:.3f} of them with label 1")

# %% [markdown]
# What would go wrong otherwise? If B of a false pair came from A's own story, the label would
# say "does not follow" for two parts of one story, and a model that recognises the story would
# be punished for it. And the stories that we test with must not be among those that we train
# with, or the model could have learnt them by heart: they come from another split.

# %% [markdown]
# ## Which tokens are hidden
#
# The rule of the paper {cite:p}`devlin2019` has two steps. First, 15 % of the tokens are **chosen**;
# special tokens never are. Then a draw decides, for each chosen token, what the model reads: with
# probability 80 % `[MASK]`, with 10 % a random token, and with 10 % the token itself, unchanged. In all
# three cases the label is the original token.
#
# How are 15 % chosen? The program of the authors takes 15 % of each row, rounded to a whole number
# of tokens, and at least one. This package, like most programs today, draws for each token by itself,
# with probability 15 %. Then the number of chosen tokens varies. Try it: the button draws again.

# %%
example = [tokenizer.token(i) for i in rows[8].tolist() if i != PAD]
vocabulary = [tokenizer.token(i) for i in range(V)]
masking_view(example, vocabulary, seed=4, title="Mask it again")

# %% [markdown]
# The upper line of each token is what the model reads. A chosen token has a thick frame and a coloured ground, and its label stands
# below. Press "100 times more" and look at the table: the shares come near to the rule. A single masking, counted
# in the line above the table, is often far from it. Sometimes not one token of the row is chosen.
#
# Which tokens can be put in at random? This package draws from `[UNK]` and all ordinary tokens. The program of the
# authors draws from the whole vocabulary, special tokens too.
#
# In this package a row is masked anew whenever it is read, so that in each pass over the text other
# tokens are chosen. This is called *dynamic masking* {cite:p}`liu2019`. (The authors of BERT masked the text before the
# training, in ten ways. The training passed over the text 40 times, so the model met each masking about four times.) And
# this is the function behind it:

# %%
source = inspect.getsource(inspect.unwrap(masking.apply))
print(source[: source.index('"""')].rstrip())
print("    ...")
print(source[source.index("        is_special =") :])

# %% [markdown]
# Three random tensors do the work. `draw` decides which tokens are chosen, `how` what a
# chosen token becomes: below 0.8 `[MASK]`, from there to 0.9 a random token, above it nothing changes. The
# third, `which`, chooses a random token for each position, for the case that it is needed. `IGNORE` is
# −100, and `continues` is explained below, under *Whole words*.
#
# Is the rule kept? A share that is counted over {math}`n` independent draws of probability {math}`p` has the
# standard deviation {math}`\sqrt{p(1-p)/n}`. We mask a million random tokens and demand that each share lies within four
# standard deviations of its rule. A correct program misses this for a given share about once in 16,000 times. The control asks for 16 % in place
# of 15 %, and must fail.

# %%
ids = torch.randint(MASK + 1, V, (1000, 1024), generator=generator)
ids[:, 0], ids[:, 500], ids[:, 1000:] = CLS, SEP, PAD
read, labels = masking.apply(ids, generator)
ordinary, chosen = ids > MASK, labels != -100
assert not chosen[~ordinary].any()  # special tokens are never chosen
assert (read[~chosen] == ids[~chosen]).all()
assert (labels[chosen] == ids[chosen]).all()


def deviations(count: int, n: int, p: float) -> float:
    return abs(count - n * p) / math.sqrt(n * p * (1 - p))


n, k = int(ordinary.sum()), int(chosen.sum())
n_mask = int((read[chosen] == MASK).sum())
n_same = int((read[chosen] == ids[chosen]).sum())
by_chance = 0.1 / len(set(range(V)) - set(masking.special_ids))
for name, count, of, p in (
    ("chosen", k, n, 0.15),
    ("[MASK]", n_mask, k, 0.8),
    ("another token", k - n_mask - n_same, k, 0.1 - by_chance),
    ("the same token", n_same, k, 0.1 + by_chance),
):
    assert deviations(count, of, p) < 4
    print(f"{name:>15}: {count / of:.3f} of {of:,} tokens")
assert deviations(k, n, 0.16) > 4

# %% [markdown]
# (A random token is by chance the right one, about once in {math}`V` times. So the last two shares
# differ from 10 % by a very small amount.)
#
# In a single row of about thirty tokens the share is not 15 %: it varies from row to row. The next figure
# counts the chosen tokens in each of our 3,000 rows. Each of them is one prediction.

# %%
#| alt: Bar chart. The horizontal axis is the number of predictions in a row, the vertical axis the
#|   share of rows. The bars form a hill between 0 and 11 with its top at 3 and 4, where each bar
#|   reaches 0.2. Far to the right a dashed vertical line stands at 28, the number of predictions that
#|   a GPT gets from the average row.
#| caption: Predictions that one row gives to BERT, and to a GPT.
#| name: fig-09-predictions
_, labels = masking.apply(rows, generator)
per_row = (labels != -100).sum(dim=1)
lengths = (rows != PAD).sum(dim=1)
gpt_mean = (lengths - 1).float().mean().item()
figure, axes = plt.subplots(figsize=(7, 3.2))
shares = torch.bincount(per_row) / len(per_row)
axes.bar(range(len(shares)), shares, color="#0072B2", label="BERT")
axes.axvline(gpt_mean, color="#D55E00", ls="--", label="GPT, average row")
axes.set_xlabel("predictions in a row")
axes.set_ylabel("share of rows")
axes.legend()
plt.show()

# %% tags=["covers-K2"]
ordinary_tokens = (rows > MASK).sum().item()
share = per_row.sum().item() / ordinary_tokens
print(f"predictions per row: BERT {per_row.float().mean():.1f}, ", end="")
print(f"GPT {gpt_mean:.1f}")
assert 6.5 < gpt_mean / per_row.float().mean() < 7.5
print(f"rows with no prediction: {(per_row == 0).float().mean():.1%}")
assert deviations(int(per_row.sum()), ordinary_tokens, 0.15) < 4

# %% [markdown]
# Most rows give between 1 and 8 predictions, and a few give none. A GPT makes about seven times as many
# in the same row: this is the price of an autoencoding model ([chapter 02](02_families_and_masks.ipynb)). That the number varies
# will matter when we take means.
#
# ### Whole words
#
# The row above contains *me ##ch ##an ##ic*. When only *##ch* is hidden, the rest of the word gives it
# away, and the model need not understand the sentence. With **whole-word masking** all tokens of a
# word are chosen together, or none. The authors of BERT added it later as an option. In this package,
# one tells the masking which tokens continue a word (`continues`). Only the choice is made for whole words. The
# draw of 80/10/10 is still made for each token, so a part of a chosen word can stay in view.
#
# How often does it matter? We look at every border between two tokens of one word. Let us say that a
# masking *tears* the word there if one of the two tokens is chosen and the other is not.

# %%
words = masking_of(tokenizer, whole_words=True)
single = torch.Generator().manual_seed(2)
whole = torch.Generator().manual_seed(2)
by_token = masking.apply(rows, single)[1] != -100
by_word = words.apply(rows, whole)[1] != -100
inside = torch.tensor(words.continues)[rows][:, 1:]  # continues a word
torn_token = (by_token[:, 1:] != by_token[:, :-1])[inside]
torn_word = (by_word[:, 1:] != by_word[:, :-1])[inside]
places = int(inside.sum())
print(f"{places:,} borders inside words")
print(f"{'':>13}  chosen  torn borders")
for name, chosen, torn in (
    ("single tokens", by_token, torn_token),
    ("whole words", by_word, torn_word),
):
    share = chosen.sum() / ordinary_tokens
    print(f"{name:>13} {share:7.1%} {torn.float().mean():13.1%}")
    assert abs(share - 0.15) < 0.01
assert not torn_word.any()
assert deviations(int(torn_token.sum()), places, 2 * 0.15 * 0.85) < 5

# %% [markdown]
# Single tokens tear a word at a border with probability {math}`2 \cdot 0.15 \cdot 0.85 = 0.255`: the
# first is chosen and not the second, or the other way round. Whole words are never torn, and as many
# tokens are chosen as before.

# %% [markdown]
# ## The masked-token loss
#
# The first task is called **masked language modelling**, MLM. Let {math}`w` be a text, {math}`M` the
# set of its chosen positions, and {math}`w_{/i}` what the model reads in place of {math}`w` when it
# guesses {math}`w_i`. The loss is
#
# $$\mathcal L_\text{MLM} = -\sum_{i \in M} \log p(w_i \mid w_{/i})$$ (eq-mlm-loss)
#
# (The paper of BERT gives no formula. The article that this course follows writes {math}`w_{/i}`, "the
# text without {math}`w_i`". In truth the model reads the same damaged text for all {math}`i`: all chosen tokens are hidden at
# once, so each of them is guessed without the others.)
#
# As plain loops, and as the function of the package:


# %% tags=["covers-F10"]
def plain_mlm(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """F10: one chosen position after the other."""
    total = 0.0
    for row_logits, row_labels in zip(logits.tolist(), labels.tolist()):
        for scores, target in zip(row_logits, row_labels):
            if target == -100:
                continue
            normaliser = sum(math.exp(score) for score in scores)
            total -= math.log(math.exp(scores[target]) / normaliser)
    return total


print(inspect.getsource(inspect.unwrap(mlm_loss)))

# %% [markdown]
# Two differences from the loss of a GPT: the labels are not shifted, because an output speaks about its
# own position, and most of them are −100. The helper `_cross_entropy` checks the shapes, calls PyTorch's
# cross-entropy with the sum, and counts the labels.

# %% tags=["covers-F10"]
logits = torch.randn(3, 9, 11, generator=generator, dtype=torch.float64)
labels = torch.randint(11, (3, 9), generator=generator)
labels[torch.rand(3, 9, generator=generator) < 0.5] = -100
total, count = mlm_loss(logits, labels)
assert abs(total.item() - plain_mlm(logits, labels)) < 1e-10
assert count == (labels != -100).sum()
print(f"{total:.3f} nats over {count} positions of {labels.numel()}")

shifted = plain_mlm(logits[:, :-1], labels[:, 1:])  # GPT's rule
assert abs(total.item() - shifted) > 0.1
print(f"with a GPT's shift: {shifted:.3f} nats")

# %% [markdown]
# Two properties make good tests. First, a new model has small random weights and gives every token nearly
# the same probability {math}`1/V`, so its loss per chosen token is close to {math}`\log V`. Second, a
# position that is not in {math}`M` does not occur in {eq}`eq-mlm-loss`. Its logits get **exactly no
# gradient**: not a small one, but zero. The control for the second test is `broken_mean`, a function with a
# bug that the next section explains.

# %% tags=["covers-F10"]
start = mean_loss(small_bert(), test)
print(f"fresh model {start:.2f}, log V = {math.log(V):.2f}")
assert abs(start - math.log(V)) < 0.15


def broken_mean(logits: torch.Tensor, ids: torch.Tensor, chosen):
    """WRONG: this mask does nothing."""
    mean = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    return (mean * chosen).sum() / chosen.sum()


def gradients(loss_of) -> torch.Tensor:
    """The size of the gradient at each position."""
    free = logits.clone().requires_grad_()
    loss_of(free).backward()
    return free.grad.abs().sum(dim=-1)


chosen = labels != -100
ids = labels.masked_fill(~chosen, 5)  # any tokens at the other places
right = gradients(lambda free: mlm_loss(free, labels)[0] / count)
wrong = gradients(lambda free: broken_mean(free, ids, chosen))
assert (right[~chosen] == 0).all()
assert (right[chosen] > 0).all()
assert (wrong > 0).all()  # the control

# %%
#| alt: Two heat maps with three rows and nine columns, the positions of three texts. On the left,
#|   under "package", the eight squares that are marked with a dot are blue; all other squares are
#|   white. On the right, under "broken mean", the dots are at the same places, but every square is
#|   blue, and those with a dot are not darker than the others.
#| caption: The size of the gradient at each position; darker is larger, on a scale of its own in each panel. Dots mark the chosen positions.
#| name: fig-09-gradient
figure, panels = plt.subplots(1, 2, figsize=(7, 1.9), sharey=True)
for axes, values, name in (
    (panels[0], right, "package"),
    (panels[1], wrong, "broken mean"),
):
    shown = values / values.max()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1.3)
    where = chosen.nonzero()
    axes.plot(where[:, 1], where[:, 0], "o", color="#D55E00", ms=4)
    axes.set_title(name)
    axes.set_xlabel("position")
    axes.set_yticks(range(3), ("row 0", "row 1", "row 2"))
plt.show()

# %% [markdown]
# On the left of {numref}`fig-09-gradient` only the chosen positions teach the model. On the right
# every position does. The second function is the first of our two bugs.

# %% [markdown]
# ## Silent bug 1: a mask that does nothing
#
# Look at `broken_mean` again. It computes the cross-entropy of all positions, multiplies by a mask of
# zeros and ones, adds up, and divides by the number of ones. This looks right. But `cross_entropy` returns the *mean* over all
# positions, unless one asks for another `reduction`. So `mean` is one number. Multiplied by the mask, it stands at each
# chosen position; added up and divided by their number, it is the same number again. **The mask
# cancels out.** This bug stood in the BERT chapter of a well-known course (issue 2582 of `d2l-en`). There the mask
# was meant to leave out the places that only fill up the list of predictions.
#
# We put the same bug into our program, where the places that should not count are all positions that were not
# chosen, padding too, and we train with it. About four of the 48 positions of a row are chosen. Where all others can be copied at no
# cost, a loss of 4 nats at the chosen ones is reported as {math}`4 \cdot 4/48`, which is 0.33. On
# held-out stories we measure two things: the loss where the model reads `[MASK]`, and the loss where
# it reads a **wrong token**, a random one. BERT should notice a wrong token, because it has the words
# around.


# %%
def broken_loss_fn(model, batch):
    read, labels = batch["input_ids"], batch["labels"]
    chosen = labels != -100
    ids = torch.where(chosen, labels, read)  # the text before masking
    inputs = {"attention_mask": batch["attention_mask"]}
    logits = model.mlm_head(model.hidden(read, **inputs))
    mean = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    return {"mlm": ((mean * chosen).sum(), chosen.sum())}


broken, broken_losses, broken_test = train_bert(masking.apply, broken_loss_fn)

# %%
#| alt: Two panels with two curves each, over 200 steps. Left, the training loss as the program reports
#|   it: both begin near 7. The curve of the broken program falls below 1, that of the right program
#|   ends near 4. Right, the loss at wrong tokens of held-out stories: both begin near 7; the curve of
#|   the right program falls below 5, that of the broken one stays near 7.
#| caption: What the programs report, and what their models do with a wrong token.
#| name: fig-09-mask
figure, panels = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
runs = (
    ("right", honest_losses, honest_test, "#0072B2", "-"),
    ("broken mean", broken_losses, broken_test, "#D55E00", "-."),
)
for name, losses, checked, color, style in runs:
    panels[0].plot(losses, color=color, ls=style, lw=1.2, label=name)
    at_wrong = [value for _, value in checked.values()]
    panels[1].plot(list(checked), at_wrong, color=color, ls=style, label=name)
panels[0].set_title("reported in training")
panels[1].set_title("wrong tokens, held out")
for axes in panels:
    axes.set_xlabel("step")
panels[0].set_ylabel("nats per token")
panels[0].legend(fontsize=8)
plt.show()

# %%
with measured():
    print(f"{'':>11} reported  hidden  wrong")
    for name, losses, checked, *_ in runs:
        hidden, at_wrong = checked[200]
        print(f"{name:>11} {last(losses):8.2f} {hidden:7.2f} {at_wrong:6.2f}")
repeated = {}
for name, model in (("right", honest), ("broken mean", broken)):
    with torch.no_grad():
        seen = {"attention_mask": misread["attention_mask"]}
        logits = model.mlm_head(model.hidden(wrong_read, **seen))
    wrong = wrong_labels != -100
    same = logits.argmax(-1)[wrong] == wrong_read[wrong]
    repeated[name] = same.float().mean().item()
with measured():
    for name, share in repeated.items():
        print(f"{name:>11} repeats {share:.0%} of the wrong tokens it reads")
assert repeated["broken mean"] > repeated["right"] + 0.3
assert last(broken_losses) < 1 < 3 < last(honest_losses)
assert broken_test[200][1] > honest_test[200][1] + 1
assert broken_test[200][1] > broken_test[0][1] - 1
assert abs(broken_test[200][0] - honest_test[200][0]) < 0.6

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# The broken program reports less than 1 nat, the right one more than 3. At wrong tokens the broken one is
# worse by more than 1 nat. At hidden tokens the two differ by less than 0.6.
# ```
#
# Read the two panels of {numref}`fig-09-mask` together. The program with the bug looks far better
# while it trains. At hidden tokens it is about as good as the right one, since they too are a part of its mean. So
# a quick look at its guesses for `[MASK]` does not find the bug either. But it has learnt to
# repeat the token that it reads, because this is right at most positions. At a wrong token it is
# about as bad as before its training.
#
# The gradient test of the section before finds the bug without any training: *positions that are not
# chosen must get exactly no gradient*.

# %% [markdown]
# ## Why not always [MASK]?
#
# After pretraining, BERT is used on texts without `[MASK]`, and its last vector at each token is
# needed. A model whose chosen positions all showed `[MASK]` was never asked anything at an
# ordinary token: what its last vector contains there did not count. Therefore 20 % of the chosen positions
# show something else, a random token or the right one. The model cannot know which of the tokens that it
# sees are right, and must be ready to predict at each of them.
#
# We measure it. Another model is trained with 100 % `[MASK]`. Then both read held-out stories in
# which *nothing* is hidden, and must name the token at each position.

# %%
only_mask = replace(masking, masked=1.0, replaced=0.0)
always, _, always_test = train_bert(only_mask.apply)

plain = as_batch(held_out, *hide_nothing(held_out, None))
on_plain = {
    "80/10/10": mean_loss(honest, plain),
    "always [MASK]": mean_loss(always, plain),
}
on_hidden = {
    "80/10/10": honest_test[200][0],
    "always [MASK]": always_test[200][0],
}
with measured():
    print(f"{'':>13}  in view  hidden")
    for name, value in on_plain.items():
        print(f"{name:>13} {value:8.2f} {on_hidden[name]:7.2f}")
assert on_plain["80/10/10"] < on_plain["always [MASK]"] - 0.5
assert max(on_hidden.values()) < baseline - 0.4
assert abs(on_hidden["80/10/10"] - on_hidden["always [MASK]"]) < 0.6

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# At tokens in view, the model of 80/10/10 is better by more than 0.5 nats. On hidden tokens both are
# better than the baseline by more than 0.4 nats, and differ by less than 0.6.
# ```
#
# The model that was always shown `[MASK]` is much worse at naming a token that it reads: less of the
# token is left in its last vector. With 80/10/10 the best that a model can do is to trust the token that it sees by
# about one half, because of the chosen tokens that were not `[MASK]`, half were random. That would cost about
# {math}`\log 2 = 0.69` nats. Ours is still far from it: it has made 200 steps, and only 3 % of all
# tokens, the random and the unchanged ones, teach it this.
#
# The rule has a price too: only 80 % of the predictions practise what is asked at `[MASK]`. How much does the choice of the rule matter?
# Less than one might think. The authors compared several rules (their appendix C.2). When all weights were trained further on a task, the rules were
# about equal. When the vectors of BERT were used as they are, to mark the names in a text, `[MASK]` alone was worse.

# %% [markdown]
# ## Does B follow A?
#
# The second task is **next-sentence prediction**, NSP. The last vector at `[CLS]` goes through the *pooler*,
# which is a linear layer and a {math}`\tanh`, and then through a linear layer with two outputs. Let {math}`p` be the probability that the model gives to "B
# follows A", and {math}`y = 1` if it does, {math}`y = 0` if not. The loss of a pair is
#
# $$\begin{aligned}
# \mathcal L_\text{NSP} = &-y \log p \\
# &- (1 - y) \log (1 - p)
# \end{aligned}$$ (eq-nsp-loss)
#
# In tensors the label is `next_sentence_label` = {math}`1 - y`: class 0 is "follows". With two logits
# {math}`z_0, z_1` the softmax gives {math}`p = e^{z_0} / (e^{z_0} + e^{z_1})`, and
# {eq}`eq-nsp-loss` is the cross-entropy of two classes.


# %% tags=["covers-F11"]
def plain_nsp(logits: torch.Tensor, next_sentence_label) -> float:
    """F11, with y = 1 for a pair that belongs together."""
    total = 0.0
    pairs = zip(logits.tolist(), next_sentence_label.tolist())
    for (z_0, z_1), label in pairs:
        y = 1 - label
        p = math.exp(z_0) / (math.exp(z_0) + math.exp(z_1))
        total += -y * math.log(p) - (1 - y) * math.log(1 - p)
    return total


logits = torch.randn(9, 2, generator=generator, dtype=torch.float64)
label = torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 1])
total, count = nsp_loss(logits, label)
assert abs(total.item() - plain_nsp(logits, label)) < 1e-10
assert abs(total.item() - plain_nsp(logits, 1 - label)) > 0.1  # y, not 1 - y
print(f"{total:.3f} nats over {count} pairs")

undecided, n = nsp_loss(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
assert abs(undecided / n - math.log(2)) < 1e-6
print(f"undecided: {undecided / n:.3f} nats, log 2 = {math.log(2):.3f}")

# %% [markdown]
# The second check is the value of a model that does not know: with {math}`p = 1/2` both terms are
# {math}`\log 2`. A new BERT begins near it.

# %% [markdown]
# ## Silent bug 2: ignore the label 0
#
# Many programs pad their labels with 0 and pass `ignore_index=0` to the loss, so that padding does
# not count. For tokens this works, as id 0 is `[PAD]`. But when the same loss object also serves
# NSP, the class 0 is ignored as well. This happened in a much-copied program (issues 32 and 49 of
# `BERT-pytorch`). Every pair that counts then has the label 1, and a model that always answers 1 is
# perfect.
#
# We train a small BERT on NSP alone, with the right loss and with the broken one. The accuracy is
# measured on pairs of held-out stories, one pair a row.
#
# For the training, `SentencePairs` puts two or more short pairs side by side into one row where they fit, so that
# less of the row is padding. The pairs do not disturb each other: the attention mask lets each token
# see its own pair only, and the positions begin at 0 in each pair. `next_sentence_label` has a place for
# each token: the label of a pair stands at its `[CLS]`, and −100 everywhere else.


# %%
no_masks = replace(masking, chosen=0.0)
held_out_pairs = SentencePairs(sentences_of(others), CONTEXT, no_masks)
evaluation = Evaluation(FixedPairs(held_out_pairs, seed=1), len(others))
pair_test = next(iter(evaluation))


def nsp_logits(model, batch):
    """The logits at each [CLS], and the labels there."""
    names = ("token_type_ids", "attention_mask", "position_ids")
    hidden = model.hidden(
        batch["input_ids"], **{name: batch[name] for name in names}
    )
    first = batch["next_sentence_label"] != -100
    pooled = model.pooler(hidden[first][:, None])  # it reads position 0
    return model.nsp_head(pooled), batch["next_sentence_label"][first]


def right_nsp(model, batch):
    return {"nsp": nsp_loss(*nsp_logits(model, batch))}


def ignoring_nsp(model, batch):
    logits, label = nsp_logits(model, batch)
    total = F.cross_entropy(logits, label, ignore_index=0, reduction="sum")
    return {"nsp": (total, (label != 0).sum())}


def train_nsp(loss_fn, steps: int = 140):
    model = small_bert()
    batches = Batches(SentencePairs(ids_of_stories, CONTEXT, no_masks), 12)
    settings = TrainConfig(
        max_steps=steps, lr=2e-3, warmup_steps=20, device="cpu"
    )
    losses, accuracy = [], {}
    for step in train(model, batches, loss_fn, settings):
        losses.append(step.loss)
        if step.step % 20 == 0:
            with torch.no_grad():
                logits, label = nsp_logits(model, pair_test)
            right = (logits.argmax(dim=-1) == label).float().mean()
            accuracy[step.step] = right.item()
    return losses, accuracy


nsp_runs = {
    "right": train_nsp(right_nsp),
    "ignore_index=0": train_nsp(ignoring_nsp),
}

# %%
#| alt: Two panels with two curves each, over 140 steps. Left, the training loss: the curve of the
#|   right program stays near 0.7 for about 50 steps, then it goes up and down below 1. That of
#|   ignore_index=0 falls to nearly 0 within 25 steps. Right, the accuracy on held-out pairs: the right
#|   program begins near 0.5 and rises to about 0.7. The broken one is a flat line at 0.5, which is
#|   also marked by a dashed line.
#| caption: The loss of the broken program is nearly zero, its accuracy is that of a coin.
#| name: fig-09-nsp
figure, panels = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
styles = {"right": ("#0072B2", "-"), "ignore_index=0": ("#D55E00", "-.")}
for name, (losses, accuracy) in nsp_runs.items():
    color, style = styles[name]
    panels[0].plot(losses, color=color, ls=style, label=name)
    panels[1].plot(*zip(*accuracy.items()), color=color, ls=style)
panels[1].axhline(0.5, color="grey", ls="--", lw=1, zorder=0)
panels[0].set_title("training loss, nats a pair")
panels[1].set_title("accuracy, held out")
panels[1].set_ylim(0.4, 0.9)
for axes in panels:
    axes.set_xlabel("step")
figure.legend(loc="outside lower center", ncols=2, fontsize=9)
plt.show()

# %%
with measured():
    for name, (losses, accuracy) in nsp_runs.items():
        final = f"loss {last(losses):.3f}, right {accuracy[140]:.2f}"
        print(f"{name:>14}: {final}")
ends = [tokenizer.token_id(sign) for sign in ".?!"]
by_counting = [
    (sum(i in ends for i in pair.first + pair.second) != N_SENTENCES)
    == bool(pair.label)
    for seed in range(5)
    for pair in held_out_pairs.pairs(np.random.default_rng(seed))
]
share = sum(by_counting) / len(by_counting)
print(f"counting the ends of sentences: right {share:.2f}")
assert share > 0.75
always_1 = (nsp_logits(small_bert(), pair_test)[1] == 1).float().mean().item()
assert nsp_runs["ignore_index=0"][1][140] == always_1
assert 0.4 < always_1 < 0.6
assert last(nsp_runs["ignore_index=0"][0]) < 0.05
assert nsp_runs["right"][1][140] > 0.58

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# With `ignore_index=0` the loss ends below 0.05, and the accuracy is exactly the share of pairs with the label 1, about one half. The right
# program has more than 58 % after 140 steps.
# ```
#
# On the left of {numref}`fig-09-nsp` the broken loss is soon 0. The right loss first stays at
# {math}`\log 2`, because the model knows nothing yet; then it falls, and jumps, since a batch has only some
# fifteen pairs. On the right, the broken program stays on the grey line, which is that of a coin.
#
# Do not read the accuracy of the right program as understanding. All our pairs that belong together have exactly
# four sentences. A false pair has four only by chance, in about one case of three. So a program that counts the ends
# of sentences, and nothing else, is right more often than our model: this is the last line of the list. [Chapter 10](10_bert_pretrain.ipynb) examines this shortcut.
#
# Again the loss of the broken program is the better one. The test needs no training: give the loss undecided logits and both
# labels. **Both classes must cost {math}`\log 2`, and both must have a gradient.**


# %% tags=["covers-F11"]
def both_classes_teach(loss_of) -> bool:
    for label in (0, 1):
        free = torch.zeros(1, 2, requires_grad=True)
        total = loss_of(free, torch.tensor([label]))
        total.backward()
        if abs(total.item() - math.log(2)) > 1e-6 or (free.grad == 0).any():
            return False
    return True


def ignoring(logits, label):
    return F.cross_entropy(logits, label, ignore_index=0, reduction="sum")


assert both_classes_teach(lambda logits, label: nsp_loss(logits, label)[0])
assert not both_classes_teach(ignoring)

# %% [markdown]
# ## The loss of BERT
#
# Both tasks are trained together, and the loss is the sum:
#
# $$\mathcal L_\text{BERT} = \mathcal L_\text{MLM} + \mathcal L_\text{NSP}$$ (eq-bert-loss)
#
# The derivative of a sum is the sum of the derivatives. So each task adds its own gradient, and each
# can be tested by itself. We take a batch of pairs and compare with the loops, in 64-bit numbers.
# `bert_loss_fn` returns a sum and a count for each task.

# %% tags=["covers-F9"]
torch.manual_seed(0)
model = small_bert().double()
batch = next(iter(Batches(maker, 4)))
terms = bert_loss_fn(model, batch)

names = ("input_ids", "token_type_ids", "attention_mask", "position_ids")
hidden = model.hidden(**{name: batch[name] for name in names})
with torch.no_grad():
    mlm = plain_mlm(model.mlm_head(hidden), batch["labels"])
    nsp = plain_nsp(*nsp_logits(model, batch))
assert abs(terms["mlm"][0].item() + terms["nsp"][0].item() - mlm - nsp) < 1e-10
assert abs(terms["mlm"][0].item() - mlm - nsp) > 1  # one term is not the sum
for name, (total, count) in terms.items():
    print(f"{name}: {total:.2f} nats over {count}, mean {total / count:.3f}")


def gradient(*wanted: str) -> torch.Tensor:
    model.zero_grad()
    terms = bert_loss_fn(model, batch)
    sum(terms[name][0] / terms[name][1] for name in wanted).backward()
    return model.token_embedding.weight.grad.clone()


both, only_mlm, only_nsp = (
    gradient("mlm", "nsp"),
    gradient("mlm"),
    gradient("nsp"),
)
assert (both - only_mlm - only_nsp).abs().max() < 1e-12
assert (both - only_mlm).abs().max() > 1e-6
ratio = (only_nsp.norm() / only_mlm.norm()).item()
assert ratio < 0.3
print(f"size of NSP's gradient at the embeddings: {ratio:.2f} of MLM's")

# %% [markdown]
# In the formulas both terms are sums. A program takes means, and here the two terms have two different counts: one is the
# number of chosen tokens, the other the number of pairs. The loss that BERT is trained with is the sum
# of the two means (appendix A.2 of the paper). The last line compares, in a new model, their two gradients
# by the table of tokens: that of the first task is more than ten times as large. One reason is that MLM uses this table
# twice, as its input and as the output matrix of its head. NSP uses it as input only.
#
# ### The mean is over counted labels
#
# The number of chosen tokens varies from batch to batch, as {numref}`fig-09-predictions` showed for rows. Suppose
# that a step is computed in two parts, two **micro-batches**, because the whole does not fit into memory. If the program takes the mean of
# each part, and then the mean of the two means, a token in the part with fewer chosen tokens has a
# greater weight. Here one part has a single row and the other 31; the model is `honest`, trained above.

# %%
one_row, many_rows = rows[:1], rows[1:32]
parts = [masking.apply(part, generator) for part in (one_row, many_rows)]
sums, counts = [], []
for ids, (read, labels) in zip((one_row, many_rows), parts):
    with torch.no_grad():
        fresh = bert_loss_fn(honest, as_batch(ids, read, labels))["mlm"]
    sums.append(fresh[0].item())
    counts.append(int(fresh[1]))
mean_of_means = sum(s / c for s, c in zip(sums, counts)) / 2
mean = sum(sums) / sum(counts)
with measured():
    print(f"means: {sums[0] / counts[0]:.3f} and {sums[1] / counts[1]:.3f}")
    print(f"mean of means {mean_of_means:.3f}, over labels {mean:.3f}")
print(f"chosen tokens: {counts}")
times = counts[1] / counts[0]
print(f"a token of the first part weighs {times:.0f} times as much")
assert abs(mean_of_means - mean) > 1e-3

# %% [markdown]
# Only the mean over labels is the loss of the 32 rows. So a loss function of this package returns **a sum
# and a count for each term**, and the training loop divides once, after it has added them up over all
# parts and all machines. A part in which no token was chosen is then no problem: it adds 0 to the sum
# and 0 to the count, where a mean would be 0 divided by 0.

# %% [markdown]
# ## Exercises
#
# ```{exercise} The masked-token loss by hand
# :label: ex-09-loss
# *10 minutes, easy.* Write `masked_loss(logits, labels)`: the mean of {eq}`eq-mlm-loss` over the chosen
# positions, as one number. −100 is not counted. Use `log_softmax` and `gather`, and no ready-made loss such as `cross_entropy`.
#
# *Hint 1.* Is there a shift? *Hint 2.* `gather` refuses −100: look up another id there, in a copy of the labels, and leave
# these positions out of the mean.
# ```

# %% [markdown]
# ```{solution-start} ex-09-loss
# :class: dropdown
# ```


# %%
def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    ### BEGIN SOLUTION
    chosen = labels != -100
    log_p = logits.log_softmax(dim=-1)
    picked = log_p.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    return -picked[chosen].mean()
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch09.check_masked_loss(masked_loss)

# %% [markdown]
# ```{exercise} 80/10/10
# :label: ex-09-mask
# *15 minutes, medium.* Write `hide(ids, chosen, mask_id, ordinary_ids, generator)`: what the model reads. `chosen` is a
# boolean tensor of the shape of `ids`, and `ordinary_ids` a row of all ids that are not special. A chosen token becomes
# `mask_id` with probability 0.8 and a random one of
# `ordinary_ids` with 0.1; else it stays. `ids` must not be changed.
#
# *Hint 1.* One draw of `torch.rand` for each token decides between the three cases. *Hint 2.* Draw a
# random token for every position, and use it only where it is needed: `torch.where`.
# ```

# %% [markdown]
# ```{solution-start} ex-09-mask
# :class: dropdown
# ```


# %%
def hide(
    ids: torch.Tensor,
    chosen: torch.Tensor,
    mask_id: int,
    ordinary_ids: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    ### BEGIN SOLUTION
    draw = torch.rand(ids.shape, generator=generator)
    place = torch.randint(len(ordinary_ids), ids.shape, generator=generator)
    hidden = torch.where(draw < 0.8, mask_id, ordinary_ids[place])
    return torch.where(chosen & (draw < 0.9), hidden, ids)
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch09.check_hide(hide)

# %% [markdown]
# ```{exercise} The next-sentence loss with one number
# :label: ex-09-nsp
# *10 minutes, easy.* The two logits {math}`z_0, z_1` of {eq}`eq-nsp-loss` matter only through their difference. Write
# `nsp_from_difference(difference, next_sentence_label)` with `difference` {math}`= z_0 - z_1`: the mean loss of the
# pairs. Let {math}`\operatorname{sigmoid}(x) = 1/(1 + e^{-x})`. Take its logarithm with
# `torch.nn.functional.logsigmoid`: it is exact also where the sigmoid, or 1 minus it, would be rounded to 0.
#
# *Hint 1.* {math}`p = \operatorname{sigmoid}(z_0 - z_1)`. *Hint 2.* What is {math}`1 - p`? *Hint 3.* The
# label is not {math}`y`.
# ```

# %% [markdown]
# ```{solution-start} ex-09-nsp
# :class: dropdown
# ```


# %%
def nsp_from_difference(
    difference: torch.Tensor, next_sentence_label: torch.Tensor
) -> torch.Tensor:
    ### BEGIN SOLUTION
    y = 1 - next_sentence_label
    log_p, log_not_p = F.logsigmoid(difference), F.logsigmoid(-difference)
    return -(y * log_p + (1 - y) * log_not_p).mean()
    ### END SOLUTION


# %% [markdown]
# Since {math}`1 - \operatorname{sigmoid}(x) = \operatorname{sigmoid}(-x)`, no logarithm of a number that has been
# rounded to 0 is taken, even for differences of 100.
#
# ```{solution-end}
# ```

# %%
ch09.check_nsp_from_difference(nsp_from_difference)

# %% [markdown]
# ```{exercise} Find the mask that does nothing
# :label: ex-09-find
# *15 minutes, medium.* Write `teaches_elsewhere(loss_of, logits, labels)`: return `True` if a position whose label is −100 gets
# a gradient. `loss_of(logits, labels)` returns a tensor with one number. Your function must find the bug when only one such
# position gets a gradient, and when the gradient is very small, and must say `False` for a correct loss.
#
# *Hint.* `requires_grad_()` on a copy of the logits, `backward()`, and `.grad`.
# ```

# %% [markdown]
# ```{solution-start} ex-09-find
# :class: dropdown
# ```


# %%
def teaches_elsewhere(
    loss_of, logits: torch.Tensor, labels: torch.Tensor
) -> bool:
    ### BEGIN SOLUTION
    free = logits.detach().clone().requires_grad_()
    loss_of(free, labels).backward()
    elsewhere = free.grad[labels == -100]
    return bool((elsewhere != 0).any())
    ### END SOLUTION


# %% [markdown]
# The comparison is with exactly zero. An honest loss does not read these logits at all, so there is no
# rounding error to allow for.
#
# ```{solution-end}
# ```

# %%
ch09.check_teaches_elsewhere(teaches_elsewhere)

# %% [markdown]
# ## What to keep
#
# A model that sees both sides must not see what it is asked for. BERT chooses 15 % of the tokens, shows
# `[MASK]` for most of the chosen ones, and is asked for all chosen ones and for no others: positions that are not chosen get exactly no
# gradient. Its second task asks whether B follows A, with 0 for "yes". A new model begins at {math}`\log V` and
# {math}`\log 2`. Both losses are sums with their own counts, and the division comes last. A loss that falls is no
# proof that a program is right: two known bugs had the lower loss, and small tests of the gradient find both.
#
# In [chapter 10](10_bert_pretrain.ipynb) a BERT is trained with both tasks on Town.
