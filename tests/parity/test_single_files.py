"""Single files, written in the original layout from PyTorch's models, and read by diffusers and by us."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import original_layout
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.clip import clip_tokenizer
from memattn_jax.checkpoints.names import leaves
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.commands.converting import convert

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = BETAS | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
VELOCITY = {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}


def pipeline(*, second: bool) -> StableDiffusionPipeline:
    """Either family with two levels and few channels; heads as wide, or as many, as in the family."""
    torch.manual_seed(0)
    channels = (64, 128) if second else (32, 64)
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=49408,
        hidden_act="gelu" if second else "quick_gelu",
        projection_dim=64,
    )
    unet = UNet2DConditionModel(
        sample_size=96 if second else 64,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[1, 2] if second else 8,
        use_linear_projection=second,
        cross_attention_dim=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        sample_size=768 if second else 512,
    )
    kind = partial(DDIMScheduler, prediction_type="v_prediction") if second else PNDMScheduler
    scheduler = kind(**(SCHEDULER if second else BETAS | {"steps_offset": 1, "skip_prk_steps": True}))
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=clip_tokenizer("!" if second else "<|endoftext|>"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def saved(request, tmp_path_factory):
    """A family's name, its pipeline, a single file of it, and a folder of it."""
    folder = tmp_path_factory.mktemp(request.param)
    second = request.param == "sd2"
    pipe = pipeline(second=second)
    save_file(
        original_layout.single_file(pipe, openclip=second),
        folder / "model.safetensors",
        metadata=VELOCITY if second else {"format": "pt"},
    )
    pipe.save_pretrained(folder / "folder")
    path = folder / "folder" / "scheduler" / "scheduler_config.json"
    stored = {**json.loads(path.read_text()), "skip_prk_steps": True}  # as the files of 2022, which have no spacing
    del stored["timestep_spacing"]
    path.write_text(json.dumps(stored))
    return request.param, pipe, folder / "model.safetensors", folder / "folder"


one_family = pytest.mark.parametrize("saved", ["sd1"], indirect=True)
second_family = pytest.mark.parametrize("saved", ["sd2"], indirect=True)


def same_weights(ours, theirs) -> None:
    """Each parameter equals that of PyTorch's module, bit by bit."""
    expected = {name.removeprefix("text_model."): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    found = list(leaves(ours))
    assert len(found) == len(expected)
    for leaf in found:
        value = leaf.to_torch(np.asarray(leaf.param[...]))
        np.testing.assert_array_equal(value, expected[leaf.name.removeprefix("text_model.")], leaf.name)


def test_weights_configs_and_scheduler_are_those_of_the_folder(saved):
    family, pipe, file, folder = saved
    ours, of_folder = StableDiffusion.from_pretrained(file), open_checkpoint(folder)
    opened = open_checkpoint(file)
    for name in PARTS:
        same_weights(getattr(ours, name), getattr(pipe, name))
        config, expected = (checkpoint.parts[name].config.to_json() for checkpoint in (opened, of_folder))
        if name == "unet":  # one number or one a level
            assert opened.parts[name].config.heads == of_folder.parts[name].config.heads
            for key in ("attention_head_dim", "layers_per_block", "transformer_layers_per_block"):
                config.pop(key), expected.pop(key)
        if name == "text_encoder":
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):  # not read
                config.pop(key), expected.pop(key)
        assert config == expected
    scheduler = {**opened.scheduler_config}
    assert scheduler["prediction_type"] == ("v_prediction" if family == "sd2" else "epsilon")
    assert {key: scheduler[key] for key in BETAS} == BETAS
    assert "trained_betas" not in scheduler
    assert ours.fingerprint(pictures=True) == StableDiffusion.from_pretrained(folder).fingerprint(pictures=True)
    prompts = ["An astronaut's 2 horses,  on MARS!", "", "é 数 🙂" * 60]
    with pytest.warns(UserWarning, match="cut"):
        tokens = ours.tokenizer(prompts)
    expected = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    np.testing.assert_array_equal(tokens.input_ids, expected)


