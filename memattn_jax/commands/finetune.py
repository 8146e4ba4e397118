"""Fine-tune a checkpoint, with or without the memorization gate: `memattn finetune`.

Writes into --out: settings.json, metrics.jsonl with a line a step, checkpoints/, training.png with the loss and the
gate's scores, samples/ with a grid of pictures every so often, and in the end model/, a diffusers folder in float32.
The same command again resumes where it stopped.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from memattn_jax import demo
from memattn_jax.checkpoints import hub
from memattn_jax.checkpoints.folder import Geometry
from memattn_jax.commands.command import run_command
from memattn_jax.commands.options import at_least, files
from memattn_jax.errors import InputError
from memattn_jax.sharding.mesh import mesh_sizes
from memattn_jax.text import printable
from memattn_jax.training.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.training.data import Checked
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
    """Folder with pictures and metadata.jsonl ({"file_name": …, "text": …} a line), metadata.csv or metadata.parquet;
    or a .parquet file with image and text. Pairs that cannot be used are skipped, and listed before training starts."""
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
        at_least(self, 1, "checkpoint_every")
        at_least(self, 0, "sample_every")
        files(self, "data", "gate_reference")
        if self.mesh is not None:
            mesh_sizes(self.mesh)
        if self.model is None or hub.is_folder(self.model):
            geometry = Geometry.read(Path(self.model or demo.MODEL))
            geometry.check(steps=None, site=None, height=self.settings.height, width=self.settings.width)
        if self.sample_every and not self.sample_prompts:
            raise InputError("--sample-every needs --sample-prompts, the prompts of the grids")
        if self.gate_reference is not None and self.settings.gate == "none":
            raise InputError("--gate-reference needs a gate: add --gate entropy or --gate noise_norm")


class Data:
    """Pairs that were checked, as batches."""

    def __init__(self, sd: "StableDiffusion", checked: "Checked", settings: TrainSettings):
        from memattn_jax.training.data import Examples

        scale, size = sd.vae.config.scale, sd.unet.config.sample_size
        trained = size if isinstance(size, tuple) else (size or 0, size or 0)
        height, width = settings.height or trained[0] * scale, settings.width or trained[1] * scale
        if not height or not width:
            raise InputError("the model names no sample_size; give --height and --width")
        if height % scale or width % scale:
            raise InputError(f"{height} x {width} pixels: multiples of {scale} are needed")
        captions = sorted(checked.captions)
        ids = dict(zip(captions, sd.tokenizer(captions).input_ids, strict=True))  # warns once of those that are cut
        self.examples = Examples(checked.pairs, checked.indices, ids.__getitem__, height, width)
        self.settings = settings

    def batches(self, start: int) -> Iterator[dict[str, "np.ndarray"]]:
        """Batches from number `start` on, without end."""
        from memattn_jax.training.data import batches

        return batches(self.examples, self.settings.batch_size, self.settings.seed, start)


def say(line: str) -> None:
    """Prints a line at once; a path or a name in it cannot steer the terminal."""
    print(printable(line), flush=True)


def read_pairs(path: Path) -> "Checked":
    """Reads all pairs, and says what is skipped and why."""
    from memattn_jax.training.data import check, open_pairs
    from memattn_jax.training.progress import Counter

    pairs = open_pairs(path)
    say(f"reading the pairs of {path}: {len(pairs)}")
    counter = Counter("reading", "pair", len(pairs))
    try:
        checked = check(pairs, counter.at)
    finally:
        counter.close()
    say(f"usable pairs: {len(checked.indices)}; skipped: {len(checked.skipped)}")
    for line in checked.skipped.lines():
        say(f"  {line}")
    if checked.empty:
        say(f"pairs with an empty caption, trained as dropped captions are and never gated: {checked.empty}")
    return checked


def fitted_gate(sd: "StableDiffusion", settings: TrainSettings, reference: "Checked | None") -> "Thresholds | None":
    """Thresholds from the held-out pairs, if there are any."""
    if reference is None:
        return None
    from memattn_jax.training.start import fit_gate

    say(f"fitting the gate on {len(reference.indices)} held-out pairs, {REFERENCE_PASSES} times each")
    held_out = Data(sd, reference, settings)
    count = -(-len(held_out.examples) * REFERENCE_PASSES // settings.batch_size)
    gate = fit_gate(sd, settings, itertools.islice(held_out.batches(0), count))
    if open_bins := sum(value == float("inf") for value in gate.values.tolist()):
        say(f"timestep bins without a held-out pair, which gate nothing: {open_bins} of {settings.gate_bins}")
    return gate


def training_mesh(options: Options) -> "Mesh | None":
    """The mesh that --mesh names, else of all devices, or of none where a micro-batch does not divide among them."""
    from memattn_jax.sharding.placement import make_mesh

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


def plan(options: Options, pairs: int, mesh: "Mesh | None") -> str:
    """What is trained, in a line."""
    settings = options.settings
    gate = "no gate" if settings.gate == "none" else f"the {settings.gate} gate at quantile {settings.gate_quantile:g}"
    devices = "" if mesh is None else f" on {mesh.size} devices"
    return (
        f"{settings.steps} steps of batch size {settings.batch_size}{devices}, each pair about "
        f"{settings.steps * settings.batch_size / pairs:.3g} times, learning rate {settings.learning_rate:g}, {gate}; "
        f"computed in {settings.dtype}, parameters in float32"
    )


def main(options: Options) -> None:
    """Trains, and writes the model in the end; Ctrl-C is told what is kept."""
    from memattn_jax.training.loop import last_checkpoint

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that it reads all the same
            run(options)
    except KeyboardInterrupt:
        step = last_checkpoint(options.out)
        kept = "nothing is kept" if step is None else f"the checkpoint of step {step} is kept in {options.out}"
        raise KeyboardInterrupt(f"{kept}; the same command {'starts over' if step is None else 'resumes'}") from None


def run(options: Options) -> None:
    """The same, without a word about Ctrl-C."""
    options.check()
    settings = options.settings
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.plots import plot_training
    from memattn_jax.training.loop import Callbacks, check_settings, train
    from memattn_jax.training.progress import Counter
    from memattn_jax.training.start import start, trained

    mesh = training_mesh(options)
    model = demo.locate(options.model)
    checked = read_pairs(options.data)
    reference = None if options.gate_reference is None else read_pairs(options.gate_reference)
    # float32 whatever the device, and whatever training computes in: see TrainState
    sd = StableDiffusion.from_pretrained(model, dtype="float32", mesh=mesh)
    data = Data(sd, checked, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    inputs = {
        "model": options.model or "built-in",
        "data": checked.identity,
        "gate_reference": "none" if reference is None else reference.identity,
    }
    check_settings(options.out, settings, inputs)
    state, setup = start(sd, settings, fitted_gate(sd, settings, reference))
    say(plan(options, len(checked.indices), mesh))
    counter: Counter | None = None

    def on_start(first: int) -> None:
        nonlocal counter
        if first:
            say(f"resuming after step {first} of {settings.steps}, from {options.out / 'checkpoints'}")
        if first < settings.steps:
            say("compiling the training step, which takes up to some minutes for a Stable Diffusion")
        counter = Counter("training", "step", settings.steps, first)

    def on_step(step: int, metrics: dict[str, Any], state: "TrainState") -> None:
        assert counter is not None
        counter.at(step, loss=metrics["loss"], kept=metrics["kept"])
        if options.sample_every and step % options.sample_every == 0:
            draw_samples(sd, state, setup, options)

    try:
        state, finished = train(
            state,
            setup,
            data.batches,
            steps=settings.steps,
            out=options.out,
            checkpoint_every=options.checkpoint_every,
            mesh=mesh,
            callbacks=Callbacks(on_start, on_step),
        )
    finally:
        if counter is not None:
            counter.close()
    plot_training(options.out / "training.png", options.out / "metrics.jsonl")
    say(f"checkpoints, metrics.jsonl and training.png are in {options.out}")
    if finished:
        trained(sd, state, setup).save_pretrained(options.out / "model")
        say(f"{settings.steps} steps; the model is in {options.out / 'model'}")
    else:
        say(f"stopped after step {int(state.step)} of {settings.steps}, which is saved; the same command resumes there")


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn finetune`; for `alone` see `run_command`."""
    run_command("finetune", Options, main, alone=alone)
