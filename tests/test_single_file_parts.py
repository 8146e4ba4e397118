"""What programs other than diffusers leave out of a single file, add to it, or say in another way."""

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memattn_jax import InputError, StableDiffusion, demo
from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.single_file.family import ALPHAS, scheduler_config, stated_prediction, with_own_schedule
from memattn_jax.checkpoints.single_file.text import layers_used, modern_openclip
from memattn_jax.checkpoints.single_file.vae import linear
from memattn_jax.commands.converting import convert
from memattn_jax.diffusion.loading import check_parts
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod, make_schedule


@pytest.fixture(scope="module")
def single_file(tmp_path_factory):
    """The built-in model in one file, with this package's metadata."""
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    convert(demo.MODEL, Source(), path, "single-file", None)
    return path


@pytest.mark.parametrize(
    ("blocks", "width", "read"),
    [(24, 1024, 23), (23, 1024, 23), (24, 768, 23), (23, 768, 22), (3, 64, 2)],
)
def test_stable_diffusion_2_has_23_layers_whether_or_not_the_unused_one_is_there(blocks, width, read):
    layers = [{"ln_1.weight": np.full(width, number)} for number in range(blocks)]
    assert [layer["ln_1.weight"][0] for layer in layers_used(layers)] == list(range(read))


def test_comfyui_says_what_is_predicted_in_a_field_of_its_own():
    assert stated_prediction({}, {"modelspec.predict_key": "v"}) == "v_prediction"
    assert stated_prediction({}, {"modelspec.predict_key": "epsilon"}) == "epsilon"
    both = {"modelspec.predict_key": "epsilon", "modelspec.prediction_type": "v"}
    assert stated_prediction({}, both) == "v_prediction"


def test_comfyui_marks_v_prediction_with_an_empty_tensor(single_file, tmp_path):
    save_file(load_file(single_file) | {"v_pred": np.zeros(0, np.float32)}, tmp_path / "marked.safetensors")
    opened = open_checkpoint(tmp_path / "marked.safetensors", Source(config=demo.MODEL, prediction_type="v_prediction"))
    assert opened.scheduler_config["prediction_type"] == "v_prediction"
    opened = open_checkpoint(tmp_path / "marked.safetensors", Source(config=demo.MODEL))
    assert opened.scheduler_config["prediction_type"] == "v_prediction"  # and the folder's says nothing of this file
    opened = open_checkpoint(tmp_path / "marked.safetensors")
    assert opened.scheduler_config["prediction_type"] == "v_prediction"
    assert opened.parts["unet"].config.sample_size == 64  # Stable Diffusion 2 alone has 96
    assert open_checkpoint(single_file).scheduler_config["prediction_type"] == "epsilon"


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}])
def test_the_schedule_is_written_where_others_look_for_it(settings, tmp_path):
    """The configs of another folder, and a file without metadata, leave it as it was."""
    folder = Path(shutil.copytree(demo.MODEL, tmp_path / "folder"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    convert(folder, Source(), tmp_path / "model.safetensors", "single-file", None)
    stored = load_file(tmp_path / "model.safetensors")
    assert {"v_pred", "ztsnr"} & stored.keys() == ({"v_pred", "ztsnr"} if settings else set())
    save_file(stored, tmp_path / "stripped.safetensors")
    for file in ("model", "stripped"):
        opened = open_checkpoint(tmp_path / f"{file}.safetensors", Source(config=demo.MODEL))
        assert opened.scheduler_config.get("prediction_type", "epsilon") == settings.get("prediction_type", "epsilon")
        assert opened.scheduler_config.get("rescale_betas_zero_snr", False) == bool(settings)


def test_comfyui_marks_a_schedule_without_signal_with_an_empty_tensor(single_file, tmp_path):
    marked = {"ztsnr": np.zeros(0, np.float32)}
    assert scheduler_config(marked, "v_prediction")["rescale_betas_zero_snr"]
    save_file(load_file(single_file) | marked, tmp_path / "marked.safetensors")
    opened = open_checkpoint(tmp_path / "marked.safetensors", Source(config=demo.MODEL))
    assert opened.scheduler_config["rescale_betas_zero_snr"]
    folder = shutil.copytree(demo.MODEL, tmp_path / "folder")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "leading"}))
    opened = open_checkpoint(tmp_path / "marked.safetensors", Source(config=folder))
    assert make_schedule(opened.scheduler_config, "ddim", 10).timesteps[0] == 901  # which has a signal to predict from


