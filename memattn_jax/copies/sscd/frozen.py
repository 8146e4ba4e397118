"""Names for the tensors of a frozen TorchScript program, which has none: they are constants in order of use."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Layer = list[np.ndarray]  # a kernel, and its bias or the four vectors of its batch norm
NORM = ("weight", "bias", "running_mean", "running_var")  # order of the arguments


def in_order(constants: Sequence[Any]) -> dict[str, np.ndarray]:
    """The tensors by torchvision's names.

    torchvision applies a block's `downsample` after its three convolutions, ClassyVision before that of 3 × 3, and the
    first block of either has one: it begins with one 1 × 1 convolution, or with two.

    Args:
      constants: the first convolution, those of the blocks, the linear map; what is no array is left out.

    Raises:
      ValueError, IndexError: not the tensors of such a network.
    """
    stem, *convolutions, head = layers_of(constants)
    sizes = [layer[0].shape[2] for layer in convolutions]
    before = sizes[:3] == [1, 1, 3]
    tensors = {**leaves("conv1", "bn1", stem), "fc.weight": head[0], "fc.bias": head[1]}
    stage, block, position = 0, 0, 0
    while position < len(convolutions):
        own = convolutions[position : position + 3]
        down = None
        if before and sizes[position : position + 2] == [1, 1]:
            down, first, *rest = convolutions[position : position + 4]
            width = len(rest[0][0])
            if len(down[0]) == width != len(first[0]):  # exporters may sort them
                down, first = first, down
            own = [first, *rest]
        elif not before and sizes[position + 3 : position + 5] in ([1, 1], [1]):
            down = convolutions[position + 3]
        stage, block = (stage, block + 1) if down is None else (stage + 1, 0)
        path = f"layer{stage}.{block}"
        for number, layer in enumerate(own, 1):
            tensors |= leaves(f"{path}.conv{number}", f"{path}.bn{number}", layer)
        if down is not None:
            tensors |= leaves(f"{path}.downsample.0", f"{path}.downsample.1", down)
        position += 3 if down is None else 4
    return tensors


def layers_of(constants: Sequence[Any]) -> list[Layer]:
    """Kernels, each with the vectors that follow it."""
    layers: list[Layer] = []
    for constant in constants:
        if isinstance(constant, np.ndarray):
            if constant.ndim > 1:
                layers.append([])
            layers[-1].append(constant)
    return layers


def leaves(convolution: str, norm: str, layer: Layer) -> dict[str, np.ndarray]:
    """One layer's tensors by name."""
    kernel, *vectors = layer
    if len(vectors) == 1:
        return {f"{convolution}.weight": kernel, f"{convolution}.bias": vectors[0]}
    named = {f"{norm}.{leaf}": vector for leaf, vector in zip(NORM, vectors, strict=True)}
    return {f"{convolution}.weight": kernel} | named
