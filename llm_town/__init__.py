"""Town: little stories of an invented town, told by a grammar, whose exact probability is known.

A corpus for experiments with language models. Each choice of the generator is an independent draw
from a known table, and text and derivation are one-to-one, so log p of every story is known, and
the entropy of the corpus: no model can have a lower loss, and one can see how far it is from there.

    from llm_town import entropy_floor, generate_documents, log_probability, parse

    for story in generate_documents(3, seed=0, split="train"):
        print(story.text, story.log_prob)       # nats, end of document included
    entropy_floor().nats_per_word               # the lowest loss that a model can reach
    log_probability(parse(story.text))          # of any text: ParseError if it is no story

- `conditionals`: P(word | all other words), exactly, for models that fill in hidden words;
- `tasks`: labelled examples of eight kinds, with the best score that any model can reach, and test
  sets with names and templates that training never shows;
- `judge`: the shares of correct sentences, of whole stories and of true ones among written texts;
- `references`: to whom each pronoun refers; `spans`, `facts`, `polarity` read a story's derivation.

Pure Python, without dependencies. A seed gives the same texts on every machine; a test pins them.
"""

from llm_town.document import (
    Derivation,
    Document,
    Fact,
    Sentence,
    Span,
    facts,
    fillers,
    polarity,
    render,
    spans,
    split_sentences,
    tokenize,
)
from llm_town.english import (
    SPLITS,
    facts_hold,
    generate_documents,
    log_probability,
    split_of,
)
from llm_town.floor import Floor, document_entropy, entropy_floor
from llm_town.grammar import Grammar, town
from llm_town.parse import ParseError, parse, parse_sentence, sentence_parses

__all__ = [
    "SPLITS",
    "Derivation",
    "Document",
    "Fact",
    "Floor",
    "Grammar",
    "ParseError",
    "Sentence",
    "Span",
    "document_entropy",
    "entropy_floor",
    "facts",
    "facts_hold",
    "fillers",
    "generate_documents",
    "log_probability",
    "parse",
    "parse_sentence",
    "polarity",
    "render",
    "sentence_parses",
    "spans",
    "split_of",
    "split_sentences",
    "tokenize",
    "town",
]