@pytest.mark.slow
@second_family
def test_outputs_are_those_that_diffusers_computes_from_the_same_file(saved):
    _, _, file, folder = saved
    theirs = StableDiffusionPipeline.from_single_file(
        file, config=str(folder), local_files_only=True, safety_checker=None
    )
    ours = StableDiffusion.from_pretrained(file)
    ids = ours.tokenizer(["a horse on mars"]).input_ids
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    with torch.no_grad():
        text = theirs.text_encoder(torch.tensor(ids, dtype=torch.long))[0]
        noise = theirs.unet(torch.tensor(x), 500, text).sample.numpy()
        picture = theirs.vae.decode(torch.tensor(x)).sample.numpy()
    embedding = ours.text_encoder(ids)
    found = ours.unet(x.transpose(0, 2, 3, 1), np.array([500.0], np.float32), embedding)[0]
    np.testing.assert_allclose(embedding, text, atol=1e-4)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), noise, atol=1e-4)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(ours.vae.decode(x.transpose(0, 2, 3, 1))), -1, 1), picture, atol=1e-4
    )


def test_the_file_written_of_a_folder_is_the_same(saved, tmp_path):
    """The names, shapes and bits that PyTorch's models have in this layout, and metadata that others read."""
    family, _, file, folder = saved
    convert(folder, Source(), tmp_path / "model.safetensors", "single-file", None)
    expected, found = load_file(file), load_file(tmp_path / "model.safetensors")
    derived = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod")  # from the scheduler's config
    unused = "cond_stage_model.model."
    unread = [*derived, f"{unused}text_projection", f"{unused}logit_scale"]
    last = f"{unused}transformer.resblocks.2."
    assert found.keys() == expected.keys() - set(unread)
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name.startswith(last) else expected[name]), name
    opened = open_checkpoint(write(tmp_path / "stripped.safetensors", found, **without_ours(tmp_path)))
    assert opened.parts["unet"].config.sample_size == (96 if family == "sd2" else 64)
    assert opened.scheduler_config["prediction_type"] == ("v_prediction" if family == "sd2" else "epsilon")


@one_family
def test_another_padding_token_is_kept(saved, tmp_path):
    """The layout does not tell it: Stable Diffusion 1 pads with the end token, but a model of it need not."""
    _, pipe, _, folder = saved
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    clip_tokenizer("!").save_pretrained(other / "tokenizer")
    convert(other, Source(), tmp_path / "model.safetensors", "single-file", None)
    first, second = (StableDiffusion.from_pretrained(path) for path in (other, tmp_path / "model.safetensors"))
    assert second.tokenizer.clip.pad_token == "!" != pipe.tokenizer.pad_token
    assert first.fingerprint() == second.fingerprint()


def without_ours(folder: Path) -> dict[str, str]:
    """The metadata that other programs read, which are all of the standard."""
    metadata = read_tensors(folder / "model.safetensors").metadata
    return {name: value for name, value in metadata.items() if name.startswith("modelspec.")}


@one_family
def test_moving_average(saved, tmp_path):
    _, pipe, file, _ = saved
    stored = load_file(file)
    prefix = "model.diffusion_model."
    average = {
        "model_ema." + f"diffusion_model.{name.removeprefix(prefix)}".replace(".", ""): tensor + 1
        for name, tensor in stored.items()
        if name.startswith(prefix)
    }
    save_file(stored | average | {"model_ema.decay": torch.tensor(0.9999)}, tmp_path / "both.safetensors")
    parts = {ema: open_checkpoint(tmp_path / "both.safetensors", Source(ema=ema)).parts for ema in (False, True)}
    plain, averaged = (parts[ema]["unet"].tensors() for ema in (False, True))
    assert plain.keys() == averaged.keys() == pipe.unet.state_dict().keys()
    for name, tensor in plain.items():
        np.testing.assert_array_equal(tensor + np.float32(1), averaged[name])
    with pytest.raises(InputError, match="--ema"):
        open_checkpoint(file, Source(ema=True))


