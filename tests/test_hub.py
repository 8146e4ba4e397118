"""Finding models, offline, in a cache laid out as the hub's client lays it out."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from memattn_jax.checkpoints.hub import HALF, NOT_READ, PATTERNS, locate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_model_by_name(cache, random_model):
    from memattn_jax import StableDiffusion

    repository = cache / "models--owner--name"
    shutil.copytree(random_model, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert locate("owner/name") == repository / "snapshots" / ("0" * 40)
    assert StableDiffusion.from_pretrained("owner/name").unet.config.sample_size == 16


def test_a_name_that_is_not_there(cache):
    with pytest.raises(FileNotFoundError, match=r"owner/nothing, .*Hugging Face Hub"):
        locate("owner/nothing")
    with pytest.raises(FileNotFoundError, match="owner/a b, "):
        locate("owner/a b")


def test_a_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == Path("owner/name")
    assert locate("./owner") == Path("owner")


def test_half_precision_is_downloaded_where_there_is_nothing_else(tmp_path, monkeypatch):
    asked = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(ignore_patterns)
        if HALF not in ignore_patterns:
            (tmp_path / "unet").mkdir()
            (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("owner/half") == tmp_path
    assert asked == [[*NOT_READ, HALF], NOT_READ]
    assert locate("owner/half") == tmp_path
    assert len(asked) == 3  # now it is there at once


def test_what_is_downloaded(random_model):
    """Everything that loading reads, and no second copy of the weights."""
    from huggingface_hub.utils import filter_repo_objects

    needed = [str(path.relative_to(random_model)) for path in random_model.rglob("*") if path.is_file()]
    surplus = [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_flax_model.msgpack",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
        "sd.safetensors",
    ]
    kept = filter_repo_objects([*needed, *surplus], allow_patterns=PATTERNS, ignore_patterns=[*NOT_READ, HALF])
    assert sorted(kept) == sorted(needed)
