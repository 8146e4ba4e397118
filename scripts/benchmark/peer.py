"""PyTorch's side of the rows: diffusers and transformers, from the same folders and on the same inputs."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from benchmark.worker import Call, inputs
from memattn_jax import demo

torch.set_grad_enabled(False)

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


def call(function: Any, *arguments: Any) -> Call:
    """Something whose first output is a tensor of pictures or of text."""
    kept: list[Any] = [None]

    def run() -> None:
        kept[0] = function(*arguments)[0]

    def result() -> np.ndarray:
        return kept[0].permute(0, 2, 3, 1).numpy() if kept[0].ndim == 4 else kept[0].numpy()

    return Call(run, result=result)


def unet(folder: str, size: int, compiled: bool = False) -> dict[str, Call]:
    """One call of the UNet for a guidance pair."""
    model = UNet2DConditionModel.from_pretrained(Path(folder) / "unet").eval()
    latents, context = inputs(2, size, model.config.cross_attention_dim)
    forward = partial(torch.compile(model) if compiled else model, return_dict=False)
    return {"pair": call(forward, nchw(latents), 981, torch.from_numpy(context))}


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


def sample(prompt: str) -> dict[str, Call]:
    """Pictures of the built-in model."""
    pipeline = StableDiffusionPipeline.from_pretrained(demo.MODEL, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return {f"{steps} steps": Call(partial(pipeline, prompt, num_inference_steps=steps)) for steps in (10, 50)}


def start(prompt: str) -> dict[str, Call]:
    """A script, from the start of the process to the picture of the built-in model."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-c", START, str(demo.MODEL), prompt, f"{out}/picture.png"]
            subprocess.run(command, check=True, capture_output=True)

    return {"start": Call(run)}
