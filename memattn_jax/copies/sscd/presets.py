"""How papers prepare pictures for SSCD. Their numbers cannot be compared across presets.

- `official`: facebookresearch/sscd-copy-detection, README.md, `small_288`. The shorter edge becomes 288.
- `nemo`: ml-research/localizing_memorization_in_diffusion_models, metrics/compute_sscd_orig.py; the official README's
  `skew_320`. The picture is stretched to 320 × 320.
- `wen`: YuxinWenRick/diffusion_memorization, optim_utils.py, `measure_SSCD_similarity`; also somepago/DCR,
  diff_retrieval.py. The shorter edge becomes 256, the middle 224 × 224 are kept, and colours are normalised with a mean
  and standard deviation of 0.5, which the network was not trained with.
- `dcr`: somepago/DCR, embedding_search/utils.py, `get_transform`. As `wen`, with the colours of ImageNet.

torchvision's transforms resize a Pillow image bilinearly, with antialiasing, to 8 bits; so does `preprocess`.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.copies.resizing import Crop, resize

Colour = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preset:
    """A way to prepare pictures; yours is another instance.

    Attributes:
      name: goes wherever a number goes that was measured with it.
      size: what the shorter edge becomes; or height and width, which stretches the picture.
      crop: edge of the square that is kept of the middle; None keeps everything.
      mean: of each colour, subtracted from values between 0 and 1.
      std: of each colour, which the rest is divided by.
    """

    name: str
    size: int | tuple[int, int]
    crop: int | None = None
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD

    def sizes(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before the crop."""
        if isinstance(self.size, tuple):
            return self.size
        long = int(self.size * max(height, width) / min(height, width))
        return (self.size, long) if height <= width else (long, self.size)

    def window(self, height: int, width: int) -> tuple[tuple[int, int], Crop]:
        """Height and width after resizing, and the rows and columns that are kept of them."""
        size = self.sizes(height, width)
        return size, (middle(size[0], self.crop), middle(size[1], self.crop))


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("official", 288),
        Preset("nemo", (320, 320)),
        Preset("wen", 256, 224, HALF, HALF),
        Preset("dcr", 256, 224),
    )
}


def middle(size: int, crop: int | None) -> slice:
    """The part of an axis that torchvision's `CenterCrop` keeps."""
    if crop is None:
        return slice(None)
    start = round((size - crop) / 2)
    return slice(start, start + crop)


def preprocess(pictures: Array, preset: Preset) -> Array:
    """Resizes, crops and normalises pictures; to be called in a compiled function.

    Args:
      pictures: uint8 [n, h, w, 3].
      preset: static.

    Returns:
      float32 [n, h', w', 3].
    """
    return normalize(resize(pictures, *preset.window(*pictures.shape[1:3])), preset)


def normalize(pictures: Array, preset: Preset) -> Array:
    """Resized pictures, uint8 [n, h, w, 3], to float32 with the preset's mean and standard deviation of colours."""
    values = pictures.astype(jnp.float32) / 255
    return (values - np.array(preset.mean, np.float32)) / np.array(preset.std, np.float32)
