"""Guarded generation: a detector looks at each row's first step, and only rows over its threshold are mitigated."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax import conformal
from memattn_jax.detectors.first_step import FirstStep, NoiseLevel
from memattn_jax.detectors.registry import DETECTORS, FIRST_STEP
from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors import Interceptor, Tap
from memattn_jax.mitigations import AttentionMask
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.sampling import denoise
from memattn_jax.schedulers import Schedule

if TYPE_CHECKING:
    from memattn_jax.calibration import Calibration
    from memattn_jax.models.attention import Taps


@dataclass(frozen=True)
class Guard:
    """When to mitigate, and how.

    Attributes:
      threshold: scores above it are mitigated; and so are scores that are not finite, and all where it is not.
      detector: a first-step detector; it looks through the noise that the row is sampled from.
      site: where `entropy_e` reads; None is the model's own, see `StableDiffusion`.
      mitigation: for rows over the threshold.
      steps: of the schedule whose first timestep the threshold was fitted at.

    Raises:
      InputError: a detector that does not see the first step.
    """

    threshold: float
    detector: str = "noise_norm"
    site: str | None = None
    mitigation: AttentionMask = AttentionMask()
    steps: int = 50

    def __post_init__(self) -> None:
        check_name("first-step detector", self.detector, FIRST_STEP)

    @classmethod
    def from_calibration(
        cls,
        calibration: "Calibration",
        detector: str = "noise_norm",
        mitigation: AttentionMask | None = None,
        fpr: float | None = None,
    ) -> "Guard":
        """A guard that mitigates at most a share `fpr` of clean prompts; by default the calibration's.

        A guard looks through one noise, the row's own, and so its threshold comes from the scores that clean prompts
        had through one noise of their own each, whatever noises the calibration's other scores were seen through.

        Raises:
          InputError: the calibration has no such scores of this detector, or too few for the rate.
        """
        if detector not in calibration.own_noise:
            known = ", ".join(calibration.own_noise) or "no detector"
            raise InputError(f"the calibration has no guard's scores of {detector!r}, only of {known}")
        level = calibration.fpr if fpr is None else fpr
        clean = np.sort(calibration.own_noise[detector])
        threshold = conformal.threshold(clean, level)
        if not math.isfinite(threshold):
            raise InputError(
                f"a guard at a rate of {level:g} needs {conformal.clean_needed(level)} clean prompts, and the "
                f"calibration has {len(clean)}; calibrate on more, or at a larger --fpr"
            )
        settings = calibration.settings
        return cls(threshold, detector, settings["site"], mitigation or AttentionMask(), settings["steps"])


def is_memorized(scores: Array, threshold: Array) -> Array:
    """Which scores a guard takes for memorized, bool [batch]: what it cannot tell is not clean."""
    return ~((scores <= threshold) & jnp.isfinite(scores) & jnp.isfinite(threshold))


@partial(jax.jit, static_argnames=("detector", "site", "velocity"))
def guarded_denoise(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    noise: Array,
    context: Array,
    guidance_scale: Array,
    tap: Tap | None,
    empty: Array,
    lengths: Array,
    levels: tuple[NoiseLevel, NoiseLevel],
    threshold: Array,
    mitigation: AttentionMask,
    *,
    detector: str,
    site: str,
    velocity: bool,
) -> tuple[Array, "Taps", Array]:
    """`denoise` with the detector before it, in one program; what is mitigated is a traced value of each row.

    Args:
      unet: the model.
      schedule: from `make_schedule`.
      noise: unit noise [batch, height, width, channels]; the detector's probe too.
      context: text embeddings, negative prompts first, as in `observe`.
      guidance_scale: [] or [batch].
      tap: of its interceptor.
      empty: text embeddings of the empty prompt [1, tokens, channels].
      lengths: int [batch], begin and end token counted.
      levels: of `noise_levels`.
      threshold: float32 [].
      mitigation: of the rows that `is_memorized` names.
      detector: name of a first-step detector.
      site: where `entropy_e` reads.
      velocity: whether the model predicts velocity.

    Returns:
      Latents and taps as of `denoise`, and the scores, float32 [batch].
    """
    batch, tokens = len(noise), context.shape[1]
    step = FirstStep(
        unet,
        noise[:, None],
        context[-batch:],
        empty,
        levels,
        velocity=velocity,
        linearize=DETECTORS[detector].gradients,
        sites=(site,),
    )
    scores = DETECTORS[detector].score(step, site)  # type: ignore[misc]
    halves = len(context) // batch
    conditional = jnp.arange(len(context)) >= len(context) - batch
    active = jnp.tile(is_memorized(scores, threshold), halves)
    edits = mitigation.edits(jnp.tile(lengths, halves), conditional, tokens, active)
    latents, taps = denoise(unet, schedule, noise, context, guidance_scale, Interceptor(edits=edits, tap=tap))
    return latents, taps, scores
