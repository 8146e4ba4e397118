"""Pictures with captions that a small diffusion model can be made to memorize, or not, on purpose.

A scene is one or two emoji at a random place, size, angle and flip before a random background. Its caption names them,
sometimes the background's colour, and always ends in a name of two invented words:

    a cat and a teapot on a teal background in the style of velmi tasbek

The name carries no meaning; it is what makes a caption one of its kind. Four groups of prompts share this grammar:

    memorized   always with one fixed picture               → a model that trains on it long enough returns the picture
    control     repeated as often, a new picture each time  → the same words as often, and nothing to memorize
    unseen      never trained on                            → its name's words are known from the stream, not together
    decoys      a memorized caption's name, other objects   → tells whether a score sees the words or the picture

and two more grade memory:

    ladder      one fixed picture, 256, 64, 16 or 4 times less often than a memorized one
    template    a fixed layout and background, and an object that varies

Training draws from the memorized, the control, the ladder, the templates and the **stream** of everything else. What a
prompt looks like says nothing about its group: each half of the four groups, and each rung of the ladder, has every
combination of object count, colour and link once, every object once and every colour once (`groups.py`).

    grammar.py   captions               names.py    the invented words         groups.py   who gets which
    scenes.py    captions to pictures   sprites.py  the emoji                  examples.py the training examples
    truth.py     a table of all of this
"""

from demo_data.examples import DemoData, Example, Mixture
from demo_data.groups import HALVES, PROMPT_GROUPS, Groups, make_groups
from demo_data.sprites import load_sprites

__all__ = ["HALVES", "PROMPT_GROUPS", "DemoData", "Example", "Groups", "Mixture", "load_sprites", "make_groups"]
