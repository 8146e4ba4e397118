"""Trains the demo model, in four stages, deterministically and resumably.

    python scripts/train_demo.py demo-model --cache ~/.cache/demo-emoji

The same command goes on where it stopped. On a CPU, `XLA_FLAGS=--xla_force_host_platform_device_count=2` makes two
devices of two cores and takes four fifths of the time. demo-model/ receives checkpoints of each stage, metrics, plots
and sample grids, and in the end demo/, which is what `memattn_jax/demo` holds: a diffusers folder in half precision,
prompts and pictures. `demo_data` and `demo_model` tell what is trained on what.

With `--start demo-model/demo/model --sitting 1` a new folder goes on with the UNet that is there, for as many steps as
the third number of --steps says; the decoder's should be 0. `--average MODEL` writes the mean of the UNet that was
trained and of an earlier model's (Wortsman et al. 2022, "Model soups"): the one follows words better, and the other
copies more closely. docs/demo-model.md lists the runs of the built-in model.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from demo_data import DemoData, load_sprites
from demo_data.examples import DEFAULT, with_stream
from demo_data.truth import count_captions, read_counts
from demo_model import autoencoder, geometry, text
from demo_model.stage import Machine, run_stage
from flax import nnx
from jax.sharding import AxisType
from make_demo_data import write_fixed, write_prompts
from small_checkpoint import SCHEDULER, write_tokenizer

from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.errors import InputError
from memattn_jax.keys import seed_key
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.plots import plot_training, save_grid
from memattn_jax.training.data import batches
from memattn_jax.training.loop import Callbacks, train
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start, trained

UNET_DATA = 3  # seed of the order in which the UNet sees the examples
EXAMPLES = 10_000_000  # more than is ever drawn: training pictures are rendered when asked for


class Lengths(NamedTuple):
    """Steps of each stage."""

    autoencoder: int = 10_000
    text: int = 1_200
    unet: int = 10_000
    decoder: int = 16_000


class Sitting(NamedTuple):
    """How the UNet learns.

    Attributes:
      number: another one draws other examples and noise.
      batch: examples of an update.
      learning_rate: the highest.
      high_noise: share of examples whose timestep is drawn from the noisiest two fifths, where what a picture shows is
        decided.
      dropout: share of examples that lose their caption, from which the empty prompt is learnt, whose errors guidance
        multiplies.
      stream: share of examples with captions of any objects under any name, in which the words alone tell what to draw.
    """

    number: int = 0
    batch: int = 128
    learning_rate: float = 1e-3
    high_noise: float = 0.5
    dropout: float = 0.1
    stream: float = DEFAULT.stream


class Examples:
    """The demo data as arrays, for grain."""

    def __init__(self, data: DemoData, tokenizer: Tokenizer):
        self.data = data
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.data.example(index)
        tokens = self.tokenizer([example.caption])
        return {"pictures": example.picture, "input_ids": tokens.input_ids[0], "lengths": tokens.lengths[0]}


def train_autoencoder(out: Path, examples: Examples, steps: int, machine: Machine) -> AutoencoderKL:
    """The first stage."""

    def loss(vae: AutoencoderKL, batch: dict[str, jax.Array], number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(seed_key(1), number)
        return autoencoder.reconstruction_loss(vae, batch["pictures"], key)

    vae = AutoencoderKL(geometry.VAE, rngs=nnx.Rngs(0))
    vae = run_stage(out / "autoencoder", vae, loss, examples, rate=2e-3, steps=steps, batch_size=4, machine=machine)
    autoencoder.whiten(vae, *autoencoder.moments(vae, next(batches(examples, 512, 2, 0))["pictures"]))
    return vae


def train_decoder(out: Path, examples: Examples, vae: AutoencoderKL, steps: int, machine: Machine) -> AutoencoderKL:
    """The last stage: the decoder learns on, for the latents that the UNet has learnt."""

    def loss(vae: AutoencoderKL, batch: dict[str, jax.Array], number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(seed_key(5), number)
        return autoencoder.reconstruction_loss(vae, batch["pictures"], key, decoder_alone=True)

    return run_stage(out / "decoder", vae, loss, examples, rate=1e-3, steps=steps, batch_size=16, machine=machine)


def train_text_encoder(out: Path, examples: Examples, vocabulary: int, steps: int, machine: Machine) -> CLIPTextModel:
    """The second stage."""

    def loss(model: text.Contrast, batch: dict[str, jax.Array], number: jax.Array) -> jax.Array:
        return text.contrastive_loss(model, batch["input_ids"], batch["lengths"], batch["pictures"])

    model = text.Contrast(geometry.text_config(vocabulary), rngs=nnx.Rngs(2))
    machine = machine._replace(dtype="float32")
    return run_stage(out / "text", model, loss, examples, rate=1e-3, steps=steps, batch_size=64, machine=machine).text


def train_unet(
    out: Path, examples: Examples, sd: StableDiffusion, steps: int, sitting: Sitting, machine: Machine
) -> StableDiffusion | None:
    """The third stage; None if it was told to stop before its end."""
    settings = TrainSettings(
        steps=steps,
        batch_size=sitting.batch,
        learning_rate=sitting.learning_rate,
        seed=sitting.number,
        warmup_steps=min(500, steps // 10),
        schedule="cosine",
        ema_decay=0.999,
        high_noise=sitting.high_noise,
        dropout=sitting.dropout,
        dtype=machine.dtype,
    )
    state, setup = start(sd, settings)
    prompts = [examples.data.groups.prompts(group)[0].text for group in ("memorized", "control", "unseen", "decoys")]
    folder = out / "unet"
    folder.mkdir(parents=True, exist_ok=True)

    def on_step(step: int, metrics: dict[str, Any], state: Any) -> None:
        if step % 100 == 0:
            print(f"unet  step {step} of {steps}  loss {metrics['loss']:.4f}", flush=True)
        if step % 5000 == 0 or step == steps:
            now = trained(sd, state, setup)
            save_grid(
                folder / f"{step:06d}.png", [now.sample([p] * 4, seeds=range(4), taps=None).images for p in prompts]
            )

    state, finished = train(
        state,
        setup,
        lambda first: batches(examples, sitting.batch, UNET_DATA + sitting.number, first, machine.workers),
        steps=steps,
        out=folder,
        checkpoint_every=1000,
        mesh=jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)),
        callbacks=Callbacks(step=on_step),
    )
    plot_training(out / "unet.png", folder / "metrics.jsonl")
    return trained(sd, state, setup) if finished else None


def first_stages(out: Path, data: DemoData, lengths: Lengths, machine: Machine) -> StableDiffusion:
    """A trained autoencoder and text encoder, and a UNet that has learnt nothing."""
    vocabulary = write_tokenizer(out / "tokenizer", data.groups.vocabulary()["words"])
    tokenizer = Tokenizer(out / "tokenizer", 77)
    examples = Examples(data, tokenizer)
    vae = train_autoencoder(out, examples, lengths.autoencoder, machine)
    text_encoder = train_text_encoder(out, examples, vocabulary, lengths.text, machine)
    return StableDiffusion(
        UNet2DConditionModel(geometry.UNET, rngs=nnx.Rngs(4)), vae, text_encoder, tokenizer, SCHEDULER
    )


class Indices:
    """Of the examples, for grain: what a stage was shown, without drawing it."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"index": np.asarray(index)}


