"""How well an image follows its prompt, by CLIP (Radford et al., arXiv 2103.00020), with transformers' own model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memattn_jax.errors import InputError

BATCH = 32


class ClipScore:
    """Cosine of image and prompt, at least 0 (Hessel et al., EMNLP 2021, without their factor of 2.5).

    PyTorch computes it, on the CPU: this package has no CLIP image encoder.
    """

    def __init__(self, folder: str | Path):
        """Loads a CLIP model from a folder that transformers writes.

        Raises:
          InputError: PyTorch is not installed, or the folder holds no such model.
        """
        try:
            import torch
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise InputError(f'CLIP needs PyTorch: pip install -e ".[bench]" ({error})') from None
        try:
            self.model = CLIPModel.from_pretrained(folder).eval()
            self.processor = CLIPProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"--clip {folder}: no CLIP model of transformers ({str(error).splitlines()[0]})") from None
        self.torch = torch

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Images uint8 [n, height, width, 3] and their prompts to scores, float32 [n]."""
        scores = []
        for first in range(0, len(images), BATCH):
            part = slice(first, first + BATCH)
            inputs = self.processor(
                text=list(prompts[part]), images=list(images[part]), return_tensors="pt", padding=True, truncation=True
            )
            with self.torch.inference_mode():
                output = self.model(**inputs)
            scores.append((output.image_embeds * output.text_embeds).sum(-1).clamp(min=0).numpy())
        return np.concatenate(scores)
