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

HEAD = 2**16  # bytes from which encoding and compression are detected
SIP = 2**13  # compressed bytes that are unpacked at once
LONGEST_LINE = 2**24  # characters; a file without line ends must not exhaust the memory
MARKS = {  # byte-order marks; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHERS = {  # first bytes of files that are not text, whatever their name says
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
      text: with its line end.
      whole: False for a piece of a line that is too long.
    """

    number: int
    text: str
    whole: bool = True

    @property
    def content(self) -> str:
        """The text without its line end, and without byte-order marks, which concatenated files have in the middle."""
        return self.text.rstrip("\r\n").removeprefix("\ufeff")


def too_long(place: str) -> Prompt:
    """The record for a line that is too long."""
    return Prompt("", f"{place} has over {LONGEST_LINE} characters; is it text?", place)


def half_character(error: UnicodeError) -> tuple[str, int]:
    """Decodes invalid bytes to a lone surrogate, so that their record gets an error."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


codecs.register_error("memattn_jax.half_character", half_character)


class Sips(io.BufferedReader):
    """Gives gzip little at once: since Python 3.12 it asks for 128 KiB, which count as read before they are lines."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most SIP bytes."""
        return super().read(SIP if size is None or size < 0 else min(size, SIP))


def peekable(raw: Any) -> io.BufferedReader:
    """Wraps a file so that its beginning can be peeked at."""
    return Sips(raw, HEAD)


@contextmanager
def lines_of(raw: IO[bytes], where: str, wanted: Wanted) -> Iterator[Iterator[Line]]:
    """Lines of a text file, which end at a line feed, a carriage return or both; an overlong one comes in pieces.

    Invalid bytes become lone surrogates, which `judge` refuses.

    Raises:
      InputError: the file has another format, or is damaged gzip.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(peekable(raw))
            if (extent := wanted.extent) is not None:
                extent.follow(file.tell)
            if is_packed(file.peek(HEAD), where, wanted):
                unpacked = gzip.GzipFile(fileobj=file)
                file = stack.enter_context(peekable(unpacked))
                if extent is not None:
                    extent.hold(lambda: file.tell() / unpacked.tell())
            encoding = encoding_of(file.peek(HEAD), where, wanted)
            text = io.TextIOWrapper(file, encoding, errors="memattn_jax.half_character", newline="")
            yield numbered(stack.enter_context(text))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{where}: damaged gzip file ({error})") from None


def is_packed(head: bytes, where: str, wanted: Wanted) -> bool:
    """Whether a file is compressed with gzip; raises InputError for other binary formats."""
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise InputError(f"{where}: {what}")
    if where.lower().endswith(".gz"):
        return True
    packed = head.startswith(b"\x1f\x8b\x08")
    if packed:
        wanted.note(f"{where}: compressed with gzip despite its name")
    return packed


def numbered(text: io.TextIOWrapper) -> Iterator[Line]:
    """Numbers the lines; an overlong one comes in pieces."""
    number, continued = 0, False
    while piece := text.readline(LONGEST_LINE):
        number += not continued
        cut = len(piece) == LONGEST_LINE and not piece.endswith(("\n", "\r"))
        yield Line(number, piece, not (cut or continued))
        continued = cut


def first_pieces(lines: Iterator[Line]) -> Iterator[Line]:
    """The lines, without all but the first piece of an overlong one."""
    last = 0
    for line in lines:
        if line.number != last:
            yield line
        last = line.number


def encoding_of(head: bytes, where: str, wanted: Wanted) -> str:
    """Detects the encoding by a byte-order mark or the positions of zero bytes; else UTF-8."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > 20 * min(zeros):
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        text, ends = head.decode(encoding, errors="replace"), head.count(b"\n")
        # every other byte of Latin letters is zero, and in any script one of each line end
        if text.count("\n") > 0.9 * ends if ends > 1 else max(zeros) > 0.15 * len(head):
            wanted.note(f"{where}: read as {encoding.upper()}, because of its zero bytes")
            return encoding
    return "utf-8-sig"
