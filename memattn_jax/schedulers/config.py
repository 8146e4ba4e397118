"""The part of a scheduler_config.json that schedulers use; the file may be written for another scheduler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import SCHEDULERS
from memattn_jax.text import printable
from memattn_jax.typed import misfit

_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "interpolation_type": ("linear", "log_linear"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
    # The last three are DEIS's and UniPC's, which diffusers' DPM-Solver++ reads as "midpoint".
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
}

_MOST_TIMESTEPS = 1_000_000  # the tables of a file that asks for a billion would fill the memory

_OFF = (False, None)
_DPM_SOLVER = {
    "lambda_min_clipped": (-np.inf,),
    "use_beta_sigmas": _OFF,
    "use_dynamic_shifting": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_flow_sigmas": _OFF,
    "use_lu_lambdas": _OFF,
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_NO_SAMPLE = {"prediction_type": ("epsilon", "v_prediction")}
_REQUIRED: dict[str, dict[str, tuple[Any, ...]]] = {
    # diffusers' PNDM and Euler overlook thresholding; it marks a model of pixels, so here none may.
    "every scheduler": {"thresholding": _OFF, "predict_epsilon": (True,)},
    "ddim": {},
    "pndm": _NO_SAMPLE,
    "euler": {"use_exponential_sigmas": _OFF, "use_beta_sigmas": _OFF, "timestep_type": ("discrete",)},
    "euler-ancestral": _NO_SAMPLE,
    # diffusers reads DEIS's algorithm_type as "dpmsolver++". The SDE solver accepts any: its name decides.
    "dpm-solver++": _DPM_SOLVER | {"algorithm_type": ("dpmsolver++", "deis")},
    "dpm-solver++-sde": _DPM_SOLVER,
    "lcm": {},
}
_DPM_SOLVERS = ("dpm-solver++", "dpm-solver++-sde")
_READ_BY: dict[str, tuple[str, ...]] = {  # fields that are not here are read by all
    "set_alpha_to_one": ("ddim", "pndm"),
    "skip_prk_steps": ("pndm",),
    "rescale_betas_zero_snr": ("ddim", "euler", "euler-ancestral", *_DPM_SOLVERS, "lcm"),
    "interpolation_type": ("euler",),
    **dict.fromkeys(("clip_sample", "clip_sample_range"), ("ddim", "lcm")),
    **dict.fromkeys(("final_sigmas_type", "use_karras_sigmas"), ("euler", *_DPM_SOLVERS)),
    **dict.fromkeys(("sigma_min", "sigma_max"), ("euler", *_DPM_SOLVERS)),
    **dict.fromkeys(("solver_order", "solver_type"), _DPM_SOLVERS),
    **dict.fromkeys(("lower_order_final", "euler_at_final"), _DPM_SOLVERS),
    **dict.fromkeys(("original_inference_steps", "timestep_scaling"), ("lcm",)),
}
_DEFAULTS: dict[str, dict[str, Any]] = {  # where a class of diffusers differs from SchedulerConfig
    "ddim": {"clip_sample": True, "set_alpha_to_one": True},
    "pndm": {},
    "euler": {"timestep_spacing": "linspace"},
    "euler-ancestral": {"timestep_spacing": "linspace"},
    "dpm-solver++": {"timestep_spacing": "linspace"},
    "dpm-solver++-sde": {"timestep_spacing": "linspace"},
    "lcm": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": True},
}
# Keys that only other classes of diffusers read, old versions wrote, or only a setting refused above gives a meaning.
_WITHOUT_EFFECT = {"dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"}
_WITHOUT_EFFECT |= {"predict_x0", "solver_p", "disable_corrector", "shift_terminal", "tensor_format"}
_WITHOUT_EFFECT |= {"timestep_values", "noise_sampler_seed", "predictor_order", "corrector_order", "tau_func"}


def as_pipeline(config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed scheduler_config.json, of whichever class, as diffusers' StableDiffusionPipeline reads it on loading.

    The pipeline turns `clip_sample` off and sets `steps_offset` to 1 whatever the file says. Files that Euler,
    DPM-Solver or an old PNDM saved lack these keys or hold another class's default, and DDIM's own defaults, clipping
    to ±1 and offset 0, suit no latents. In diffusers a scheduler that is swapped after loading, with `from_config`,
    clips again where the file lacks `clip_sample`; here every scheduler gets the pipeline's form.

    Source: diffusers, pipeline_stable_diffusion.py, `StableDiffusionPipeline.__init__`.
    """
    config = given(config) | {"steps_offset": 1}
    if config.get("clip_sample", True) is True:  # what is merely true escapes the pipeline
        config["clip_sample"] = False
    return config


