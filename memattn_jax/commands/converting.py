"""Writes a checkpoint in another container, for `memattn convert SRC DST`."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax.errors import InputError
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.checkpoint import Checkpoint, Source
    from memattn_jax.checkpoints.tokenizer import Tokenizer

CONTAINERS = ("diffusers", "single-file", "orbax")


def check_destination(path: Path, container: str, overwrite: bool) -> None:
    """Raises InputError or OSError where the checkpoint cannot be written, before any work is done."""
    if path.name in ("", ".."):
        raise InputError(f"{printable(str(path), 80)}: name the file or folder to write, such as ./model")
    if container == "single-file" and (path.is_dir() or path.suffix != ".safetensors"):
        raise InputError(f"{printable(str(path), 80)}: a single file's name ends in .safetensors")
    if container != "single-file" and path.is_file():
        raise InputError(f"{printable(str(path), 80)}: is a file; --to {container} writes a folder")
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise InputError(f"{printable(str(path), 80)}: already exists; choose another place or add --overwrite")
    if path.is_dir() and any(path.iterdir()) and not (path / "model_index.json").is_file():
        raise InputError(f"{printable(str(path), 80)}: is not a model's folder, and so is not replaced; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_inputs(model: str | Path, source: "Source", destination: Path) -> None:
    """Raises InputError where replacing the destination would remove a file that the checkpoint is made of.

    The checkpoint itself may be replaced: all of it is converted.
    """
    place, own = destination.resolve(), Path(model, source.subfolder).expanduser().resolve()
    others = [path for path, _ in (*source.loras, *source.embeddings)]
    others += [path for path in (source.vae, source.config) if path is not None]
    read = [path.expanduser().resolve() for path in others]
    if inside := [path for path in (own, *read) if place in path.parents or (path == place and path in read)]:
        shown, what = printable(str(destination), 80), printable(inside[0].name, 40)
        raise InputError(f"{shown}: replacing it would remove {what}, which is read; choose another place")


def opened(model: str | Path, source: "Source") -> tuple["Checkpoint", "Tokenizer"]:
    """A checkpoint with all that is merged into it, and its tokenizer."""
    from memattn_jax.checkpoints.textual_inversion import read_embedding, with_embeddings
    from memattn_jax.diffusion.loading import matching_tokenizer, open_checked

    checkpoint = open_checked(model, source)
    tokenizer = matching_tokenizer(checkpoint)
    embeddings = [read_embedding(path, token) for path, token in source.embeddings]
    parts = {
        **checkpoint.parts,
        "text_encoder": with_embeddings(checkpoint.parts["text_encoder"], tokenizer, embeddings),
    }
    return replace(checkpoint, parts=parts), tokenizer


def convert(model: str | Path, source: "Source", destination: Path, container: str, dtype: str | None) -> str:
    """Writes a checkpoint beside its destination, and moves it there when it is whole.

    Args:
      model: as of `StableDiffusion.from_pretrained`.
      source: likewise.
      destination: file or folder; what was there is replaced.
      container: one of `CONTAINERS`.
      dtype: "float32", "bfloat16" or "float16"; None keeps that of each tensor.

    Returns:
      What to tell of it.

    Raises:
      InputError: tensors that do not fit their configs, and all that `from_pretrained` raises.
    """
    from memattn_jax.checkpoints.tokenizer_files import save_tokenizer
    from memattn_jax.checkpoints.writing.folder import write_folder
    from memattn_jax.checkpoints.writing.parts import checked_tensors
    from memattn_jax.checkpoints.writing.single_file import write_single_file

    destination = destination.resolve()  # what a link points to is replaced, and the link stays
    checkpoint, tokenizer = opened(model, source)
    tensors = checked_tensors(checkpoint, as_dtype(dtype))
    partial = destination.with_name(f".{destination.name}.partial")
    remove(partial)
    note = ""
    try:
        if container == "single-file":
            own = {"pad": tokenizer.clip.pad_token, "length": tokenizer.tokens}
            write_single_file(partial, replace(checkpoint, **own), tensors)
            if not of_clip(tokenizer):
                note = "; its tokenizer is not CLIP's and has no place in it: load it with --config FOLDER"
        else:
            write_folder(partial, checkpoint, tensors, orbax=container == "orbax")
            save_tokenizer(tokenizer.clip, partial / "tokenizer")
        remove(destination)
        partial.rename(destination)
    finally:
        remove(partial)
    count = sum(map(len, tensors.values()))
    size = sum(path.stat().st_size for path in (destination, *destination.rglob("*")) if path.is_file())
    return f"{destination}: {count:,} tensors, {size:,} bytes, {container}{note}"


def as_dtype(name: str | None) -> Any:
    """NumPy's dtype of a name; None for None."""
    import ml_dtypes
    import numpy as np

    return None if name is None else np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def of_clip(tokenizer: "Tokenizer") -> bool:
    """Whether a tokenizer's vocabulary is CLIP's own."""
    from memattn_jax.checkpoints.clip import vocabulary

    return tokenizer.clip.get_vocab() == vocabulary()[0]


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
