"""GUARD (ICML 2026, arXiv 2603.00133): guidance to a prediction with attenuated spikes, and away from the plain one.

    ε = ε_u + w (ε₊ − ε_u) − r cos(π p / 2) (ε_c − ε_u),        p = step / steps

with ε₊ the conditional prediction under `spike_attenuation`, ε_c without. Cost: a third forward at every step. Read in
the authors' code, with the settings of its README.
"""

from typing import Any

import jax.numpy as jnp

from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Step
from memattn_jax.interceptors import Edit
from memattn_jax.mitigations.spike_attenuation import AttenuateSpikes
from memattn_jax.pytree import pytree


@pytree
class GuardGuidance(Mitigation):
    """See the module; not to be confused with `memattn_jax.mitigations.guard`, which decides whom to mitigate.

    Attributes:
      repulsion: r, which falls to 0 over the run.
      threshold: see `SpikeAttenuation`.
      strength: likewise.
    """

    repulsion: float = 2.0
    threshold: float = 0.1
    strength: float = 0.3

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """See `Mitigation.edits`."""
        return (AttenuateSpikes(self.threshold, self.strength),)

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """See `Mitigation.guidance`."""
        repulsion = self.repulsion * jnp.cos(jnp.pi / 2 * step.number / step.calls)
        away = step.predict(step.context) - prediction.unconditional
        towards = prediction.conditional - prediction.unconditional
        scale = prediction.scale.reshape(-1, 1, 1, 1)
        both = prediction.unconditional + scale * towards - repulsion * away
        return Prediction(both, both, jnp.ones_like(prediction.scale)), memory
