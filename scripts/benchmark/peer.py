"""PyTorch's side of the rows: diffusers and transformers, from the same folders and on the same inputs."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from small_checkpoint import SCHEDULER
from transformers import CLIPTextModel

from benchmark.kinds import ROUNDS
from benchmark.machine import SIDE, rate
from benchmark.torch_profile import profile
from benchmark.worker import Call, inputs
from memattn_jax import demo
from memattn_jax.checkpoints.clip import clip_tokenizer

torch.set_grad_enabled(False)
DEVICE = "cuda" if os.environ.get("JAX_PLATFORMS") == "cuda" else "cpu"  # that of the other side

START = """
import sys
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
pipeline(sys.argv[2], num_inference_steps=50).images[0].save(sys.argv[3])
"""


def nchw(array: np.ndarray) -> torch.Tensor:
    """[batch, h, w, channels] to PyTorch's order."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def done() -> None:
    """Waits for the accelerator, which PyTorch's calls do not."""
    if DEVICE != "cpu":
        torch.cuda.synchronize()


def call(function: Any, *arguments: Any) -> Call:
    """Something whose first output is a tensor of pictures or of text."""
    kept: list[Any] = [None]

    def run() -> None:
        kept[0] = function(*arguments)[0]
        done()

    def result() -> np.ndarray:
        found = kept[0].float().cpu()
        return found.permute(0, 2, 3, 1).numpy() if found.ndim == 4 else found.numpy()

    return Call(run, result=result, profile=lambda: profile(run, ROUNDS))


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of PyTorch's product of two matrices."""
    left = torch.ones((SIDE, SIDE), dtype=getattr(torch, dtype), device=DEVICE)

    def multiply() -> None:
        left @ left
        done()

    return rate(multiply)


def device_bytes() -> int | None:
    """The most memory of the accelerator that tensors have taken so far; None on a CPU."""
    return None if DEVICE == "cpu" else torch.cuda.max_memory_allocated()


def unet(folder: str, size: int, compiled: bool = False, dtype: str = "float32", prompts: int = 1) -> dict[str, Call]:
    """One call of the UNet for the guidance pairs of some prompts."""
    to = {"dtype": getattr(torch, dtype), "device": DEVICE}
    model = UNet2DConditionModel.from_pretrained(Path(folder) / "unet").eval().to(**to)
    config = model.config
    latents, context = inputs(2 * prompts, size, config.cross_attention_dim, config.in_channels)
    forward = partial(torch.compile(model) if compiled else model, return_dict=False)
    return {"pair": call(forward, nchw(latents).to(**to), 981, torch.from_numpy(context).to(**to))}


def load(folder: str) -> dict[str, Call]:
    """Reading the UNet."""
    return {"load": Call(lambda: UNet2DConditionModel.from_pretrained(Path(folder) / "unet"))}


def vae(folder: str, size: int) -> dict[str, Call]:
    """Decoding one picture."""
    model = AutoencoderKL.from_pretrained(Path(folder) / "vae").eval()
    return {"decode": call(lambda z: model.decode(z).sample[None, 0], nchw(inputs(1, size, 1)[0]))}


def text_encoder(folder: str) -> dict[str, Call]:
    """Encoding two prompts."""
    model = CLIPTextModel.from_pretrained(Path(folder) / "text_encoder").eval()
    ids = np.random.default_rng(0).integers(0, 1000, (2, 77))
    return {"encode": call(model, torch.from_numpy(ids))}


def sample_full(folder: str, dtype: str, prompts: int) -> dict[str, Call]:
    """Pictures of a full-size model with CLIP's tokenizer."""
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    parts = {name: kind.from_pretrained(Path(folder) / name).eval() for name, kind in kinds.items()}
    others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DDIMScheduler.from_config({name: x for name, x in SCHEDULER.items() if name != "skip_prk_steps"})
    pipeline = StableDiffusionPipeline(tokenizer=clip_tokenizer(), scheduler=scheduler, **parts, **others)
    pipeline.to(DEVICE, getattr(torch, dtype)).set_progress_bar_config(disable=True)
    texts = [f"a photograph of {number} cats" for number in range(prompts)]
    return {"50 steps": Call(lambda: pipeline(texts, num_inference_steps=50))}


def sample(prompt: str, prompts: int = 1) -> dict[str, Call]:
    """Pictures of the built-in model."""
    pipeline = StableDiffusionPipeline.from_pretrained(demo.MODEL, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    texts = [prompt] * prompts
    return {f"{steps} steps": Call(partial(pipeline, texts, num_inference_steps=steps)) for steps in (10, 50)}


def start(prompt: str) -> dict[str, Call]:
    """A script, from the start of the process to the picture of the built-in model."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-c", START, str(demo.MODEL), prompt, f"{out}/picture.png"]
            subprocess.run(command, check=True, capture_output=True)

    return {"start": Call(run)}
