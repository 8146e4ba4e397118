"""What clean prompts score on one model: the basis of all verdicts, valid only for the same model and settings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memattn_jax.detectors.calibration.attention_excess import CleanAttention
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.detectors.calibration.verdicts import Joint
from memattn_jax.detectors.detection import Detection
from memattn_jax.detectors.protocol import Detector
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.diffusion.model import Model
from memattn_jax.errors import InputError

SETTINGS = ("seed", "probes", "steps", "guidance_scale")  # of a Scorer, that move scores; others follow below


@dataclass(frozen=True)
class Calibration:
    """What clean prompts score on one model.

    Attributes:
      model: its fingerprint.
      settings: of the scorer, see `settings_of`.
      fpr: the share of clean prompts that a verdict may call memorized, where no other is asked for.
      scores: {detector: float32 [clean]}, finite, prompts in one order; of detectors that look at the model.
      own_noise: {first-step detector: float32 [clean]}, finite: through one noise of each prompt's own.
      attention: of the clean prompts' tokens at the first step.
      kind: what the clean prompts are like.
      fits: {detector: {field: float32 array}}, what detectors were fitted to on these prompts.
    """

    model: str
    settings: dict[str, Any]
    fpr: float
    scores: dict[str, np.ndarray]
    own_noise: dict[str, np.ndarray]
    attention: CleanAttention
    kind: Kind
    fits: dict[str, dict[str, np.ndarray]]

    def judged(self, detectors: Iterable[str]) -> tuple[str, ...]:
        """The detectors that determine verdicts: those whose clean scores it has."""
        return tuple(name for name in detectors if name in self.scores)

    def joint(self, detectors: Iterable[str]) -> Joint | None:
        """The joint statistic of these detectors; None where no verdict comes from any of them."""
        names = self.judged(detectors)
        return Joint.fit({name: self.scores[name] for name in names}) if names else None

    def memorized(self, detection: Detection, fpr: float | None = None) -> dict[str, np.ndarray]:
        """For each detector that decides, bool [batch]: whether its score alone makes a row's verdict "memorized".

        A row's verdict is "memorized" where any does. At the calibration's rate, where no other is given.
        """
        joint = self.joint(detection.scores)
        return {} if joint is None else joint.over(detection.scores, self.fpr if fpr is None else fpr)

    def fitted(self, detectors: Mapping[str, Detector]) -> dict[str, Detector]:
        """The detectors, with their fits from this calibration."""
        return {
            name: replace(one, **self.fits[name]) if name in self.fits else one  # type: ignore[type-var]
            for name, one in detectors.items()
        }

    def check_model(self, sd: Model) -> None:
        """Raises InputError if it was fitted on another model, or in another dtype."""
        own = sd.fingerprint()
        if own != self.model:
            raise InputError(
                f"this calibration was fitted on another model, {self.model}, or in another dtype; this one is {own}; "
                "create one with `detect --calibrate`"
            )

    def check(self, scorer: Scorer) -> None:
        """Raises InputError unless model and settings of the scorer match the calibration."""
        self.check_model(scorer.model)
        for name, value in settings_of(scorer).items():
            if value != self.settings[name]:
                raise InputError(
                    f"this calibration was fitted with {name} {self.settings[name]}, not {value}; "
                    "use the same, or create another one with `detect --calibrate`"
                )


def settings_of(scorer: Scorer) -> dict[str, Any]:
    """The scorer's settings that affect its scores, as JSON values; `site` is the layer that is read."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in scorer.options.items()}
    return {name: getattr(scorer, name) for name in SETTINGS} | {"site": scorer.read_site, "options": options}
