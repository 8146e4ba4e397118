"""Turn a checkpoint into what other programs run: `python -m memattn_jax.convert`.

--export detector writes one file, by default detector.zip: the first-step detectors from token ids to scores, lowered
ahead of time, with their weights, tokenizer and thresholds. Python with JAX alone runs it; the README's "Serve a
detector" has the program.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memattn_jax import demo, detect
from memattn_jax.commands import run_command, versions
from memattn_jax.errors import InputError

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.detectors import Scorer
    from memattn_jax.export import Artifact


@dataclass(frozen=True, kw_only=True)
class Options:
    """Export detectors as one file that runs without this package."""

    export: Literal["detector"] = "detector"
    """What to write; there is one kind."""
    out: Path = Path("detector.zip")
    """File to write."""
    overwrite: bool = False
    """Replace a file that is there."""
    model: str | None = None
    """Checkpoint of Stable Diffusion 1.x or 2.x: a diffusers folder with safetensors, or owner/name on the hub; by
    default the built-in demo model."""
    dtype: str | None = None
    """float32, bfloat16 or float16; by default as detect has it on this machine."""
    detectors: str = "entropy_e,noise_norm"
    """Names with commas between, or all; those that see the first step alone."""
    calibration: Path | None = None
    """Thresholds and settings to bring along, from detect --calibrate; the built-in model has its own."""
    batch_size: int = 16
    """Prompts that the program computes at once; it takes any number, and fills up the last batch."""
    platforms: str | None = None
    """Where it will run: cpu, cuda, rocm, tpu, with commas between; by default this machine's."""
    seed: int | None = None
    """Of the noise that prompts are seen through; by default the calibration's, or 0."""
    probes: int | None = None
    """Noises to average over; by default the calibration's, or 1."""
    steps: int | None = None
    """Sampling steps, whose first is looked at; by default the calibration's, or 50."""
    site: str | None = None
    """Cross-attention layer that entropy_e reads; by default the calibration's, or the paper's, the fourth."""


def check_out(path: Path, overwrite: bool) -> None:
    """Raises InputError or OSError where the file cannot be written, before any work is done."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; --out names a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another --out, or --overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.with_name(f".{path.name}.partial")
    probe.touch()
    probe.unlink()


def detect_options(options: Options, names: tuple[str, ...]) -> detect.Options:
    """What `detect` would be called with for the same scores."""
    same = ("model", "dtype", "calibration", "seed", "probes", "steps", "site")
    return detect.Options(detectors=",".join(names), explain=False, **{name: getattr(options, name) for name in same})


def metadata(
    scorer: "Scorer", artifact: "Artifact", calibration: "Calibration | None", options: Options
) -> dict[str, Any]:
    """What the archive's metadata.json says."""
    from memattn_jax.calibration import fingerprint
    from memattn_jax.detectors.scorer import entropy_site

    limits = {} if calibration is None else calibration.thresholds
    return {
        "detectors": list(scorer.detectors),
        "thresholds": {name: limits[name].value for name in scorer.detectors if name in limits},
        "fpr": None if calibration is None else calibration.fpr,
        "tokens": scorer.sd.tokenizer.tokens,
        "batch_size": options.batch_size,
        "platforms": list(artifact.platforms),
        "settings": {
            "seed": scorer.seed,
            "probes": scorer.probes,
            "steps": scorer.steps,
            "site": entropy_site(scorer.sd.unet.sites, scorer.site),
            "dtype": scorer.sd.dtype,
        },
        "flops_per_prompt": artifact.flops,
        "model": options.model or "built-in",
        "fingerprint": fingerprint(scorer.sd),
        "versions": versions(),
    }


def tell(options: Options, scorer: "Scorer", artifact: "Artifact", about: dict[str, Any]) -> None:
    """Prints what was written and what was left out."""
    import jax

    sd = scorer.sd
    all_weights = [leaf for part in (sd.unet, sd.vae, sd.text_encoder) for leaf in jax.tree.leaves(part)]
    kept, whole = (sum(array.nbytes for array in arrays) for arrays in (artifact.arrays.values(), all_weights))
    print(
        f"{options.out}: {options.out.stat().st_size:,} bytes, of them program {len(artifact.program):,} and "
        f"{len(artifact.arrays)} arrays {kept:,}; the checkpoint has {len(all_weights)}, {whole:,} bytes in {sd.dtype}"
    )
    print(
        f"{', '.join(about['detectors'])} on {', '.join(about['platforms'])}: any number of prompts, "
        f"{options.batch_size} at once, {artifact.flops / 1e9:.4g} GFLOP a prompt"
    )
    limits = ", ".join(f"{name} {value:.4f}" for name, value in about["thresholds"].items())
    print(f"thresholds: {limits or 'none; fit them with detect --calibrate, and give --calibration'}")
    print('the README\'s "Serve a detector" has the program that runs it, with jax, flatbuffers and transformers alone')


def main(options: Options) -> None:
    """Exports what was asked for."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}: at least 1 is needed")
    check_out(options.out, options.overwrite)
    from memattn_jax import export
    from memattn_jax.pipeline import StableDiffusion

    names = export.FIRST_STEP if options.detectors == "all" else tuple(options.detectors.split(","))
    platforms = () if options.platforms is None else tuple(options.platforms.split(","))
    export.check_exportable(names)
    export.check_platforms(platforms)
    export.check_serializer()
    asked = detect_options(options, names)
    given = detect.given_calibration(asked)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), dtype=asked.model_dtype)
    scorer = detect.make_scorer(sd, asked, given)
    calibration = detect.checked(scorer, asked, given)
    artifact = export.export_detector(scorer, options.batch_size, platforms)
    about = metadata(scorer, artifact, calibration, options)
    export.write_artifact(options.out, artifact, about, sd.tokenizer)
    tell(options, scorer, artifact, about)


if __name__ == "__main__":
    run_command("convert", Options, main)
