"""What is called in place of a UNet, and calls it: a base class of such wrappers."""

from typing import Any

from jax import Array

from memattn_jax.models.protocols import prepare_text


class AroundUNet:
    """Has the members of the UNet that it holds as `unet`; see `memattn_jax.models.protocols`."""

    unet: Any

    @property
    def config(self) -> Any:
        """The UNet's."""
        return self.unet.config

    @property
    def sites(self) -> tuple[str, ...]:
        """The UNet's."""
        return self.unet.sites

    @property
    def dtype(self) -> Any:
        """The UNet's."""
        return self.unet.dtype

    def text_keys_values(self, context: Array) -> Any:
        """The UNet's."""
        return prepare_text(self.unet, context)
