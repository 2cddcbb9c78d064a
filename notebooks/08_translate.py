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
# # 08 Lab: translate
#
# BADGE
#
# **You will** train the Transformer to translate English sentences into Chinese, test it on names
# and on combinations that it has never seen, compare greedy search with beams, measure which head
# aligns the two languages, read its mistakes, and learn what a BLEU score says.
#
# **Needs** [chapter 07](07_encoder_decoder.ipynb). **Runs** in 90 seconds on one core.
# **Source** {cite:p}`vaswani2017,papineni2002,post2018`; `llm_course/recipes/translate.py`,
# `llm_course/batches/pairs.py`.

# %% [markdown]
# COLAB

# %%
import math
from collections import Counter
from functools import partial
from itertools import islice

import matplotlib.pyplot as plt
import torch
from sacrebleu.metrics import BLEU

from llm_course import (
    Tokenizer,
    TrainConfig,
    Transformer,
    TransformerConfig,
    train,
)
from llm_course.batches.pairs import Pairs
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.errors import DataError
from llm_course.losses.seq2seq import seq2seq_loss_fn
from llm_course.recipes.translate import (
    encode_pairs,
    frequent,
    score,
    town_pairs,
    translate_texts,
)
from llm_course.training.evaluate import loss_sums
from llm_lab.checks import ch08
from llm_lab.pictures.attention import attention_maps, attention_view
from llm_lab.pictures.curves import plot_bars, plot_losses
from llm_lab.pictures.head_measures import best_head, relation_mass
from llm_lab.pictures.measured import measured
from llm_lab.results import load_result
from llm_town.tasks import translation

# %% [markdown]
# ## The pairs
#
# A translator learns from pairs: a sentence, and the same sentence in the other language. Town
# has two grammars, one for each language, so every sentence of every story comes with its
# Chinese. You need not read Chinese for this lab. Every Chinese sentence follows from its English
# one by fixed rules, so that exactly one answer is right, and the computer can tell.

# %%
example = next(translation.examples(1, seed=0, split="test"))
print(example.english)
print(example.chinese)
cut = translation.cut_names(example.english)
for english, chinese in translation.links(example.sentence):
    word = cut[slice(*english)]
    print(f"  {word:>12}  {example.chinese[slice(*chinese)]}")

# %% [markdown]
# The list shows which Chinese characters come from which English word. Look at the order: the
# doctor comes first in both languages, but in Chinese the four hours stand before the verb. This
# is why one cannot translate by replacing word after word. Words that belong to the pattern itself,
# such as "hours" and "coins", are not listed: they come from no gap of the pattern.
#
# ### Names must be cut
#
# Names are the hard case of every translator, because new ones appear every day. A name means
# nothing; it is only spelled. Town's names are made of 68 syllables, and each syllable has one
# Chinese character. If "Marna" is one token, then a model that has never met her cannot
# write her name. If she is two tokens, "Mar" and "na", it can, provided that it has learnt the
# syllables. So we put spaces into the names:

# %%
print(translation.cut_names("Marna's friend Belton lived in Edbury."))

# %% [markdown]
# ### Two kinds of new sentences
#
# A model that has learnt its training sentences by heart is no translator. We want to know how it
# deals with something new. Town holds out two kinds of combinations, and training shows neither:
#
# - **Unseen names**: the sentence names a person whose first and last syllable never belonged to
#   the same name. Each syllable has been seen in other names.
# - **Unseen templates**: a *template* is a sentence pattern together with the first word that fills
#   one of its gaps, where names and pronouns do not count. An example is the pattern "For … years …
#   had been … in …" with the word "two". Training has the pattern with other words ("For three
#   years"), and the word in other patterns.
#
# In both, nothing is new but the combination. A person would not notice.
#
# One simplification makes the lab fit into ninety seconds. Town has thousands of rare words, and a word
# that was seen twice can hardly be learnt. So we keep the pairs whose English words all occur in at
# least 66 of the 40,000 training sentences. (This is the share of the recorded runs, which ask for
# 100 of 60,000.) The section on longer training says how far the same model comes.

# %%
pairs = town_pairs(40_000, seed=0, split="train")
known = frequent(pairs, pairs, min_count=66)
print(f"kept {len(known) / len(pairs):.0%} of {len(pairs):,} training pairs")

tests = {}
for shift in ("none", "unseen_name", "unseen_template"):
    made = town_pairs(500, seed=0, split="test", shift=shift)
    tests[shift] = frequent(made, pairs, min_count=66)
    print(f"{shift:>16}: {len(tests[shift])} test pairs")
