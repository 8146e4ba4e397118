"""Guarded generation: a detector scores each row's first step, and only rows over its threshold are mitigated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.calibration import conformal
from memattn_jax.detectors.calibration.calibration import Calibration
from memattn_jax.detectors.first_step import Inputs, noise_levels
from memattn_jax.detectors.programs import score_first_step
from memattn_jax.detectors.protocol import FirstStepDetector
from memattn_jax.detectors.scorer import named_detectors
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError, check_name
from memattn_jax.mitigations.attention_mask import AttentionMask
from memattn_jax.pytree import as_arrays, as_pytree
from memattn_jax.registries import FIRST_STEP
from memattn_jax.sharding.placement import replicate


@dataclass(frozen=True)
class Guard:
    """When to mitigate, and how.

    Attributes:
      threshold: rows with scores above it are mitigated; so are rows with scores that are not finite, and all rows if
        the threshold is not.
      detector: a first-step detector, by name or your own; it looks through the noise that the row is sampled from.
      site: where metric E is read, by a detector that names no layer itself; None is the model's own, see
        `StableDiffusion`.
      mitigation: for rows over the threshold.
      steps: of the schedule whose first timestep the threshold was fitted at.
      options: of a detector that is given by name, as the threshold was fitted with.
      own_size: whether the threshold was fitted at the model's own size of images, so that no other is judged by it.

    Raises:
      InputError: a detector that does not look at the first step.
    """

    threshold: float
    detector: str | FirstStepDetector = "noise_norm"
    site: str | None = None
    mitigation: Mitigation = field(default_factory=AttentionMask)
    steps: int = 50
    own_size: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, FirstStepDetector):
            check_name("first-step detector", self.detector, FIRST_STEP)

    @classmethod
    def from_calibration(
        cls,
        calibration: Calibration,
        detector: str = "noise_norm",
        mitigation: Mitigation | None = None,
        fpr: float | None = None,
    ) -> "Guard":
        """A guard that mitigates at most a share `fpr` of clean prompts; by default the calibration's.

        A guard scores each row with the row's own noise, so its threshold comes from scores of clean prompts with one
        noise sample of their own each, whichever noise the calibration's other scores used.

        Raises:
          InputError: the calibration has no such scores of this detector, or too few for the rate.
        """
        if detector not in calibration.own_noise:
            known = ", ".join(calibration.own_noise) or "no detector"
            raise InputError(f"the calibration has no scores for a guard with {detector!r}, only with {known}")
        level = calibration.fpr if fpr is None else fpr
        clean = np.sort(calibration.own_noise[detector])
        threshold = conformal.threshold(clean, level)
        if not math.isfinite(threshold):
            raise InputError(
                f"a guard at a rate of {level:g} needs {conformal.clean_needed(level)} clean prompts, but the "
                f"calibration has {len(clean)}; calibrate on more, or with a larger --fpr"
            )
        settings = calibration.settings
        mitigation = mitigation or AttentionMask()
        options = {name: tuple(x) if isinstance(x, list) else x for name, x in settings.get("options", {}).items()}
        return cls(threshold, detector, settings["site"], mitigation, settings["steps"], True, options)

    def check_size(self, model: Model, latents: tuple[int, ...]) -> None:
        """Raises InputError where latents [h, w, channels] are not of the threshold's size: scores grow with it."""
        if self.own_size and latents != model.latent_shape():
            height, width = model.latent_shape()[:2]
            raise InputError(
                f"the guard's threshold was fitted on latents of {height} × {width}, the model's own, but these are "
                f"{latents[0]} × {latents[1]}; leave out height and width, or give a Guard with a threshold of yours"
            )

    def look(self, model: Model, noise: Array, context: Array, lengths: Array) -> tuple[Array, Array]:
        """Scores of rows, float32 [batch], and which of them to mitigate, bool [batch].

        Args:
          model: the networks.
          noise: of unit variance, [batch, h, w, channels]: the detector's probe.
          context: text embeddings of the prompts [batch, tokens, channels].
          lengths: int32 [batch], tokens of each prompt, begin and end token counted.

        Raises:
          InputError: see `check_size`.
        """
        self.check_size(model, noise.shape[1:])
        (detector,) = named_detectors(self.detector, site=self.site, **self.options).values()
        detector = as_arrays(as_pytree(detector.bind(model, self.steps)))
        inputs = Inputs(
            model.unet,
            noise[:, None],
            context,
            model.encode([""])[0],
            lengths,
            replicate(noise_levels(model.scheduler_config, self.steps), model.mesh),
            velocity=model.velocity,
            entropy_site=model.site_of_entropy(self.site),
        )
        scores, _ = score_first_step(inputs, {"guard": detector})
        return scores["guard"], is_memorized(scores["guard"], jnp.float32(self.threshold))


@jax.jit
def is_memorized(scores: Array, threshold: Array) -> Array:
    """Which scores count as memorized, bool [batch]: scores or thresholds that are not finite never count as clean."""
    return ~((scores <= threshold) & jnp.isfinite(scores) & jnp.isfinite(threshold))
