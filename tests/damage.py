"""Damaged variants of files: of bytes, of JSON and of containers. Everything is drawn from a seeded generator."""

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NUMBER = (0, -1, 1, 2, 7, 255, 2**31, 2**32 - 1, 10**9, 2**62, 2**63, 2**64, 10**30, 0.5, 1e308, float("nan"))
WORD = ("", "x", "../../outside/secret", "/etc/passwd", "x" * 1000, "\x1b[2J\n", "\ud800", "F32", "I64")
THING = (None, True, False, [], {}, [[]], [None], ["x"] * 3, {"x": {}}, [10**9] * 4, list(range(100)))


def damaged_bytes(content: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Cuts, flips, overwrites, repeats or inserts something; `head` bytes at most from the start, or anywhere."""
    place = rng.randrange(min(head or len(content), len(content)))
    length = rng.choice((1, 1, 2, 8, 64))
    rest = content[place + length :]
    return rng.choice(
        (
            lambda: content[:place],
            lambda: content[:place] + bytes((content[place] ^ 1 << rng.randrange(8),)) + content[place + 1 :],
            lambda: content[:place] + rng.randbytes(length) + rest,
            lambda: content[:place] + b"\0" * length + rest,
            lambda: content[:place] + b"\xff" * length + rest,
            lambda: content[:place] + rng.randbytes(length) + content[place:],
            lambda: content[:place] + content[place : place + length] * 3 + rest,
            lambda: content[:place] + rest,
        )
    )()


def damaged_value(value: Any, rng: random.Random) -> Any:
    """Another value, rather of another kind."""
    return copy.deepcopy(rng.choice((rng.choice(NUMBER), rng.choice(WORD), rng.choice(THING), [value], str(value))))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested lists and dicts."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """One value replaced, a key lost, renamed or repeated, or a text that is no JSON of any use."""
    value = json.loads(content)
    container, key = rng.choice(list(places(value)))
    kind = rng.randrange(12)
    if kind == 0:
        return b"[" * 100_000
    if kind == 1:
        return b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    if kind == 2:
        return damaged_bytes(content, rng)
    if kind == 3:
        return json.dumps(damaged_value(value, rng)).encode()
    if kind == 4:
        return b"[" + b"1e5," * 10_000 + b"1]"
    if kind == 5 and isinstance(container, dict):
        text = json.dumps(value)
        return text.replace(json.dumps(key) + ":", json.dumps(key) + ": 0, " + json.dumps(key) + ":").encode()
    if kind == 6:
        del container[key]
    elif kind == 7 and isinstance(container, dict):
        container[str(rng.choice(WORD))] = container.pop(key)
    elif kind == 8:
        return json.dumps(value).replace(": ", ": " + "1" * rng.choice((100, 10_000)), 1).encode()
    else:
        container[key] = damaged_value(container[key], rng)
    return json.dumps(value).encode()


def damaged_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header's JSON, its length or any byte."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = rng.randrange(8)
    if kind == 0:
        absurd = rng.choice((0, 1, length - 1, length + 1, len(content), 10**8, 2**62, 2**63, 2**64 - 1))
        return struct.pack("<Q", absurd) + content[8:]
    if kind == 1:
        return damaged_bytes(content, rng, 8 + length)
    if kind == 2:
        return damaged_bytes(content, rng)
    if kind == 3:  # another tensor's place, or a shifted one
        tensors = json.loads(header)
        name, other = rng.choices([name for name in tensors if name != "__metadata__"], k=2)
        start, end = tensors[name]["data_offsets"]
        shift = rng.choice((-4, 4, 4096, 2**40))
        tensors[other]["data_offsets"] = rng.choice(([start, end], [start + shift, end + shift], [end, start]))
        header = json.dumps(tensors).encode()
    else:
        header = damaged_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


def rezipped(content: bytes, change: Callable[[str, bytes], Iterator[tuple[str, bytes]]], method: int = 0) -> bytes:
    """A zip file with other members."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            for new_name, member in change(name, old.read(name)):
                new.writestr(new_name, member)
    return out.getvalue()


def damaged_zip(content: bytes, rng: random.Random) -> bytes:
    """The pickle, the members' names and sizes, the directory, or any byte."""
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    chosen, other = rng.choice(names), rng.choice(names)
    pickled = next(name for name in names if name.endswith("data.pkl"))
    root = pickled.removesuffix("data.pkl")
    bad_name = rng.choice(("../x", "/etc/x", root + "../../x", "C:\\x", "a\0b", "x/data.pkl", "é" * 100))
    changes: dict[str, Callable[[str, bytes], Any]] = {
        "pickle": lambda name, member: [(name, damaged_bytes(member, rng) if name == pickled else member)],
        "member": lambda name, member: [(name, damaged_bytes(member, rng) if name == chosen and member else member)],
        "name": lambda name, member: [(bad_name if name == chosen else name, member)],
        "missing": lambda name, member: [] if name == chosen else [(name, member)],
        "added": lambda name, member: [(name, member), *([(bad_name, b"x")] if name == chosen else [])],
        "swapped": lambda name, member: [({chosen: other, other: chosen}.get(name, name), member)],
    }
    kind = rng.choice((*changes, "pickle", "pickle", "bomb", "packed", "directory", "directory", "bytes", "twice"))
    if kind in changes:
        return rezipped(content, changes[kind])
    if kind == "bomb":  # 16 MB of zeros in 16 KB
        zeros = b"\0" * 2**24
        return rezipped(content, lambda name, member: [(name, zeros if name == chosen else member)], 8)
    if kind == "packed":
        return rezipped(content, lambda name, member: [(name, member)], rng.choice((8, 12, 14)))
    if kind == "twice":  # a member of the same name, written over the name of another of that length
        twin = chosen[:-1] + ("1" if chosen[-1] == "0" else "0")
        return content.replace(twin.encode(), chosen.encode())
    if kind == "directory":
        start = content.rindex(b"PK\x01\x02") if rng.random() < 0.3 else content.index(b"PK\x01\x02")
        return content[:start] + damaged_bytes(content[start:], rng)
    return damaged_bytes(content, rng)


def rewrite_array(checkpoint: Path, values: dict[str, Any]) -> None:
    """Changes what Orbax stores of an array in one dimension: its shape, or that of its chunks."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/"}).result()
    for key in store.list().result():
        content = json.loads(store.read(key).result().value) if key.endswith(b".zarray") else {}
        if len(content.get("shape", ())) == 1:
            store.write(key, json.dumps(content | values).encode()).result()
            return