trained = set(known)
print(
    "in training:", {k: sum(p in trained for p in v) for k, v in tests.items()}
)
assert not any(pair in trained for pair in tests["unseen_name"])
assert not any(pair in trained for pair in tests["unseen_template"])

# %% [markdown]
# Some sentences of the first set also stand in the training data: short sentences recur, in Town as
# in life. So the first score is a little flattered. The other two sets are entirely new.

# %% [markdown]
# ## One vocabulary, and batches of pairs
#
# The tokenizer takes words on the English side. A Chinese character is a word of its own, so the
# same tokenizer takes characters on the Chinese side. Both share one vocabulary, as in
# {cite:t}`vaswani2017`. In the print below the first token of each text carries a space. So a
# character that begins a sentence is another token than the same character inside it, and the model
# must learn both.

# %%
tokenizer = Tokenizer.train(
    (text for pair in known for text in pair), kind="word", vocab_size=8192
)
sources, targets = encode_pairs(tokenizer, known)
print(f"{len(tokenizer)} tokens in the vocabulary")
print([tokenizer.token(i) for i in sources[1]])
print([tokenizer.token(i) for i in targets[1]])

special = {"pad_id": tokenizer.pad_id, "start_id": tokenizer.bos_id}
pair_rows = Pairs(sources, targets, **special)
for pool in (1, 4, 50):
    batches = Batches(pair_rows, batch_size=16, pool=pool, seed=0)
    held, places = 0, 0
    for batch in islice(batches, batches.batches_per_epoch):
        counted = batch["labels"] != -100
        held += int(batch["attention_mask"].sum() + counted.sum())
        places += batch["attention_mask"].numel() + counted.numel()
    first = next(iter(Batches(pair_rows, batch_size=16, pool=pool, seed=0)))
    lengths = (first["labels"] != -100).sum(dim=1)
    print(
        f"{pool:>2} batches sorted together: {held / places:.0%} of the places hold tokens, "
        f"answers of {lengths.min()} to {lengths.max()} tokens in the first"
    )
batches = Batches(pair_rows, batch_size=16, pool=4, seed=0)

# %% [markdown]
# A batch is a rectangle, so short rows are filled up with padding, and padding is wasted work. It
# helps to take several batches together, to sort their pairs by length, and to cut them only then.
# With 50 batches hardly any padding is left. But sentences of one pattern have about one length.
# A batch of such a pool holds few patterns, and its gradient says little about all the others. In
# a trial of ours (one seed, not stored), the model made half as many mistakes after equally many
# updates with pools of 4 batches as with pools of 50. So we accept some padding.
#
# What does a batch hold?

# %%
two = Pairs(sources[:2], targets[:2], **special)
batch = next(iter(Evaluation(two, 2)))
for name, tensor in batch.items():
    print(f"{name:>17}: {list(tensor.shape)}")
row = {name: tensor[0].tolist() for name, tensor in batch.items()}
assert row["decoder_input_ids"][0] == tokenizer.bos_id
n = len(row["labels"])
assert row["decoder_input_ids"][1:] == row["labels"][: n - 1]

# %% [markdown]
# The decoder reads the answer shifted by one place: at each place it has seen the characters
# before and must write the next one. The labels are not shifted again by the loss ([chapter 07](07_encoder_decoder.ipynb)).

# %% [markdown]
# ## Training
#
# The encoder has one block, the decoder has two, and every vector has 96 numbers. In a trial with
# one block in the decoder (not stored), hardly a sentence came out right in the same time. A
# possible reason is that the decoder has two things to do, one after the other: find out where it
# is in the answer, and then look at the right place of the source.
#
# Two settings are for the new combinations. **Dropout** sets a share of the numbers inside the model
# to zero in each update, chosen at random, here 5 of 100. What is known only from a whole phrase is
# then less reliable than what each word says for itself, so it is harder to learn phrases by heart.
# **Label smoothing** ({eq}`eq-07-smoothing`) asks for 0.9 of the probability on the right character
# and shares 0.1 among all tokens. Whoever is never quite certain keeps a door open for what training
# has not shown. In our trials (not stored), each of the two made unseen templates better.


