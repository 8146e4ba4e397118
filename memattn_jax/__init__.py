"""Stable Diffusion in JAX with cross-attention interceptors: detect, explain and mitigate memorization.

Everything is imported where it is first used, so that `import memattn_jax` starts no backend: devices and
`jax.distributed` can still be configured after it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memattn_jax import demo as demo
    from memattn_jax import detectors as detectors
    from memattn_jax import entropy as entropy
    from memattn_jax import heatmaps as heatmaps
    from memattn_jax import interceptors as interceptors
    from memattn_jax import mitigations as mitigations
    from memattn_jax import schedulers as schedulers
    from memattn_jax.detectors.calibration.calibration import Calibration as Calibration
    from memattn_jax.detectors.detection import Detection as Detection
    from memattn_jax.errors import InputError as InputError
    from memattn_jax.mitigations.guard import Guard as Guard
    from memattn_jax.pipeline import Samples as Samples
    from memattn_jax.pipeline import StableDiffusion as StableDiffusion

__version__ = "0.2.0"

_MODULES = ("demo", "detectors", "entropy", "heatmaps", "interceptors", "mitigations", "schedulers")
_NAMES = {
    "Calibration": "memattn_jax.detectors.calibration.calibration",
    "Detection": "memattn_jax.detectors.detection",
    "Guard": "memattn_jax.mitigations.guard",
    "InputError": "memattn_jax.errors",
    "Samples": "memattn_jax.pipeline",
    "StableDiffusion": "memattn_jax.pipeline",
}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"memattn_jax.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
