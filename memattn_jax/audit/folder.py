"""The folder of an audit: names of its files, their digests, and what is kept between runs of the same command."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memattn_jax.errors import InputError
from memattn_jax.prompts.record import valid_text
from memattn_jax.runs.refusal import refusal
from memattn_jax.storage import Store

PLAN, TIMES = "plan.json", "times.json"
AUDIT, ITEMS, SIDE = "audit.json", "items.jsonl", "audit.json.sha256"
MADE = ("report.html", "model-card.md")  # of audit.json, so their digests cannot be in it
SEARCHED = "search/found.txt"  # the log, where a search made it
EVIDENCE: tuple[str, ...] = ("search", "detection", "confirmation", "images", "mitigation", "mitigated")
EVIDENCE += ("heatmaps", "masks", "references")
EVIDENCE_FILES = (PLAN, ITEMS, "adversarial.json")
INDEX = "index"  # vectors for comparing images: a cache, and no evidence
THREADS = 8
BLOCK = 2**20


def image_name(row: int, seed: int) -> str:
    """File name of the image of a row of the log."""
    return f"{row:06d}-{seed}.png"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(file_digest, paths))


def digest_of_all(root: Path, paths: Iterable[Path]) -> str:
    """One SHA-256 of many files: of the lines that `sha256sum` prints of them, names relative to a folder, sorted."""
    paths = sorted(paths)
    lines = [f"{found}  {path.relative_to(root)}\n" for found, path in zip(digests(paths), paths, strict=True)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def digest_of_prompts(prompts: Iterable[str]) -> tuple[str, int]:
    """SHA-256 of prompts as JSON strings, one a line; and their number."""
    found, number = hashlib.sha256(), 0
    for prompt in prompts:
        found.update((json.dumps(prompt) + "\n").encode())
        number += 1
    return found.hexdigest(), number


def evidence(out: Path) -> dict[str, str]:
    """{name: SHA-256} of every file that an audit rests on, sorted by name."""
    paths = [path for name in EVIDENCE for path in (out / name).rglob("*") if path.is_file()]
    paths += [path for name in EVIDENCE_FILES if (path := out / name).is_file()]
    paths = sorted(path for path in paths if not path.name.startswith("."))
    return {path.relative_to(out).as_posix(): found for path, found in zip(paths, digests(paths), strict=True)}


def to_json(value: Any) -> bytes:
    """JSON for people and programs: indented, Unicode as it is, and no NaN; for what is not UTF-8 see `valid_text`."""
    return valid_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_side_file(out: Path, store: Store) -> None:
    """Writes the digests of audit.json and of what is made of it, as `sha256sum -c` reads them."""
    names = [name for name in (AUDIT, *MADE) if (out / name).is_file()]
    lines = [f"{found}  {name}\n" for found, name in zip(digests(out / name for name in names), names, strict=True)]
    store.write(SIDE, "".join(lines).encode())


def claim(out: Path, plan: Mapping[str, Any], overwrite: bool) -> Store:
    """Creates the folder of an audit, or takes up the one that was begun with the same plan.

    With `overwrite`, an audit that is there is removed, and files that are not its own stay.

    Raises:
      InputError: the folder holds something else, or an audit with another plan; the message says where it differs.
    """
    old, written = out / PLAN, to_json(plan)
    wanted = json.loads(written)
    if old.is_file() and not overwrite:
        try:
            begun = json.loads(old.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{old}: damaged; choose another --out or add --overwrite") from None
        if begun != wanted:
            raise InputError(refusal(str(out), begun, wanted))
        return Store(out)
    if old.is_file():
        for name in (*EVIDENCE, INDEX):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (*EVIDENCE_FILES, AUDIT, SIDE, TIMES, *MADE):
            if name != PLAN:  # which says whose folder it is, should this be interrupted
                (out / name).unlink(missing_ok=True)
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out}: holds files, but no audit that could be resumed; choose another --out")
    store = Store(out)
    store.write(PLAN, written)
    return store


class Times:
    """When an audit was begun, and how long its parts have taken so far, over all runs of the command."""

    def __init__(self, store: Store):
        """Reads what is known; begins the clock of a new audit."""
        self.store = store
        stored = store.read(TIMES)
        self.known: dict[str, Any] = {"started": now(), "seconds": {}} if stored is None else json.loads(stored)
        store.write(TIMES, to_json(self.known))

    def set(self, name: str, seconds: float) -> None:
        """Keeps a number of seconds."""
        self.known["seconds"][name] = round(seconds, 3)
        self.store.write(TIMES, to_json(self.known))

    @contextmanager
    def add(self, name: str) -> Iterator[None]:
        """Adds the time of a block to that of a part, also where the block raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.set(name, self.known["seconds"].get(name, 0.0) + time.monotonic() - start)

    def finished(self) -> dict[str, Any]:
        """The block of audit.json."""
        return {"started": self.known["started"], "finished": now(), "seconds": self.known["seconds"]}


def now() -> str:
    """The time in ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