# %%
STEPS = 2400
torch.manual_seed(0)
config = TransformerConfig(
    vocab_size=len(tokenizer),
    n_layers=1,
    n_decoder_layers=2,
    d_model=96,
    n_heads=4,
    d_ff=192,
    n_positions=64,
    dropout=0.05,
    pad_token_id=tokenizer.pad_id,
    bos_token_id=tokenizer.bos_id,
    eos_token_id=tokenizer.eos_id,
)
model = Transformer(config)
settings = TrainConfig(
    max_steps=STEPS,
    lr=3e-3,
    warmup_steps=100,
    min_lr=1e-4,
    beta2=0.98,
    precision="fp32",
    device="cpu",
)
SMOOTHING = 0.1
loss_fn = partial(seq2seq_loss_fn, smoothing=SMOOTHING)
steps = list(train(model, batches, loss_fn, settings))
model.eval()
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

wanted = torch.full((len(tokenizer),), SMOOTHING / len(tokenizer))
wanted[0] += 1 - SMOOTHING  # as if token 0 were right
lowest = -(wanted * wanted.log()).sum().item()
print(f"the smoothed loss cannot fall below {lowest:.2f} nats a token")
assert lowest < steps[-1].loss < lowest + 0.3 < 5 < steps[0].loss

# %%
#| alt: Training loss in nats per token over 2,400 updates, and a line at the lowest possible value,
#|   about one. The loss begins near eight, falls below three within the first two hundred updates,
#|   and comes down to the line with jumps that become smaller. From update 1,500 on it lies close
#|   above the line.
figure = plot_losses(
    steps, floor=lowest, title="A Transformer learns to translate"
)
plt.show()

# %% [markdown]
# The loss jumps up and down, because a batch has only 16 pairs, and some patterns are harder than
# others. It goes towards the lowest value that smoothing leaves: unlike a language model, a
# translator of Town can know every answer. The English sentence leaves nothing open.
#
# ## Does it translate?
#
# The strictest score is **exact match**: the share of sentences with every character right.

# %%
written, exact = {}, {}
for shift, test_pairs in tests.items():
    texts = [source for source, _ in test_pairs]
    written[shift] = translate_texts(model, tokenizer, texts)
    right = [a == b for a, (_, b) in zip(written[shift], test_pairs)]
    exact[shift] = sum(right) / len(right)
with measured():
    for shift, share in exact.items():
        print(f"{shift:>16}: {share:.1%}")
assert exact["none"] > 0.9
assert exact["unseen_name"] > 0.9
assert exact["unseen_template"] > 0.7
assert exact["unseen_template"] < exact["unseen_name"]

# %% [markdown]
# ```{admonition} What you should see
# :class: see
# About 96 of 100 sentences are right, for names that the model has never met as well as for
# others. For unseen templates it is about 78 to 93 of 100.
# ```
#
# New names cost little: the syllables are translated one by one. New templates cost more. The
# model does not translate word by word as a dictionary does. It has learnt, for each pattern,
# which words go with it, and it uses that knowledge too. When a pattern meets a word for the
# first time, the habit sometimes wins.
#
# ### A test set of few questions
#
# Before you compare two scores, ask how many different things were tested. The third set has
# more than two hundred sentences. How many templates are they?

# %%
unseen = {
    (translation.cut_names(e.english), e.chinese): e
    for e in translation.examples(500, 0, "test", "unseen_template")
}
template_of = {
    pair: translation.template(unseen[pair].sentence)
    for pair in tests["unseen_template"]
}
counts = Counter(template_of[pair] for pair in tests["unseen_template"])
print(f"{counts.total()} sentences, {len(counts)} templates")
for template, n in counts.most_common(4):
    shown = next(pair[0] for pair, t in template_of.items() if t == template)
    print(f"{n:>4} with {template[1]!r}, such as: {shown}")

right_of = Counter(
    template_of[pair]
    for pair, text in zip(tests["unseen_template"], written["unseen_template"])
    if pair[1] == text
)
shares = {t: right_of[t] / n for t, n in counts.items()}
with measured():
    for template, _ in counts.most_common(4):
        print(f"{template[1]:>8}: {shares[template]:.0%} right")
    whole = sum(share == 1 for share in shares.values())
    never = sum(share == 0 for share in shares.values())
    print(f"of {len(shares)} templates {whole} always right, {never} never")
    print(f"mean over templates: {sum(shares.values()) / len(shares):.0%}")
assert sum(n for _, n in counts.most_common(3)) > 0.3 * counts.total()
assert whole > len(shares) / 3
assert whole + never > 0.8 * len(shares)

