"""`memattn audit --verify`: whether a finished audit still holds, and whether the model gives the same rows again."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memattn_jax import demo
from memattn_jax.audit.verifying import check_folder
from memattn_jax.commands.audit_options import Options
from memattn_jax.errors import InputError
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion

SCORES = 1e-3  # relative difference of a score that another device or version may bring
PIXELS = 1.0  # mean absolute difference of an image, of 255


def verify(options: Options) -> None:
    """Checks files, schema and what follows from the lines, and then some rows by the model; prints what holds.

    Raises:
      InputError: names the first file or row that does not hold.
    """
    folder = options.verify
    assert folder is not None
    audit, items = check_folder(folder)
    print(f"{counted(len(audit['files']) + 1, 'file')} as recorded in audit.json and its digest")
    print(f"audit.json and {counted(len(items), 'line')} of items.jsonl fit {audit['schema']}")
    rates = len(audit["rates"]) + len((audit["mitigation"] or {"rates": ()})["rates"])
    print(f"{counted(rates, 'rate')}, the counts and the verdict follow from items.jsonl")
    if options.rows == 0 or not items:
        return
    sd = load_again(options, audit["model"])
    chosen = random.Random().sample(items, min(options.rows, len(items)))
    check_scores(sd, folder, audit, chosen)
    print(f"{counted(len(chosen), 'row')} scored again: within {SCORES:g} of the recorded scores")
    largest = check_images(sd, folder, audit, chosen)
    allowed = f"{largest:.3f} of 255 at most; {PIXELS:g} is allowed"
    print(
        f"{counted(len(chosen), 'row')} sampled again, without the mitigation: pixels differ in the mean by {allowed}"
    )


def load_again(options: Options, recorded: Mapping[str, Any]) -> "StableDiffusion":
    """The audited model: the one that the options name, else the one recorded.

    Raises:
      InputError: it is another model.
    """
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.sharding.placement import make_mesh

    own = options
    if options.model is None and not options.given:
        given: dict[str, Any] = dict(recorded["source"])
        given |= {name: tuple(given[name]) for name in ("lora", "embedding") if name in given}
        given |= {name: Path(given[name]) for name in ("vae", "config") if name in given}
        own = Options(**given)
    sd = StableDiffusion.from_pretrained(
        own.model or demo.MODEL, dtype=recorded["dtype"], mesh=make_mesh(options.mesh), **own.source
    )
    if (found := sd.fingerprint(pictures=True)) != recorded["fingerprint"]:
        raise InputError(f"another model was audited: fingerprint {recorded['fingerprint']}; this one has {found}")
    return sd


def check_scores(
    sd: "StableDiffusion", folder: Path, audit: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> None:
    """Scores lines again; raises InputError that names the row whose score is another."""
    from memattn_jax.detectors import Scorer
    from memattn_jax.detectors.calibration import load_calibration
    from memattn_jax.detectors.scorer import named_detectors, score_batches
    from memattn_jax.prompts.noise_seed import noise_seed

    calibration = load_calibration(folder / "detection" / "calibration.json")
    settings = dict(calibration.settings)
    names = tuple(audit["detection"]["detectors"])
    detectors = calibration.fitted(dict(named_detectors(names, site=settings["site"], **settings["options"])))
    scorer = Scorer(sd, detectors, **settings)
    rows = ((item["prompt"], noise_seed(item["prompt"], 0, scorer.probes)) for item in items)
    scored = iter(items)
    for detection in score_batches(scorer, rows, len(items)):
        for place in range(len(detection.prompts)):
            item = next(scored)
            for name, recorded in item["scores"].items():
                again = float(detection[name][place])
                if not same_score(recorded, again):
                    raise InputError(f"{folder}: row {item['row']}: {name} is {again:.6g}, and {recorded} is recorded")


def same_score(recorded: float | None, again: float) -> bool:
    """Whether a score is the recorded one within `SCORES`; None stands for one that is not finite."""
    if recorded is None or not np.isfinite(again):
        return recorded is None and not np.isfinite(again)
    return abs(again - recorded) <= SCORES * max(1.0, abs(recorded))


def check_images(
    sd: "StableDiffusion", folder: Path, audit: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> float:
    """Samples an image of each line again; returns the largest difference, raises InputError where it is too large."""
    from memattn_jax.copies.search import decoded

    shots = [(item, image) for item in items for image in item["images"] if image["file"] is not None]
    chosen = random.Random().sample(shots, min(len(items), len(shots)))
    settings, largest = audit["settings"], 0.0
    run = {name: settings[name] for name in ("steps", "guidance_scale", "scheduler")}
    size = settings["batch_size"]
    for first in range(0, len(chosen), size):
        part = chosen[first : first + size]
        filled = part + part[-1:] * (size - len(part))
        texts, seeds = [item["prompt"] for item, _ in filled], [image["seed"] for _, image in filled]
        made = sd.sample(texts, seeds=seeds, taps=None, **run)
        for (item, image), again in zip(part, made.images, strict=False):
            stored = np.asarray(decoded(folder / image["file"]))
            if stored.shape != again.shape:
                raise InputError(f"{folder}: row {item['row']}: {image['file']} is of another size")
            difference = float(np.abs(stored.astype(float) - again).mean())
            largest = max(largest, difference)
            if difference > PIXELS:
                raise InputError(
                    f"{folder}: row {item['row']}: {image['file']} differs from what the model gives, "
                    f"by {difference:.2f} of 255 in the mean"
                )
    return largest
