"""StableDiffusion: prompts in; images, token attention and scores out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.detectors.calls import detect
from memattn_jax.detectors.detection import Detection
from memattn_jax.diffusion.loading import load, save
from memattn_jax.diffusion.model import Model
from memattn_jax.diffusion.run import sample
from memattn_jax.diffusion.samples import Samples as Samples
from memattn_jax.diffusion.settings import Settings


def default_dtype() -> str:
    """The default dtype of computation: bfloat16 on GPUs and TPUs, float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class StableDiffusion(Model):
    """A Stable Diffusion 1.x or 2.x checkpoint, ready to sample images and to detect memorized prompts; see `Model`.

    With `dataclasses.replace` a network of it may be yours; see `memattn_jax.models.protocols`.
    """

    @classmethod
    def from_pretrained(
        cls, model: str | Path, dtype: str | None = None, mesh: Mesh | None = None, **source: Any
    ) -> "StableDiffusion":
        """Loads a checkpoint: a diffusers folder, as PyTorch's `save_pretrained` writes it, or a single file.

        Args:
          model: the folder or file; or "owner/name" or "owner/name@revision" on the Hugging Face Hub, with hf:// before
            it also "owner/name/folder" and "owner/name/file.safetensors".
          dtype: "float32", "bfloat16" or "float16", of weights and computation; softmax, norms' statistics, the
            scheduler and everything measured stay float32. By default bfloat16 on GPUs and TPUs, float32 on CPUs.
          mesh: from `memattn_jax.sharding.placement.make_mesh`, to run on several devices.
          **source: see `memattn_jax.checkpoints.checkpoint.Source`: vae, config, ema, prediction_type, variant,
            subfolder, revision, token, loras (such as [("file.safetensors", 0.8)]), embeddings.

        Raises:
          FileNotFoundError: no such file or folder.
          InputError: another family of models, a missing part, or weights, a LoRA or an embedding that do not fit.
        """
        return cls(**load(model, default_dtype() if dtype is None else dtype, mesh, Source(**source)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a diffusers folder that PyTorch's StableDiffusionPipeline loads, with the same bits.

        The scheduler's config is written in its corrected form, as the pipeline does; a scheduler class of Flax, which
        diffusers no longer has, under the name of PyTorch's.
        """
        save(self, Path(folder))

    def sample(self, prompts: Sequence[str] | None = None, **settings: Any) -> Samples:
        """Generates one image for each prompt, in one compiled program.

        A row depends on its prompt, its seed and the settings, not on the rows beside it. Another number, prompt or
        length compiles nothing; another number of prompts or steps, size, scheduler, kind of mitigation or taps does.

        Args:
          prompts: the texts; may be left out where `embeddings` are given.
          **settings: see `memattn_jax.diffusion.settings.Settings`: seeds, steps, guidance_scale, scheduler,
            negative_prompts, negative_embeddings, embeddings, latents, height, width, mitigation, guard, taps,
            callback, wait.

        Raises:
          InputError: see the message.
        """
        return sample(self, prompts, Settings(**settings))

    def detect(
        self,
        prompts: Sequence[str],
        detectors: Any = ("entropy_e", "noise_norm"),
        *,
        seeds: int | Sequence[int] = 0,
        latents: Array | np.ndarray | None = None,
        batch_size: int = 16,
        **settings: Any,
    ) -> Detection:
        """Scores prompts for memorization; computes only the steps and layers that the detectors need.

        A score depends on its prompt, its seed and the settings, not on the prompts beside it.

        Args:
          prompts: the texts, any number.
          detectors: names, see `memattn_jax.detectors.DETECTORS`, or your own; or {name: detector}.
          seeds: of the noise the prompts are seen through: one for all, whose empty-prompt forwards are made once; or
            one a prompt.
          latents: unit noise to look through instead of the seeds', as of `sample`: [1, h, w, channels] for all prompts
            or [batch, h, w, channels], one a prompt; with one probe.
          batch_size: prompts scored at once; fewer prompts than this are one batch.
          **settings: see `memattn_jax.detectors.Scorer`: probes, steps, guidance_scale, site, attribute; and options
            of the named detectors, as noise_norm_steps.

        Returns:
          A `Detection`; `detection["noise_norm"]` is float32 [prompts].

        Raises:
          InputError: see the message.
        """
        return detect(self, prompts, detectors, seeds=seeds, latents=latents, batch_size=batch_size, settings=settings)
