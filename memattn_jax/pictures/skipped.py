"""What is skipped of a user's images, and a summary of which and why."""

from memattn_jax.errors import InputError
from memattn_jax.text import printable

LISTED = 3  # places named for each reason
PLACE = 50  # characters of each


class UnusableError(InputError):
    """An image, or an image with its caption, that cannot be used.

    Attributes:
      reason: the same text for all with the same problem.
      place: which one, such as "line 3: a.png".
    """

    def __init__(self, reason: str, place: str = ""):
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.place = place

    def within(self, place: str) -> "UnusableError":
        """The same error with a place put before its own."""
        return UnusableError(self.reason, f"{place}: {self.place}" if self.place else place)


class Skipped:
    """What was skipped, by reason.

    Attributes:
      places: {reason: which ones}, in the order of the data.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def add(self, error: UnusableError) -> None:
        """Adds one."""
        self.places.setdefault(error.reason, []).append(error.place)

    def lines(self) -> list[str]:
        """One line per reason, the most frequent first, naming the first places."""
        lines = []
        for reason, places in sorted(self.places.items(), key=lambda item: -len(item[1])):
            named = "; ".join(printable(place, PLACE) for place in places[:LISTED])
            more = "; …" if len(places) > LISTED else ""
            lines.append(f"{len(places)} skipped, {printable(reason, PLACE)}: {named}{more}")
        return lines


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
