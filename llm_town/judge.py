"""Town's parser as a judge of texts that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

from llm_town import ParseError, facts_hold, parse, sentence_parses, split_sentences
from llm_town.errors import ConfigError


def is_story(text: str) -> bool:
    """Whether Town's grammar could have written the whole text, true to its facts or not."""
    try:
        parse(text)
    except ParseError:
        return False
    return True


def judge(texts: Sequence[str]) -> dict[str, float]:
    """Shares of correct sentences, of whole stories, and of stories true to their own facts."""
    if not texts:
        raise ConfigError("texts must hold at least one text, got none")
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    stories = [text for text in texts if is_story(text)]
    return {
        "sentences": sum(map(sentence_parses, sentences)) / len(sentences),
        "stories": len(stories) / len(texts),
        "true": sum(map(facts_hold, stories)) / len(texts),
    }
