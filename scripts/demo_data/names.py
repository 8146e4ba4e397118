"""The distinctive words: invented, of two syllables and five to seven letters.

They mean nothing, so no group gets what is easier to draw. They come in sets in which every first and every second
syllable occurs once, so no syllable tells which group a name belongs to.
"""

import numpy as np

FIRST = (
    *("bor", "cal", "dun", "elk", "fen", "gar", "hol", "ist", "jas", "kin", "lor", "mir"),
    *("nes", "orv", "pel", "quo", "ras", "sol", "tas", "ulm", "vel", "wen", "yar", "zan"),
)
SECOND = (
    *("ba", "do", "ki", "lu", "mi", "ro", "ta", "vo"),
    *("bek", "dan", "fir", "gul", "mok", "rin", "tov", "zel"),
    *("bris", "dral", "fenn", "kost", "lund", "marn", "thel", "venk"),
)


def invented_words(rng: np.random.Generator, sets: int) -> list[list[str]]:
    """At most 24 sets of 24 words: eight each of five, six and seven letters; no word is in two sets."""
    first, second = rng.permutation(FIRST), rng.permutation(SECOND)
    # Two rings of syllables, turned against each other: no two turns have a pair of syllables in common.
    return [
        [f"{one}{other}" for one, other in zip(first, np.roll(second, turn), strict=True)]
        for turn in rng.permutation(len(SECOND))[:sets]
    ]
