"""Fine-tune a checkpoint, with or without the memorization gate: `memattn finetune`.

Writes to --out: settings.json; metrics.jsonl, one line per step; checkpoints/; training.png, a plot of the loss and the
gate's scores; samples/, grids of images at intervals; and at the end model/, a diffusers folder in float32. An
interrupted run resumes when the same command is run again.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from memattn_jax import demo
from memattn_jax.commands.command import run_command
from memattn_jax.commands.model_options import CheckpointOptions
from memattn_jax.commands.options import BY_DEFAULT, at_least, files, installed, local_out, texts
from memattn_jax.errors import InputError
from memattn_jax.sharding.mesh import mesh_sizes
from memattn_jax.text import counted, printable
from memattn_jax.training.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.training.data import Checked
    from memattn_jax.training.gate import Thresholds
    from memattn_jax.training.step import Setup, TrainState

REFERENCE_PASSES = 8  # how often each held-out pair is scored, each time at another timestep and with other noise


@dataclass(frozen=True, kw_only=True)
class Options(CheckpointOptions):
    """Fine-tune Stable Diffusion on images with captions, optionally leaving out of the loss what looks memorized."""

    data: Path
    """Training data: a folder of images with metadata.jsonl ({"file_name": …, "text": …} per line), metadata.csv or
    metadata.parquet; or a .parquet file with columns image and text. Unusable pairs are skipped and listed before
    training starts."""
    gate_reference: Annotated[Path | None, BY_DEFAULT] = None
    """Held-out clean pairs, in the formats of --data, to fit the gate's thresholds on. Default: thresholds follow the
    most recent scores of the training itself."""
    out: Path = Path("out/finetune")
    """Output folder."""
    checkpoint_every: int = 500
    """Number of steps between checkpoints."""
    mesh: Annotated[str | None, BY_DEFAULT] = None
    """Device mesh, for example data=4,model=2. Default: all devices on data if they divide the micro-batch, else one
    device."""
    sample_every: int = 0
    """Number of steps between grids of sample images; 0 turns them off."""
    sample_prompts: Annotated[tuple[str, ...], BY_DEFAULT] = ()
    """Prompts of the sample images, each quoted."""
    settings: Annotated[TrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainSettings)
    """Training settings."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        self.settings.check()
        at_least(self, 1, "checkpoint_every")
        at_least(self, 0, "sample_every")
        files(self, "data", "gate_reference")
        local_out(self)
        if self.mesh is not None:
            mesh_sizes(self.mesh)
        self.check_checkpoint(height=self.settings.height, width=self.settings.width)
        texts(self, "sample_prompts")
        if bool(self.sample_every) != bool(self.sample_prompts):
            given, lacking = ("every N", "prompts") if self.sample_every else ("prompts", "every N")
            raise InputError(f"--sample-{given} needs --sample-{lacking}")
        if self.gate_reference is not None and self.settings.gate in ("none", "random"):
            raise InputError("--gate-reference needs a gate: add --gate loss, entropy or noise_norm")
        installed("train", "optax", "orbax", "grain")


class Data:
    """Batches of the pairs that passed the checks."""

    def __init__(self, sd: "StableDiffusion", checked: "Checked", settings: TrainSettings):
        from memattn_jax.training.data import Examples

        scale, size = sd.vae.config.scale, sd.unet.config.sample_size
        trained = size if isinstance(size, tuple) else (size or 0, size or 0)
        height, width = settings.height or trained[0] * scale, settings.width or trained[1] * scale
        if not height or not width:
            raise InputError("the model's config has no sample_size; set --height and --width")
        if height % scale or width % scale:
            raise InputError(f"--height and --width must be multiples of {scale}, not {height} x {width}")
        captions = sorted(checked.captions)
        ids = dict(
            zip(captions, sd.tokenizer(captions).input_ids, strict=True)
        )  # warns once about captions that are cut
        self.examples = Examples(checked.pairs, checked.indices, ids.__getitem__, height, width)
        self.settings = settings

    def batches(self, start: int) -> Iterator[dict[str, "np.ndarray"]]:
        """Batches from number `start` on, endlessly."""
        from memattn_jax.training.data import batches

        return batches(self.examples, self.settings.batch_size, self.settings.seed, start)


def say(line: str) -> None:
    """Prints a line immediately, with control characters escaped."""
    print(printable(line), flush=True)


def read_pairs(path: Path) -> "Checked":
    """Reads and checks all pairs; prints which are skipped and why."""
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
        say(f"pairs with an empty caption: {checked.empty}; they train the unconditional branch and are never gated")
    return checked


