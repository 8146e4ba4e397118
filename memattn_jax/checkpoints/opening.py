"""Opens a checkpoint of any kind."""

from dataclasses import replace
from pathlib import Path

from memattn_jax.checkpoints.checkpoint import Checkpoint, Source
from memattn_jax.checkpoints.folder import open_folder
from memattn_jax.checkpoints.lora.merge import with_loras
from memattn_jax.checkpoints.single_file.opening import open_single_file
from memattn_jax.checkpoints.single_file.vae_file import open_vae
from memattn_jax.errors import InputError, check_name


def open_checkpoint(path: Path, source: Source | None = None) -> Checkpoint:
    """Reads what a checkpoint says of itself, and no weights; needs no JAX.

    Args:
      path: a diffusers folder, or a single file.
      source: which of its weights to take, and what it does not say.

    Raises:
      FileNotFoundError: no such file or folder.
      InputError: not a checkpoint of Stable Diffusion 1.x or 2.x, or a damaged one; a LoRA that does not fit it; a
        `source` that is for another kind of checkpoint, or whose prediction type is not known.
    """
    source = source or Source()
    if source.prediction_type is not None:
        check_name("prediction type", source.prediction_type, ("epsilon", "v_prediction"))
    vae = None if source.vae is None else open_vae(Path(source.vae).expanduser())
    if path.is_file():
        checkpoint = open_single_file(path, source, vae)
    else:
        for option, given in (("--ema", source.ema), ("--config", source.config)):
            if given:
                raise InputError(f"{path}: is a folder, and {option} is for single files; leave it out")
        checkpoint = open_folder(path, source.variant)
        if source.prediction_type is not None:
            scheduler = {**checkpoint.scheduler_config, "prediction_type": source.prediction_type}
            checkpoint = replace(checkpoint, scheduler_config=scheduler)
        if vae is not None:
            checkpoint = replace(checkpoint, parts={**checkpoint.parts, "vae": vae})
    return replace(checkpoint, parts=with_loras(checkpoint.parts, source.loras)) if source.loras else checkpoint
