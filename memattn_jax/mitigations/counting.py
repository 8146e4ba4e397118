"""Counts the UNet's forward passes in a run, those of a mitigation's own loops included."""

from typing import Any

import jax
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.interceptors import Interceptor
from memattn_jax.mitigations.around import AroundUNet
from memattn_jax.pytree import pytree, static


class Tally:
    """Rows that went through the UNet."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, rows: Any) -> None:
        """Counts some; a device calls it."""
        self.rows += int(rows)

    def take(self) -> int:
        """The rows since the last time, once the device is done."""
        jax.effects_barrier()
        rows, self.rows = self.rows, 0
        return rows


@pytree
class CountForwards(Mitigation):
    """Changes nothing and counts; compose it with what is to be counted, last.

    Attributes:
      tally: receives a forward pass of each row; a derivative counts as the pass that it is taken of.
    """

    tally: Tally = static()

    def weights(self, unet: Any) -> Any:
        """The UNet, counted."""
        return Counted(unet, self.tally)


@pytree
class Counted(AroundUNet):
    """A UNet that counts the rows it is called with."""

    unet: Any
    tally: Tally = static()

    def __call__(
        self, latents: Array, timesteps: Array, context: Any, interceptor: Interceptor
    ) -> tuple[Array, dict[str, Any]]:
        """As the UNet."""
        jax.debug.callback(self.tally.add, len(latents))
        return self.unet(latents, timesteps, context, interceptor)
