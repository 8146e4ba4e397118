"""Detectors: objects that declare what they need and compute one score per row.

A larger score means that memorization is more likely. The scorer computes what detectors look at once for all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jax import Array

from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.diffusion.sampling import Call
from memattn_jax.interceptors import Tap

Needs = Literal["first step", "trajectory", "image", "prompt"]


class FirstStepDetector:
    """Uses the first step of sampling: a few forward passes of the UNet, see `FirstStep`.

    Override `score`, and make it a `memattn_jax.pytree.pytree` where it has numbers.

    Attributes:
      needs: what it looks at.
      shared: parts of the empty prompt that it reads, "noise", "late" or "energy_gradient": what all prompts share is
        computed once a model, see `Unconditional`.
      derivatives: whether it calls `FirstStep.jvp`, `FirstStep.context_jvp` or `FirstStep.vjp`.
    """

    needs: ClassVar[Needs] = "first step"
    shared: ClassVar[frozenset[str]] = frozenset()
    derivatives: ClassVar[bool] = False

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Taps of its own, which `FirstStep.taps` holds by these names; `FirstStep.tokens` needs none."""
        return {}

    def bind(self, model: Any, steps: int) -> Any:
        """The detector for one model and number of sampling steps; raises InputError where it cannot read them."""
        return self

    def score(self, step: FirstStep) -> Array:
        """Scores, float32 [batch]."""
        raise NotImplementedError


class TrajectoryDetector:
    """Uses a sampling run, which all trajectory detectors share.

    Override `observe` and `finish`, and `taps` where it reads attention. A detector that compares with clean prompts
    also overrides `fit`; see `latent_step_deviation.py`.
    """

    needs: ClassVar[Needs] = "trajectory"

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Taps of its own, which `Call.taps` holds by these names beside "tokens", the mean attention per token."""
        return {}

    def bind(self, model: Any, steps: int) -> Any:
        """The detector for one model and number of sampling steps; raises InputError where it cannot read them."""
        return self

    @property
    def fitted(self) -> bool:
        """Whether it can make scores; False where it must be fitted on clean prompts and is not."""
        return True

    def observe(self, call: Call) -> Any:
        """What to keep of one call of the UNet: a small tree of arrays [batch, ...]."""
        raise NotImplementedError

    def finish(self, kept: Any, lengths: Array) -> Array:
        """Scores of runs, float32 [runs].

        Args:
          kept: what `observe` kept, with a leading axis [calls].
          lengths: int32 [runs], tokens of each prompt, begin and end token counted.
        """
        raise NotImplementedError

    def fit(self, kept: Any) -> "TrajectoryDetector":
        """The detector fitted on clean prompts, of what `observe` kept of them: arrays [calls, runs, ...]."""
        return self


class Images(NamedTuple):
    """Images to score, as latents.

    Attributes:
      unet: see `memattn_jax.models.protocols`.
      latents: without noise, float32 [rows, h, w, channels].
      noise: of unit variance, likewise, as good as independent of the latents.
      context: text embeddings of the prompts, [rows, tokens, channels].
      empty: of the empty prompt, likewise.
    """

    unet: Any
    latents: Array
    noise: Array
    context: Array
    empty: Array


class ImageDetector(TrajectoryDetector):
    """Uses the image that a sampling run ends with; the run is that of the trajectory detectors.

    Override `score`.
    """

    needs: ClassVar[Needs] = "image"

    def observe(self, call: Call) -> Any:
        """Nothing."""
        return ()

    def score(self, images: Images) -> Array:
        """Scores of images, float32 [rows]."""
        raise NotImplementedError


class PromptDetector:
    """Uses the prompt's text only; does not affect verdicts."""

    needs: ClassVar[Needs] = "prompt"

    def bind(self, model: Any, steps: int) -> Any:
        """The detector as it is."""
        return self

    def score(self, prompts: Sequence[str]) -> np.ndarray:
        """Scores, float32 [batch]."""
        raise NotImplementedError


Detector = FirstStepDetector | TrajectoryDetector | ImageDetector | PromptDetector


def is_fitted(detector: Detector) -> bool:
    """Whether a detector can make scores; see `TrajectoryDetector.fitted`."""
    return detector.needs != "trajectory" or detector.fitted  # type: ignore[union-attr]
