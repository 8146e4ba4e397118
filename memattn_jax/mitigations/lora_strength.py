"""A LoRA kept apart from the weights, so that its strength is a number of the run: another one compiles nothing.

`StableDiffusion.from_pretrained(…, loras=…)` merges a file once and for all, in both networks. Here the UNet's part is
merged at the start of each run, or under a guard for memorized rows alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.checkpoints.lora.files import read_lora
from memattn_jax.checkpoints.lora.kinds import LayerChange
from memattn_jax.checkpoints.lora.merge import find_layers
from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.diffusion.model import Model
from memattn_jax.pytree import pytree

Network = TypeVar("Network", bound=nnx.Module)
# {layer: {role of a tensor, or "scale": float32 [1, ...]}}; the first axis tells them from values that rows have
Layers = Mapping[str, Mapping[str, Array]]


@pytree
class LoraStrength(Mitigation):
    """Adds a LoRA to the UNet.

    Attributes:
      layers: the UNet's, of `keep_apart`.
      strength: of the change; 0 is none.
    """

    layers: Layers
    strength: float | Array = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.strength, int):  # another dtype would compile again
            object.__setattr__(self, "strength", float(self.strength))

    def weights(self, unet: Any) -> Any:
        """See `Mitigation.weights`."""
        return with_strength(unet, self.layers, self.strength)


def keep_apart(path: str | Path, model: Model) -> dict[str, Layers]:
    """Reads a LoRA without merging it.

    Args:
      path: file, or folder of PEFT's.
      model: that it is for.

    Returns:
      The changed layers of "unet" and of "text_encoder". A mitigation takes the former; where a file has the latter,
      too, `dataclasses.replace(sd, text_encoder=with_strength(sd.text_encoder, layers, strength))` is the model for it.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a LoRA, or one for another model.
    """
    networks = {"unet": model.unet, "text_encoder": model.text_encoder}
    shapes = {part: {leaf.name: leaf.torch_shape for leaf in leaves(network)} for part, network in networks.items()}
    found = find_layers(Path(path), read_lora(Path(path)), shapes)

    def arrays(change: LayerChange) -> dict[str, Array]:
        values = {**change.tensors, "scale": np.float32(change.scale)}
        return {role: jnp.asarray(value, jnp.float32)[None] for role, value in values.items()}

    return {part: {layer: arrays(change) for layer, change in layers.items()} for part, layers in found.items()}


@jax.jit
def with_strength(network: Network, layers: Layers, strength: Array) -> Network:
    """A network with the changes of a LoRA, made in float32.

    Args:
      network: UNet or text encoder.
      layers: of `keep_apart`, for this network.
      strength: a number.
    """
    changes = {}
    for layer, arrays in layers.items():
        tensors = {role: array[0] for role, array in arrays.items()}
        changes[layer] = LayerChange(tensors, tensors.pop("scale"))
    for leaf in leaves(network):  # of a copy, as JAX makes one for each trace
        layer, _, parameter = leaf.name.rpartition(".")
        if layer in changes and parameter in changes[layer].parameters:
            value = leaf.param[...].transpose(leaf.axes).astype(jnp.float32)
            changed = changes[layer].apply(parameter, value, strength)
            new = changed.transpose(np.argsort(leaf.axes)).astype(leaf.param.dtype)
            setattr(leaf.owner, leaf.attribute, nnx.Param(new))
    return network
