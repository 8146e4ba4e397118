"""Diffusers folders in every dialect: which weights are taken, where the folder is, and what is refused unread."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.geometry import Geometry
from memattn_jax.checkpoints.hub import locate
from memattn_jax.checkpoints.opening import open_checkpoint

NAME = "diffusion_pytorch_model"
FILES = {"unet": f"{NAME}.safetensors", "vae": f"{NAME}.safetensors", "text_encoder": "model.safetensors"}


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, ending: str, *, parts: tuple[str, ...] = PARTS) -> None:
    for part in parts:
        path = folder / part / FILES[part]
        path.rename(path.with_name(path.name.replace(".safetensors", ending)))


def weights_of(sd: StableDiffusion) -> np.ndarray:
    return np.asarray(sd.unet.conv_in.kernel[...])


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_variant_is_read_and_said_once(copy, sd, variant):
    rename(copy, f".{variant}.safetensors", parts=("unet", "vae"))
    with pytest.warns(UserWarning, match=rf"plain weights, .* unet \({variant}\), vae \({variant}\)$") as said:
        loaded = StableDiffusion.from_pretrained(copy)
    assert len(said) == 1
    np.testing.assert_array_equal(weights_of(loaded), weights_of(sd))
    with pytest.warns(UserWarning, match=rf"no {variant} weights, taking those of text_encoder \(plain\)$"):
        StableDiffusion.from_pretrained(copy, variant=variant)


def test_the_variant_that_is_asked_for(copy, sd):
    for part in PARTS:
        path = copy / part / FILES[part]
        doubled = {name: 2 * value for name, value in load_file(path).items()}
        save_file(doubled, path.with_name(path.name.replace(".safetensors", ".mine.safetensors")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(weights_of(StableDiffusion.from_pretrained(copy)), weights_of(sd))
        mine = StableDiffusion.from_pretrained(copy, variant="mine")
    np.testing.assert_array_equal(weights_of(mine), 2 * weights_of(sd))
    with pytest.raises(InputError, match="no ours weights, only plain ones"):
        StableDiffusion.from_pretrained(copy, variant="ours")
    (copy / "unet" / FILES["unet"]).unlink()
    with pytest.raises(InputError, match="only the variants mine; choose one with --variant"):
        StableDiffusion.from_pretrained(copy)


def test_names_of_other_tools(copy, sd):
    """A text encoder as pytorch_model.safetensors, and a UNet whose shards have no index."""
    rename(copy, "", parts=("text_encoder",))
    (copy / "text_encoder" / "model").rename(copy / "text_encoder" / "pytorch_model.safetensors")
    path = copy / "unet" / FILES["unet"]
    tensors = load_file(path)
    path.unlink()
    for number, names in enumerate((list(tensors)[:9], list(tensors)[9:]), 1):
        save_file({name: tensors[name] for name in names}, path.with_name(f"{NAME}-0000{number}-of-00002.safetensors"))
    np.testing.assert_array_equal(weights_of(StableDiffusion.from_pretrained(copy)), weights_of(sd))
    text = copy / "text_encoder" / "pytorch_model.safetensors"
    save_file(load_file(text) | {"text_projection.weight": np.zeros((3, 32), np.float32)}, text)
    StableDiffusion.from_pretrained(copy)


@pytest.mark.parametrize(
    "name", ["../vae/model.safetensors", "/etc/passwd", "..", "", "sub/x.safetensors", "a\\b", 3, None]
)
def test_an_index_names_files_of_its_folder_alone(copy, name):
    (copy / "unet" / f"{NAME}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match=r"index\.json: lists|missing, although the index lists it"):
        StableDiffusion.from_pretrained(copy)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": None}], ids=str)
def test_an_index_of_nothing(copy, content):
    (copy / "unet" / f"{NAME}.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="lists no shards"):
        StableDiffusion.from_pretrained(copy)


def test_a_tensor_in_two_shards(copy):
    path = copy / "unet" / FILES["unet"]
    for number in (1, 2):
        shutil.copy(path, path.with_name(f"{NAME}-0000{number}-of-00002.safetensors"))
    path.unlink()
    with pytest.raises(InputError, match="as another shard has"):
        StableDiffusion.from_pretrained(copy)


@pytest.mark.parametrize("name", ["diffusion_flax_model.msgpack", "model.onnx"])
def test_weights_that_are_not_read(copy, name):
    path = copy / "vae" / FILES["vae"]
    path.rename(path.with_name(name))
    with pytest.raises(InputError, match=r"vae: lacks weights" + (".*Flax" if "flax" in name else "")):
        StableDiffusion.from_pretrained(copy)


PIPELINES = {
    "image-to-image": {"_class_name": "StableDiffusionImg2ImgPipeline"},
    "inpainting-of-4-channels": {"_class_name": "StableDiffusionInpaintPipeline"},
    "controlnet": {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]},
    "latent-consistency": {"_class_name": "LatentConsistencyModelPipeline"},
    "safe": {"_class_name": "StableDiffusionPipelineSafe", "safety_concept": "hate"},
    "flax": {"_class_name": "FlaxStableDiffusionPipeline", "unet": ["diffusers", "FlaxUNet2DConditionModel"]},
    "nameless": {"_class_name": None},
    "own": {"_class_name": "MyPipeline", "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]},
}


@pytest.mark.parametrize("changes", PIPELINES.values(), ids=PIPELINES)
def test_pipelines_of_the_same_parts(copy, changes):
    edit(copy / "model_index.json", **changes)
    assert open_checkpoint(copy).where == str(copy)


def test_a_folder_without_an_index(copy):
    (copy / "model_index.json").unlink()
    assert open_checkpoint(copy).where == str(copy)


OTHERS = {
    "xl": ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "Stable Diffusion XL"),
    "transformer": ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "Stable Diffusion 3"),
    "kandinsky": ({"movq": ["diffusers", "VQModel"]}, "Kandinsky"),
    "unclip": ({"prior": ["diffusers", "PriorTransformer"]}, "unCLIP"),
    "audio": ({"vocoder": ["transformers", "SpeechT5HifiGan"]}, "AudioLDM"),
    "onnx": ({"vae_decoder": ["diffusers", "OnnxRuntimeModel"]}, "ONNX"),
    "variations": ({"text_encoder": [None, None], "image_encoder": ["t", "C"]}, "image variations"),
}


@pytest.mark.parametrize(("changes", "what"), OTHERS.values(), ids=OTHERS)
def test_other_pipelines_are_refused_by_what_they_are(copy, changes, what):
    """Before any file of weights is opened: there are none."""
    rename(copy, ".gone")
    edit(copy / "model_index.json", _class_name="OtherPipeline", **changes)
    with pytest.raises(InputError, match=rf"{what}.* \(OtherPipeline\)"):
        open_checkpoint(copy)


def test_another_pipeline_without_an_index(copy):
    (copy / "model_index.json").unlink()
    (copy / "text_encoder_2").mkdir()
    with pytest.raises(InputError, match="Stable Diffusion XL"):
        open_checkpoint(copy)


def test_configs_are_refused_before_weights_are_read(copy):
    rename(copy, ".gone")
    edit(copy / "unet" / "config.json", in_channels=9)
    with pytest.raises(InputError, match="inpainting"):
        StableDiffusion.from_pretrained(copy)
    edit(copy / "unet" / "config.json", in_channels=18, out_channels=18)
    with pytest.raises(InputError, match="4 latent channels, but 18 are expected"):
        StableDiffusion.from_pretrained(copy)


SCHEDULERS = {
    "text": ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000'; expected a whole number"),
    "null": ({"beta_start": None}, "beta_start=None; expected a number"),
    "number": ({"beta_schedule": 3}, "beta_schedule=3; expected a text"),
    "list": ({"prediction_type": ["epsilon"]}, "prediction_type=['epsilon']; expected a text"),
    "flag": ({"steps_offset": True}, "steps_offset=True; expected a whole number"),
    "betas": ({"trained_betas": ["a"]}, "trained_betas=['a']; expected a list, each item a number or null"),
    "infinite": ({"beta_end": float("inf")}, "beta_end=inf; expected a number"),
}


@pytest.mark.parametrize(("changes", "message"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_values_of_a_scheduler_that_cannot_be(copy, changes, message):
    edit(copy / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(InputError) as error:
        StableDiffusion.from_pretrained(copy)
    assert str(error.value) == f"{copy}: scheduler_config.json: {message}"


def test_timesteps_that_options_are_checked_against(copy):
    edit(copy / "scheduler" / "scheduler_config.json", num_train_timesteps="1000")
    with pytest.raises(InputError, match="num_train_timesteps='1000'; expected a whole number"):
        Geometry.of(open_checkpoint(copy))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(("content", "message"), [(LFS, "git-lfs pointer"), (PAGE, "web page")], ids=["lfs", "page"])
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        f"vae/{NAME}.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
    ],
)
def test_what_a_download_leaves_in_a_files_place(copy, name, content, message):
    if name.startswith("tokenizer"):
        from memattn_jax.checkpoints.tokenizer_files import read_vocabulary

        content_of = json.loads((copy / "tokenizer" / "tokenizer.json").read_text())["model"]
        (copy / "tokenizer" / "tokenizer.json").unlink()
        (copy / "tokenizer" / "vocab.json").write_text(json.dumps(content_of["vocab"]))
        (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
        assert read_vocabulary(copy / "tokenizer")[0] == content_of["vocab"]
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: is a {message}"):
        StableDiffusion.from_pretrained(copy)


def test_the_folder_that_a_path_means(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    for path in ("~/model", copy / "model_index.json", f"{copy}/"):
        assert locate(path) == copy
    assert locate("~", Source(subfolder="model")) == copy
    with pytest.raises(InputError, match=f"part of a model; give the folder of the model, {copy}"):
        locate(copy / "unet")
    with pytest.raises(InputError, match="not a model itself; give one of those in it: model"):
        locate(copy.parent)
    assert locate(copy / "nowhere") == copy / "nowhere"
    with pytest.raises(FileNotFoundError, match="no such model"):
        open_checkpoint(copy / "nowhere")
    (copy.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither model_index\.json nor unet/config\.json"):
        open_checkpoint(locate(copy.parent / "empty"))


def test_a_folder_of_single_files(tmp_path):
    (tmp_path / "v1.safetensors").touch()
    (tmp_path / "v2.ckpt").touch()
    with pytest.raises(InputError, match=r"give one of those in it: v1\.safetensors, v2\.ckpt"):
        locate(tmp_path)
    assert locate(tmp_path / "v2.ckpt") == tmp_path / "v2.ckpt"


def test_a_repository_in_the_hubs_cache(copy, tmp_path):
    """Whose files are links, to beside the snapshot."""
    repository = tmp_path / "models--owner--name"
    first, second = (repository / "snapshots" / name for name in ("1", "2"))
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(copy.rglob("*")) if path.is_file()):
        blob = repository / "blobs" / str(number)
        shutil.copy(path, blob)
        link = first / path.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for path in (repository, repository / "snapshots", first):
        assert locate(path) == first
    open_checkpoint(first)
    shutil.copytree(first, second, symlinks=True)
    with pytest.raises(InputError, match="no snapshot of the main branch; give one of snapshots/: 1, 2"):
        locate(repository)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("2\n")
    assert locate(repository) == second


@pytest.mark.parametrize(
    "name", [f"unet/{NAME}.safetensors", "unet", "tokenizer", "model_index.json", "vae/config.json"]
)
def test_links_out_of_the_folder_are_refused(copy, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(copy / name, outside)
    (copy / name).symlink_to(outside)
    with pytest.raises(InputError, match=r"links to .*outside.*, outside the checkpoint"):
        open_checkpoint(copy)


def test_a_link_to_the_folder_and_links_within_it(copy, tmp_path):
    (copy / "unet" / FILES["unet"]).rename(copy / "weights")
    (copy / "unet" / FILES["unet"]).symlink_to(copy / "weights")
    (tmp_path / "link").symlink_to(copy)
    open_checkpoint(tmp_path / "link")
