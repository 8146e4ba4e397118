"""What `detect`, `generate` and `finetune` compile, with shapes in place of arrays: no weights are loaded or made.

The commands' own code runs on shapes until it calls its jitted function; what it calls it with is what is compiled. So
nothing here repeats what the package does, and a change there is a change here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax import NamedSharding
from jax import P as Spec
from jax.sharding import Mesh

from memattn_jax import StableDiffusion, demo
from memattn_jax.checkpoints.checkpoint import PARTS
from memattn_jax.checkpoints.filling import MODELS
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.detectors import Scorer, scorer
from memattn_jax.detectors.scorer import DEFAULT
from memattn_jax.diffusion import run
from memattn_jax.models.abstract import abstract
from memattn_jax.models.attention import spread_attention
from memattn_jax.models.config import Config
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.schedulers import Schedule
from memattn_jax.training.loop import pinned_step
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start
from memattn_jax.training.step import Batch, Setup, TrainState, train_step

PRESETS: dict[str, tuple[tuple[Config, ...], str]] = {
    # every layer of Stable Diffusion 1, each a twentieth as wide, on latents of a fourth of the size
    "tiny": (
        (
            UNetConfig(sample_size=16, block_out_channels=(16, 32, 64, 64), norm_num_groups=8, cross_attention_dim=32),
            VAEConfig(sample_size=128, block_out_channels=(8, 16, 16, 16), norm_num_groups=8),
            CLIPTextConfig(vocab_size=1000, hidden_size=32, intermediate_size=128, num_attention_heads=4),
        ),
        "epsilon",
    ),
    "sd14": ((UNetConfig(), VAEConfig(), CLIPTextConfig()), "epsilon"),
    "sd21": (
        (
            UNetConfig(
                sample_size=96,
                attention_head_dim=(5, 10, 20, 20),
                cross_attention_dim=1024,
                use_linear_projection=True,
            ),
            VAEConfig(sample_size=768),
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
            ),
        ),
        "v_prediction",
    ),
}
NAMES = ("demo", *PRESETS)


class Program(NamedTuple):
    """A jitted function, and what it is called with: arrays' shapes, and what is static."""

    function: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]

    def lower(self) -> jax.stages.Lowered:
        """For the devices that the arguments' shardings name."""
        return self.function.lower(*self.arguments, **self.static)

    def trace(self) -> jax.stages.Traced:
        """Without devices, to be lowered for any platform."""
        arguments = jax.tree.map(shape_of, self.arguments)
        return self.function.trace(*arguments, **self.static)


class Called(Exception):  # noqa: N818 -- no error
    """The function was reached."""


