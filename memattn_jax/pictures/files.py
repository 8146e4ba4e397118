"""Files of images: which there are in a folder, and their bytes."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import ENDINGS
from memattn_jax.pictures.skipped import UnusableError


def image_files(places: Iterable[Path | str]) -> list[Path]:
    """The files that are named, and those with an image's ending in the folders that are, at any depth; sorted.

    Hidden files and folders are left out. Links to folders are followed, and each real folder is visited once.

    Raises:
      FileNotFoundError: no such file or folder.
      InputError: a folder without images.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_file():
            found.append(place)
            continue
        if not place.is_dir():
            raise FileNotFoundError(f"no such file or folder: {place}")
        inside = []
        entered: set[str] = set()
        for folder, folders, names in os.walk(place, followlinks=True):
            if (real := os.path.realpath(folder)) in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside += [Path(folder, name) for name in names if name.lower().endswith(ENDINGS) and name[0] != "."]
        if not inside:
            raise InputError(f"{place}: no images; expected files such as .png, .jpg or .webp, here or in its folders")
        found += sorted(inside)
    return list(dict.fromkeys(found))


def read_image(path: Path) -> bytes:
    """The content of a file.

    Raises:
      UnusableError: the file does not exist or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableError(f"an image that cannot be read ({error.strerror})", str(path)) from None


def texts_of(path: Path) -> dict[str, str]:
    """What an image's file says of it besides pixels, such as the prompt that `generate` writes; none if unreadable."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except Exception:  # as for pixels, decoders raise nearly anything at damaged bytes
        return {}