# %% [markdown]
# Words and patterns of Town are as uneven as those of real text, so three templates make up two
# fifths of the set. Each of them is one question, asked many times: the model knows that a sentence
# can begin "For three years" and "For five years", and it knows the word "two" from other places.
# Can it write "For two years"? In the run that is stored here it cannot, not once, and this single
# habit costs 27 sentences, more than ten percent of the score. In other runs it can. Nearly all
# templates are right always or never, as the print shows. The mean over templates asks each question
# once, and is the better summary.

# %% [markdown]
# ## Reading mistakes
#
# A share says how often, not what. So read some mistakes: first the source, then what is right,
# then what the model wrote.

# %%
wrong = {
    shift: [
        (source, right, text)
        for (source, right), text in zip(tests[shift], written[shift])
        if right != text
    ]
    for shift in ("none", "unseen_template")
}


def kind_of(right: str, text: str) -> str:
    """What is wrong with a translation."""
    if sorted(right) == sorted(text):
        return "only the order"
    if len(right) == len(text):
        return "other characters"
    return "shorter" if len(text) < len(right) else "longer"


with measured():
    for shift, mistakes in wrong.items():
        kinds = Counter(kind_of(*pair) for _, *pair in mistakes)
        print(f"{shift}: {len(mistakes)} mistakes")
        for kind, n in kinds.most_common():
            shown = next(m for m in mistakes if kind_of(*m[1:]) == kind)
            print(f"  {kind}, {n} of them, such as", *shown, sep="\n    ")
assert all(len(mistakes) > 0 for mistakes in wrong.values())

# %% [markdown]
# In many of them the length is wrong. Some Chinese words double a character, such as 爸爸 (father),
# 洋娃娃 (doll) and 谈谈 (to have a talk). After the first of the two the model must write the same
# character again, and after the second it must not. The character just written is the same in both
# cases. To tell them apart, the model must look further back, or know how far it has come. It does
# not always manage: it stops one too early, or it goes on and on.
#
# In the others the length is right, and something else stands in the place of a word: another word
# of its kind, or, in a new template, sometimes a piece of another sentence. A word of the same kind is
# the worst mistake of all, because it is fluent. Nothing in the Chinese tells that it is wrong. A
# translation that reads well is not thereby right. Large systems fail in the same way, only less
# often.

# %% [markdown]
# ## Greedy or beam?
#
# Greedy search takes the best next token, and never goes back. **Beam search** keeps the `k` best
# beginnings and extends all of them, so it can find a sentence whose first token was only second
# best. At the end it takes the sentence with the highest log-probability; many systems divide that
# by a power of the length first, and `length_penalty=0.0` says not to. Does it help?


# %%
def nats(pairs, texts) -> float:
    """How improbable the model finds these translations, nats a sentence."""
    answers = [(source, text) for (source, _), text in zip(pairs, texts)]
    rows = Evaluation(Pairs(*encode_pairs(tokenizer, answers), **special), 100)
    total, _ = loss_sums(model, rows, seq2seq_loss_fn)["lm"]
    return total / len(texts)


hard = tests["unseen_template"]
texts = [source for source, _ in hard]
by_beam = translate_texts(
    model, tokenizer, texts, num_beams=4, length_penalty=0.0
)
beam_exact = sum(a == b for a, (_, b) in zip(by_beam, hard)) / len(hard)
cost = {
    "greedy": nats(hard, written["unseen_template"]),
    "beam": nats(hard, by_beam),
    "right answer": nats(hard, [right for _, right in hard]),
}
with measured():
    print(f"exact match: greedy {exact['unseen_template']:.1%}", end=", ")
    print(f"4 beams {beam_exact:.1%}")
    for name, value in cost.items():
        print(f"{name:>12}: {value:.2f} nats a sentence")
assert cost["beam"] < cost["greedy"] + 0.05
assert cost["beam"] < cost["right answer"]
assert abs(beam_exact - exact["unseen_template"]) < 0.15

# %% [markdown]
# The beams find sentences that the model likes more: fewer nats. But they are right only about as
# often. The last line tells why. On average the model finds the right answer *less* probable than
# its own one. Where this is so, the model is wrong and not the search, and a better search cannot
# help. It helps where the model hesitates between several good ways to go on. Town has one right
# answer, so it hesitates seldom.

# %% [markdown]
# ## Attention that aligns
#
# To write the character of a word, the decoder should look at that word. Does it? A picture of
# one sentence proves nothing: of eight heads, one may look right by chance. So we measure. From
# the grammar we know which token became which character. For each head, we take all places where
# a linked character is *about to be written*, and ask how much of the attention there lies on the
# right source token.


