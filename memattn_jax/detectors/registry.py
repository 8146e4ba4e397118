"""The detectors by name: what each looks at, what it costs, and how its score follows from what it sees."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jax import Array

from memattn_jax.detectors.anisotropy import anisotropy
from memattn_jax.detectors.bright_ending import bright_ending
from memattn_jax.detectors.first_step import FirstStep
from memattn_jax.detectors.hessian_difference import hessian_difference
from memattn_jax.detectors.latent_step_deviation import CleanMoves, latent_step_deviation
from memattn_jax.detectors.noise_norm import noise_norm, noise_norm_over_steps
from memattn_jax.detectors.sharpness import sharpness
from memattn_jax.detectors.trajectory import Trajectory
from memattn_jax.entropy import entropy_and_movement, token_entropy
from memattn_jax.errors import InputError, check_name


@dataclass(frozen=True)
class Detector:
    """A way to score prompts; a larger score means that memorization is more likely.

    Attributes:
      sees: "first step", "trajectory" or "prompt".
      paper: where it comes from.
      cost: UNet forwards a prompt and probe, in words; derivatives count as the forwards they cost.
      score: what it sees to float32 [batch]; None for what sees the prompt alone.
      gradients: whether it differentiates the UNet.
      unconditional: which parts of `Unconditional` it reads.
    """

    sees: Literal["first step", "trajectory", "prompt"]
    paper: str
    cost: str
    score: Callable[..., Array] | None = None
    gradients: bool = False
    unconditional: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choices:
    """What a trajectory detector may be told.

    Attributes:
      lengths: int [batch], tokens of each prompt with its begin and end token.
      steps: bool [steps], those the noise norm is averaged over.
      clean: how far each step moves the latents of clean prompts.
    """

    lengths: Any
    steps: Any
    clean: CleanMoves


def _entropy_e(step: FirstStep, site: str) -> Array:
    return token_entropy(step.tokens[site].mean(axis=2)).mean(axis=1)


def _sharpness(step: FirstStep, site: str) -> Array:
    return sharpness(step.push(step.difference), step.first.sigma)


def _anisotropy(step: FirstStep, site: str) -> Array:
    return anisotropy(
        step.difference, step.late_conditional, step.late_unconditional, step.first.sigma, velocity=step.velocity
    )


def _hessian_difference(step: FirstStep, site: str) -> Array:
    return hessian_difference(step.pull(step.conditional)[0], step.unconditional_energy_gradient)


def _entropy_d(variant: Literal["code", "paper"]) -> Callable[[Trajectory, Choices], Array]:
    return lambda run, choices: entropy_and_movement(run.tokens, choices.lengths, variant)


DEVIATION = "latent_step_deviation"  # needs clean runs, which a calibration holds

DETECTORS: dict[str, Detector] = {
    "entropy_e": Detector("first step", "Ren et al., ECCV 2024", "a fraction of 1", _entropy_e),
    "noise_norm": Detector(
        "first step",
        "Wen et al., ICLR 2024",
        "1",
        lambda step, site: noise_norm(step.difference),
        unconditional=frozenset({"noise"}),
    ),
    "sharpness": Detector(
        "first step",
        "Jeon et al., ICML 2025",
        "3",
        _sharpness,
        gradients=True,
        unconditional=frozenset({"noise"}),
    ),
    "anisotropy": Detector(
        "first step",
        "Asthana & Belagiannis, ICLR 2026",
        "2",
        _anisotropy,
        unconditional=frozenset({"noise", "late"}),
    ),
    "hessian_difference": Detector(
        "first step",
        "ICML 2026 submission",
        "2",
        _hessian_difference,
        gradients=True,
        unconditional=frozenset({"energy_gradient"}),
    ),
    "entropy_d": Detector("trajectory", "Ren et al., ECCV 2024, the code's form", "2 a step", _entropy_d("code")),
    "entropy_d_paper": Detector("trajectory", "Ren et al., the paper's form", "2 a step", _entropy_d("paper")),
    "noise_norm_steps": Detector(
        "trajectory",
        "Wen et al., ICLR 2024",
        "2 a step",
        lambda run, choices: noise_norm_over_steps(run.norms, choices.steps),
    ),
    "bright_ending": Detector(
        "trajectory", "Chen et al., ICLR 2025", "2 a step", lambda run, choices: bright_ending(run.energy, run.ending)
    ),
    DEVIATION: Detector(
        "trajectory",
        "Broken Memories, KDD 2026",
        "2 a step",
        lambda run, choices: latent_step_deviation(run.moves.T, choices.clean),
    ),
    "text_baseline": Detector("prompt", "characters only", "0"),
}

FIRST_STEP = tuple(name for name, detector in DETECTORS.items() if detector.sees == "first step")
PROMPT = tuple(name for name, detector in DETECTORS.items() if detector.sees == "prompt")  # these decide no verdict
TRAJECTORY = tuple(name for name, detector in DETECTORS.items() if detector.sees == "trajectory")


def check_names(names: tuple[str, ...]) -> None:
    """Raises InputError where a detector does not exist, or none is named."""
    if not names:
        raise InputError(f"no detectors; name at least one of {', '.join(DETECTORS)}")
    for name in names:
        check_name("detector", name, DETECTORS)