def given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that were set, without those which `_use_default_values` says hold the defaults of the saving class."""
    defaults = config.get("_use_default_values")
    left_out = ["_use_default_values", *(defaults if isinstance(defaults, list) else ())]
    return {key: value for key, value in config.items() if key not in left_out}


def check_types(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError unless each value that some scheduler reads has the right type; `where` names the file."""
    names = {field.name for field in fields(SchedulerConfig)}
    if wrong := misfit(SchedulerConfig, {key: value for key, value in given(config).items() if key in names}):
        raise InputError(f"{where}: {wrong}")


def _require(key: str, value: Any, choices: tuple[Any, ...], who: str = "choose") -> None:
    if value not in choices:
        raise InputError(f"{key} is {printable(repr(value), 40)}; {who} {' or '.join(map(repr, choices))}")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Settings from a scheduler_config.json; names and meanings are those of diffusers.

    Raises:
      InputError: a field is none of the values it can take, a number is out of range, or `trained_betas` has another
        length than `num_train_timesteps`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    skip_prk_steps: bool = False
    rescale_betas_zero_snr: bool = False
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            _require(key, getattr(self, key), choices)
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS:
            raise InputError(f"num_train_timesteps is {self.num_train_timesteps}; choose 1 to {_MOST_TIMESTEPS}")
        for key in ("beta_start", "beta_end"):
            if not 0 <= getattr(self, key) < 1:
                raise InputError(f"{key} is {getattr(self, key)}; a beta must lie in [0, 1)")
        if wrong := [beta for beta in self.trained_betas or () if not 0 <= beta < 1]:
            raise InputError(f"trained_betas has {wrong[0]}; a beta must lie in [0, 1)")
        for key in ("sigma_min", "sigma_max"):
            if (sigma := getattr(self, key)) is not None and not 0 < sigma < np.inf:
                raise InputError(f"{key} is {sigma}; a noise level must be positive and finite")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise InputError(
                f"trained_betas has {len(self.trained_betas)} values where num_train_timesteps is "
                f"{self.num_train_timesteps}; the two must agree"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any], scheduler: str) -> "SchedulerConfig":
        """Read a parsed scheduler_config.json the way diffusers' class for `scheduler` would.

        A checkpoint may be sampled with another scheduler than it names. Absent keys take the default of
        `scheduler`'s class; keys that only other classes read, or that start with "_", are ignored. What a
        Stable Diffusion pipeline changes of a config beforehand is `as_pipeline`'s.

        Raises:
          InputError: `scheduler` is none of `SCHEDULERS`, no scheduler of latents in diffusers knows a
            key, a value has the wrong type, or asks for what is not supported here.
        """
        check_name("scheduler", scheduler, SCHEDULERS)
        config = {key: value for key, value in given(config).items() if not key.startswith("_")}
        names = {field.name for field in fields(cls)}
        required = _REQUIRED["every scheduler"] | _REQUIRED[scheduler]
        asking = {key for key, value in config.items() if value is not None}
        if unknown := sorted(asking - names - _WITHOUT_EFFECT - set().union(*_REQUIRED.values())):
            shown = printable(", ".join(unknown), 80)
            raise InputError(f"unknown keys in the scheduler config: {shown}; remove them if they have no effect")
        for key, choices in required.items():
            if key in config:
                _require(key, config[key], choices, f"{scheduler} needs")
        read = {key: config[key] for key in names & config.keys() if scheduler in _READ_BY.get(key, SCHEDULERS)}
        check_types(read, "scheduler config")
        return cls(**(_DEFAULTS[scheduler] | read))
