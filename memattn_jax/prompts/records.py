"""Records of a source, each read once, and how many there will be."""

from collections import deque
from collections.abc import Iterator

from memattn_jax.prompts.extent import Extent
from memattn_jax.prompts.record import Prompt

AHEAD = 1000  # records in memory, so that a short source is counted and the number in a long one can be estimated


class Records:
    """An iterator over the records of a source."""

    def __init__(self, records: Iterator[Prompt], extent: Extent | None = None):
        """Reads nothing yet.

        Args:
          records: of the source.
          extent: which they keep up to date as they are read; None where reading ahead might wait for a sender.
        """
        self.records, self.extent = records, extent
        self.ahead: deque[Prompt] = deque()
        self.read = 0
        self.ended = False
        self.error: Exception | None = None  # which reading ahead met, and which is raised in its turn

    def __iter__(self) -> "Records":
        return self

    def __next__(self) -> Prompt:
        if self.ahead:
            return self.ahead.popleft()
        if self.error is not None:
            raise self.error
        return self._read()

    def _read(self) -> Prompt:
        try:
            prompt = next(self.records)
        except StopIteration:
            self.ended = True
            raise
        self.read += 1
        return prompt

    def total(self) -> int | None:
        """Number of records: exact once the last one is in memory, estimated from the bytes before; None if unknown."""
        if self.extent is None:
            return self.read if self.ended else None
        while not self.ended and self.error is None and len(self.ahead) < AHEAD:
            try:
                self.ahead.append(self._read())
            except StopIteration:
                break
            except Exception as error:
                self.error = error
        if self.ended:
            return self.read
        share = self.extent.share() if self.error is None else 0.0
        return round(self.read / share) if share else None
