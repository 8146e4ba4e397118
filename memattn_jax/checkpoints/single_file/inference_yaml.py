"""The .yaml beside a single file, by which AUTOMATIC1111's web UI knows what the file's UNet predicts.

It is a config of the original code, such as v2-inference-v.yaml of Stability-AI/stablediffusion.
"""

import re
from pathlib import Path

LARGEST = 2**20  # bytes that are read; Stable Diffusion's have two thousand
STATED = re.compile(rb"""^[^#\n]*\bparameterization["']?:[ \t]*["']?(\w+)""", re.MULTILINE)
ORIGINAL = re.compile(
    rb"""^[^#\n]*\btarget["']?:[ \t]*["']?ldm\.models\.diffusion\.ddpm\.LatentDiffusion\b""", re.MULTILINE
)
NAMES = {"v": "v_prediction", "eps": "epsilon"}


def prediction_beside(path: Path, *, default: bool) -> str:
    """What the .yaml with a file's name says that its UNet predicts; "" where there is none, or it does not say.

    Args:
      path: of the single file.
      default: whether a config without `parameterization` counts, too: the original LatentDiffusion then predicts the
        noise.
    """
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return ""
    with beside.open("rb") as file:
        text = file.read(LARGEST)
    if stated := STATED.search(text):
        name = stated[1].decode()
        return NAMES.get(name, name)
    return "epsilon" if default and ORIGINAL.search(text) and b"parameterization" not in text else ""