# %%
def places(ids: list[int]) -> list[tuple[int, int]]:
    """Where each token lies in its text; the first begins with a space."""
    place, found = -1, []
    for i in ids:
        end = place + len(tokenizer.token(i))
        found.append((place, end))
        place = end
    return found


def relation_of(example, n_targets: int, n_sources: int) -> torch.Tensor:
    """True where a character, about to be written, comes from a token."""
    english = places(tokenizer.encode(translation.cut_names(example.english)))
    chinese = places(tokenizer.encode(example.chinese))
    relation = torch.zeros(n_targets, n_sources, dtype=torch.bool)
    for (a, b), (x, y) in translation.links(example.sentence):
        for t, (begin, end) in enumerate(chinese):
            for s, (first, last) in enumerate(english):
                if begin < y and end > x and first < b and last > a:
                    relation[t, s] = True
    return relation


# %% [markdown]
# Now 60 sentences of the first set, in one batch. `Evaluation` sorts its rows by length, and
# `order` says which pair each row is.

# %%
usual = set(tests["none"])
linked = [
    e
    for e in translation.examples(500, seed=0, split="test")
    if (translation.cut_names(e.english), e.chinese) in usual
][:60]
rows = encode_pairs(
    tokenizer, [(translation.cut_names(e.english), e.chinese) for e in linked]
)
evaluation = Evaluation(Pairs(*rows, **special), len(linked))
batch = next(iter(evaluation))
inputs = {k: v for k, v in batch.items() if k != "labels"}
maps = attention_maps(model, part="cross", **inputs)
shape = batch["labels"].shape[1], batch["input_ids"].shape[1]
relation = torch.stack(
    [relation_of(linked[i], *shape) for i in evaluation.order]
)

# %% [markdown]
# The measure needs a control: a head that spreads its attention evenly over the source.

# %%
mass = relation_mass(maps, relation)
even = batch["attention_mask"].float()
even = (even / even.sum(1, keepdim=True))[:, None, None].expand(
    -1, 1, shape[0], -1
)
by_chance = relation_mass([even], relation).item()
layer, head = best_head(mass)
with measured():
    print(f"spread evenly: {by_chance:.2f}")
    for i, masses in enumerate(mass.tolist()):
        print(f"block {i}:", "  ".join(f"{m:.2f}" for m in masses))
    print(f"the best: block {layer}, head {head}")
assert by_chance < 0.12
assert mass.max() > 0.4
assert mass.max() > 3 * by_chance
assert mass[1].mean() > mass[0].mean()

# %% [markdown]
# A head that spread its attention evenly would give a right token less than a tenth. The best
# head gives it several times as much. The heads of the second block look at the word, and those
# of the first block do so much less. What they look for instead, this measure does not say. Perhaps
# the first block finds out where in the sentence the decoder is; we have not measured it. Nobody told the model which word
# belongs to which character: it had only whole sentences. To predict a character it needs its
# word, so it learns to look there. Attention was invented for this purpose
# {cite:p}`bahdanau2015`.

# %%
#| alt: Bar chart with one bar for each of the eight heads of cross-attention, and a dashed line
#|   for even attention below 0.1. The four bars of the first block are a little higher than the
#|   line, those of the second block several times as high.
bars = {
    f"block {i}": {f"head {j}": mass[i, j].item() for j in range(4)}
    for i in range(2)
}
figure = plot_bars(
    bars,
    y_label="attention on the right word",
    references={"even": by_chance},
    title="Which heads align?",
)
plt.show()

# %% [markdown]
# Now the picture, of the head that the measure has chosen. On one side stands the character that
# the decoder is about to write, on the other the tokens of the source. Choose a character, and
# see where it looks.

# %%
row = min(
    range(len(linked)), key=lambda r: batch["attention_mask"][r].sum().item()
)
n_source = int(batch["attention_mask"][row].sum())
n_target = int((batch["labels"][row] != -100).sum())
one = [weights[row : row + 1, :, :n_target, :n_source] for weights in maps]
source_tokens = [
    tokenizer.token(i).strip()
    for i in batch["input_ids"][row, :n_source].tolist()
]
target_tokens = [
    tokenizer.token(i).strip()
    for i in batch["labels"][row, :n_target].tolist()
]
attention_view(
    one,
    target_tokens,
    key_tokens=source_tokens,
    layer=layer,
    head=head,
    title="Where the best head looks",
)

