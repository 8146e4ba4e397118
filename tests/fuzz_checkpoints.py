"""Reads damaged checkpoints in a process of its own, one after the other, and writes down what came of each.

    python tests/fuzz_checkpoints.py BASES SCRATCH RESULTS

`test_fuzz_checkpoints.py` makes the bases and judges the results. A variant that takes too long ends the process.
"""

import faulthandler
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bombs import BOMBS
from damage import damaged_bytes, damaged_json, damaged_safetensors, damaged_zip, rewrite_array
from elsewhere import PLACES
from transformers import CLIPTokenizer  # noqa: F401 -- what it opens on import is not what is looked for

import memattn_jax
from memattn_jax.checkpoints.folder import open_part
from memattn_jax.checkpoints.geometry import Geometry
from memattn_jax.checkpoints.lora.merge import with_loras
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.checkpoints.textual_inversion import read_embedding
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.errors import InputError
from memattn_jax.schedulers import make_schedule
from memattn_jax.schedulers.config import as_pipeline

SECONDS = 5  # of computing; the process ends after ten times as many by the clock, as other programs may run
PROGRAMS = ("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo")
PACKAGE = str(Path(memattn_jax.__file__).parent)
VARIANTS = {
    "safetensors": 200,
    "zip": 200,
    "legacy": 150,
    "single file": 120,
    "single file of version 2": 120,
    "index": 80,
    "configs": 120,
    "scheduler": 80,
}
VARIANTS |= {"tokenizer": 80, "lora": 100, "embedding": 100, "orbax": 40, "elsewhere": len(PLACES), "bomb": len(BOMBS)}

Variant = tuple[str, Callable[[], object]]


def read_all(path: Path) -> None:
    """The tensors of a file, and all their numbers."""
    for tensor in read_tensors(path).tensors.values():
        tensor.copy()


def open_all(folder: Path, tensors: bool = False) -> None:
    """What a folder says of itself, and one network's weights."""
    checkpoint = open_checkpoint(folder)
    Geometry.of(checkpoint)
    if tensors:
        for tensor in checkpoint.parts["unet"].tensors().values():
            tensor.copy()


def open_single(path: Path) -> None:
    """What a single file says of itself, and its weights."""
    checkpoint = open_checkpoint(path)
    Geometry.of(checkpoint)
    for part in checkpoint.parts.values():
        for tensor in part.tensors().values():
            tensor.copy()


def schedule(folder: Path) -> None:
    """The schedule of a folder."""
    checkpoint = open_checkpoint(folder)
    make_schedule(as_pipeline(checkpoint.scheduler_config), "ddim", 2)
    make_schedule(as_pipeline(checkpoint.scheduler_config), "dpm-solver++", 2)


def tokenize(folder: Path) -> None:
    """A prompt's tokens."""
    Tokenizer(folder, 77)(["the cat"])


