"""Convert a checkpoint to another container, or export its detectors: `memattn convert`.

`memattn convert SRC DST --to diffusers|single-file|orbax` writes a checkpoint, bit for bit unless --dtype asks for
other numbers; LoRAs and embeddings that are given are merged into it, embeddings into folders alone.

--export detector, without SRC and DST, writes one file, by default detector.zip: the first-step detectors from token
ids to scores, compiled to StableHLO, with their weights, tokenizer and thresholds. It runs in Python with JAX and
without this package; docs/serving.md shows how.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from memattn_jax import demo
from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.commands.command import run_command
from memattn_jax.commands.converting import CONTAINERS, check_destination, check_inputs, convert
from memattn_jax.commands.detect_options import Options as DetectOptions
from memattn_jax.commands.model_options import CheckpointOptions
from memattn_jax.commands.options import BY_DEFAULT, flag, local_out, names_of, one_of, some_of
from memattn_jax.commands.scoring import check_schedule, given_calibration, match_calibration
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import DETECTORS, DTYPES, FIRST_STEP, PLATFORMS
from memattn_jax.runs.versions import versions
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.detectors import Scorer
    from memattn_jax.detectors.calibration.calibration import Calibration
    from memattn_jax.detectors.export import Artifact

ALL_FIRST = ", ".join(FIRST_STEP)
EXPORTING = ("out", "detectors", "calibration", "batch_size", "platforms", "seed", "probes", "steps", "site")


@dataclass(frozen=True, kw_only=True)
class Options(CheckpointOptions):
    """Convert a checkpoint to another container; without SRC and DST, export its first-step detectors as one file."""

    src: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SRC", help_behavior_hint="")] = None
    """Checkpoint to convert: whatever --model takes."""
    dst: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DST", help_behavior_hint="")] = None
    """File or folder to write it to."""
    to: Annotated[str, one_of(*CONTAINERS)] = "diffusers"
    """Container of DST: diffusers is a folder that PyTorch loads, single-file the layout of CompVis and Stability AI in
    safetensors, orbax a folder that JAX restores straight to its devices."""
    export: Literal["detector"] = "detector"
    """What to export; detector is the only kind so far."""
    out: Path = Path("detector.zip")
    """File to write."""
    overwrite: bool = False
    """Replace an existing file or folder."""
    dtype: Annotated[str | None, BY_DEFAULT, one_of(*DTYPES)] = None
    """Data type of weights and computation. Default: what detect uses on this machine; of DST, that of each tensor."""
    detectors: Annotated[str, some_of("First-step detectors to export, separated by commas", FIRST_STEP)] = (
        "entropy_e,noise_norm"
    )
    calibration: Annotated[Path | None, BY_DEFAULT] = None
    """Calibration file from `detect --calibrate`; its thresholds and settings are exported too. Default: the built-in
    model's own."""
    batch_size: int = 16
    """Batch size of the exported program, which takes any number of prompts and pads the last batch."""
    platforms: Annotated[str | None, BY_DEFAULT] = None
    """Platforms to compile for, separated by commas: cpu, cuda, rocm, tpu. Default: this machine's."""
    seed: Annotated[int | None, BY_DEFAULT] = None
    """Random seed for the probe noise. Default: the calibration's, or 0."""
    probes: Annotated[int | None, BY_DEFAULT] = None
    """Number of noise samples to average scores over. Default: the calibration's, or 1."""
    steps: Annotated[int | None, BY_DEFAULT] = None
    """Number of sampling steps, of which the first is computed. Default: the calibration's, or 50."""
    site: Annotated[str | None, BY_DEFAULT] = None
    """Cross-attention layer that entropy_e reads. Default: the calibration's, else the one that the checkpoint names,
    else the fourth, as in the paper."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        local_out(self, "out" if self.src is None else "dst")
        if self.src is not None:
            self.check_conversion()
            return
        if self.changed("to"):
            raise InputError(f"--to {self.to} converts a checkpoint: memattn convert SRC DST --to {self.to}")
        for name in self.detectors.split(","):  # a detector that exists but needs more than the first step
            if name in DETECTORS and name not in FIRST_STEP:
                raise InputError(f"--detectors {name}: only first-step detectors can be exported: {ALL_FIRST}")
        for platform in () if self.platforms is None else self.platforms.split(","):
            check_name("platform", platform, PLATFORMS, "--platforms")
        detect_options(self, names_of(self.detectors, FIRST_STEP, "--detectors", "detector")).check()
        check_out(self.out, self.overwrite)

    def changed(self, *names: str) -> list[str]:
        """Those of these options that are not at their defaults."""
        return [own.name for own in fields(self) if own.name in names and getattr(self, own.name) != own.default]

    def check_conversion(self) -> None:
        """The same for a checkpoint that is to be converted."""
        check_name("container", self.to, CONTAINERS, "--to")
        if self.dtype is not None:
            check_name("dtype", self.dtype, DTYPES, "--dtype")
        if self.dst is None:
            raise InputError(f"DST is missing: memattn convert {printable(self.src or '', 60)} DST --to {self.to}")
        if self.model is not None:
            raise InputError("--model is for exporting detectors; the model to convert is SRC")
        if others := self.changed(*EXPORTING):
            raise InputError(f"{flag(others[0])} is for exporting detectors, without SRC and DST")
        if self.to == "single-file" and self.embedding:
            raise InputError("--embedding: an embedding's token has no place in a single file; use --to diffusers")
        replace(self, model=self.src).check_checkpoint()
        check_destination(self.dst, self.to, self.overwrite)
        check_inputs(self.src or "", Source(**self.source), self.dst)


def check_out(path: Path, overwrite: bool) -> None:
    """Raises InputError or OSError where the file cannot be written, before any work is done."""
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"--out {path}: already exists; choose another file or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.with_name(f".{path.name}.partial")
    probe.touch()
    probe.unlink()


def detect_options(options: Options, names: tuple[str, ...]) -> DetectOptions:
    """The options with which `detect` computes the same scores."""
    same = ("model", "dtype", "calibration", "seed", "probes", "steps", "site")
    given = {name: getattr(options, name) for name in same} | options.given
    return DetectOptions(prompt=("",), detectors=",".join(names), explain=False, batch_size=options.batch_size, **given)


def metadata(
    scorer: "Scorer", artifact: "Artifact", calibration: "Calibration | None", options: Options
) -> dict[str, Any]:
    """Content of the archive's metadata.json."""
    joint = None if calibration is None else calibration.joint(scorer.detectors)
    limits = {} if calibration is None or joint is None else joint.thresholds(calibration.fpr)
    return {
        "detectors": list(scorer.detectors),
        "thresholds": limits,
        "fpr": None if calibration is None else calibration.fpr,
        "tokens": scorer.model.tokenizer.tokens,
        "batch_size": options.batch_size,
        "platforms": list(artifact.platforms),
        "settings": {
            "seed": scorer.seed,
            "probes": scorer.probes,
            "steps": scorer.steps,
            "site": scorer.read_site,
            "dtype": scorer.model.dtype,
        },
        "flops_per_prompt": artifact.flops,
        "model": options.model_name,
        "fingerprint": scorer.model.fingerprint(),
        "versions": versions(),
    }


