"""What options have to suit: the properties of a checkpoint that its configs tell, without JAX or weights."""

from dataclasses import dataclass

from memattn_jax.checkpoints.checkpoint import Checkpoint
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.configs import UNetConfig, VAEConfig
from memattn_jax.text import printable


def cross_attention_sites(config: UNetConfig) -> tuple[str, ...]:
    """Paths of the cross-attention layers in forward order, as the model that is built from a config names them."""
    levels = range(len(config.block_out_channels))
    layers, cross_only = config.layers, config.cross_only
    blocks = [(kind, f"down_blocks.{i}", i, layers[i], cross_only[i]) for i, kind in enumerate(config.down_block_types)]
    if config.mid_block_type is not None:
        blocks.append(("CrossAttn", "mid_block", levels[-1], 1, False))
    for position, (i, kind) in enumerate(zip(reversed(levels), config.up_block_types, strict=True)):
        blocks.append((kind, f"up_blocks.{position}", i, layers[i] + 1, cross_only[i]))
    return tuple(
        f"{path}.attentions.{attention}.transformer_blocks.{layer}.{name}"
        for kind, path, level, attentions, both in blocks
        if kind.startswith("CrossAttn")
        for attention in range(attentions)
        for layer in range(config.transformer_layers[level])
        for name in (("attn1", "attn2") if both else ("attn2",))
    )


@dataclass(frozen=True)
class Geometry:
    """The properties of a checkpoint that restrict options.

    Attributes:
      sites: its cross-attention layers.
      scale: pixels per latent, along each side.
      timesteps: number of training timesteps.
    """

    sites: tuple[str, ...]
    scale: int
    timesteps: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Geometry":
        """Derives them from the configs.

        Raises:
          InputError: a scheduler config without a number of timesteps.
        """
        unet, vae = (checkpoint.parts[name].config for name in ("unet", "vae"))
        assert isinstance(unet, UNetConfig)
        assert isinstance(vae, VAEConfig)
        timesteps = checkpoint.scheduler_config.get("num_train_timesteps", 1000)
        if type(timesteps) is not int:
            shown = printable(repr(timesteps), 40)
            raise InputError(f"{checkpoint.where}: num_train_timesteps={shown}; expected a whole number")
        return cls(cross_attention_sites(unet), vae.scale, timesteps)

    def check(
        self, *, steps: int | None, site: str | None, height: int | None = None, width: int | None = None
    ) -> None:
        """Raises InputError for an option that does not suit the checkpoint."""
        if steps is not None and steps > self.timesteps:
            raise InputError(f"--steps {steps}: at most {self.timesteps}, the number of training timesteps")
        if site is not None:
            check_name("cross-attention layer", site, self.sites, "--site")
        for name, pixels in (("height", height), ("width", width)):
            if pixels is not None and (pixels <= 0 or pixels % self.scale):
                raise InputError(f"--{name} {pixels}: must be a positive multiple of {self.scale} pixels")
