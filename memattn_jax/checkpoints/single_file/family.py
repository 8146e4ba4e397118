"""Which model a single file holds: its family, the prediction type, and what else its tensors and metadata tell."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from memattn_jax.checkpoints.single_file.renaming import Tensors
from memattn_jax.errors import InputError
from memattn_jax.text import printable

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
SGM = "conditioner.embedders.0.model."  # OPENCLIP in files by Stability-AI/generative-models, such as SD-Turbo's
EMA = "model_ema."
# empty tensors by which ComfyUI knows a UNet that predicts v, and a noise schedule that ends without signal
VELOCITY, RESCALED = "v_pred", "ztsnr"
OTHERS = {  # start of a name: the kind of file that has it
    "conditioner.embedders.": "Stable Diffusion XL",
    f"{UNET}label_emb.": "Stable Diffusion XL or an unCLIP model",
    f"{UNET}joint_blocks.": "Stable Diffusion 3",
    f"{UNET}double_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "unet.": "a LoRA or a part of a model",
    "emb_params": "a textual inversion embedding",
    "down_blocks.": "one network in diffusers' layout",
    "encoder.": "one network",
    "text_model.": "one network",
}
NOT_READ = (  # kept for training or a sampler, or derived from the noise schedule
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "model.betas",
    "denoiser.",
    "embedding_manager.",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    EMA,
    VELOCITY,
    RESCALED,
)
SCHEDULER = {  # of Stable Diffusion, as its folders have it
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # of SCHEDULER
WITHOUT_SIGNAL = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NEEDS_SIGNAL = ("PNDMScheduler", "FlaxPNDMScheduler")  # classes of diffusers that cannot sample such a schedule


def as_named(tensors: Tensors) -> Tensors:
    """The tensors of Stable Diffusion 2 under its first names; those of Stable Diffusion XL stay as they are."""
    if any(name.startswith(("conditioner.embedders.1.", f"{UNET}label_emb.")) for name in tensors):
        return tensors
    return {OPENCLIP + name[len(SGM) :] if name.startswith(SGM) else name: t for name, t in tensors.items()}


def refuse_others(where: str, tensors: Tensors) -> None:
    """Raises InputError for a file of another kind, naming the kind."""
    for start, kind in OTHERS.items():
        if any(name.startswith(start) for name in tensors):
            raise InputError(
                f"{where}: looks like {kind} ({start}…); a Stable Diffusion 1.x or 2.x file has {UNET}… and {VAE}…"
            )


def check_names(where: str, tensors: Tensors) -> None:
    """Raises InputError for tensors whose effect is not known."""
    known = (UNET, VAE, CLIP, OPENCLIP, *NOT_READ)
    if unknown := [name for name in tensors if not name.startswith(known)]:
        raise InputError(
            f"{where}: {len(unknown)} tensors whose effect is not known, such as {printable(unknown[0], 60)}"
        )


def stated_prediction(tensors: Tensors, metadata: Mapping[str, Any]) -> str:
    """What a file says that its UNet predicts, in the metadata of Stability AI's or ComfyUI's key, or else by a marker.

    "" where it says nothing.
    """
    stated = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    return {"v": "v_prediction"}.get(str(stated), str(stated)) or ("v_prediction" if VELOCITY in tensors else "")


def prediction_type(where: str, stated: str, *, second: bool, asked: str | None) -> str:
    """What the UNet predicts: "epsilon" or "v_prediction".

    Stable Diffusion 1 predicts the noise unless the file says otherwise. Stable Diffusion 2 has both kinds, with the
    same tensors, so that one of `stated` and `asked` is needed.

    Raises:
      InputError: neither is there, or the type is another one.
    """
    found = asked or stated or ("" if second else "epsilon")
    if not found:
        raise InputError(
            f"{where}: Stable Diffusion 2, and the file does not say what it predicts: "
            "add --prediction-type v_prediction (768 pixels) or epsilon (512 pixels)"
        )
    if found not in ("epsilon", "v_prediction"):
        raise InputError(f"{where}: prediction type {found[:40]!r}; expected epsilon or v_prediction")
    return found


def trained_size(metadata: Mapping[str, Any], *, large: bool) -> int:
    """Width in pixels of the pictures that a model was trained on: what the metadata say, else its family's."""
    width = str(metadata.get("modelspec.resolution", "")).partition("x")[0]
    return int(width) if width.isdecimal() and 0 < len(width) < 5 else 768 if large else 512


def scheduler_config(tensors: Tensors, prediction: str) -> dict[str, Any]:
    """The content of scheduler_config.json: Stable Diffusion's, with the noise schedule that the file has, if any."""
    return SCHEDULER | {"prediction_type": prediction} | own_schedule(tensors)


def with_own_schedule(folder: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The content of a folder's scheduler_config.json, with the noise schedule that a file was trained with.

    The sampler and its timesteps stay the folder's where it names them and the sampler can use the schedule.
    """
    stays = {key: folder[key] for key in ("_class_name", "timestep_spacing") if key in folder}
    if stays.get("_class_name") in NEEDS_SIGNAL:
        del stays["_class_name"]
    return {**folder, **own_schedule(tensors), **stays}


def own_schedule(tensors: Tensors) -> dict[str, Any]:
    """What a file says of its noise schedule where that is not Stable Diffusion's, in keys of scheduler_config.json.

    A schedule rescaled to end without signal is named as such, with the sampler and the timesteps that Lin et al. 2023
    (arXiv:2305.08891) ask for.
    """
    if RESCALED in tensors:
        return dict(WITHOUT_SIGNAL)
    stored = tensors.get("alphas_cumprod")
    if stored is None or stored.ndim != 1 or not stored.size:
        return {}
    alphas = stored.astype(np.float64)
    rounding = 2.0**-8 if stored.dtype.name == "bfloat16" else 1e-3  # of float32 or float16
    if len(alphas) == len(ALPHAS) and np.allclose(alphas, ALPHAS, rtol=rounding, atol=1e-6):
        return {}
    root = ALPHAS**0.5
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if len(alphas) == len(ALPHAS) and np.allclose(alphas, rescaled, rtol=rounding, atol=1e-6):
        return dict(WITHOUT_SIGNAL)
    betas = 1 - alphas / np.append(1.0, alphas[:-1])
    return {"num_train_timesteps": len(betas), "trained_betas": betas.tolist()}
