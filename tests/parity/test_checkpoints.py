"""Reading what PyTorch wrote, refusing what does not fit, and writing what PyTorch reads."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from make_random_model import WORDS
from safetensors.numpy import load_file, save_file
from small_checkpoint import write_tokenizer

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.diffusers_folder import load_part, save_part
from memattn_jax.checkpoints.names import leaves

pytestmark = pytest.mark.slow
one_family = pytest.mark.parametrize("checkpoint", ["sd1"], indirect=True)  # of what does not depend on it

PARTS = ("unet", "vae", "text_encoder")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def weights(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A folder to spoil."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "model"))


def test_round_trip_through_pytorch(checkpoint, tmp_path):
    checkpoint.ours.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    for part in PARTS:
        before, after = (getattr(pipe, part).state_dict() for pipe in (checkpoint.torch, again))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
    assert dict(again.scheduler.config) == dict(checkpoint.torch.scheduler.config)
    prompt = "an odd line"
    assert again.tokenizer(prompt).input_ids == checkpoint.torch.tokenizer(prompt).input_ids
    assert again.tokenizer.pad_token_id == checkpoint.torch.tokenizer.pad_token_id
    for part in ("unet", "vae"):
        after, before = (dict(getattr(pipe, part).config) for pipe in (again, checkpoint.torch))
        assert {k: v for k, v in after.items() if k[0] != "_"} == {k: v for k, v in before.items() if k[0] != "_"}


@pytest.mark.parametrize(
    ("checkpoint", "dtype"),
    [("sd1", "float32"), ("sd1", "bfloat16"), ("sd1", "float16"), ("sd2", "float32")],
    indirect=["checkpoint"],
)
@pytest.mark.parametrize("part", PARTS)
def test_round_trip_is_bit_equal(checkpoint, tmp_path, part, dtype):
    theirs = deepcopy(getattr(checkpoint.torch, part)).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "in" / part)
    save_part(load_part(tmp_path / "in", part, dtype), tmp_path / "out", part)
    before, after = (load_file(weights(tmp_path / folder, part)) for folder in ("in", "out"))
    after = {name.removeprefix("text_model."): value for name, value in after.items()}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype == dtype
        assert value.tobytes() == after[name].tobytes(), name


@one_family
def test_half_precision_checkpoint_is_read_as_float32(checkpoint, copy):
    path = weights(copy, "unet")
    stored = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    path.unlink()
    save_file(stored, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    unet = load_part(copy, "unet", "float32")
    for leaf in leaves(unet):
        assert leaf.param.dtype == np.float32
        np.testing.assert_array_equal(leaf.to_torch(np.asarray(leaf.param[...])), stored[leaf.name])


@one_family
def test_sharded_checkpoint(checkpoint, tmp_path):
    checkpoint.torch.unet.save_pretrained(tmp_path / "unet", max_shard_size="500KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    unet = load_part(tmp_path, "unet", "float32")
    for ours, theirs in zip(leaves(unet), leaves(checkpoint.ours.unet), strict=True):
        np.testing.assert_array_equal(ours.param[...], theirs.param[...])
    next((tmp_path / "unet").glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"00002-of.*missing"):
        load_part(tmp_path, "unet", "float32")


@one_family
def test_names_of_2022(checkpoint, copy):
    """Hub checkpoints of Stable Diffusion 1 and 2 have these; PyTorch still reads them."""
    vae = load_file(weights(copy, "vae"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {
        re.sub("|".join(map(re.escape, old)), lambda match: old[match[0]], name): value for name, value in vae.items()
    }
    assert renamed.keys() != vae.keys()
    save_file(renamed, weights(copy, "vae"), metadata={"format": "pt"})
    text = {f"text_model.{name}": value for name, value in load_file(weights(copy, "text_encoder")).items()}
    text["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(text, weights(copy, "text_encoder"), metadata={"format": "pt"})
    for part in ("vae", "text_encoder"):
        ours = load_part(copy, part, "float32")
        for mine, expected in zip(leaves(ours), leaves(getattr(checkpoint.ours, part)), strict=True):
            np.testing.assert_array_equal(mine.param[...], expected.param[...])


@one_family
def test_every_tensor_that_does_not_fit_is_listed(copy):
    path = weights(copy, "unet")
    stored = load_file(path)
    gone = [name for name in stored if "down_blocks.1" in name]
    stored = {name: value for name, value in stored.items() if name not in gone}
    stored["conv_in.weight"] = stored["conv_in.weight"][:, :3]
    stored["surplus.weight"] = np.zeros(3, np.float32)
    stored["z"] = np.zeros(1, np.float32)
    save_file(stored, path)
    with pytest.raises(InputError) as error:
        load_part(copy, "unet", "float32")
    message = str(error.value)
    assert f"{len(gone) + 3} tensors " in message
    assert "unexpected z [1]" in message
    assert "unexpected surplus.weight [3]" in message
    assert "misshapen conv_in.weight [16, 3, 3, 3], not [16, 4, 3, 3]" in message
    for name in gone:
        assert f"missing {name} [" in message
    stored = load_file(weights(copy, "vae"))
    save_file(stored | {"more": np.zeros(1, np.float32)}, weights(copy, "vae"))
    with pytest.raises(InputError, match=r"unet: .*surplus.*vae: 1 tensor .*unexpected more \[1\]"):
        StableDiffusion.from_pretrained(copy)


@one_family
def test_truncated_file(copy):
    path = weights(copy, "unet")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"unet.*\.safetensors: "):
        StableDiffusion.from_pretrained(copy)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "Stable Diffusion XL (addition_embed_type='text_time')",
        ),
        ("unet/config.json", {"mid_block_type": "UNetMidBlock2D"}, "mid_block_type UNetMidBlock2D"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types AttnDownBlock2D"),
        ("unet/config.json", {"attention_head_dim": 5}, "16 channels do not divide into 5 heads"),
        ("unet/config.json", {"wings": 2}, "unknown key 'wings'"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor=0.1 is not supported"),
        ("vae/config.json", {"mid_block_add_attention": False}, "unexpected decoder.mid_block.attentions.0"),
        ("text_encoder/config.json", {"model_type": "t5"}, "T5, as in"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@one_family
def test_unsupported_models_are_named(copy, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(InputError, match=re.escape(message)):
        StableDiffusion.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"attention_head_dim": [4, 4]}),
        ("unet/config.json", {"layers_per_block": [2, 2]}),
        ("unet/config.json", {"block_out_channels": 32}),
        ("unet/config.json", {"norm_num_groups": 7}),
        ("unet/config.json", {"attention_head_dim": 0}),
        ("vae/config.json", {"block_out_channels": []}),
    ],
    ids=str,
)
@one_family
def test_configs_that_no_network_can_be_built_of(copy, file, changes):
    edit(copy / file, **changes)
    with pytest.raises(InputError, match=r"cannot build a model"):
        StableDiffusion.from_pretrained(copy)


@one_family
def test_a_model_without_a_sample_size(copy):
    edit(copy / "unet" / "config.json", sample_size=None)
    sd = StableDiffusion.from_pretrained(copy)
    with pytest.raises(InputError, match="sample_size; set height and width"):
        sd.sample(["a"])
    assert sd.sample(["a"], steps=1, height=16, width=24, taps=None).images.shape == (1, 16, 24, 3)


@one_family
def test_a_scheduler_class_of_flax_is_saved_as_pytorch_calls_it(checkpoint, copy, tmp_path):
    edit(copy / "scheduler" / "scheduler_config.json", _class_name="FlaxDDIMScheduler")
    StableDiffusion.from_pretrained(copy).save_pretrained(tmp_path / "out")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None).scheduler
    assert isinstance(again, DDIMScheduler)
    assert again.config.beta_end == checkpoint.torch.scheduler.config.beta_end


@one_family
def test_saving_over_shards_leaves_none(checkpoint, copy):
    for old in (copy / "unet").glob("*.safetensors"):
        old.unlink()
    checkpoint.torch.unet.save_pretrained(copy / "unet", max_shard_size="500KB")
    sd = StableDiffusion.from_pretrained(copy)
    sd.unet.conv_in.bias[...] = sd.unet.conv_in.bias[...] + 1
    sd.save_pretrained(copy)
    assert [path.name for path in (copy / "unet").glob("*.safetensors*")] == ["diffusion_pytorch_model.safetensors"]
    again = StableDiffusion.from_pretrained(copy).unet.conv_in.bias[...]
    np.testing.assert_array_equal(again, sd.unet.conv_in.bias[...])


@one_family
def test_missing_parts(copy):
    shutil.rmtree(copy / "vae")
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match=r"vae/config\.json, scheduler/scheduler_config\.json"):
        StableDiffusion.from_pretrained(copy)
    with pytest.raises(FileNotFoundError, match="no such model"):
        StableDiffusion.from_pretrained(copy / "nowhere")
    with pytest.raises(InputError, match=r"is a part of a model; give the folder of the model"):
        StableDiffusion.from_pretrained(copy / "unet")


@one_family
def test_broken_json_and_tokenizer(copy):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="tokenizer: no CLIP tokenizer"):
        StableDiffusion.from_pretrained(copy)
    (copy / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\nx y\n")
    with pytest.raises(InputError, match="tokenizer: no CLIP tokenizer"):
        StableDiffusion.from_pretrained(copy)
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: "):
        load_part(copy, "unet", "float32")
    with pytest.raises(InputError, match="dtype 'float8'"):
        load_part(copy, "vae", "float8")


@one_family
def test_parts_of_different_models(checkpoint, copy, tmp_path):
    torch_unet = type(checkpoint.torch.unet)
    config = dict(checkpoint.torch.unet.config) | {"cross_attention_dim": 48}
    torch_unet.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(InputError, match="32 text channels, but 48"):
        StableDiffusion.from_pretrained(copy)
    checkpoint.torch.unet.save_pretrained(copy / "unet")
    write_tokenizer(tmp_path / "tokenizer", WORDS)
    shutil.rmtree(copy / "tokenizer")
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text()) | {"extra</w>": 196}
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.move(tmp_path / "tokenizer", copy / "tokenizer")
    with pytest.raises(InputError, match="197 tokens, but 196"):
        StableDiffusion.from_pretrained(copy)