# %% [markdown]
# Choose the characters that the grammar links to a word, such as those of a name or a thing: they
# look at their word. The other characters belong to the pattern. The measure left them out, and many
# of them spread their attention. (A *layer* of the view is a block.)
#
# ## A wrong model: no positions
#
# What does the model need positions for? We can take them away: fill the table of positions with
# zeros. Then two sources with the same words in another order are the same source. This needs no
# training to be seen:

# %%
torch.manual_seed(1)
without_positions = Transformer(config).eval()
with_positions = Transformer(config).eval()
without_positions.position_table.zero_()
text = "Marna gave Belton a red ring."
source = torch.tensor([tokenizer.encode(translation.cut_names(text))])
other = source[:, torch.randperm(source.shape[1])]
start = torch.tensor([[tokenizer.bos_id]])
with torch.no_grad():
    networks = {"without": without_positions, "with": with_positions}
    for name, network in networks.items():
        a = network(source, decoder_input_ids=start)
        b = network(other, decoder_input_ids=start)
        moved = (a - b).abs().max().item()
        print(
            f"{name:>7} positions: another order changes the logits: "
            f"{moved > 1e-4}"
        )
        assert (moved > 1e-4) == (name == "with")

# %% [markdown]
# Whoever gives and whoever gets, it is one and the same to this model. How much does it lose when
# it is trained? A second training does not fit into this notebook, so a pair of trainings was
# recorded, somewhat longer than ours and with more pairs: one with positions and one without, with
# equal settings, data and seed (`llm-course record --name translate_town_cpu`).


# %%
def stored(name: str):
    """A stored result, or None where the run has not been made yet."""
    try:
        return load_result(name)
    except DataError:
        print(f"{name}: not recorded yet")
        return None


recorded = stored("translate_town_cpu")
if recorded:
    for name, run in (
        ("with", recorded["runs"][0]),
        ("without", recorded["no_positions"]),
    ):
        shares = {k: v["exact_match"] for k, v in run["test"].items()}
        mistakes = run["mistakes"]
        print(f"{name:>7} positions:", end=" ")
        print("  ".join(f"{k} {v:.1%}" for k, v in shares.items()))
        print(
            f"   {mistakes['number']} mistakes in the first set, "
            f"{mistakes['only_order']} of them in the order alone"
        )
    assert mistakes["only_order"] > 0.6 * mistakes["number"]
    for row in recorded["no_positions"]["mistakes"]["first"][:5]:
        print(row["source"], row["right"], row["written"], sep="\n  ")

# %% [markdown]
# It still translates half of the sentences or more, because Town's grammar leaves little choice: with
# the words "baker", "lived" and "in" there is mostly one sentence that they can make. And the
# decoder knows its own places a little, since its causal mask lets the first token see one token
# and the tenth see ten. It fails where the words can be put together in two ways. Most of its
# mistakes have all the right characters in a wrong order: the two people of a sentence change places, or
# two names exchange a syllable. Who laughs at whom is written in the order of the English words and
# nowhere else, and this model cannot see it.
#
# ## Longer training
#
# The stored runs with positions are the preset `cpu`, with two seeds.

# %%
if recorded:
    for run in recorded["runs"]:
        print(f"seed {run['seed']}, {run['train']['max_steps']} updates")
        for shift, row in run["test"].items():
            beam = run["test_beams"]["4"][shift]["exact_match"]
            print(
                f"  {shift:>16}: greedy {row['exact_match']:.1%}, "
                f"4 beams {beam:.1%}"
            )

# %% [markdown]
# More sentences and more updates lift all three scores. New names are translated nearly as well as
# the usual sentences. New templates stay a little behind, at 95 to 97 of 100. A seed changes the weights at
# the start and also the training sentences, so it is a new experiment. Report several: in earlier
# settings of this lab two seeds differed by six percent on templates, and one of them alone would
# have told a better or a worse story. (These beams divide the log-probability by the length, with
# `length_penalty=1.0`.)

# %% [markdown]
# ## BLEU
#
# Real sentences have many good translations, and an exact match is then mostly luck. The usual
# score is **BLEU** {cite:p}`papineni2002`. It counts which stretches of one to four tokens of the
# written text (the *hypothesis*, as the field calls it) also stand in the reference; that is a
# precision. A stretch, an *n-gram*, counts at most as often as it stands in the reference, and the
# counts are summed over the whole test set. BLEU takes the geometric mean of the four shares. And it punishes texts that are too short, because a short text could be precise
# by saying only what is sure.
#
# How is it related to being right? We spoil the right answers in one way: every "玛" becomes a
# "贝", so that Marna is called Belna. The translation is then about the wrong person or village.

