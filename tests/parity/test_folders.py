"""Folders in every dialect that PyTorch's tools write, each with the same weights."""

import json
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from make_random_model import WORDS
from small_checkpoint import END, write_tokenizer
from test_models import MODEL, assert_close, nchw, nhwc, randn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.checkpoint import PARTS
from memattn_jax.checkpoints.diffusers_folder import load_part
from memattn_jax.checkpoints.geometry import cross_attention_sites
from memattn_jax.checkpoints.names import leaves

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVEL = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
SMALL = {"sample_size": 4, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def text_config(tmp_path_factory) -> CLIPTextConfig:
    size = write_tokenizer(tmp_path_factory.getbasetemp() / "words", WORDS, pad_token=END)
    return CLIPTextConfig(vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1, **TEXT)


@pytest.fixture(scope="module")
def parts(text_config, tmp_path_factory) -> dict:
    """The parts of a pipeline, as small as they come."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**SMALL, **LEVEL, attention_head_dim=2, cross_attention_dim=16)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    words = CLIPTokenizer.from_pretrained(tmp_path_factory.getbasetemp() / "words")
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(text_config),
        "tokenizer": words,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }


def write(folder: Path, parts: dict, kind: str = "StableDiffusionPipeline", **options: object) -> Path:
    """What a pipeline's `save_pretrained` makes of the parts."""
    getattr(diffusers, kind)(**parts, requires_safety_checker=False).save_pretrained(folder, **options)
    return folder


def check(loaded: StableDiffusion, parts: dict) -> None:
    """That the weights are those of the parts."""
    for part in PARTS:
        expected = {name.removeprefix("text_model."): value for name, value in parts[part].state_dict().items()}
        ours = {leaf.name.removeprefix("text_model."): leaf for leaf in leaves(getattr(loaded, part))}
        assert ours.keys() == expected.keys() - {"embeddings.position_ids", "text_projection.weight"}
        for name, leaf in ours.items():
            np.testing.assert_array_equal(leaf.to_torch(np.asarray(leaf.param[...])), expected[name].numpy())


DIALECTS = {
    "safetensors": {},
    "pickles": {"safe_serialization": False},
    "shards": {"max_shard_size": "10KB"},
    "sharded-pickles": {"max_shard_size": "10KB", "safe_serialization": False},
    "variant": {"variant": "fp16"},
    "non-ema": {"variant": "non_ema"},
    "sharded-variant": {"variant": "fp16", "max_shard_size": "10KB"},
    "sharded-pickles-variant": {"variant": "bf16", "max_shard_size": "10KB", "safe_serialization": False},
}


@pytest.mark.parametrize("options", DIALECTS.values(), ids=DIALECTS)
def test_what_save_pretrained_writes(parts, tmp_path, options):
    """Under its own name and, renamed to the plain one, without being asked for."""
    write(tmp_path, parts, **options)
    variant = options.get("variant")
    check(StableDiffusion.from_pretrained(tmp_path, "float32", variant=variant), parts)
    if variant is not None:
        with pytest.warns(UserWarning, match=rf"plain weights, .*\({variant}\)"):
            check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts)


def test_half_precision_beside_single(parts, tmp_path):
    write(tmp_path, parts)
    half = {name: type(part).from_config(part.config) for name, part in parts.items() if name in ("unet", "vae")}
    for name, part in half.items():
        part.load_state_dict(parts[name].state_dict())
        part.half().save_pretrained(tmp_path / name, variant="fp16")
    check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts)
    with pytest.warns(UserWarning, match=r"no fp16 weights, taking those of text_encoder \(plain\)"):
        loaded = StableDiffusion.from_pretrained(tmp_path, "float32", variant="fp16")
    check(loaded, parts | {name: part.float() for name, part in half.items()})


@pytest.mark.parametrize("save", ["torch.save", "legacy", "safetensors"])
def test_text_encoders_of_old_transformers(parts, tmp_path, save):
    """pytorch_model.bin with position indices, and the name that some converters give it in safetensors."""
    write(tmp_path, parts)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = dict(parts["text_encoder"].state_dict())
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if save == "safetensors":
        path.rename(path.with_name("pytorch_model.safetensors"))
    else:
        path.unlink()
        new = save != "legacy"
        torch.save(tensors, path.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=new)
    check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts)


def test_a_text_encoder_with_its_projection(parts, text_config, tmp_path):
    projecting = CLIPTextModelWithProjection(text_config)
    write(tmp_path, parts)
    projecting.save_pretrained(tmp_path / "text_encoder")
    check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts | {"text_encoder": projecting})


