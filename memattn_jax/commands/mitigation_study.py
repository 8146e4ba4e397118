"""What `evaluate --mitigations` measures of one mitigation, and everything that its numbers depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memattn_jax.audit.folder import digest_of_all, file_digest
from memattn_jax.commands.command import FORMAT
from memattn_jax.copies.embedding import Embedding
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.evaluation.adversarial import Attack, find_embeddings, retriggered
from memattn_jax.evaluation.mitigated import Fidelity, Plain, Prompts, describe, sample_prompts
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.mitigations import SHOWN
from memattn_jax.runs.parts import Part
from memattn_jax.runs.versions import versions

if TYPE_CHECKING:
    from memattn_jax.commands.evaluate_options import Options

PLAIN = "none"
OF_RUN = ("steps", "guidance_scale", "scheduler")


class Study(NamedTuple):
    """What is sampled, and how it is measured."""

    sd: StableDiffusion
    prompts: Prompts
    options: "Options"
    fidelity: Fidelity | None
    embeddings: Sequence[tuple[Embedding, float]]

    @property
    def run(self) -> dict[str, Any]:
        """Settings of every run."""
        return {name: getattr(self.options, name) for name in OF_RUN}


def measure(study: Study, mitigation: Mitigation, plain: Mapping[str, np.ndarray] | None) -> Part:
    """Fits a mitigation, samples with it, and describes the samples.

    Args:
      study: see there.
      mitigation: not fitted yet.
      plain: the arrays of the part that was measured without one; None where this is that part.
    """
    sd, prompts, options = study.sd, study.prompts, study.options
    fitted = mitigation.fit(sd, **study.run)
    seeds = range(options.seed, options.seed + options.images_per_prompt)
    memorized, clean = (
        sample_prompts(sd, texts, seeds, fitted, options.batch_size, study.run)
        for texts in (prompts.memorized, prompts.clean)
    )
    own = {"memorized": memorized.images, "clean": clean.images}
    own |= {"memorized_finite": memorized.finite, "clean_finite": clean.finite}
    base = own if plain is None else plain
    same_seeds = Plain(base["memorized"], base["memorized_finite"]), Plain(base["clean"], base["clean_finite"])
    results = describe(prompts, (memorized, clean), same_seeds, study.fidelity, study.embeddings)
    if options.adversarial and prompts.references is not None:
        attacked = list(prompts.memorized[: options.adversarial])
        attack = (sd, attacked, prompts.references[: len(attacked)], fitted, Attack(seed=options.seed), study.run)
        if plain is None:
            own["embeddings"] = find_embeddings(*attack)
        results["adversarial"] = retriggered(*attack, base["embeddings"], options.batch_size)
    return Part(results, {"shown": memorized.images[:SHOWN, 0], **(own if plain is None else {})})


def digest(*values: Any) -> str:
    """A hash of JSON values and arrays."""
    plain = [hashlib.sha256(each.tobytes()).hexdigest() if isinstance(each, np.ndarray) else each for each in values]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()[:32]


def content_of(path: Path | None) -> str | None:
    """A hash of a file, or of all files in a folder; None for None."""
    if path is None:
        return None
    return file_digest(path) if path.is_file() else digest_of_all(path, (p for p in path.rglob("*") if p.is_file()))


def identity(study: Study) -> dict[str, Any]:
    """Everything that results depend on besides the mitigation, as JSON values."""
    options, prompts = study.options, study.prompts
    names = ("seed", "images_per_prompt", "batch_size", "adversarial", "preset")
    files = {f"{name}_sha256": content_of(getattr(options, name)) for name in ("clip", "sscd")}
    return {
        "command": "evaluate --mitigations",
        "format": FORMAT,
        "model": study.sd.fingerprint(pictures=True),
        "dtype": study.sd.dtype,
        "prompts": digest(list(prompts.memorized), list(prompts.clean), list(prompts.kinds)),
        "pictures": digest(prompts.references),
        **study.run,
        **{name: getattr(options, name) for name in names},
        **files,
    }


def about_run(study: Study) -> dict[str, Any]:
    """What the numbers were measured with, and on what."""
    sd, options, prompts = study.sd, study.options, study.prompts
    reference = "the prompt's training image"
    if prompts.references is None:
        reference = "the model's own image on the same seed, without a mitigation"
    fidelity = "CLIP" if options.clip is not None else "objects found by the built-in classifier"
    return {
        "model": options.model_name,
        "fingerprint": sd.fingerprint(pictures=True),
        "measure": "correlation, each channel less its mean, without shifts",
        "reference": reference,
        "fidelity_by": fidelity if options.clip is not None or options.built_in_prompts else None,
        "memorized": len(prompts.memorized),
        "clean": len(prompts.clean),
        "seeds": options.images_per_prompt,
        "first_seed": options.seed,
        "settings": {**study.run, "dtype": sd.dtype, "batch_size": options.batch_size},
        "versions": versions(),
    }