def mean_in_float32(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of two arrays of one dtype, which is also the mean's."""
    return ((a.astype(jnp.float32) + b.astype(jnp.float32)) / 2).astype(a.dtype)


def write_demo(out: Path, data: DemoData, sd: StableDiffusion, average: Path | None, shown: Counter[str]) -> None:
    """What `memattn_jax/demo` holds; `shown` is how often the UNet saw each caption."""
    half = {
        name: jax.tree.map(lambda x: x.astype(jnp.float16), getattr(sd, name))
        for name in ("unet", "vae", "text_encoder")
    }
    if average is not None:
        other = StableDiffusion.from_pretrained(average, dtype="float16").unet
        half["unet"] = jax.tree.map(mean_in_float32, half["unet"], other)
    dataclasses.replace(sd, **half).save_pretrained(out / "demo" / "model")
    write_prompts(data, out / "demo" / "prompts", shown)
    write_fixed(data, out / "demo")
    shutil.copy(Path(__file__).parent / "demo_data" / "NOTICE.md", out / "demo")


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Trains the demo model.")
    parser.add_argument("out", type=Path, help="folder for checkpoints and the model")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument(
        "--steps", type=int, nargs=4, default=Lengths(), metavar=("AUTOENCODER", "TEXT", "UNET", "DECODER")
    )
    parser.add_argument("--start", type=Path, help="go on with the UNet of this diffusers folder, for another sitting")
    parser.add_argument("--average", type=Path, help="write the mean of the trained UNet and of this folder's")
    unet, first = parser.add_argument_group("the UNet's sitting"), Sitting()
    unet.add_argument("--sitting", type=int, default=first.number, help="another number draws other examples and noise")
    unet.add_argument("--batch", type=int, default=first.batch, help="examples of an update")
    unet.add_argument("--learning-rate", type=float, default=first.learning_rate, help="the highest")
    unet.add_argument("--high-noise", type=float, default=first.high_noise, help="share from the noisiest two fifths")
    unet.add_argument("--dropout", type=float, default=first.dropout, help="share without a caption")
    unet.add_argument("--stream", type=float, default=first.stream, help="share with any objects and names")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of autoencoder and UNet in training, whose parameters stay float32; bfloat16 is for GPUs and TPUs",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures, which a GPU waits for")
    options = parser.parse_args(arguments)
    if not 0 <= options.stream < 1:
        parser.error(f"--stream {options.stream}: must be at least 0 and less than 1")
    if options.average is not None and not (options.average / "model_index.json").exists():
        parser.error(f"--average {options.average}: holds no model_index.json; expected a diffusers folder")
    machine = Machine(options.dtype, options.workers)
    sitting = Sitting(
        options.sitting, options.batch, options.learning_rate, options.high_noise, options.dropout, options.stream
    )
    options.out.mkdir(parents=True, exist_ok=True)
    free = ("out", "cache", "steps", "workers", "average")  # may change between calls, or are written in another way
    settings = {name: str(value) for name, value in vars(options).items() if name not in free}
    settings["steps"] = " ".join(map(str, options.steps))
    path = options.out / "settings.json"
    try:
        if path.exists() and json.loads(path.read_text()) != settings:
            raise InputError(
                f"{options.out} holds a run with other settings, {path.read_text()}; choose another folder"
            )
        path.write_text(json.dumps(settings))
        data = DemoData(load_sprites(options.cache), options.seed, with_stream(sitting.stream))
        lengths = Lengths(*options.steps)
        if options.start is not None:
            sd = StableDiffusion.from_pretrained(options.start, dtype="float32")
        else:
            sd = first_stages(options.out, data, lengths, machine)
        examples = Examples(data, sd.tokenizer)
        end = train_unet(options.out, examples, sd, lengths.unet, sitting, machine)
        if end is not None:
            if lengths.decoder:
                end = dataclasses.replace(
                    end, vae=train_decoder(options.out, examples, end.vae, lengths.decoder, machine)
                )
            indices = (batch["index"] for batch in batches(Indices(), sitting.batch, UNET_DATA + sitting.number, 0))
            shown = count_captions(data, indices, lengths.unet)
            if options.start is not None:
                shown += read_counts(options.start.parent / "prompts" / "truth.csv")
            write_demo(options.out, data, end, options.average, shown)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if end is not None:
        print(f"the demo model is in {options.out / 'demo'}")
    else:
        print("stopped; the same command goes on from there")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
