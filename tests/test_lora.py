"""LoRA files that are wrong, or for another model; the options that name them."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from memattn_jax import StableDiffusion
from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.checkpoints.lora.files import read_lora
from memattn_jax.checkpoints.lora.keys import parse_key
from memattn_jax.checkpoints.lora.merge import with_loras
from memattn_jax.checkpoints.lora.scaling import Scales
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.commands import convert, detect, finetune, generate
from memattn_jax.commands.model_options import CheckpointOptions
from memattn_jax.errors import LIMIT, InputError

QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
KEY = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SIZE, TEXT = 16, 32  # channels of the micro model's only level, and of its text


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def pair(layer: str = f"lora_unet_{QUERY}", rank: int = 2, into: int = SIZE, out: int = SIZE) -> dict[str, np.ndarray]:
    return {f"{layer}.lora_down.weight": ones(rank, into), f"{layer}.lora_up.weight": ones(out, rank)}


WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no layer": (pair("lora_unet_down_blocks_7_attentions_0_proj_in"), "no layer down_blocks_7_attentions_0_proj_in"),
    "no key": (pair() | {"lora_unet_x.lora_sideways.weight": ones(2)}, "unknown key lora_unet_x.lora_sideways.weight"),
    "half": ({f"lora_unet_{QUERY}.lora_down.weight": ones(2, 16)}, f"{QUERY} has down alone"),
    "alpha alone": (pair() | {f"lora_unet_{KEY}.alpha": ones()}, f"{KEY} has alpha alone"),
    "two kinds": (pair() | {f"lora_unet_{QUERY}.diff": ones(16, 16)}, f"{QUERY} has down, up, weight alone"),
    "two norms": (
        pair() | {f"lora_unet_{QUERY}.{role}": ones(16, 1) for role in ("dora_scale", "lora_magnitude_vector")},
        "dora_scale, down",
    ),
    "a norm of nothing": (pair() | {f"lora_unet_{KEY}.dora_scale": ones(16, 1)}, f"{KEY} has dora_scale alone"),
    "ranks": (pair() | {f"lora_unet_{QUERY}.lora_up.weight": ones(16, 3)}, "do not go together"),
    "scalars": (pair() | {f"lora_unet_{QUERY}.lora_up.weight": ones()}, "do not go together"),
    "transposed": (pair(f"lora_unet_{KEY}", into=16, out=32), r"changes \[32, 16\], not \[16, 32\]"),
    "norms": (pair() | {f"lora_unet_{QUERY}.dora_scale": ones(5, 1)}, "dora_scale"),
    "one norm": (pair() | {f"lora_unet_{QUERY}.lora_magnitude_vector": ones(1)}, "magnitude"),
    "no bias": (pair() | {f"lora_unet_{QUERY}.diff_b": ones(16)}, "changes a bias"),
    "alpha": (pair() | {f"lora_unet_{QUERY}.alpha": np.float32([np.nan])}, "alpha"),
    "alphas": (pair() | {f"lora_unet_{QUERY}.alpha": ones(2)}, "alpha"),
    "no rank": (pair(rank=0) | {f"lora_unet_{QUERY}.alpha": ones()}, "alpha"),
    "integers": ({name: array.astype(np.int32) for name, array in pair().items()}, "stored as int32"),
    "twice": (pair() | pair(f"unet.{QUERY.replace('_', '.', 0)}"), "comes twice"),
    "huge": (
        {f"lora_unet_{QUERY}.lokr_w1": ones(30000, 1), f"lora_unet_{QUERY}.lokr_w2": ones(1, 30000)},
        r"changes \[30000, 30000\]",
    ),
    "nothing": ({}, "no tensors"),
    "SD 2": (pair(f"lora_unet_{KEY}", into=1024), "Stable Diffusion 2.x: 1024 text channels, not 32"),
    "SDXL's UNet": (pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"), "was made for SDXL"),
    "SDXL by ComfyUI": (pair(f"text_encoders.clip_g.transformer.{QUERY}"), "several text encoders"),
    "SDXL": (pair() | pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "several text encoders"),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_proj"), "Flux"),
    "SD 3": (pair("transformer.transformer_blocks.0.attn.to_q"), "SD 3"),
    "OFT": ({f"lora_unet_{QUERY}.oft_blocks": ones(2, 8, 8)}, "OFT"),
    "IA3": ({f"lora_unet_{QUERY}.on_input": ones()}, "IA"),
    "GLoRA": ({f"lora_unet_{QUERY}.a1.weight": ones(2, 2)}, "GLoRA"),
    "bundled": (pair() | {"bundle_emb.x.string_to_param.*": ones(2, 32)}, "bundles"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_files(what: str, model: Path, tmp_path: Path):
    """One line that names the file and the layer, before any weights of the model are read."""
    tensors, message = WRONG[what]
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=message) as caught:
        StableDiffusion.from_pretrained(model, loras=[path])
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) <= LIMIT + len(str(path))


@pytest.mark.parametrize("encoder", ["clip_l", "clip_h"])  # of Stable Diffusion 1 and 2
def test_keys_of_comfyui(encoder: str):
    layer = "text_model.encoder.layers.0.mlp.fc1"
    key = parse_key(f"text_encoders.{encoder}.transformer.{layer}.lora_up.weight", "x")
    assert key == ("text_encoder", layer, "up")
    key = parse_key("diffusion_model.middle_block.1.proj_in.lora_down.weight", "x")
    assert key == ("unet", "middle_block.1.proj_in", "down")


def test_keys_of_lycoris_by_itself():
    """Whose prefix says nothing of the part."""
    assert parse_key(f"lycoris_{QUERY}.lora_down.weight", "x") == (None, QUERY, "down")
    assert parse_key("lycoris_text_model_encoder_layers_0_mlp_fc1.lokr_w1", "x")[0] is None


def test_all_problems_are_counted(model: Path, tmp_path: Path):
    tensors: dict[str, np.ndarray] = {}
    for i in range(40):
        tensors |= pair(f"lora_unet_layer_{i}")
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="40 problems in 40 layers"):
        StableDiffusion.from_pretrained(model, loras=[tmp_path / "x.safetensors"])


def test_strengths(model: Path, tmp_path: Path):
    """Of 1 by default; 0 changes nothing, and twice half is once."""
    path = tmp_path / "x.safetensors"
    save_file(pair(), path)
    plain, once, halves, none = (
        StableDiffusion.from_pretrained(model, loras=loras).unet.down_blocks[0].attentions[0]
        for loras in ([], [path], [(path, 0.5), (str(path), 0.5)], [(path, 0)])
    )
    before, after = (np.asarray(each.transformer_blocks[0].attn2.to_q.kernel) for each in (plain, once))
    np.testing.assert_allclose(after, before + 2, rtol=1e-6)
    np.testing.assert_array_equal(none.transformer_blocks[0].attn2.to_q.kernel, before)
    np.testing.assert_allclose(halves.transformer_blocks[0].attn2.to_q.kernel, after, rtol=1e-6)
    with pytest.raises(InputError, match="strength nan"):
        StableDiffusion.from_pretrained(model, loras=[(path, float("nan"))])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("norms", [{}, {f"lora_unet_{QUERY}.dora_scale": ones(16, 1)}])
def test_weights_that_are_not_finite(value: float, norms: dict, model: Path, tmp_path: Path):
    """As a training that diverged leaves them."""
    save_file({name: value * array for name, array in pair().items()} | norms, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors: makes .*attn2.to_q.weight"):
        StableDiffusion.from_pretrained(model, loras=[tmp_path / "x.safetensors"])


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "BOFT"}, "BOFT"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"lora_alpha": "x"}, "no scale"),
        ({"r": 0}, "no scale"),
        ({"r": None}, "no scale"),
        ({"alpha_pattern": [1]}, "no scale"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "too complex"),
        ({"alpha_pattern": {".*.*.*.*.*x": 1}}, "too complex"),
        ({"alpha_pattern": {"to_(q": 1}}, "no regular expression"),
        ({"lora_alpha": float("inf")}, "not finite"),
    ],
)
def test_wrong_configs(change: dict, message: str, tmp_path: Path):
    save_file(pair("base_model.model.down_blocks.0.to_q"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | change))
    start = time.process_time()
    with pytest.raises(InputError, match=message):
        read_lora(tmp_path)
    assert time.process_time() - start < 1


def test_patterns_of_scales():
    """The first that matches a path or its end."""
    config = CONFIG | {"alpha_pattern": {"mid.*to_q": 1, "to_q": 8}, "rank_pattern": {"^down.*": 4}}
    scales = [Scales(config, "")(layer) for layer in ("mid.0.to_q", "down.to_q", "up.to_k")]
    assert scales == [1 / 2, 8 / 4, 4 / 2]


def test_metadata_that_is_no_json(tmp_path: Path):
    save_file(pair(), tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": "[1]"})
    with pytest.raises(InputError, match="lora_adapter_metadata"):
        read_lora(tmp_path / "x.safetensors")


def test_folders_without_a_lora(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no LoRA"):
        read_lora(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        read_lora(tmp_path / "x.safetensors")


def test_options(tmp_path: Path):
    """FILE:VALUE splits at the last colon, unless the file's own name has one."""
    for name in ("a.safetensors", "b:2", "c:0.5"):
        (tmp_path / name).touch()
    options = CheckpointOptions(
        lora=(f"{tmp_path}/a.safetensors", f"{tmp_path}/b:2:0.5", f"{tmp_path}/c:0.5"),
        embedding=(f"{tmp_path}/a.safetensors:<cat>", f"{tmp_path}/b:2"),
    )
    assert options.source["loras"] == [
        (tmp_path / "a.safetensors", 1.0),
        (tmp_path / "b:2", 0.5),
        (tmp_path / "c:0.5", 1.0),
    ]
    assert options.source["embeddings"] == [(tmp_path / "a.safetensors", "<cat>"), (tmp_path / "b:2", None)]
    assert options.model_name.startswith(f"built-in lora={tmp_path}/a.safetensors lora=")
    assert not options.built_in