@pytest.mark.parametrize(
    ("folder", "name", "spacing"),
    [
        ({"_class_name": "PNDMScheduler"}, "DDIMScheduler", "trailing"),
        ({"_class_name": "PNDMScheduler", "timestep_spacing": "leading"}, "DDIMScheduler", "leading"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler", "trailing"),
        ({}, "DDIMScheduler", "trailing"),
    ],
)
def test_a_folders_sampler_stays_where_it_can_use_a_files_schedule(folder, name, spacing):
    found = with_own_schedule(folder, {"ztsnr": np.zeros(0)})
    assert found == {"_class_name": name, "timestep_spacing": spacing, "rescale_betas_zero_snr": True}
    assert with_own_schedule(folder, {}) == folder


@pytest.mark.parametrize(
    "name", ["model_ema.decay", "embedding_manager.embedder.transformer.text_model.final_layer_norm.bias"]
)
def test_leftovers_of_training_are_not_read(name, single_file, tmp_path):
    save_file(load_file(single_file) | {name: np.ones(1, np.float32)}, tmp_path / "left.safetensors")
    found, wanted = (open_checkpoint(path).parts for path in (tmp_path / "left.safetensors", single_file))
    for part in PARTS:
        assert found[part].tensors().keys() == wanted[part].tensors().keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_schedule_that_ends_without_signal_is_named_and_sampled_from(dtype):
    """By a sampler that reads its name, from its last timestep; 4.9e-8 is what ComfyUI writes for its end."""
    known = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    table = alphas_cumprod(SchedulerConfig(**known, rescale_betas_zero_snr=True))
    for end in (0.0, 4.9e-8):
        table[-1] = end
        found = scheduler_config({"alphas_cumprod": table.astype(dtype)}, "v_prediction")
        assert "trained_betas" not in found
        assert found["_class_name"] == "DDIMScheduler"
        read = SchedulerConfig.from_json(found, "ddim")
        assert make_schedule(found, "ddim", 10).timesteps[0] == 999
        np.testing.assert_allclose(alphas_cumprod(read)[:-1], table[:-1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_betas_that_leave_no_signal_are_refused(beta):
    with pytest.raises(InputError, match=r"trained_betas has .*a beta must lie in \[0, 1\)"):
        SchedulerConfig(num_train_timesteps=2, trained_betas=[0.1, beta])


def test_betas_that_leave_no_signal_in_the_end_are_refused():
    with pytest.raises(InputError, match="the betas leave no signal at timestep 4"):
        alphas_cumprod(SchedulerConfig(beta_start=0.9, beta_end=0.99))


def test_misshapen_tensors_keep_their_shape():
    """For the comparison with the configs to name them."""
    assert linear(np.zeros((4, 4, 3, 3))).shape == (4, 4, 3, 3)
    assert linear(np.zeros((4, 3, 1, 1))).shape == (4, 3)
    assert layers_used([{"ln_1.weight": np.zeros(())}] * 2) == [{"ln_1.weight": np.zeros(())}]
    block = "attn.in_proj_weight"
    found = modern_openclip({f"transformer.resblocks.{layer}.{block}": np.zeros((4, 4)) for layer in (0, 1)})
    assert [(name, tensor.shape) for name, tensor in found.items()] == [
        (f"text_model.encoder.layers.0.{block}", (4, 4))
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rounded_noise_schedules_are_the_usual_one(dtype):
    assert "trained_betas" not in scheduler_config({"alphas_cumprod": ALPHAS.astype(dtype)}, "epsilon")
    others = scheduler_config({"alphas_cumprod": (ALPHAS**1.1).astype(dtype)}, "epsilon")
    assert len(others["trained_betas"]) == len(ALPHAS)


def test_pictures_have_three_channels():
    """LDM3D's have a depth in three more."""
    checkpoint = open_checkpoint(demo.MODEL)
    deep = dataclasses.replace(checkpoint.parts["vae"].config, in_channels=6, out_channels=6)
    parts = {**checkpoint.parts, "vae": dataclasses.replace(checkpoint.parts["vae"], config=deep)}
    check_parts(checkpoint)
    with pytest.raises(InputError, match="pictures have 6 and 6 channels"):
        check_parts(dataclasses.replace(checkpoint, parts=parts))


def test_a_prediction_type_that_is_asked_for_counts_beside_a_config(single_file):
    for asked, found in ((None, "epsilon"), ("v_prediction", "v_prediction")):
        opened = open_checkpoint(single_file, Source(config=demo.MODEL, prediction_type=asked))
        assert opened.scheduler_config["prediction_type"] == found


def test_text_encoders_without_their_outer_name(single_file, tmp_path):
    """As in NovelAI's file and those that descend from it."""
    inner = "cond_stage_model.transformer."
    tensors = {name.replace(f"{inner}text_model.", inner): value for name, value in load_file(single_file).items()}
    with safe_open(single_file, "numpy") as file:
        save_file(tensors, tmp_path / "short.safetensors", file.metadata())
    found, wanted = (
        open_checkpoint(path).parts["text_encoder"].tensors() for path in (tmp_path / "short.safetensors", single_file)
    )
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_an_autoencoder_from_a_file_of_ours_has_its_config(single_file, tmp_path):
    own = open_checkpoint(demo.MODEL).parts["vae"]
    tensors = load_file(single_file) | {"first_stage_model.loss.logvar": np.zeros(1, np.float32)}
    with safe_open(single_file, "numpy") as file:
        save_file(tensors, tmp_path / "trained.safetensors", file.metadata())
    for path in (single_file, tmp_path / "trained.safetensors"):
        vae = open_checkpoint(demo.MODEL, Source(vae=path)).parts["vae"]
        assert vae.config == own.config
        assert vae.tensors().keys() == own.tensors().keys()


def test_saving_into_a_folder_replaces_the_model_that_was_there(model, sd, tmp_path):
    """Weights in Orbax's format, the layer of metric E, and the padding token are of the model before."""
    convert(model, Source(), tmp_path / "used", "orbax", None)
    (tmp_path / "used" / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    (tmp_path / "used" / "memattn_jax.json").write_text(json.dumps({"entropy_site": sd.sites[0]}))
    assert StableDiffusion.from_pretrained(tmp_path / "used").entropy_site == sd.sites[0]
    bias = sd.unet.conv_out.bias
    before = bias[...]
    try:
        bias[...] = before + 1
        wanted = sd.fingerprint()
        dataclasses.replace(sd, entropy_site=None).save_pretrained(tmp_path / "used")
    finally:
        bias[...] = before
    loaded = StableDiffusion.from_pretrained(tmp_path / "used")
    assert (loaded.fingerprint(), loaded.entropy_site) == (wanted, None)
    assert loaded.tokenizer.clip.pad_token == sd.tokenizer.clip.pad_token != "!"


@pytest.mark.parametrize("rows", [-2, 2])
def test_a_token_table_of_another_size_is_refused_with_an_embedding_too(rows, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    tensors[name] = np.resize(tensors[name], (len(tensors[name]) + rows, tensors[name].shape[1]))
    save_file(tensors, path)
    save_file({"<new>": np.ones((1, tensors[name].shape[1]), np.float32)}, tmp_path / "new.safetensors")
    with pytest.raises(InputError, match="token_embedding"):
        StableDiffusion.from_pretrained(tmp_path / "model", embeddings=[tmp_path / "new.safetensors"])


def test_options_for_another_kind_of_checkpoint_are_refused(single_file):
    with pytest.raises(InputError, match=r"is a single file, which has no variants; leave out --variant$"):
        open_checkpoint(single_file, Source(variant="fp16"))
    for source, option in ((Source(ema=True), "--ema"), (Source(config=demo.MODEL), "--config")):
        with pytest.raises(InputError, match=rf"is a folder, and {option} is for single files; leave it out$"):
            open_checkpoint(demo.MODEL, source)
