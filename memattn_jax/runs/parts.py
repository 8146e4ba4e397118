"""A run in parts, each kept once it is done, so that the same command goes on with the others.

manifest.json   the settings that all parts share, and each part's own, results and file
NNN.npz         its arrays
"""

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.runs.refusal import refusal
from memattn_jax.runs.table import MANIFEST
from memattn_jax.storage import Store


class Part(NamedTuple):
    """What is kept of a part: results as JSON values, and arrays."""

    results: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Parts:
    """The parts that a folder holds."""

    def __init__(self, store: Store, identity: dict[str, Any], *, overwrite: bool):
        """Reads what there is; with `overwrite`, nothing, and the first part written takes its place.

        Raises:
          InputError: the folder holds results with another identity; the message says where it differs.
        """
        self.store, self.identity = store, json.loads(json.dumps(identity))
        self.entries: dict[str, dict[str, Any]] = {}
        stored = None if overwrite else store.read(MANIFEST)
        if stored is None:
            return
        try:
            content = json.loads(stored)
            old, self.entries = content["identity"], content.get("parts", {})
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{store}/{MANIFEST}: not a manifest of this package, or damaged; choose another --out"
            ) from None
        if old != self.identity:
            raise InputError(refusal(str(store), old, self.identity))

    def read(self, name: str, about: dict[str, Any]) -> Part | None:
        """A part that is done; None where it is not, or its file is damaged.

        Raises:
          InputError: it was made with other settings of its own than `about`.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry["about"] != (own := json.loads(json.dumps(about))):
            same = self.identity
            raise InputError(refusal(str(self.store), same | {name: entry["about"]}, same | {name: own}))
        content = self.store.read(entry["file"])
        try:
            with np.load(io.BytesIO(content or b"")) as arrays:
                return Part(entry["results"], dict(arrays))
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, name: str, about: dict[str, Any], part: Part) -> None:
        """Keeps a part: its arrays first, so that what the manifest names is there."""
        places = [entry["file"] for entry in self.entries.values()]
        file = self.entries[name]["file"] if name in self.entries else f"{len(places):03d}.npz"
        buffer = io.BytesIO()
        np.savez(buffer, **part.arrays)  # type: ignore[arg-type]
        self.store.write(file, buffer.getvalue())
        self.entries[name] = {"about": about, "file": file, "results": part.results}
        content = {"identity": self.identity, "parts": self.entries}
        text = json.dumps(content, indent=1, ensure_ascii=False, default=float)
        self.store.write(MANIFEST, text.encode() + b"\n")