def test_a_moving_average_that_diffusers_saved(parts, tmp_path):
    write(tmp_path, parts)
    average = EMAModel(parts["unet"].parameters(), model_cls=type(parts["unet"]), model_config=parts["unet"].config)
    average.save_pretrained(tmp_path / "unet")
    assert "optimization_step" in json.loads((tmp_path / "unet" / "config.json").read_text())
    check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts)


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
@pytest.mark.filterwarnings("ignore:You have loaded a UNet with 4 input channels:UserWarning")
def test_pipelines_of_the_same_parts(parts, tmp_path, kind):
    check(StableDiffusion.from_pretrained(write(tmp_path, parts, kind), "float32"), parts)


def test_a_controlnet_pipeline(parts, tmp_path):
    net = diffusers.ControlNetModel.from_unet(parts["unet"])
    write(tmp_path, parts | {"controlnet": net}, "StableDiffusionControlNetPipeline")
    assert (tmp_path / "controlnet").is_dir()
    check(StableDiffusion.from_pretrained(tmp_path, "float32"), parts)


def test_latent_consistency_with_and_without_guidance_as_an_input(parts, tmp_path):
    """A UNet that a LoRA was merged into has the same parts; a distilled one also takes the guidance scale."""
    lcm = parts | {"scheduler": diffusers.LCMScheduler(**BETAS)}
    write(tmp_path / "merged", lcm, "LatentConsistencyModelPipeline")
    check(StableDiffusion.from_pretrained(tmp_path / "merged", "float32"), parts)
    distilled = diffusers.UNet2DConditionModel(**dict(parts["unet"].config) | {"time_cond_proj_dim": 8})
    write(tmp_path / "distilled", lcm | {"unet": distilled}, "LatentConsistencyModelPipeline")
    with pytest.raises(InputError, match="latent consistency"):
        StableDiffusion.from_pretrained(tmp_path / "distilled")


@pytest.mark.parametrize(("channels", "what"), [(9, "inpainting"), (5, "depth"), (8, "InstructPix2Pix")])
def test_networks_that_take_more_than_latents(parts, tmp_path, channels, what):
    unet = diffusers.UNet2DConditionModel(**dict(parts["unet"].config) | {"in_channels": channels})
    write(tmp_path, parts | {"unet": unet})
    with pytest.raises(InputError, match=what):
        StableDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "DPMSolverMultistep", None])
def test_scheduler_classes_of_flax_are_saved_as_pytorch_calls_them(parts, tmp_path, name):
    """Diffusers loads what is saved; a name that it does not have would stop it."""
    write(tmp_path, parts)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"_class_name": f"Flax{name}Scheduler"}
    if name is None:
        del config["_class_name"]
    path.write_text(json.dumps(config))
    StableDiffusion.from_pretrained(tmp_path, "float32").save_pretrained(tmp_path / "out")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert type(again.scheduler).__name__ == f"{name or 'DDIM'}Scheduler"
    assert again.scheduler.config.beta_end == BETAS["beta_end"]


SITES = {"bk-sdm-small": ("CrossAttnDownBlock2D", "DownBlock2D"), "bk-sdm-tiny": ("CrossAttnDownBlock2D",) * 2}


@torch.no_grad()
@pytest.mark.parametrize("down", SITES.values(), ids=SITES)
def test_a_unet_without_a_middle_block(parts, tmp_path, down):
    """As BK-SDM and tiny-sd are, with one layer a level, whose last may attend to the text."""
    torch.manual_seed(0)
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    geometry = SMALL | {"block_out_channels": (8, 16), "down_block_types": down, "up_block_types": up}
    theirs = diffusers.UNet2DConditionModel(
        **geometry, mid_block_type=None, attention_head_dim=2, cross_attention_dim=16
    )
    write(tmp_path, parts | {"unet": theirs})
    ours = load_part(tmp_path, "unet", "float32")
    latents, context = randn(2, 8, 8, 4), randn(2, 77, 16, seed=1)
    expected = theirs(nchw(latents), 500, torch.from_numpy(context)).sample
    out, _ = jax.jit(lambda unet, *args: unet(*args))(ours, latents, np.float32(500), context)
    assert_close(out, nhwc(expected), MODEL)
    assert ours.sites == cross_attention_sites(ours.config)
    sd = StableDiffusion.from_pretrained(tmp_path, "float32")
    assert sd.site_of_entropy() in sd.sites
    sd.save_pretrained(tmp_path / "out")
    shutil.rmtree(tmp_path / "unet")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert again.mid_block is None
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