@one_family
def test_an_autoencoder_of_its_own(saved, tmp_path):
    _, pipe, file, folder = saved
    original = original_layout.of_vae(pipe.vae)
    changed = {name: (tensor + 1).contiguous() for name, tensor in original.items()}
    save_file(changed | {"loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    modern = {name: tensor + 1 for name, tensor in pipe.vae.state_dict().items()}
    save_file(modern, tmp_path / "modern.safetensors")
    other = AutoencoderKL.from_config(pipe.vae.config)
    other.load_state_dict(modern)
    other.save_pretrained(tmp_path / "folder")
    without = {name: t for name, t in load_file(file).items() if not name.startswith("first_stage_model.")}
    save_file(without, tmp_path / "without.safetensors")
    for model in (tmp_path / "without.safetensors", file, folder):
        for vae in ("vae.safetensors", "modern.safetensors", "folder"):
            opened = open_checkpoint(model, Source(vae=tmp_path / vae)).parts["vae"]
            assert opened.config.block_out_channels == (32, 64)
            tensors = opened.tensors()
            assert tensors.keys() == modern.keys()
            for name, tensor in modern.items():
                np.testing.assert_array_equal(tensors[name], tensor, name)
    with pytest.raises(InputError, match="--vae"):
        open_checkpoint(tmp_path / "without.safetensors")
    with pytest.raises(InputError, match="not an autoencoder"):
        open_checkpoint(file, Source(vae=write(tmp_path / "x.safetensors", {"a": torch.zeros(1)})))


def write(path: Path, tensors: dict, **metadata: str) -> Path:
    save_file(tensors, path, metadata=metadata or None)
    return path


@second_family
def test_what_a_file_predicts(saved, tmp_path):
    """Nothing in the tensors of Stable Diffusion 2 tells it, so that a file must, or the user."""
    _, _, file, folder = saved
    stored = load_file(file)
    silent = write(tmp_path / "silent.safetensors", stored)
    with pytest.raises(InputError, match="--prediction-type"):
        open_checkpoint(silent)
    for source, expected in (
        (Source(prediction_type="epsilon"), ("epsilon", 64)),
        (Source(prediction_type="v_prediction"), ("v_prediction", 96)),
        (Source(config=folder), ("v_prediction", 96)),
    ):
        opened = open_checkpoint(silent, source)
        size = opened.parts["unet"].config.sample_size
        assert (opened.scheduler_config["prediction_type"], size) == expected
    opened = open_checkpoint(folder, Source(prediction_type="epsilon"))
    assert opened.scheduler_config["prediction_type"] == "epsilon"
    other = write(tmp_path / "other.safetensors", stored, **{"modelspec.prediction_type": "flow"})
    with pytest.raises(InputError, match="'flow'"):
        open_checkpoint(other)


@one_family
def test_another_noise_schedule_is_the_files_own(saved, tmp_path):
    _, _, file, _ = saved
    theirs = DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    path = write(tmp_path / "own.safetensors", load_file(file) | {"alphas_cumprod": theirs.alphas_cumprod})
    betas = open_checkpoint(path).scheduler_config["trained_betas"]
    np.testing.assert_allclose(betas, theirs.betas, rtol=1e-3)


@one_family
def test_missing_and_surplus_tensors_are_listed(saved, tmp_path):
    _, _, file, _ = saved
    stored = load_file(file)
    for change, message in (
        ({"model.diffusion_model.input_blocks.1.0.wings.weight": torch.zeros(1)}, "wings"),
        ({"model.diffusion_model.input_blocks.x.weight": torch.zeros(1)}, r"input_blocks\.x"),
        ({"first_stage_model.decoder.up.0.wings": torch.zeros(1)}, "wings"),
        ({"model.diffusion_model.out.2.weight": None}, "conv_out.weight"),
        ({"model.diffusion_model.input_blocks.1.1.proj_out.weight": None}, "proj_out.weight"),
        ({"model.diffusion_model.input_blocks.2.0.in_layers.0.weight": torch.zeros(3)}, "misshapen"),
    ):
        tensors = {name: tensor for name, tensor in (stored | change).items() if tensor is not None}
        with pytest.raises(InputError, match=message):
            StableDiffusion.from_pretrained(write(tmp_path / "file.safetensors", tensors))
