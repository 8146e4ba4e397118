"""Text files: a line each."""

from collections.abc import Iterator

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import Line, too_long
from memattn_jax.prompts.record import Prompt, Wanted, judge


def parse_lines(lines: Iterator[Line], where: str, wanted: Wanted) -> Iterator[Prompt]:
    """A prompt a line, without the line's end."""
    if wanted.keep:
        raise InputError(f"{where}: plain lines have no columns to keep")
    for line in lines:
        place = f"{where}: line {line.number}"
        yield judge(line.content, place) if line.whole else too_long(place)
