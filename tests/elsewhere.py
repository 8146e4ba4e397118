"""Folders that name files outside themselves, or things that are no files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def indexed(folder: Path, shard: str) -> None:
    index = json.loads((folder / "unet" / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], shard)
    (folder / "unet" / INDEX).write_text(json.dumps(index))


def linked(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def index_above(folder: Path, outside: Path) -> None:
    indexed(folder, f"../../../{outside.name}/x.safetensors")


def index_absolute(folder: Path, outside: Path) -> None:
    indexed(folder, str(outside / "x.safetensors"))


def index_in_a_folder(folder: Path, outside: Path) -> None:
    indexed(folder, "../vae/diffusion_pytorch_model.safetensors")


def index_of_a_folder(folder: Path, outside: Path) -> None:
    (folder / "unet" / "x.safetensors").mkdir()
    indexed(folder, "x.safetensors")


def index_with_a_null(folder: Path, outside: Path) -> None:
    indexed(folder, "x\0.safetensors")


def linked_weights(folder: Path, outside: Path) -> None:
    linked(sorted((folder / "unet").glob("*.safetensors"))[0], outside / "x.safetensors")


def linked_config(folder: Path, outside: Path) -> None:
    shutil.copy(folder / "unet" / "config.json", outside)
    linked(folder / "unet" / "config.json", outside / "config.json")


def linked_scheduler(folder: Path, outside: Path) -> None:
    shutil.copy(folder / "scheduler" / "scheduler_config.json", outside)
    linked(folder / "scheduler" / "scheduler_config.json", outside / "scheduler_config.json")


def linked_folder(folder: Path, outside: Path) -> None:
    shutil.copytree(folder / "vae", outside / "vae", dirs_exist_ok=True)
    linked(folder / "vae", outside / "vae")


def linked_tokenizer(folder: Path, outside: Path) -> None:
    shutil.copytree(folder / "tokenizer", outside / "tokenizer", dirs_exist_ok=True)
    linked(folder / "tokenizer", outside / "tokenizer")


def linked_to_itself(folder: Path, outside: Path) -> None:
    linked(folder / "unet" / "config.json", folder / "unet" / "config.json")


def pipe_for_a_config(folder: Path, outside: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")


def pipe_for_weights(folder: Path, outside: Path) -> None:
    path = sorted((folder / "unet").glob("*.safetensors"))[0]
    path.unlink()
    os.mkfifo(path)


def pipe_for_a_vocabulary(folder: Path, outside: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (folder / "tokenizer" / name).unlink()
    os.mkfifo(folder / "tokenizer" / "vocab.json")


def endless_device(folder: Path, outside: Path) -> None:
    linked(folder / "vae" / "config.json", Path("/dev/zero"))


PLACES: list[Callable[[Path, Path], None]] = [
    index_above,
    index_absolute,
    index_in_a_folder,
    index_of_a_folder,
    index_with_a_null,
    linked_weights,
    linked_config,
    linked_scheduler,
    linked_folder,
    linked_tokenizer,
    linked_to_itself,
    pipe_for_a_config,
    pipe_for_weights,
    pipe_for_a_vocabulary,
    endless_device,
]
