"""Names of SSCD's tensors in the files that people hold, brought to torchvision's.

Sources: torchvision, models/resnet.py; ClassyVision, models/resnext.py and classy_block.py; sscd-copy-detection,
sscd/models/model.py, which puts either under `backbone.`. Whatever stands before a known name is left out: modules
around the network, and the levels of nested checkpoints.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.text import printable

TORCHVISION = re.compile(
    r"(?:^|\.)((?:layer\d{1,2}\.\d{1,3}\.(?:conv\d|bn\d|downsample(?:\.[01])?)|conv1|bn1|fc)\.\w+)$"
)
CLASSY_STEM = re.compile(r"(?:^|\.)initial_block\._module\.([01])\.(\w+)$")
CLASSY_BLOCK = re.compile(
    r"(?:^|\.)blocks\.(\d{1,2})\.(?:block\d{1,2}-)?(\d{1,3})\.(?:_module\.)?"  # as versions of ClassyVision have it
    r"(convolutional_block\.\d|bn|downsample\.[01])\.(\w+)$"
)
CLASSY_HEAD = re.compile(r"(?:^|\.)embeddings\.1\.(\w+)$")
CLASSY_LAYERS = {
    "convolutional_block.0": "conv1",
    "convolutional_block.1": "bn1",
    "convolutional_block.3": "conv2",
    "convolutional_block.4": "bn2",
    "convolutional_block.6": "conv3",
    "bn": "bn3",
}
LEAVES = ("weight", "bias", "running_mean", "running_var")
NODES = 100_000  # dicts and their entries; a stranger's may contain themselves


def torchvision_name(name: str) -> str | None:
    """`layer1.0.bn2.weight` for the same tensor in any of these files; None for what is not known."""
    if found := TORCHVISION.search(name):
        return found[1]
    if found := CLASSY_STEM.search(name):
        return f"{('conv1', 'bn1')[int(found[1])]}.{found[2]}"
    if found := CLASSY_BLOCK.search(name):
        layer = CLASSY_LAYERS.get(found[3], found[3])
        return f"layer{int(found[1]) + 1}.{found[2]}.{layer}.{found[4]}"
    if found := CLASSY_HEAD.search(name):
        return f"fc.{found[1]}"
    return None


def flat(content: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in nested dicts, with the keys on the way to them; raises ValueError where these are too many."""
    waiting = [("", content)]
    for _ in range(NODES):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else key, inner) for key, inner in value.items() if type(key) is str]
        elif isinstance(value, np.ndarray):
            yield name, value
    raise ValueError("too many entries")


def named(content: Any, where: str) -> dict[str, np.ndarray]:
    """The network's tensors by torchvision's names.

    Args:
      content: nested dicts of arrays.
      where: names the file in errors.

    Raises:
      InputError: two networks.
    """
    tensors: dict[str, np.ndarray] = {}
    for stored_name, tensor in flat(content):
        name = torchvision_name(stored_name)
        if name is None or name.rpartition(".")[2] not in LEAVES:
            continue
        if name in tensors:
            raise InputError(f"{where}: holds two networks: {printable(stored_name, 60)} is {name}, and so is another")
        tensors[name] = tensor
    return tensors
