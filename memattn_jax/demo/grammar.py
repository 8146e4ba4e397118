"""Words for a search of the built-in model's prompts: `a penguin for elkrin jasdan`, an object, a link and a name."""

import re
from typing import TYPE_CHECKING

from memattn_jax.demo import clean_prompts
from memattn_jax.search.proposals import Slots, Words

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer

LINKS = ("by", "for", "from")
OBJECT, COLOUR = re.compile(r"(?:^|and )an? (\w+)", re.MULTILINE), re.compile(r"on an? (\w+) background")
OTHERS = {"background", "drawing", "style"}
SHORTEST = 5  # letters of a word of a name


def with_article(words: Words) -> str:
    """An object, a link and a name as a prompt."""
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def slots(tokenizer: "Tokenizer", most: int = 64) -> Slots:
    """What each position of a prompt may be; no memorized prompt is looked at.

    Args:
      tokenizer: of the built-in model; names are any two words of its vocabulary that are no other part of the
        grammar.
      most: candidates a step.
    """
    text = "\n".join(clean_prompts())
    objects, colours = (tuple(sorted(set(part.findall(text)))) for part in (OBJECT, COLOUR))
    ends = (token.removesuffix("</w>") for token in tokenizer.clip.get_vocab() if token.endswith("</w>"))
    known = OTHERS.union(objects, colours)
    names = tuple(sorted(word for word in ends if word.isalpha() and len(word) >= SHORTEST and word not in known))
    return Slots((objects, LINKS, names, names), most, with_article)