def shape_of(array: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, traced or not."""
    kind = jax.typeof(array) if not isinstance(array, jax.ShapeDtypeStruct) else array
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def model(preset: str, mesh: Mesh | None = None) -> StableDiffusion:
    """A preset without weights, float32; the tokenizer is the built-in model's, which gives as many tokens as any.

    Args:
      preset: of `NAMES`.
      mesh: the devices to compile for, as loading is told them; the arrays are placed by `on_mesh`.
    """
    checkpoint = open_checkpoint(demo.MODEL)
    scheduler = dict(checkpoint.scheduler_config)
    site = None
    if preset == "demo":
        site = checkpoint.entropy_site
        configs = tuple(checkpoint.parts[name].config for name in PARTS)
        prediction = scheduler["prediction_type"]
    else:
        configs, prediction = PRESETS[preset]
    networks: dict[str, Any] = {
        name: abstract(MODELS[type(config)], config) for name, config in zip(PARTS, configs, strict=True)
    }
    if mesh is not None:
        for network in networks.values():
            spread_attention(network, mesh)
    tokens = networks["text_encoder"].config.max_position_embeddings
    return StableDiffusion(
        **networks,
        tokenizer=Tokenizer(demo.MODEL / "tokenizer", tokens),
        scheduler_config=scheduler | {"prediction_type": prediction},
        entropy_site=site,
    )


def cast(sd: StableDiffusion, dtype: str) -> StableDiffusion:
    """The model with weights of this dtype, as `from_pretrained` reads them."""

    def converted(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))

    return replace(sd, **{part: jax.tree.map(converted, getattr(sd, part)) for part in PARTS})


def on_shapes(sd: StableDiffusion, call: Callable[[StableDiffusion], Any]) -> Any:
    """What `call` makes of the model, as shapes; computed is only what depends on no weight, such as schedules."""

    def traced(networks: dict[str, Any]) -> Any:
        with jax.ensure_compile_time_eval():
            return call(replace(sd, **networks))

    return jax.eval_shape(traced, {part: getattr(sd, part) for part in PARTS})


def called(sd: StableDiffusion, owner: Any, name: str, call: Callable[[StableDiffusion], Any]) -> Program:
    """The first call of `owner.name` in a use of the model, which goes no further."""
    calls: list[Program] = []

    def note(*arguments: Any, **static: Any) -> None:
        calls.append(Program(function, jax.tree.map(shape_of, arguments), static))
        raise Called

    function = getattr(owner, name)
    with mock.patch.object(owner, name, note):
        try:
            on_shapes(sd, call)
        except Called:
            return calls[0]
    raise RuntimeError(f"{owner.__name__}.{name} was not called")


def detector(sd: StableDiffusion, rows: int, detectors: tuple[str, ...] = DEFAULT, explain: bool = True) -> Program:
    """What `detect` compiles for batches of `rows` prompts; by default its default."""
    prompts = [""] * rows
    return called(sd, scorer, "score_first_step", lambda sd: Scorer(sd, detectors, attribute=explain).start(prompts))


def sampler(sd: StableDiffusion, rows: int, steps: int) -> Program:
    """What `generate` compiles for batches of `rows` pictures: a loop of `steps` guided steps, token means tapped."""
    return called(sd, run, "denoise", lambda sd: sd.sample([""] * rows, steps=steps, wait=False))


def finetuning(sd: StableDiffusion, rows: int, settings: TrainSettings) -> Program:
    """What `finetune` compiles for one update with `rows` pictures; its weights are always float32."""
    state, setup = on_shapes(sd, lambda sd: start(sd, settings))
    side: Any = sd.unet.config.sample_size  # of a preset, always one number
    pixels, tokens = side * sd.vae.config.scale, sd.text_encoder.config.max_position_embeddings
    pictures: Any = jax.ShapeDtypeStruct((rows, pixels, pixels, 3), jnp.uint8)
    input_ids: Any = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    batch = Batch(pictures, input_ids)
    return Program(train_step, (state, setup, batch), {})


def on_mesh(program: Program, mesh: Mesh, rows: int) -> Program:
    """The program with its arguments on devices: what has a row a prompt over `data`, all else whole on every one.

    Args:
      program: called with `rows` prompts.
      mesh: of `memattn_jax.sharding.placement.make_mesh`, with 1 for `model`.
      rows: of all devices together; a guidance pair has twice as many.
    """

    def place(array: jax.ShapeDtypeStruct, spec: Spec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding, weak_type=array.weak_type)

    def by_row(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return place(array, Spec("data") if array.shape[:1] in ((rows,), (2 * rows,)) else Spec())

    def whole(value: Any) -> bool:
        return isinstance(value, nnx.Module | TrainState | Setup | Schedule)

    def place_part(value: Any) -> Any:
        return jax.tree.map(lambda leaf: place(leaf, Spec()), value) if whole(value) else by_row(value)

    arguments = jax.tree.map(place_part, program.arguments, is_leaf=whole)
    if program.function is train_step:  # as `finetune` does where there is a mesh
        return Program(pinned_step(arguments[0]), arguments, program.static)
    return program._replace(arguments=arguments)