# %%
references = [right for _, right in tests["none"]]
spoilt = [text.replace("玛", "贝") for text in references]
result = score(spoilt, references, "zh")
print(f"exact match {result['exact_match']:.1%}, BLEU {result['bleu']:.1f}")
print(result["bleu_signature"].replace("|", "\n  "))
assert result["bleu"] / 100 > result["exact_match"] + 0.1

# %% [markdown]
# Many sentences now speak of somebody else, and BLEU hardly minds: one wrong character of twenty
# spoils a few n-grams and leaves the others. BLEU measures how much of the surface agrees. It does not know that a
# name or a number matters more than a comma.
#
# The second print is the **signature**. BLEU is not one score but a family: it depends on how the
# text is cut into tokens, on upper and lower case, on smoothing. Here are the same sentences,
# scored by other members of the family.

# %%
for cut_by in ("zh", "char", "13a", "none"):
    bleu = BLEU(tokenize=cut_by)
    value = bleu.corpus_score(spoilt, [references]).score
    print(f"{cut_by:>5}: {value:5.1f}")
low = BLEU(tokenize="none").corpus_score(spoilt, [references]).score
assert low < result["bleu"] - 20

# %% [markdown]
# The first two agree, because here the Chinese side has only Chinese characters. The tokenizer "13a"
# is the usual one for European languages. It cuts at spaces and at the punctuation marks of ASCII. A
# Chinese sentence has neither, so the whole sentence becomes one "word". No text then has even two
# words in a row, and the score is 0. Nothing is wrong with any of these numbers. But **a BLEU score
# without its signature cannot be compared with another one**. {cite:t}`post2018` found differences
# of up to 1.8 BLEU between settings in common use, mostly because the references were cut into
# tokens differently.
#
# Now the scores of our model. **chrF** {cite:p}`popovic2015` is a score of the same kind. It counts
# stretches of one to six characters, and joins precision and recall.

# %%
model_scores = {
    shift: score(written[shift], [right for _, right in test_pairs], "zh")
    for shift, test_pairs in tests.items()
}
with measured():
    for shift, row in model_scores.items():
        print(
            f"{shift:>16}: exact {row['exact_match']:.1%}, "
            f"BLEU {row['bleu']:.1f}, chrF {row['chrf']:.1f}"
        )
assert all(
    row["bleu"] / 100 > row["exact_match"] - 0.05
    for row in model_scores.values()
)

# %% [markdown]
# Again BLEU lies near 100, also for the last set, where one sentence in five is wrong.
#
# ## Real pairs
#
# Multi30k {cite:p}`elliott2016` has 29,000 training pairs: an English description of a photograph,
# and its German translation by a professional translator. No grammar knows the one right answer, so
# an exact match is luck. The same code reads them from files:
#
# ```python
# from llm_course.configs import PairConfig
# from llm_course.presets import find_preset
# from llm_course.recipes.translate import prepare_translation
#
# preset = find_preset("transformer", "t4")
# data = PairConfig(
#     data="files",
#     data_files=("train.jsonl",),
#     validation_files=("val.jsonl",),
#     test_files=("test.jsonl",),
#     source="en", target="de",
#     tokenizer="bpe", vocab_size=8000, batch_size=128, smoothing=0.1,
# )
# run = prepare_translation(preset.model, data, preset.train)
# for step in run.steps():
#     print(step.step, step.loss)
# print(run.test_scores(num_beams=4))
# ```
#
# With `data="hub", dataset="bentrevett/multi30k"` in place of the files it reads the same pairs
# by their name on the Hugging Face hub. Label smoothing is 0.1 here too. The recorded
# runs, on a CPU and on a
# large GPU, are made by `llm-course record --name translate_multi30k_cpu` and `--name translate_multi30k`:

# %%
for name in ("translate_multi30k_cpu", "translate_multi30k"):
    run = stored(name)
    if run:
        row, beam = run["test"]["test"], run["test_beams"]["4"]["test"]
        print(f"{name}: {run['parameters'] / 1e6:.1f} million parameters")
        print(f"  greedy:  BLEU {row['bleu']:.1f}, chrF {row['chrf']:.1f}")
        print(f"  4 beams: BLEU {beam['bleu']:.1f}, chrF {beam['chrf']:.1f}")
        print(f"  exact match {row['exact_match']:.1%}")
        print(f"  {row['bleu_signature']}")

