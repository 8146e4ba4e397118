"""Locates a model: a local folder or file, or one of a repository on the Hugging Face Hub, downloaded once."""

import contextlib
import glob
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.places import find_model
from memattn_jax.checkpoints.weight_names import choose_weights, is_weights
from memattn_jax.errors import InputError, listed
from memattn_jax.text import printable

SCHEME = "hf://"
FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
SMALL = ("model_index.json", "memattn_jax.json", "scheduler/scheduler_config.json")
SHOWN = 80  # characters of the names of what is there instead
SPECIAL = re.compile(r"refs/(pr|convert)/[^/]+")  # revisions with slashes


class Repository(NamedTuple):
    """A place on the hub.

    Attributes:
      name: "owner/name".
      revision: a branch, tag or commit; None for the main branch.
      path: a folder or file in it, empty for the whole.
    """

    name: str
    revision: str | None
    path: str


def parse(model: str | Path) -> Repository | None:
    """A place on the hub; None for a local path.

    Args:
      model: "owner/name" unless there is such a path, "owner/name@revision", "owner/name/folder@revision" or, with hf://
        before it, also "owner/name/folder" and "owner/name@revision/folder"; a folder may be a file.

    Raises:
      InputError: a URL, or hf:// without owner and name.
    """
    text = str(model)
    if not text.startswith(SCHEME):
        if "://" in text:
            raise InputError(f"--model {printable(text, 60)}: give a local path or hf://owner/name, not a URL")
        local = text.startswith(("/", ".", "~")) or Path(text).exists()
        if local or "/" not in text or ("@" not in text and text.count("/") > 1):
            return None
    owner, _, rest = text.removeprefix(SCHEME).partition("/")
    name, _, path = rest.partition("/")
    if not owner or not name:
        raise InputError(f"--model {printable(text, 60)}: expected hf://owner/name")
    name, at, revision = name.partition("@")
    if at and (special := SPECIAL.match(f"{revision}/{path}")):
        revision, path = special[0], f"{revision}/{path}"[special.end() :]
    elif not at:
        path, _, revision = path.partition("@")
    return Repository(f"{owner}/{name}", revision or None, path.strip("/"))


def needed(names: Iterable[str], folder: str, variant: str | None) -> list[str]:
    """The files of a repository that loading a model reads: of several sets of weights one.

    Args:
      names: of all its files.
      folder: the model's folder in it, empty for the whole.
      variant: see `choose_weights`.
    """
    prefix = f"{folder}/" if folder else ""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    chosen = [name for name in inside if name in SMALL or str(PurePosixPath(name).parent) == "tokenizer"]
    for part in PARTS:
        files = [path.name for path in map(PurePosixPath, inside) if str(path.parent) == part]
        weights = choose_weights(files, variant)
        chosen += [f"{part}/{name}" for name in files if name == "config.json"]
        chosen += [name for name in inside if name.startswith(f"{part}/orbax/")]
        if weights is not None:
            chosen += [f"{part}/{name}" for name in (*weights.files, weights.index) if name is not None]
    return [prefix + name for name in chosen]


def suggestion(names: Iterable[str]) -> str:
    """What to give instead of a place without a model: the folders and files of these names that look like one."""
    names = list(names)
    folders = {name.removesuffix("/unet/config.json") for name in names if name.endswith("/unet/config.json")}
    files = {name for name in names if name.endswith(FILES) and not is_weights(PurePosixPath(name).name)}
    models = sorted(folders | files)
    shown = listed(models, SHOWN, None)
    return f"give the path of one, as hf://owner/name/path, such as {shown}" if models else "it holds none at all"


def download(place: Repository, source: Source) -> Path:
    """Downloads what is needed of a place on the hub, unless the cache has it; the folder or file.

    Where the hub does not answer, and under `HF_HUB_OFFLINE`, the cache alone is looked in.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import EntryNotFoundError, tqdm

    class Bar(tqdm):
        """A progress bar of the client's, on terminals alone."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": kwargs.get("disable") or None})

    access: dict[str, Any] = {"revision": place.revision, "token": source.token}
    if place.path.endswith(FILES):
        file = hf_hub_download(place.name, place.path, **access)
        with contextlib.suppress(EntryNotFoundError):  # few files have one; see `inference_yaml`
            hf_hub_download(place.name, str(PurePosixPath(place.path).with_suffix(".yaml")), **access)
        return Path(file)
    try:
        files = HfApi().model_info(place.name, **access).siblings or ()
    except Exception as refusal:  # offline, out of order or not for us; what is raised depends on the client's version
        patterns = [f"{place.path}/unet/config.json".removeprefix("/")]
        try:
            folder = snapshot_download(place.name, **access, allow_patterns=patterns, local_files_only=True)
        except Exception:
            raise refusal from None
    else:
        there = [file.rfilename for file in files]
        names = needed(there, place.path, source.variant)
        if not names:
            raise InputError(f"{place.name}: no model in {place.path or 'the repository'}; {suggestion(there)}")
        patterns = [glob.escape(name) for name in names]
        folder = snapshot_download(place.name, **access, allow_patterns=patterns, tqdm_class=Bar)
    return Path(folder, place.path)


def locate(model: str | Path, source: Source | None = None) -> Path:
    """The folder or file of a model.

    Args:
      model: a local path, or a place on the hub, see `parse`; `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` are honoured.
      source: its `subfolder`, `revision`, `token` and `variant` matter.

    Raises:
      FileNotFoundError: not found in either place.
      InputError: see `parse` and `find_model`; or a repository without a model.
    """
    source = source or Source()
    place = parse(model)
    if place is None:
        if source.revision is not None:
            raise InputError(f"revision {printable(source.revision, 40)}: {model} is a local path, which has none")
        return find_model(Path(model, source.subfolder))
    if source.revision is not None and place.revision is not None:
        raise InputError(f"revision {printable(source.revision, 40)}: {model} names one already")
    path = "/".join(filter(None, (place.path, source.subfolder.strip("/"))))
    try:
        return download(Repository(place.name, place.revision or source.revision, path), source)
    except InputError:
        raise
    except Exception as error:  # refused, unreachable or an invalid name; the classes depend on the client's version
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"no such model: {model}, not a local path and not found on the Hugging Face Hub ({reason})"
        ) from None