@pytest.mark.parametrize("kind", ["loras", "embeddings"])
@pytest.mark.parametrize("file", ["a.safetensors", Path("a.safetensors")], ids=["text", "path"])
def test_one_file_needs_no_list(kind: str, file: str | Path):
    assert Source(**{kind: file}) == Source(**{kind: [file]})  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "value", "other"), [("loras", 0.3, "0.3"), ("embeddings", "<cat>", 5)])
def test_a_mapping_is_pairs(kind: str, value: float | str, other: object):
    assert getattr(Source(**{kind: {"a.safetensors": value}}), kind) == ((Path("a.safetensors"), value),)
    with pytest.raises(InputError, match=f"^{kind}: expected files, or pairs"):
        Source(**{kind: [("a.safetensors", other)]})


@pytest.mark.parametrize("kind", ["loras", "embeddings"])
@pytest.mark.parametrize(
    "given", [("a.pt", 0.8), [("a.pt", 0.8, 1)], [None], 5, [("a.pt", b"0.8")], {"a.pt": []}], ids=str
)
def test_what_is_neither_a_file_nor_a_pair(kind: str, given: object):
    with pytest.raises(InputError, match=rf"^{kind}: expected files, or pairs such as \[\('\w+\.safetensors', .*\)\]$"):
        Source(**{kind: given})  # type: ignore[arg-type]