def one_file(
    name: str, damage: Callable[[bytes, random.Random], bytes], read: Callable[[Path], None] = read_all
) -> Callable[..., Variant]:
    """Variants of a file of tensors."""

    def make(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
        content = (base / name).read_bytes()
        (scratch / name).write_bytes(damage(content, rng) if number else content)
        return name, lambda: read(scratch / name)

    return make


def in_folder(pattern: str, read: Callable[[Path], None], damage: Any = damaged_json) -> Callable[..., Variant]:
    """Variants of a model's folder in which one of the files of a pattern is damaged."""

    def make(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
        shutil.copytree(base / "model", scratch / "model")
        chosen = rng.choice(sorted(scratch.glob(pattern)))
        if number:
            chosen.write_bytes(damage(chosen.read_bytes(), rng))
        return chosen.name, lambda: read(scratch / "model")

    return make


def tokenizer(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """Variants of a tokenizer in either form."""
    folder = scratch / "tokenizer"
    shutil.copytree(base / rng.choice(("tokenizer", "model/tokenizer")), folder)
    chosen = rng.choice(sorted(folder.iterdir()))
    if number:
        damage = damaged_json if chosen.suffix == ".json" else damaged_bytes
        chosen.write_bytes(damage(chosen.read_bytes(), rng))
    return chosen.name, lambda: tokenize(folder)


def lora(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """Variants of a LoRA, merged into the weights of a single file."""
    parts = open_checkpoint(base / "single.safetensors").parts
    content, path = (base / "lora.safetensors").read_bytes(), scratch / "lora.safetensors"
    path.write_bytes(damaged_safetensors(content, rng) if number else content)

    def read() -> None:
        for part in with_loras(parts, [(path, 1.0)]).values():
            if part.change is not None:
                for name, tensor in part.tensors().items():
                    part.change(name, tensor)

    return path.name, read


def embedding(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """Variants of a textual inversion file, in three containers."""
    damage = {".safetensors": damaged_safetensors, ".bin": damaged_zip, ".pt": damaged_bytes}
    chosen = rng.choice(sorted(base.glob("embedding.*")))
    path = scratch / chosen.name
    path.write_bytes(damage[path.suffix](chosen.read_bytes(), rng) if number else chosen.read_bytes())
    return path.name, lambda: read_embedding(path)


def orbax(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """Variants of a network in Orbax; the first damaged ones ask for arrays or chunks of gigabytes."""
    folder = scratch / "vae"
    shutil.copytree(base / "orbax" / "vae", folder)
    group = folder / "orbax" / "000"
    chosen = rng.choice(sorted(path for path in group.rglob("*") if path.is_file()))
    if number in (1, 2, 3):
        rewrite_array(
            group, [{"shape": [10**9]}, {"chunks": [10**9]}, {"shape": [10**9], "chunks": [10**9]}][number - 1]
        )
    elif number:
        content = chosen.read_bytes()
        damage = damaged_json if content.startswith(b"{") else damaged_bytes
        chosen.write_bytes(damage(content, rng))

    def read() -> None:
        for tensor in open_part(folder, "vae").tensors().values():
            tensor.copy()

    return chosen.name, read


def elsewhere(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """A folder of which a file is somewhere else, or no file."""
    shutil.copytree(base / "model", scratch / "model")
    if number:
        PLACES[number - 1](scratch / "model", base / "outside")
        return PLACES[number - 1].__name__, lambda: (
            open_all(scratch / "model", True),
            tokenize(scratch / "model/tokenizer"),
        )
    return "", lambda: open_all(scratch / "model", True)


def bomb(base: Path, scratch: Path, rng: random.Random, number: int) -> Variant:
    """A small file that asks for gigabytes or hours."""
    if number == 0:
        return "", lambda: None
    make = BOMBS[number - 1]
    shutil.copytree(base / "model", scratch / "model")
    path = make(scratch)
    if path.parent.name == "tokenizer":
        return make.__name__, lambda: tokenize(path.parent)
    if path.suffix == ".json":
        return make.__name__, lambda: open_all(scratch / "model")
    return make.__name__, lambda: read_all(path)


MAKE: dict[str, Callable[..., Variant]] = {
    "safetensors": one_file("x.safetensors", damaged_safetensors),
    "zip": one_file("x.ckpt", damaged_zip),
    "legacy": one_file("x.pt", lambda content, rng: damaged_bytes(content, rng, rng.choice((600, None)))),
    "single file": one_file("single.safetensors", damaged_safetensors, open_single),
    "single file of version 2": one_file("second.safetensors", damaged_safetensors, open_single),
    "index": in_folder("model/unet/*.index.json", lambda folder: open_all(folder, True)),
    "configs": in_folder("model/**/*.json", open_all),
    "scheduler": in_folder("model/scheduler/*.json", schedule),
    "tokenizer": tokenizer,
    "orbax": orbax,
    "lora": lora,
    "embedding": embedding,
    "elsewhere": elsewhere,
    "bomb": bomb,
}


class Watch:
    """Notes files that Python opens outside a folder, programs that it starts, and code that it compiles."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.chmod", "os.link"):
            path = arguments[0]
            if not isinstance(path, str | bytes) or str(Path(str(path)).resolve()).startswith(self.allowed):
                return
        elif not event.startswith(PROGRAMS):
            return
        self.seen.append(f"{event} {arguments[0]!r}")


def outcome(read: Callable[[], object], scratch: Path, watch: Watch) -> str:
    """What comes of reading: "loads", "refused: …", or "WRONG: …"."""
    watch.allowed, watch.seen = (str(scratch), sys.prefix, sys.base_prefix, PACKAGE), []
    try:
        read()
        result = "loads"
    except (InputError, FileNotFoundError) as error:
        text = str(error).replace(f"{scratch}/", "")
        fits = len(text) <= 200 and text.isprintable()
        result = f"refused: {text}" if fits else f"WRONG: {len(text)} characters: {text[:2000]!r}"
    except BaseException:
        watch.allowed = None  # the lines of the traceback are read from files
        result = f"WRONG: {traceback.format_exc()}"
    finally:
        watch.allowed = None
    return f"WRONG: touched {watch.seen}" if watch.seen else result


def peak_memory() -> float:
    """MB that this process has had in use at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def variants(bases: Path, scratch: Path) -> Iterator[tuple[str, int, Variant]]:
    """All variants; the first of each kind is not damaged."""
    for kind, count in VARIANTS.items():
        for number in range(count + 1):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            yield kind, number, MAKE[kind](bases, scratch, random.Random(f"{kind} {number}"), number)


def main(bases: Path, scratch: Path, results: Path) -> None:
    """Writes one JSON object a line: kind, number, file, outcome, seconds, and the growth of the peak memory in MB."""
    watch = Watch()
    with results.open("w") as out:
        for kind, number, (name, read) in variants(bases, scratch):
            size = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
            names = sorted(scratch.rglob("*"))
            if number == 0:
                read()  # what is imported meanwhile is not what is looked for
            if number == 0 or kind == "bomb":  # the peak starts anew, which takes longer than reading a small file
                Path("/proc/self/clear_refs").write_text("5")
            before = peak_memory()
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            start = time.process_time()
            came_of_it = outcome(read, scratch, watch)
            seconds = time.process_time() - start
            growth = peak_memory() - before
            faulthandler.cancel_dump_traceback_later()
            if names != sorted(scratch.rglob("*")):
                came_of_it = "WRONG: wrote or removed files"
            row = {"kind": kind, "number": number, "file": name, "outcome": came_of_it}
            print(json.dumps(row | {"seconds": seconds, "growth": growth, "size": size / 2**20}), file=out, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
