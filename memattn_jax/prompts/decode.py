"""Bytes of a text file to lines: decompression, encoding, line ends."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple

from memattn_jax.errors import InputError
from memattn_jax.prompts.record import Prompt, Wanted

HEAD = 2**16  # bytes that encoding and compression are told from
LONGEST_LINE = 2**24  # characters; a file without line ends must not fill the memory
MARKS = {  # of encodings; UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHERS = {  # first bytes of what is no text, whatever its name says
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"PK\x03\x04": "a zip archive or an Excel workbook; export its sheet as CSV",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it, or use gzip",
    b"BZh": "compressed with bzip2; decompress it, or use gzip",
    b"\xfd7zXZ": "compressed with xz; decompress it, or use gzip",
}


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      text: with its end.
      whole: False where it is a piece of a line that is too long.
    """

    number: int
    text: str
    whole: bool = True

    @property
    def content(self) -> str:
        """Without its end, and without the mark that concatenated files have at their seams."""
        return self.text.rstrip("\r\n").removeprefix("\ufeff")


def too_long(place: str) -> Prompt:
    """The record of a line that is cut."""
    return Prompt("", f"{place} has over {LONGEST_LINE} characters; is it text?", place)


def half_character(error: UnicodeError) -> tuple[str, int]:
    """Decodes what is no character to half a one, so that its record is told of."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


codecs.register_error("memattn_jax.half_character", half_character)


def peekable(raw: Any) -> io.BufferedReader:
    """The same bytes, whose beginning can be looked at."""
    return io.BufferedReader(raw, HEAD)


@contextmanager
def lines_of(raw: IO[bytes], where: str, wanted: Wanted) -> Iterator[Iterator[Line]]:
    """Lines of a text file, which end at a line feed, a carriage return or both, not at U+2028; one too long in pieces.

    Bytes that the encoding does not allow become half characters, which `judge` refuses.

    Raises:
      InputError: another format, or damaged gzip.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(peekable(raw))
            if is_packed(file.peek(HEAD), where, wanted):
                file = stack.enter_context(peekable(gzip.GzipFile(fileobj=file)))
            encoding = encoding_of(file.peek(HEAD), where, wanted)
            text = io.TextIOWrapper(file, encoding, errors="memattn_jax.half_character", newline="")
            yield numbered(stack.enter_context(text))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{where}: damaged gzip file ({error})") from None


def is_packed(head: bytes, where: str, wanted: Wanted) -> bool:
    """Whether a file is in gzip's format; raises InputError for one that is neither that nor text."""
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise InputError(f"{where}: {what}")
    if where.lower().endswith(".gz"):
        return True
    packed = head.startswith(b"\x1f\x8b\x08")
    if packed:
        wanted.note(f"{where}: compressed with gzip, and read so")
    return packed


def numbered(text: io.TextIOWrapper) -> Iterator[Line]:
    """The lines with their numbers, one that is too long in pieces."""
    number, going_on = 0, False
    while piece := text.readline(LONGEST_LINE):
        number += not going_on
        cut = len(piece) == LONGEST_LINE and not piece.endswith(("\n", "\r"))
        yield Line(number, piece, not (cut or going_on))
        going_on = cut


def first_pieces(lines: Iterator[Line]) -> Iterator[Line]:
    """The lines, one that is too long once."""
    last = 0
    for line in lines:
        if line.number != last:
            yield line
        last = line.number


def encoding_of(head: bytes, where: str, wanted: Wanted) -> str:
    """By the mark at its beginning, or by where its zero bytes are; else UTF-8."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > 20 * min(zeros):
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        text, ends = head.decode(encoding, errors="replace"), head.count(b"\n")
        # every other byte of Latin letters is zero, and in any script one of each line end
        if text.count("\n") > 0.9 * ends if ends > 1 else max(zeros) > 0.15 * len(head):
            wanted.note(f"{where}: read as {encoding.upper()}, since its zero bytes are where that has them")
            return encoding
    return "utf-8-sig"
