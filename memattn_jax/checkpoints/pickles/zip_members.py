"""The zip container as `torch.save` writes it: members that are stored, not compressed, and so are views of the file.

Source: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its
end), 4.5.3 (sizes over 4 GB). Python's `zipfile` copies what it reads and makes an object of each of any number of
entries. Checksums are not compared: that would read every weight, and `torch.save` can leave them out.
"""

import itertools
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LOCAL, ENTRY, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
LOCATOR, END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
ENTRIES = 100_000  # a model has one for each of its few thousand tensors
DIRECTORY = 2**26  # bytes
COMMENT = 2**16  # bytes that may follow the end of the directory
IN_64_BITS = 2**32 - 1  # stands for a number that follows in 64 bits
ENCRYPTED, STORED = 1, 0
DRIVE = re.compile("[A-Za-z]:")  # of Windows; other colons come from the name that a file was saved under
PROGRAM = "code/"  # source code of TorchScript, which it compresses, and which nobody reads


class Entry(NamedTuple):
    """One entry of the directory: where a member's local header is, and the bytes of its content."""

    name: str
    offset: int
    size: int


def zip_members(data: np.ndarray) -> dict[str, np.ndarray]:
    """The members of a zip file, {name: uint8 [size], a view}; those of TorchScript's source code as they are packed.

    Args:
      data: the file's bytes, uint8 [size].

    Raises:
      ValueError: damaged, compressed or encrypted, members that overlap, or a name that points out of the archive.
    """
    start, size, count = directory(data)
    members: dict[str, np.ndarray] = {}
    extents = []
    for entry in entries(data[start : start + size].tobytes(), count):
        check_name(entry.name, members)
        signature, *_, name_size, extra_size = LOCAL.unpack(part(data, entry.offset, LOCAL.size))
        content = entry.offset + LOCAL.size + name_size + extra_size
        stored = part(data, entry.offset + LOCAL.size, name_size)
        if signature != b"PK\x03\x04" or stored != entry.name.encode() or content + entry.size > start:
            raise ValueError(f"zip member {entry.name[:40]!r} is not where the directory says")
        members[entry.name] = data[content : content + entry.size]
        extents.append((entry.offset, content + entry.size))
    extents.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(extents)):
        raise ValueError("zip members overlap")
    return members


def part(data: np.ndarray, start: int, size: int) -> bytes:
    """Some bytes of a file; raises ValueError where it ends before them."""
    if start + size > data.size:
        raise ValueError(f"the zip directory points at byte {start + size:,} of {data.size:,}")
    return data[start : start + size].tobytes()


def directory(data: np.ndarray) -> tuple[int, int, int]:
    """Start, bytes and entries of the central directory; raises ValueError if it is missing, cut off or too large."""
    tail = data[-(END.size + COMMENT) :].tobytes()
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or position + END.size > len(tail):
        raise ValueError("its end is missing, as after a download that broke off")
    *_, count, size, start, _ = END.unpack_from(tail, position)
    end = data.size - len(tail) + position
    if IN_64_BITS in (size, start) or count == 0xFFFF:
        signature, _, end, _ = LOCATOR.unpack(part(data, max(end - LOCATOR.size, 0), LOCATOR.size))
        signature64, *_, count, size, start = END64.unpack(part(data, end, END64.size))
        if (signature, signature64) != (b"PK\x06\x07", b"PK\x06\x06"):
            raise ValueError("the end of the zip directory is damaged")
    if count > ENTRIES or size > DIRECTORY:
        raise ValueError(f"a zip directory of {count:,} entries and {size:,} bytes; a model's has a few thousand")
    if start + size > end:
        raise ValueError("the zip directory is not where its end says")
    return start, size, count


def entries(content: bytes, count: int) -> Iterator[Entry]:
    """Parses the central directory; raises ValueError where it is damaged or a tensor is compressed."""
    position = 0
    for _ in range(count):
        if position + ENTRY.size > len(content):
            raise ValueError("the zip directory is cut off")
        fields = ENTRY.unpack_from(content, position)
        signature, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_size, extra_size, comment_size = fields[8:13]
        name_start = position + ENTRY.size
        position = name_start + name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or position > len(content):
            raise ValueError("the zip directory is damaged")
        name = content[name_start : name_start + name_size].decode()
        extra = content[name_start + name_size : name_start + name_size + extra_size]
        size, packed, offset = in_64_bits((size, packed, fields[-1]), extra)
        program = name.partition("/")[2].startswith(PROGRAM)
        if flags & ENCRYPTED or ((method != STORED or packed != size) and not program):
            raise ValueError(f"zip member {name[:40]!r} is compressed or encrypted, which torch.save never does")
        yield Entry(name, offset, packed)


def in_64_bits(numbers: tuple[int, ...], extra: bytes) -> list[int]:
    """Size, packed size and offset, read from the extra field 1 where they do not fit into 32 bits."""
    wide: Iterator[int] = iter(())
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            field = extra[4 : 4 + size]
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
        extra = extra[4 + size :]
    found = [next(wide, -1) if number == IN_64_BITS else number for number in numbers]
    if -1 in found:
        raise ValueError("the zip directory lacks a size over 4 GB")
    return found


def check_name(name: str, seen: dict[str, np.ndarray]) -> None:
    """Raises ValueError for a member's name that comes twice or that would lie outside a folder.

    Nothing is ever unpacked, but such a file was made to harm whoever does.
    """
    if name in seen:
        raise ValueError(f"zip member {name[:40]!r} comes twice")
    if name.startswith("/") or "\\" in name or DRIVE.match(name) or ".." in name.split("/"):
        raise ValueError(f"zip member {name[:40]!r} would lie outside the archive")
