"""Where marks stand in the page's small plots, in percent of their width."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ENDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Axis(NamedTuple):
    """An axis of shares from 0 to `end`.

    Attributes:
      end: a round share.
    """

    end: float

    def at(self, share: float) -> str:
        """Where a share stands: "12.5%", as SVG has it."""
        return f"{100 * share / self.end:.2f}%"

    @property
    def ticks(self) -> tuple[float, float, float]:
        """Shares that are labelled."""
        return 0.0, self.end / 2, self.end


def axis(rates: Sequence[Mapping[str, Any]]) -> Axis:
    """The shortest axis with a round end that holds the intervals of all rates."""
    highest = max((rate["high"] for rate in rates), default=1.0)
    return Axis(next(end for end in ENDS if end >= min(highest, 1.0)))
