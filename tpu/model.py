"""A checkpoint from the hub into storage that all machines see, once, and from there onto each machine.

    python tpu/model.py publish owner/name gs://bucket/folder       on one machine
    python tpu/model.py take gs://bucket/folder model               on every machine, into the folder `model`

What is there already is left as it is. A folder counts as whole where it has model_index.json, which comes last.
"""

import argparse
import os
import shutil
from pathlib import Path

from memattn_jax.checkpoints.checkpoint import PARTS
from memattn_jax.checkpoints.folder import OWN
from memattn_jax.checkpoints.hub import locate
from memattn_jax.storage import open_filesystem

INDEX = "model_index.json"
FOLDERS = (*PARTS, "tokenizer", "scheduler")


def publish(model: str, url: str) -> bool:
    """Copies a model, of this machine or the hub, to a folder in storage; False where it is there."""
    storage, root = open_filesystem(url)
    if storage.exists(f"{root}/{INDEX}"):
        return False
    folder = locate(model)
    files = sorted(path for part in FOLDERS for path in (folder / part).rglob("*") if path.is_file())
    own = [folder / OWN] if (folder / OWN).is_file() else []
    for path in [*files, *own, folder / INDEX]:
        target = f"{root}/{path.relative_to(folder).as_posix()}"
        storage.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        storage.put_file(str(path.resolve()), target)  # the hub's cache is made of links
    return True


def take(url: str, folder: Path) -> bool:
    """Copies a folder of storage to this machine; False where it is there. Several processes may try at once."""
    if (folder / INDEX).exists():
        return False
    storage, root = open_filesystem(url)
    if not storage.exists(f"{root}/{INDEX}"):
        raise FileNotFoundError(f"{url}: no model, or one that is not whole; it lacks {INDEX}")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for stored in sorted(storage.find(root)):
            path = partial / stored.removeprefix(f"{root}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.get_file(stored, str(path))
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            if not (folder / INDEX).exists():
                raise
            return False
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Brings a checkpoint to storage and from there to machines.")
    parser.add_argument("verb", choices=("publish", "take"))
    parser.add_argument("source")
    parser.add_argument("target")
    chosen = parser.parse_args(arguments)
    target = chosen.target.rstrip("/")
    publishing = chosen.verb == "publish"
    done = publish(chosen.source, target) if publishing else take(chosen.source.rstrip("/"), Path(target))
    print(f"{target}: {'written' if done else 'it is there'}")


if __name__ == "__main__":
    main()
