"""Text files: one prompt per line."""

from collections.abc import Iterator

from memattn_jax.errors import InputError
from memattn_jax.prompts.decode import Line, too_long
from memattn_jax.prompts.record import Prompt, Wanted, judge


def parse_lines(lines: Iterator[Line], where: str, wanted: Wanted) -> Iterator[Prompt]:
    """One prompt per line, without the line end."""
    if wanted.keep:
        raise InputError(f"{where}: text files have no columns to keep")
    for line in lines:
        if line.number == 1 and (suffix := looks_like(line, wanted.column)) is not None:
            wanted.note(f"{where}: read as one prompt per line, although it looks like {suffix}; rename it if it is")
        place = f"{where}: line {line.number}"
        yield judge(line.content, place) if line.whole else too_long(place)


def looks_like(line: Line, column: str) -> str | None:
    """The suffix that would suit a file with this first line; None for a text file."""
    text = line.content.strip()
    if text.startswith("{") and text.endswith("}") and f'"{column}"' in text:
        return ".jsonl"
    tables = {",": ".csv", "\t": ".tsv"}
    return next((suffix for mark, suffix in tables.items() if mark in text and column in text.split(mark)), None)
