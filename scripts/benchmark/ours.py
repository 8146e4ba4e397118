"""Our side of the rows."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_checkpoint import SCHEDULER

from benchmark.kinds import ROUNDS
from benchmark.machine import SIDE, rate
from benchmark.worker import Call, inputs
from benchmark.xla_profile import profile
from memattn_jax import StableDiffusion, demo
from memattn_jax.checkpoints.diffusers_folder import load_part
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.detectors.first_step import Inputs, Unconditional, noise_levels
from memattn_jax.detectors.programs import describe_unconditional, score_first_step
from memattn_jax.detectors.scorer import DEFAULT, named_detectors
from memattn_jax.diffusion.model import decode, embed
from memattn_jax.entropy import METRIC_E_SITE
from memattn_jax.interceptors import Interceptor, MaskTokens, ScaleBeginToken, TokenMeans
from memattn_jax.models.kernels.program import LIBRARY, library_for
from memattn_jax.registries import FIRST_STEP


def program(function: Any, *arguments: Any, context: Any = None, **static: Any) -> Call:
    """A compiled call of a jitted function, by the libraries that the package takes with these text embeddings."""
    flat, structure = jax.tree.flatten(arguments)  # once: a module of Python objects takes milliseconds to walk
    flat = [jnp.asarray(array) for array in flat]
    start = time.perf_counter()
    traced = jax.jit(lambda *flat: function(*jax.tree.unflatten(structure, flat), **static)).trace(*flat)
    compiled = traced.lower().compile({LIBRARY: library_for(context)} if jax.default_backend() == "cpu" else None)
    seconds = time.perf_counter() - start
    kept: list[Any] = [None]

    def run() -> None:
        kept[0] = jax.block_until_ready(compiled(*flat))

    def flops() -> float:
        # counted for a GPU, whose program has no loops over blocks, since XLA counts a loop's body once
        return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]

    return Call(run, flops, lambda: jax.device_get(kept[0]), seconds, lambda: profile(compiled, run, ROUNDS))


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of JAX's product of two matrices, summed in float32."""
    left = jnp.ones((SIDE, SIDE), dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return rate(lambda: multiply(left, left).block_until_ready())


def device_bytes() -> int | None:
    """The most memory of the accelerator that arrays have taken so far; None on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def unet(folder: str, size: int, calls: tuple[str, ...], dtype: str = "float32", prompts: int = 1) -> dict[str, Call]:
    """The UNet for guidance pairs of some prompts, plain, with all layers tapped and mitigated; and the detectors."""
    model = load_part(Path(folder), "unet", dtype)
    latents, context = map(
        jnp.asarray, inputs(2 * prompts, size, model.config.cross_attention_dim, model.config.in_channels)
    )
    step = jnp.float32(981)
    forward = jax.jit(lambda unet, *args: unet(*args))
    edits = (MaskTokens(np.array([2, 12])), ScaleBeginToken(1.25))  # as AttentionMask() has them

    def pair(interceptor: Interceptor) -> Call:
        return program(forward, model, latents, step, context, interceptor, context=context)

    levels = noise_levels({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, 50)
    prompt = Inputs(model, latents[None, :1], context[prompts:], context[:1], jnp.full(prompts, 12), levels)

    def first_step(*names: str, attribute: bool = False) -> Call:
        detectors = named_detectors(names, site=model.sites[METRIC_E_SITE])
        parts = frozenset({"noise"} if attribute else ())
        parts = parts.union(*(one.shared for one in detectors.values()))  # type: ignore[union-attr]
        shared = describe_unconditional(prompt, parts=parts) if parts else Unconditional()
        return program(
            score_first_step, replace(prompt, unconditional=shared), detectors, context=context, attribute=attribute
        )

    made = {
        "pair": lambda: pair(Interceptor()),
        "tapped": lambda: pair(Interceptor(taps={"tokens": TokenMeans()})),
        "mitigated": lambda: pair(Interceptor(edits, conditional=np.tile([False, True], prompts))),
        "detector": lambda: first_step("entropy_e"),
        "default": lambda: first_step(*DEFAULT, attribute=True),
        "first_step": lambda: first_step(*FIRST_STEP),
    }
    return {name: made[name]() for name in calls}


def load(folder: str) -> dict[str, Call]:
    """Reading the UNet."""
    return {"load": Call(lambda: jax.block_until_ready(load_part(Path(folder), "unet", "float32")))}


def vae(folder: str, size: int) -> dict[str, Call]:
    """Decoding one picture."""
    model = load_part(Path(folder), "vae", "float32")
    return {"decode": program(decode, model, jnp.asarray(inputs(1, size, 1)[0]), rows_at_once=1)}


def text_encoder(folder: str) -> dict[str, Call]:
    """Encoding two prompts."""
    model = load_part(Path(folder), "text_encoder", "float32")
    ids = np.random.default_rng(0).integers(0, 1000, (2, 77)).astype(np.int32)
    return {"encode": program(embed, model, ids)}


def sample_full(folder: str, dtype: str, prompts: int) -> dict[str, Call]:
    """Pictures of a full-size model with CLIP's tokenizer, attention of all layers measured on the way."""
    parts = {name: load_part(Path(folder), name, dtype) for name in ("unet", "vae", "text_encoder")}
    sd = StableDiffusion(tokenizer=Tokenizer(None, 77), scheduler_config=SCHEDULER, **parts)
    texts = [f"a photograph of {number} cats" for number in range(prompts)]
    return {"50 steps": Call(lambda: sd.sample(texts, seeds=range(prompts), steps=50))}


def sample(prompt: str, prompts: int = 1) -> dict[str, Call]:
    """Pictures of the built-in model, attention of all layers measured on the way."""
    sd = StableDiffusion.from_pretrained(demo.MODEL, "float32")

    def run(steps: int) -> None:
        sd.sample([prompt] * prompts, seeds=range(prompts), steps=steps)

    return {f"{steps} steps": Call(partial(run, steps)) for steps in (10, 50)}


def start(prompt: str) -> dict[str, Call]:
    """The command, from the start of the process to the picture of the built-in model."""

    def run(cache: str) -> None:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "memattn_jax.generate", prompt, "--out", f"{out}/out"]
            folder = {"JAX_COMPILATION_CACHE_DIR": cache or f"{out}/cache"}
            subprocess.run(command, check=True, capture_output=True, env=os.environ | folder)

    warm = tempfile.mkdtemp()
    return {"cold": Call(partial(run, "")), "warm": Call(partial(run, warm))}
