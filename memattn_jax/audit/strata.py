"""Which prompts of a log are sampled: all that are flagged, or many of them, and as many others as a control."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from memattn_jax.audit.rates import FLAGGED, NOT_FLAGGED, STRATA, UNKNOWN, fewest_control
from memattn_jax.detectors.calibration.verdicts import CLEAN, MEMORIZED
from memattn_jax.errors import InputError
from memattn_jax.text import printable

KINDS = 20  # at most: intervals of more kinds say nothing, and a column with more is another one
OF_VERDICT = {MEMORIZED: FLAGGED, CLEAN: NOT_FLAGGED}  # everything else is unknown, and never clean


@dataclass
class Drawn:
    """The prompts to sample.

    Attributes:
      sizes: number of the log's prompts by stratum and kind.
      rows: of each stratum, the numbers of the rows to sample, ascending.
      unscored: number of rows without a score, which belong to no stratum.
    """

    sizes: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    rows: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in STRATA})
    unscored: int = 0

    def total(self, stratum: str) -> int:
        """Number of the log's prompts in a stratum."""
        return sum(count for (name, _), count in self.sizes.items() if name == stratum)

    def sampled(self) -> list[int]:
        """All rows to sample, ascending."""
        return sorted(row for rows in self.rows.values() for row in rows)


def stratum_of(row: Mapping) -> str | None:
    """The stratum of a row of the detection table; None for a prompt that was not scored."""
    return None if row["length"] is None else OF_VERDICT.get(row["verdict"], UNKNOWN)


def check_kinds(kind: str, values: Collection[str | None]) -> None:
    """Raises InputError for a column with more values than there may be kinds."""
    if len(values) > KINDS:
        raise InputError(
            f"--kind {printable(kind, 40)}: more than {KINDS} different values; name a column with few kinds"
        )


def draw(rows: Iterable[Mapping], most: int, seed: int, kind: str | None = None, *, everything: bool = False) -> Drawn:
    """Draws at random from each stratum, reading the rows once and keeping few.

    Of each stratum at most `most`. Those that are not flagged are a control, of which no more are drawn than flagged
    ones, or than a headline needs where that is more.

    Args:
      rows: of the detection table with their final verdicts: "row", "length", "verdict" and the kind.
      most: prompts of a stratum.
      seed: of the draw.
      kind: the column with the prompt's kind.
      everything: whether `most` alone bounds those that are not flagged, too.
    """
    drawn, chance = Drawn(), {name: random.Random(f"{seed} {name}") for name in STRATA}
    read: Counter[str] = Counter()
    for row in rows:
        stratum = stratum_of(row)
        if stratum is None:
            drawn.unscored += 1
            continue
        own = None if kind is None else row[kind]
        drawn.sizes[stratum, own] += 1
        read[stratum] += 1
        chosen = drawn.rows[stratum]
        if len(chosen) < most:
            chosen.append(row["row"])
        elif (place := chance[stratum].randrange(read[stratum])) < most:  # reservoir sampling, Vitter's algorithm R
            chosen[place] = row["row"]
    control = max(len(drawn.rows[FLAGGED]), fewest_control())
    others = drawn.rows[NOT_FLAGGED]
    if len(others) > control and not everything:
        drawn.rows[NOT_FLAGGED] = chance[NOT_FLAGGED].sample(others, control)
    drawn.rows = {name: sorted(chosen) for name, chosen in drawn.rows.items()}
    return drawn
