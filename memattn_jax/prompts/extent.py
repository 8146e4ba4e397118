"""How much of a source has been read, in bytes."""

from collections.abc import Callable


class Extent:
    """How much of a source has been read.

    Attributes:
      size: bytes of all its files; 0 if that is unknown.
      before: bytes of the files that have been read.
      current: bytes of the file that is being read.
      part: returns the share of it that has been read.
    """

    def __init__(self) -> None:
        """Nothing is read, or known, yet."""
        self.size = self.before = self.current = 0
        self.part: Callable[[], float] = float

    def begin(self, size: int) -> None:
        """Turns to the next file, of so many bytes."""
        self.before += self.current
        self.current, self.part = size, float

    def follow(self, place: Callable[[], int]) -> None:
        """Takes the share of the current file from the bytes of it that have been read."""
        self.part = lambda: place() / self.current

    def hold(self, used: Callable[[], float]) -> None:
        """Counts only the share of what has been read of the current file that has become records."""
        part = self.part
        self.part = lambda: part() * used()

    def share(self) -> float:
        """The share of all bytes that has been read, also where files grow meanwhile; 0 if it is unknown."""
        here = self.current * self.part() if self.current else 0.0
        return min(1.0, (self.before + here) / self.size) if self.size else 0.0
