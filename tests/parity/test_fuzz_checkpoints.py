"""Damaged checkpoints give one clear error each, in seconds and little memory, and touch nothing outside."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz_checkpoints
import numpy as np
import original_layout
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from elsewhere import INDEX
from make_random_model import WORDS
from safetensors.torch import load_file, save_file
from small_checkpoint import BEGIN, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.commands.converting import convert

MEMORY = 200  # MB, besides twice the file's size
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Pipe:
    """The smallest model with all that a single file has."""

    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=64,
        layers_per_block=1,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=99, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    scheduler = DDIMScheduler()


def write_bases(folder: Path, random_model: Path) -> None:
    """What is damaged, in every container."""
    (folder / "outside").mkdir(parents=True)
    (folder / "model").symlink_to(random_model)
    tensors = {f"layer.{i}.weight": torch.randn(4, i + 1).to(DTYPES[i % 3]) for i in range(6)}
    save_file(tensors, folder / "x.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "outside" / "x.safetensors")
    torch.save({"state_dict": tensors, "global_step": 3, "rate": np.float64(1)}, folder / "x.ckpt")
    torch.save(tensors, folder / "x.pt", _use_new_zipfile_serialization=False)
    save_file(lora(), folder / "lora.safetensors", metadata={"ss_network_module": "networks.lora"})
    vectors = torch.randn(2, 64)
    save_file({"emb_params": vectors}, folder / "embedding.safetensors")
    torch.save({"<cat>": vectors}, folder / "embedding.bin")
    content = {"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": vectors}), "name": "cat"}
    torch.save(content, folder / "embedding.pt", _use_new_zipfile_serialization=False)
    save_file(original_layout.single_file(Pipe, openclip=False), folder / "single.safetensors")
    stated = {"modelspec.prediction_type": "v"}
    save_file(original_layout.single_file(Pipe, openclip=True), folder / "second.safetensors", metadata=stated)


def lora() -> dict[str, torch.Tensor]:
    """Kohya's keys, of rank 2: linear layers, a convolution, and one of the text encoder."""
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2"
    shapes = {f"{attention}_to_k": (8, 64), f"{attention}_to_v": (8, 64), f"{attention}_to_q": (8, 8)}
    shapes |= {"lora_unet_conv_in": (8, 4, 3, 3), "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (64, 64)}
    tensors = {}
    for name, (out, *rest) in shapes.items():
        single = (1,) * (len(rest) - 1)
        tensors |= {
            f"{name}.lora_down.weight": torch.randn(2, *rest),
            f"{name}.lora_up.weight": torch.randn(out, 2, *single).half(),
            f"{name}.alpha": torch.tensor(1.0),
        }
    return tensors


def shard(unet: Path) -> None:
    """Splits a network's file in two, of a few rows of a few tensors, and writes the index."""
    (path,) = unet.glob("*.safetensors")
    tensors = {name: tensor[:1].clone() for name, tensor in list(load_file(path).items())[:12]}
    path.unlink()
    names = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": list(tensors)[i::2] for i in range(2)}
    for file, own in names.items():
        save_file({name: tensors[name] for name in own}, unet / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, own in names.items() for name in own}}
    (unet / INDEX).write_text(json.dumps(index))


def tokenizer_of_2022(folder: Path) -> None:
    """A tokenizer in the files of Stable Diffusion's repositories, with a token of textual inversion."""
    size = write_tokenizer(folder, WORDS)
    special = {"bos_token": {"content": BEGIN, "lstrip": False, "normalized": True}, "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": size}))


@pytest.fixture(scope="module")
def rows(random_model, tmp_path_factory):
    """What came of each variant; the process that read them ended well, and left all else as it was."""
    folder = tmp_path_factory.mktemp("fuzz")
    small = folder / "small"
    shutil.copytree(random_model, small)
    shard(small / "unet")
    for part in ("vae", "text_encoder"):
        for path in (small / part).glob("*.safetensors"):
            save_file({"a": torch.ones(2)}, path)
    write_bases(folder / "bases", small)
    convert(random_model, Source(), folder / "bases" / "orbax", "orbax", None)
    tokenizer_of_2022(folder / "bases" / "tokenizer")
    before = sorted(folder.rglob("*"))
    scratch, results = folder / "scratch", folder / "results"
    script = Path(fuzz_checkpoints.__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # JAX makes the folder
    command = [sys.executable, "-W", "ignore", str(script), str(folder / "bases"), str(scratch), str(results)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    read = [json.loads(line) for line in results.read_text().splitlines()]
    last = f"after {read[-1]['kind']} {read[-1]['number']}" if read else "at the start"
    assert done.returncode == 0, f"{last}: {done.stderr}"
    shutil.rmtree(scratch)
    results.unlink()
    assert [path for path in sorted(folder.rglob("*")) if path not in before and "outside" not in path.parts] == []
    return read


def test_the_count(rows):
    """Each kind has variants that are refused, and the one that is not damaged loads."""
    assert len(rows) >= 1000 + len(fuzz_checkpoints.VARIANTS)
    kinds = Counter(row["kind"] for row in rows if row["outcome"].startswith("refused"))
    assert kinds.keys() == fuzz_checkpoints.VARIANTS.keys()
    assert [row for row in rows if row["number"] == 0 and row["outcome"] != "loads"] == []


@pytest.mark.parametrize("kind", fuzz_checkpoints.VARIANTS)
def test_loads_or_is_refused_in_one_line(rows, kind):
    assert [row for row in rows if row["kind"] == kind and row["outcome"].startswith("WRONG")] == []


def test_seconds_and_memory(rows):
    assert max(row["seconds"] for row in rows) < fuzz_checkpoints.SECONDS
    assert [row for row in rows if row["growth"] > 2 * row["size"] + MEMORY] == []


def test_what_is_elsewhere_is_refused(rows):
    """Every file that an index or a link puts outside the folder, and every pipe or device in a file's place."""
    wrong = [row for row in rows if row["kind"] == "elsewhere" and row["number"] and row["outcome"] == "loads"]
    assert wrong == []