def test_a_changed_token_table_grows(model: Path, tmp_path: Path):
    """By a LoRA with a difference of the whole table, and an embedding."""
    before = StableDiffusion.from_pretrained(model).text_encoder.text_model.embeddings.token_embedding.embedding[...]
    layer = "lora_te_text_model_embeddings_token_embedding"
    save_file({f"{layer}.diff": ones(*before.shape)}, tmp_path / "lora.safetensors")
    save_file({"<new>": 3 * ones(1, TEXT)}, tmp_path / "new.safetensors")
    files = {"loras": tmp_path / "lora.safetensors", "embeddings": tmp_path / "new.safetensors"}
    text = StableDiffusion.from_pretrained(model, **files).text_encoder
    expected = np.concatenate([np.asarray(before) + 1, 3 * ones(1, TEXT)])
    np.testing.assert_array_equal(text.text_model.embeddings.token_embedding.embedding[...], expected)


@pytest.mark.parametrize("text", ["missing", "missing:0.5", "a:x", "a:nan"])
def test_wrong_options(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    with pytest.raises(InputError, match="--lora"):
        CheckpointOptions(lora=(text,)).check_checkpoint()


def test_files_are_checked_with_the_options(model: Path, tmp_path: Path):
    """Before a model is loaded, by every command."""
    path = tmp_path / "x.safetensors"
    save_file({}, path)
    given = {"model": str(model), "lora": (str(path),)}
    commands = (
        generate.Options(prompt=("a",), **given),  # type: ignore[arg-type]
        detect.Options(prompt=("a",), **given),  # type: ignore[arg-type]
        convert.Options(out=tmp_path / "x.zip", **given),  # type: ignore[arg-type]
        finetune.Options(data=tmp_path, **given),  # type: ignore[arg-type]
    )
    for options in commands:
        with pytest.raises(InputError, match=r"x\.safetensors: not a LoRA"):
            options.check()
    with pytest.raises(InputError, match=r"x\.safetensors: not a textual inversion"):
        detect.Options(prompt=("a",), model=str(model), embedding=(str(path),)).check()


def test_changed_built_in_model_needs_prompts(tmp_path: Path):
    """Its calibration and its demonstrations are those of the unchanged one."""
    save_file(pair(), tmp_path / "x.safetensors")
    given = (f"{tmp_path}/x.safetensors",)
    for options in (generate.Options(lora=given), detect.Options(lora=given)):
        with pytest.raises(InputError, match="no prompts"):
            options.check()
    assert detect.given_calibration(detect.Options(prompt=("a",), lora=given)) is None


def test_damaged_files(model: Path, tmp_path: Path):
    """Cut, with other bits in the header, or with other numbers there: one line, or a file that still fits."""
    tensors = pair() | pair(f"lora_unet_{KEY}", into=TEXT) | {f"lora_unet_{KEY}.dora_scale": ones(SIZE, 1)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.alpha_pattern": {"mid.*proj_in": 3}})}
    whole, path = tmp_path / "whole.safetensors", tmp_path / "x.safetensors"
    save_file(tensors, whole, metadata=metadata)
    content, rng = whole.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    parts, refused = open_checkpoint(model).parts, []
    for number in range(300):
        data = bytearray(content)
        if number % 3 == 0:
            del data[rng.randrange(len(data)) :]
        elif number % 3 == 1:
            data[rng.randrange(header)] ^= 1 << rng.randrange(8)
        else:
            data[rng.randrange(8, header)] = rng.choice(b"0123456789")
        path.write_bytes(data)
        try:
            with_loras(parts, [(path, 1.0)])
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused)
