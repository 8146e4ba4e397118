"""The members that a model needs to be sampled, scored and mitigated; ours have them, and yours may.

A UNet is any pytree that JAX can pass to a compiled function, with the members of `UNet`. It calls
`memattn_jax.interceptors.cross_attention` in its cross-attention layers. docs/extending.md has one in Flax Linen,
Equinox and plain JAX.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.interceptors import Interceptor


class UNetConfig(Protocol):
    """Geometry of a UNet.

    Attributes:
      in_channels: of the latents.
      sample_size: height and width of the latents that it was trained on, or one number for both; None where it has
        none, and then every call names the size of its images.
    """

    in_channels: int
    sample_size: int | tuple[int, int] | None


class UNet(Protocol):
    """Predicts noise, or velocity, from noisy latents and text.

    A method `text_keys_values(context)` is optional. What it makes of the text embeddings once is passed in their place
    to each call of a sampling run: for what no step changes, as keys and values. So is a method
    `bottleneck(latents, timesteps, context)`, the features [batch, ...] at its lowest resolution, which one detector
    reads.
    """

    @property
    def config(self) -> Any:
        """See `UNetConfig`."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the cross-attention layers in forward order."""

    @property
    def dtype(self) -> Any:
        """Of the weights, and so of the computation."""

    def __call__(
        self, latents: Array, timesteps: Array, context: Any, interceptor: Interceptor = ...
    ) -> tuple[Array, dict[str, dict[str, Any]]]:
        """One forward pass.

        Args:
          latents: [batch, height, width, channels].
          timesteps: float32 [] or [batch].
          context: text embeddings [batch or texts, tokens, channels], or their `text_keys_values`.
          interceptor: passed on to `cross_attention`, with the timestep: `interceptor.at(timesteps)`.

        Returns:
          The prediction [batch, height, width, channels], and {name: {site: tap}}; see `interceptors.by_name`.
        """


class Autoencoder(Protocol):
    """Latents to images. `encode` is needed for training alone.

    Its `config` has `scale` (pixels for each latent) and `scaling_factor` (of the latents that the UNet sees).
    """

    @property
    def config(self) -> Any:
        """Geometry."""

    def decode(self, latents: Array) -> Array:
        """Latents [batch, h, w, channels] to images [batch, height, width, 3] in [-1, 1]."""


def prepare_text(unet: UNet, context: Array) -> Any:
    """What the UNet is given in place of the text embeddings throughout a run."""
    prepare = getattr(unet, "text_keys_values", None)
    return context if prepare is None else prepare(context)


def check_members(network: Any, kind: str, members: Iterable[str]) -> None:
    """Raises InputError that names the missing members of a user's network."""
    if missing := [name for name in members if not hasattr(network, name)]:
        raise InputError(
            f"{kind} {type(network).__name__} lacks {', '.join(missing)}; see memattn_jax.models.protocols"
        )
