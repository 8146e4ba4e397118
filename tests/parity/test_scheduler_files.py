"""Configs of schedulers as diffusers saves them, now and in the past, mean here what they mean there."""

import functools
import inspect
import json

import diffusers
import pytest
from scheduler_pairs import (
    BETAS,
    CLASSES,
    OVERRIDES,
    compare,
)

from memattn_jax.schedulers import SCHEDULERS, as_pipeline, make_schedule

# diffusers hands torch tensors to np.array, in a way that NumPy 2 wants torch to change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SAVING = [
    diffusers.DDIMScheduler,
    diffusers.DDIMParallelScheduler,
    diffusers.DDPMScheduler,
    diffusers.DDPMParallelScheduler,
    diffusers.DEISMultistepScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.DPMSolverMultistepInverseScheduler,
    diffusers.DPMSolverSinglestepScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.LCMScheduler,
    diffusers.LMSDiscreteScheduler,
    diffusers.PNDMScheduler,
    diffusers.SASolverScheduler,
    diffusers.TCDScheduler,
    diffusers.UniPCMultistepScheduler,
]


# Settings of a training or a user, by the key that a class must have for them to reach its file.
SETTINGS = {
    "beta_start": {},
    "prediction_type": {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "skip_prk_steps": True},
    "clip_sample": {"clip_sample": True, "clip_sample_range": 0.5, "set_alpha_to_one": True, "steps_offset": 3},
    "use_karras_sigmas": {"use_karras_sigmas": True},
    "rescale_betas_zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    | {"timestep_spacing": "leading"},
}


def loaded_by_diffusers(folder, scheduler):
    """The folder's scheduler as `StableDiffusionPipeline.from_pretrained` corrects it."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    swapped = CLASSES[scheduler].from_pretrained(folder, **OVERRIDES.get(scheduler, {}))
    return diffusers.StableDiffusionPipeline(scheduler=swapped, requires_safety_checker=False, **parts).scheduler


@functools.cache  # the constructors of two classes take half a second
def saved(saving, key):
    """What the class writes under the settings that it knows; None where it does not know their key."""
    keys = inspect.signature(saving.__init__).parameters
    known = {k: v for k, v in SETTINGS[key].items() if k in keys}
    return saving(**BETAS, **known).to_json_string() if key in keys else None


def check_file(folder, content, scheduler):
    (folder / "scheduler_config.json").write_text(json.dumps(content))
    schedule = make_schedule(as_pipeline(content), scheduler, 10)
    compare(loaded_by_diffusers(folder, scheduler), schedule, scheduler, 10)


# The first is the point here, the second comes from constructors of diffusers under NumPy 2.
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("saving", SAVING, ids=lambda cls: cls.__name__)
def test_any_saved_config_is_what_the_pipeline_makes_of_it(saving, scheduler, tmp_path):
    """Every class of diffusers that a Stable Diffusion folder may name; ten steps of each of ours on its file."""
    files = [json.loads(text) for key in SETTINGS if (text := saved(saving, key)) is not None]
    assert files
    for content in files:
        if scheduler == "dpm-solver++" and content.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
            continue  # of DEIS and SA-Solver, which diffusers' DPM-Solver++ refuses
        try:
            check_file(tmp_path, content, scheduler)
        except AssertionError as error:
            raise AssertionError(f"{content}: {error}") from None


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_old_files_are_what_the_pipeline_makes_of_them(scheduler, tmp_path):
    """Files without the keys that came later, and one that names the keys whose values were defaults."""
    plms = BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    defaults = ["clip_sample", "timestep_spacing", "set_alpha_to_one", "steps_offset"]
    saved = json.loads(diffusers.LCMScheduler(**BETAS).to_json_string())
    for content in (BETAS, plms, plms | {"steps_offset": 1}, saved | {"_use_default_values": defaults}):
        check_file(tmp_path, content, scheduler)