def fitted_gate(sd: "StableDiffusion", settings: TrainSettings, reference: "Checked | None") -> "Thresholds | None":
    """Thresholds fitted on the held-out pairs, or None without such pairs."""
    if reference is None:
        return None
    from memattn_jax.training.start import fit_gate

    say(f"fitting the gate on {counted(len(reference.indices), 'held-out pair')}, each scored {REFERENCE_PASSES} times")
    held_out = Data(sd, reference, settings)
    count = -(-len(held_out.examples) * REFERENCE_PASSES // settings.batch_size)
    gate = fit_gate(sd, settings, itertools.islice(held_out.batches(0), count))
    if open_bins := sum(value == float("inf") for value in gate.values.tolist()):
        say(f"timestep bins without held-out pairs, in which nothing is gated: {open_bins} of {settings.gate_bins}")
    return gate


def training_mesh(options: Options) -> "Mesh | None":
    """The mesh of --mesh, else one of all devices; None where these do not divide a micro-batch."""
    from memattn_jax.sharding.placement import make_mesh

    mesh = make_mesh(options.mesh)
    rows = options.settings.batch_size // options.settings.accumulation
    if mesh is None or rows % mesh.shape["data"] == 0:
        return mesh
    if options.mesh is not None:
        raise InputError(f"--mesh {options.mesh}: a micro-batch of {rows} does not divide into {mesh.shape['data']}")
    return None


def draw_samples(sd: "StableDiffusion", state: "TrainState", setup: "Setup", options: Options) -> None:
    """Saves a grid of images from the current model: one row per prompt, four seeds each."""
    from memattn_jax.report.plots import save_grid
    from memattn_jax.training.start import trained

    now, own = trained(sd, state, setup), options.settings
    size = {"height": own.height, "width": own.width}
    rows = [now.sample([prompt] * 4, seeds=range(4), taps=None, **size).images for prompt in options.sample_prompts]
    folder = options.out / "samples"
    folder.mkdir(exist_ok=True)
    save_grid(folder / f"{int(state.step):06d}.png", rows)


def plan(options: Options, pairs: int, mesh: "Mesh | None") -> str:
    """One line about the training run."""
    settings = options.settings
    gate = "no gate" if settings.gate == "none" else f"the {settings.gate} gate at quantile {settings.gate_quantile:g}"
    if settings.gate == "loss" and options.gate_reference is None:
        gate = f"the loss gate at a margin of {settings.gate_margin:g}"
    devices = "" if mesh is None else f" on {mesh.size} devices"
    return (
        f"{counted(settings.steps, 'step')} of batch size {settings.batch_size}{devices}, each pair seen about "
        f"{settings.steps * settings.batch_size / pairs:.3g} times, learning rate {settings.learning_rate:g}, {gate}; "
        f"computed in {settings.dtype}, parameters in float32"
    )


def main(options: Options) -> None:
    """Trains and writes the model; after Ctrl-C, says which checkpoint is kept."""
    from memattn_jax.training.loop import last_checkpoint

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about images that it reads all the same
            run(options)
    except KeyboardInterrupt:
        step = last_checkpoint(options.out)
        kept = "nothing is kept" if step is None else f"the checkpoint of step {step} is kept in {options.out}"
        raise KeyboardInterrupt(f"{kept}; the same command {'starts over' if step is None else 'resumes'}") from None


def run(options: Options) -> None:
    """Trains and writes the model."""
    options.check()
    settings = options.settings
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.plots import plot_training
    from memattn_jax.training.loop import Callbacks, check_settings, train
    from memattn_jax.training.progress import Counter
    from memattn_jax.training.start import prepare, start, trained

    mesh = training_mesh(options)
    model = demo.locate(options.model)
    # float32 whatever the device, and whatever training computes in: see TrainState
    sd = StableDiffusion.from_pretrained(model, dtype="float32", mesh=mesh, **options.source)
    prepare(sd, settings)  # so that a model that cannot be trained is refused before all pairs are read
    checked = read_pairs(options.data)
    reference = None if options.gate_reference is None else read_pairs(options.gate_reference)
    data = Data(sd, checked, settings)
    options.out.mkdir(parents=True, exist_ok=True)
    inputs = {
        "model": sd.fingerprint(pictures=True),
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
            say("compiling the training step; this can take minutes at full model size")
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
        say(f"{counted(settings.steps, 'step')}; the model is in {options.out / 'model'}")
    else:
        say(f"stopped after step {int(state.step)} of {settings.steps}, which is saved; the same command resumes there")


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn finetune`; for `alone` see `run_command`."""
    run_command("finetune", Options, main, alone=alone)
