"""The emoji: Noto's, as the npm package emoji-datasource-google ships them. NOTICE.md has their licence."""

import base64
import hashlib
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

from demo_data.grammar import OBJECTS
from memattn_jax.errors import InputError

PACKAGE, VERSION = "emoji-datasource-google", "16.0.0"
INTEGRITY = "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="  # SHA-512
TARBALL = f"{PACKAGE}-{VERSION}.tgz"


def load_sprites(cache: Path) -> dict[str, Image.Image]:
    """Reads the emoji of all objects, after downloading the package (74 MB) where the cache has none.

    Args:
      cache: folder for the package; made if missing.

    Returns:
      {object: RGBA picture of at most 64 × 64, without transparent margins}

    Raises:
      InputError: no npm, no network, or a package that is not the one that was pinned.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / TARBALL
    if not path.exists():
        download(cache)
    verify(path)
    sprites = {}
    objects = {f"package/img/google/64/{code}.png": word for word, code in OBJECTS.items()}
    with tarfile.open(path) as tarball:
        for member in tarball:  # in the package's order: a compressed archive cannot jump
            if member.name in objects and (file := tarball.extractfile(member)):
                sprite = Image.open(file).convert("RGBA")
                sprites[objects[member.name]] = sprite.crop(sprite.getchannel("A").getbbox())
    return sprites


def download(cache: Path) -> None:
    """Has npm put the package's tarball into the cache."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(cache), "--loglevel", "error"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError(f"npm is not installed; install it, or put {TARBALL} into {cache}") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[:200]
        raise InputError(f"npm cannot get {PACKAGE}@{VERSION}, is there a network? ({reason})") from None


def verify(path: Path) -> None:
    """Raises InputError unless the tarball is the pinned one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != INTEGRITY:
        raise InputError(f"{path}: is not {PACKAGE} {VERSION} (SHA-512 differs); delete it to download it again")
