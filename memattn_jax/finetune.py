"""Fine-tune a checkpoint, with or without the memorization gate: `python -m memattn_jax.finetune`.

Writes into --out: settings.json, metrics.jsonl with a line a step, checkpoints/, training.png with the loss and the
gate's scores, samples/ with a grid of pictures every so often, and in the end model/, a diffusers folder. The same
command again goes on where it stopped.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from memattn_jax import demo
from memattn_jax.commands import run_command
from memattn_jax.errors import InputError
from memattn_jax.options import file
from memattn_jax.training.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.training.gate import Thresholds
    from memattn_jax.training.step import Setup, TrainState

REFERENCE_PASSES = 8  # times that each held-out pair is scored, at other timesteps and noise


@dataclass(frozen=True, kw_only=True)
class Options:
    """Fine-tune Stable Diffusion on pictures and captions, keeping what looks memorized out of the loss."""

    model: str | None = None
    """Checkpoint to start from: a diffusers folder of Stable Diffusion 1.x or 2.x, or owner/name on the hub; by default
    the built-in demo model."""
    data: Path
    """Folder with pictures and metadata.jsonl ({"file_name": …, "text": …} a line), or .parquet with image and text."""
    gate_reference: Path | None = None
    """Held-out clean pairs, as --data, to fit the gate's thresholds on; else it runs on the scores seen last."""
    out: Path = Path("out/finetune")
    """Output folder."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    mesh: str | None = None
    """Devices, as data=4,model=2; by default all on data, if a micro-batch divides among them."""
    sample_every: int = 0
    """Steps between grids of pictures; 0 draws none."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the grids."""
    settings: Annotated[TrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainSettings)
    """The run."""

    def check(self) -> None:
        """Raises InputError or OSError for options that cannot be, without importing JAX."""
        self.settings.check()
        file("--data", self.data)
        file("--gate-reference", self.gate_reference)


class Data:
    """Readable pairs of a source as batches."""

    def __init__(self, sd: "StableDiffusion", path: Path, settings: TrainSettings):
        from memattn_jax.training.data import Examples, open_pairs, readable

        scale, size = sd.vae.config.scale, sd.unet.config.sample_size
        trained = size if isinstance(size, tuple) else (size or 0, size or 0)
        height, width = settings.height or trained[0] * scale, settings.width or trained[1] * scale
        if not height or not width:
            raise InputError("the model names no sample_size; give --height and --width")
        if height % scale or width % scale:
            raise InputError(f"{height} x {width} pixels: multiples of {scale} are needed")
        pairs = open_pairs(path)

        def tokenize(text: str) -> "np.ndarray":
            return sd.tokenizer([text]).input_ids[0]

        self.examples = Examples(pairs, readable(pairs), tokenize, height, width)
        self.settings = settings

    def batches(self, start: int) -> Iterator[dict[str, "np.ndarray"]]:
        """Batches from number `start` on, without end."""
        from memattn_jax.training.data import batches

        return batches(self.examples, self.settings.batch_size, self.settings.seed, start)


def fitted_gate(sd: "StableDiffusion", options: Options) -> "Thresholds | None":
    """Thresholds from the held-out pairs, if there are any."""
    if options.settings.gate == "none" or options.gate_reference is None:
        return None
    from memattn_jax.training.start import fit_gate

    held_out = Data(sd, options.gate_reference, options.settings)
    count = -(-len(held_out.examples) * REFERENCE_PASSES // options.settings.batch_size)
    return fit_gate(sd, options.settings, itertools.islice(held_out.batches(0), count))


def training_mesh(options: Options) -> "Mesh | None":
    """The mesh that --mesh names, else of all devices, or of none where a micro-batch does not divide among them."""
    from memattn_jax.parallel import make_mesh

    mesh = make_mesh(options.mesh)
    rows = options.settings.batch_size // options.settings.accumulation
    if mesh is None or rows % mesh.shape["data"] == 0:
        return mesh
    if options.mesh is not None:
        raise InputError(f"--mesh {options.mesh}: {rows} rows of a micro-batch do not divide into {mesh.shape['data']}")
    return None


def draw_samples(sd: "StableDiffusion", state: "TrainState", setup: "Setup", options: Options) -> None:
    """A grid of pictures of the model as it is, a row of four seeds for each prompt."""
    from memattn_jax.report.plots import save_grid
    from memattn_jax.training.start import trained

    now = trained(sd, state, setup)
    rows = [now.sample([prompt] * 4, seeds=range(4), taps=None).images for prompt in options.sample_prompts]
    folder = options.out / "samples"
    folder.mkdir(exist_ok=True)
    save_grid(folder / f"{int(state.step):06d}.png", rows)


def main(options: Options) -> None:
    """Trains, and writes the model in the end."""
    settings = options.settings
    from tqdm import tqdm

    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.plots import plot_training
    from memattn_jax.training.loop import check_settings, train
    from memattn_jax.training.start import start, trained

    mesh = training_mesh(options)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), mesh=mesh)
    data = Data(sd, options.data, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    inputs = {
        "model": options.model or "built-in",
        "data": str(options.data),
        "gate_reference": str(options.gate_reference),
    }
    check_settings(options.out, settings, inputs)
    state, setup = start(sd, settings, fitted_gate(sd, options))
    with tqdm(total=settings.steps, unit="step", disable=None) as bar:

        def on_step(step: int, metrics: dict[str, Any], state: "TrainState") -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", kept=f"{metrics['kept']:.2f}")
            if bar.disable and (step % 100 == 0 or step == settings.steps):
                print(f"step {step}  loss {metrics['loss']:.4f}  kept {metrics['kept']:.2f}", flush=True)
            if options.sample_every and step % options.sample_every == 0:
                draw_samples(sd, state, setup, options)

        state, finished = train(
            state,
            setup,
            data.batches,
            steps=settings.steps,
            out=options.out,
            checkpoint_every=options.checkpoint_every,
            mesh=mesh,
            on_step=on_step,
        )
    plot_training(options.out / "training.png", options.out / "metrics.jsonl")
    if finished:
        trained(sd, state, setup).save_pretrained(options.out / "model")
        print(f"{settings.steps} steps; the model is in {options.out / 'model'}")
    else:
        print(f"stopped after step {int(state.step)} of {settings.steps}; the same command goes on from there")


if __name__ == "__main__":
    run_command("finetune", Options, main)