# %% [markdown]
# The larger model is far better than the small one, and both have read the same 29,000 pairs. Beams
# gain about a point of BLEU: a description can go on in several good ways, and there the search
# helps. Few sentences match exactly, though many of the others are good translations too. Where a
# line says *not recorded yet*, nobody has made that run, and the book does not make up a number for
# it.

# %% [markdown]
# ## Exercises
#
# ```{exercise} Clipped precision
# :label: ex-08-precision
# *15 minutes, medium.* Write `clipped_precision(written, reference, n)`, the heart of BLEU. Both
# texts are lists of tokens. Return the share of the n-grams of `written` that the reference has
# too. An n-gram counts at most as often as it stands in the reference. A text shorter than `n`
# has the precision 0.
#
# *Hint.* What would "the the the the" score against "the cat" without the clipping?
# ```

# %% [markdown]
# ```{solution-start} ex-08-precision
# :class: dropdown
# ```


# %%
def clipped_precision(
    written: list[str], reference: list[str], n: int
) -> float:
    ### BEGIN SOLUTION
    def grams(tokens: list[str]) -> Counter:
        ends = range(n, len(tokens) + 1)
        return Counter(tuple(tokens[end - n : end]) for end in ends)

    ours, theirs = grams(written), grams(reference)
    return (ours & theirs).total() / max(ours.total(), 1)
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch08.check_clipped_precision(clipped_precision)

# %% [markdown]
# ```{exercise} The brevity penalty
# :label: ex-08-brevity
# *5 minutes, easy.* Write `brevity_penalty(written, reference)` for the numbers of tokens
# {math}`c` and {math}`r` of the written and the reference text: 1 where {math}`c \ge r`, and
# {math}`e^{1 - r/c}` where the text is shorter.
# ```

# %% [markdown]
# ```{solution-start} ex-08-brevity
# :class: dropdown
# ```


# %%
def brevity_penalty(written: int, reference: int) -> float:
    ### BEGIN SOLUTION
    if written >= reference:
        return 1.0
    return math.exp(1 - reference / written)
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch08.check_brevity_penalty(brevity_penalty)

# %% [markdown]
# ```{exercise} One step of beam search
# :label: ex-08-beam
# *20 minutes, hard.* Write `beam_step(sums, log_p, k)`. There are {math}`W` prefixes with the
# log-probabilities `sums` [W], and `log_p` [W, V] has the log-probabilities of the next token
# after each. Return the `k` best extensions over all prefixes as a list of `(prefix, token,
# sum)`, the best first.
#
# *Hint.* Flatten the table of all sums, take `topk`, and compute prefix and token from the place.
# ```

# %% [markdown]
# ```{solution-start} ex-08-beam
# :class: dropdown
# ```


# %%
def beam_step(
    sums: torch.Tensor, log_p: torch.Tensor, k: int
) -> list[tuple[int, int, float]]:
    ### BEGIN SOLUTION
    totals = sums[:, None] + log_p
    best, places = totals.flatten().topk(k)
    return [
        (place // log_p.shape[1], place % log_p.shape[1], value)
        for place, value in zip(places.tolist(), best.tolist())
    ]
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch08.check_beam_step(beam_step)

# %% [markdown]
# ```{exercise} Attention on the right word
# :label: ex-08-mass
# *10 minutes, medium.* Write `mass_on(weights, relation)` for one head and one sentence.
# `weights` [T, S] is its attention, and `relation` [T, S] is True where a query should look. For
# each query with at least one True, add up the attention on its True keys; return the mean over
# these queries.
# ```

# %% [markdown]
# ```{solution-start} ex-08-mass
# :class: dropdown
# ```


# %%
def mass_on(weights: torch.Tensor, relation: torch.Tensor) -> float:
    ### BEGIN SOLUTION
    masses = (weights * relation).sum(dim=1)
    return masses[relation.any(dim=1)].mean().item()
    ### END SOLUTION


# %% [markdown]
# ```{solution-end}
# ```

# %%
ch08.check_mass_on(mass_on)

# %% [markdown]
# ## What to keep
#
# Cut what is only spelled, so that it can be put together anew. Test a translator on combinations
# that it has never seen, and on names and on phrases apart: here new names cost almost nothing, and
# new phrases much more.
# Before you compare two scores, count the different questions of the test. Before you blame the
# search, ask whether the model prefers the right answer. Measure attention before you show it. And
# write the signature beside every BLEU score.
#
# The next part is about a model that only reads: [chapter 09](09_bert_objectives.ipynb).