def print_summary(options: Options, scorer: "Scorer", artifact: "Artifact", about: dict[str, Any]) -> None:
    """Prints what was written and what was left out."""
    import jax

    sd = scorer.model
    all_weights = [leaf for part in (sd.unet, sd.vae, sd.text_encoder) for leaf in jax.tree.leaves(part)]
    kept, whole = (sum(array.nbytes for array in arrays) for arrays in (artifact.arrays.values(), all_weights))
    print(
        f"{options.out}: {options.out.stat().st_size:,} bytes: the program, {len(artifact.program):,} bytes, and "
        f"{len(artifact.arrays)} arrays, {kept:,} bytes; the checkpoint has {len(all_weights)} arrays, {whole:,} bytes "
        f"in {sd.dtype}"
    )
    print(
        f"{', '.join(about['detectors'])} on {', '.join(about['platforms'])}: any number of prompts, "
        f"in batches of {options.batch_size}, {artifact.flops / 1e9:.4g} GFLOP per prompt"
    )
    limits = ", ".join(f"{name} {value:.4f}" for name, value in about["thresholds"].items())
    print(f"thresholds: {limits or 'none; fit them with `detect --calibrate` and pass the file as --calibration'}")
    print("docs/serving.md has the program that runs it; it needs only jax, flatbuffers and transformers")


def main(options: Options) -> None:
    """Converts the checkpoint, or exports the detectors."""
    if options.src is not None and options.dst is not None:
        print(convert(options.src, Source(**options.source), options.dst, options.to, options.dtype))
    else:
        export_detectors(options)


def export_detectors(options: Options) -> None:
    """Writes the first-step detectors of a model as one file."""
    from memattn_jax.detectors import export
    from memattn_jax.pipeline import StableDiffusion

    names = names_of(options.detectors, FIRST_STEP, "--detectors", "detector")
    platforms = () if options.platforms is None else tuple(options.platforms.split(","))
    export.check_platforms(platforms)
    export.check_serializer()
    asked = detect_options(options, names)
    given = given_calibration(asked)
    check_schedule(asked, given)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), dtype=asked.model_dtype, **options.source)
    export.check_tokenizer(sd.tokenizer)
    scorer, calibration = match_calibration(sd, asked, given)
    joint = None if calibration is None else calibration.joint(names)
    if calibration is not None and joint is not None and not joint.resolves(calibration.fpr):
        raise InputError(
            f"the calibration has too few clean prompts for thresholds at a rate of {calibration.fpr:g}; "
            "create one with more, or with a larger --fpr"
        )
    artifact = export.export_detector(scorer, options.batch_size, platforms)
    about = metadata(scorer, artifact, calibration, options)
    export.write_artifact(options.out, artifact, about, sd.tokenizer)
    print_summary(options, scorer, artifact, about)


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn convert`; for `alone` see `run_command`."""
    run_command("convert", Options, main, alone=alone)
