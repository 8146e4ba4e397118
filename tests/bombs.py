"""Files that take gigabytes or hours of a reader that is not careful."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

MB = 2**20


def safetensors(scratch: Path, header: bytes) -> Path:
    path = scratch / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def pickled(scratch: Path, content: bytes) -> Path:
    path = scratch / "x.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02" + content)
        file.writestr("x/data/0", bytes(64))
    return path


def configured(scratch: Path, name: str, **values: object) -> Path:
    path = scratch / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def header_of_objects(scratch: Path) -> Path:
    return safetensors(scratch, b'{"a":[' + b"{}," * (5 * MB) + b"{}]}")


def header_of_names(scratch: Path) -> Path:
    return safetensors(scratch, b"{" + b",".join(b'"%x":{}' % i for i in range(MB)) + b"}")


def header_of_wide_text(scratch: Path) -> Path:
    return safetensors(scratch, b'{"__metadata__":{"a":"' + "😀".encode() + b"a" * (15 * MB) + b'"}}')


def header_of_shapes(scratch: Path) -> Path:
    return safetensors(
        scratch, json.dumps({"a": {"dtype": "F32", "shape": [2**62] * 8, "data_offsets": [0, 0]}}).encode()
    )


def pickle_of_dicts(scratch: Path) -> Path:
    return pickled(scratch, b"]" + b"(" + b"}" * (15 * MB) + b"e.")


def pickle_of_wide_text(scratch: Path) -> Path:
    return pickled(scratch, b"](" + text("😀".encode() + b"a" * (15 * MB)) + b"e.")


def pickle_of_copies(scratch: Path) -> Path:
    start = b"c_codecs\nencode\nq\0" + text(b"a" * MB) + text(b"latin1") + b"\x86q\1]("
    return pickled(scratch, start + b"h\0h\1R" * 100_000 + b"e.")


def pickle_of_tensors(scratch: Path) -> Path:
    """One storage, of which a million tensors of a million elements are views."""
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x10tQ"
    shape, strides = b"J" + struct.pack("<i", MB) + b"\x85", b"K\0\x85"
    start = b"ctorch._utils\n_rebuild_tensor_v2\nq\0(" + storage + b"K\0" + shape + strides + b"\x89}tq\1]("
    return pickled(scratch, start + b"h\0h\1R" * 300_000 + b"e.")


def pickle_of_a_large_tensor(scratch: Path) -> Path:
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x10tQ"
    shape, strides = b"J" + struct.pack("<i", 10**9) + b"\x85", b"K\0\x85"
    start = b"}" + text(b"a") + b"ctorch._utils\n_rebuild_tensor_v2\n("
    return pickled(scratch, start + storage + b"K\0" + shape + strides + b"\x89}tRs.")


def pickle_that_doubles(scratch: Path) -> Path:
    """A list of two lists of two lists …: forty instructions, 2^30 items."""
    return pickled(
        scratch, b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(30)) + b"q\xff}" + text(b"a") + b"h\xffs."
    )


def pickle_of_indices(scratch: Path) -> Path:
    return pickled(
        scratch, b"}" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - 2**20 * i) for i in range(1000)) + b"."
    )


def directory_of_many(scratch: Path) -> Path:
    path = scratch / "x.ckpt"
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 16)
    count = MB
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, count, count, count * len(entry), 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + count * len(entry), 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end + locator + last)
    return path


def packed_zeros(scratch: Path) -> Path:
    """A gigabyte of zeros in a megabyte."""
    path, out = scratch / "x.ckpt", io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open("x/data.pkl", "w") as member:
        for _ in range(256):
            member.write(bytes(MB))
    path.write_bytes(out.getvalue())
    return path


def legacy_storage(scratch: Path) -> Path:
    """A storage of 2^60 elements."""
    path = scratch / "x.pt"
    magic = (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}" + text(b"little_endian") + b"\x88s."
    )
    storage = (
        b"("
        + text(b"storage")
        + b"ctorch\nFloatStorage\n"
        + text(b"0")
        + text(b"cpu")
        + b"\x8a\x08"
        + b"\0" * 7
        + b"\x08NtQ"
    )
    keys = b"\x80\x02](" + text(b"0") + b"e."
    path.write_bytes(magic + b"\x80\x02" + storage + b"." + keys + struct.pack("<Q", 2**59) + bytes(64))
    return path


def config_of_layers(scratch: Path) -> Path:
    return configured(scratch, "unet/config.json", layers_per_block=10**9)


def config_of_transformers(scratch: Path) -> Path:
    return configured(scratch, "unet/config.json", transformer_layers_per_block=10**9)


def config_of_blocks(scratch: Path) -> Path:
    names = ["CrossAttnDownBlock2D"] * 100_000
    return configured(scratch, "unet/config.json", block_out_channels=[32] * len(names), down_block_types=names)


def config_of_lists(scratch: Path) -> Path:
    path = scratch / "model" / "vae" / "config.json"
    path.write_bytes(b'{"a":[' + b"[]," * (5 * MB) + b"[]]}")
    return path


def config_of_numbers(scratch: Path) -> Path:
    path = scratch / "model" / "model_index.json"
    path.write_bytes(b'{"a":[' + b"0," * (25 * MB) + b"0]}")
    return path


def vocabulary_of_numbers(scratch: Path) -> Path:
    path = scratch / "model" / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {f"{i}": i for i in range(300_000)} | content["model"]["vocab"]
    path.write_text(json.dumps(content))
    return path


def vocabulary_far_apart(scratch: Path) -> Path:
    path = scratch / "model" / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["a</w>"] = 2**31 - 1
    path.write_text(json.dumps(content))
    return path


def vocabulary_of_added_tokens(scratch: Path) -> Path:
    decoder = {str(10**9 + i): {"content": f"<{i}>"} for i in range(10_000)}
    return configured(scratch, "tokenizer/tokenizer_config.json", added_tokens_decoder=decoder, model_max_length=10**30)


BOMBS: list[Callable[[Path], Path]] = [
    header_of_objects,
    header_of_names,
    header_of_wide_text,
    header_of_shapes,
    pickle_of_dicts,
    pickle_of_wide_text,
    pickle_of_copies,
    pickle_of_tensors,
    pickle_of_a_large_tensor,
    pickle_that_doubles,
    pickle_of_indices,
    directory_of_many,
    packed_zeros,
    legacy_storage,
    config_of_layers,
    config_of_transformers,
    config_of_blocks,
    config_of_lists,
    config_of_numbers,
    vocabulary_of_numbers,
    vocabulary_far_apart,
    vocabulary_of_added_tokens,
]
