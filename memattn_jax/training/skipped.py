"""Pairs that training leaves out, and the lines that say which and why."""

from memattn_jax.errors import InputError
from memattn_jax.text import printable

LISTED = 3  # pairs named for each reason
PLACE = 50  # characters of each


class UnusableError(InputError):
    """A pair that cannot be trained on.

    Attributes:
      reason: the same for all pairs with the same fault.
      place: which pair, as "line 3: a.png".
    """

    def __init__(self, reason: str, place: str = ""):
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.place = place

    def within(self, place: str) -> "UnusableError":
        """The same, of a pair that is found there."""
        return UnusableError(self.reason, f"{place}: {self.place}" if self.place else place)


class Skipped:
    """Counts by reason.

    Attributes:
      places: {reason: the pairs}, in the order of the data.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def add(self, error: UnusableError) -> None:
        """One pair more."""
        self.places.setdefault(error.reason, []).append(error.place)

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent one first, with the first pairs."""
        lines = []
        for reason, places in sorted(self.places.items(), key=lambda item: -len(item[1])):
            named = "; ".join(printable(place, PLACE) for place in places[:LISTED])
            more = "; …" if len(places) > LISTED else ""
            lines.append(f"{len(places)} skipped, {printable(reason, PLACE)}: {named}{more}")
        return lines


def first_line(error: Exception) -> str:
    """What an exception says, without what follows."""
    return (str(error).splitlines() or [type(error).__name__])[0]
