"""The networks of a Stable Diffusion checkpoint, and one method for each of their uses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from memattn_jax.checkpoints.fingerprint import fingerprint
from memattn_jax.checkpoints.tokenizer import Tokenizer, Tokens
from memattn_jax.diffusion.noise import unit_noise
from memattn_jax.diffusion.weight_cache import WeightCache
from memattn_jax.entropy import METRIC_E_SITE
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.kernels.program import program
from memattn_jax.models.protocols import check_members
from memattn_jax.schedulers import as_pipeline
from memattn_jax.sharding.placement import spread

KEPT_EMBEDDINGS = 256  # rows; 60 MB for Stable Diffusion 1 in float32
DECODED_PIXELS = 2**18  # decoded at once: one picture of 512 × 512, whose feature maps take 1.2 GB in float32


@jax.jit
def embed(text_encoder: Any, input_ids: Array) -> Array:
    """Token ids [batch, tokens] to embeddings [batch, tokens, channels]."""
    return text_encoder(input_ids)


@partial(jax.jit, static_argnames="rows")
def repeat_row(embedding: Array, rows: int) -> Array:
    """One prompt's embedding [1, tokens, channels], for several rows."""
    return jnp.repeat(embedding, rows, axis=0)


@program("rows_at_once")
def decode(vae: Any, latents: Array, rows_at_once: int) -> tuple[Array, Array]:
    """Latents [batch, h, w, channels] to images, uint8 [batch, height, width, 3], some rows at a time.

    Also whether latents and pixels of each row were finite, bool [batch]: the images no longer show it.
    """

    def image(latents: Array) -> tuple[Array, Array]:
        pixels = vae.decode(latents[None] / vae.config.scaling_factor).astype(jnp.float32)[0]
        finite = jnp.isfinite(pixels).all() & jnp.isfinite(latents).all()
        return jnp.round(jnp.clip(pixels / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8), finite

    if latents.shape[0] <= rows_at_once:
        return jax.vmap(image, spmd_axis_name="data")(latents)  # where a mesh splits rows, kernels keep them split
    return jax.lax.map(image, latents, batch_size=rows_at_once)


def check_seeds(seeds: Sequence[Any], count: int = 1) -> tuple[int, ...]:
    """The seeds; raises InputError unless they are integers, and each and the `count` − 1 after it lie in [0, 2³²)."""
    try:
        whole = tuple(map(index, seeds))
    except TypeError:
        raise InputError(f"seeds must be integers in [0, 2**32), not {list(seeds)[:3]}") from None
    first, last = min(whole), max(whole) + count - 1
    if not 0 <= first <= last < 2**32:
        raise InputError(f"seeds must be in [0, 2**32), not {first} to {last}")
    return whole


@dataclass(frozen=True, repr=False)
class Model:
    """A Stable Diffusion 1.x or 2.x checkpoint, or networks of your own with the same members.

    Attributes:
      unet: see `memattn_jax.models.protocols`.
      vae: the autoencoder, an NNX module.
      text_encoder: likewise.
      tokenizer: prompts to token ids.
      scheduler_config: the checkpoint's scheduler_config.json in the form of `schedulers.as_pipeline`, which is what
        becomes of the one given; every scheduler is built from it.
      mesh: the devices that the weights lie on and batches are spread over, see `memattn_jax.sharding`; None is one.
      entropy_site: the cross-attention layer that metric E is read at wherever none is named, as memattn_jax.json in
        the checkpoint's folder names it; None is the paper's, the fourth.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Tokenizer
    scheduler_config: dict
    mesh: Mesh | None = None
    entropy_site: str | None = None
    _embeddings: WeightCache = field(
        default_factory=lambda: WeightCache(KEPT_EMBEDDINGS), init=False, repr=False, compare=False
    )
    _fingerprints: WeightCache = field(default_factory=WeightCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_members(self.unet, "UNet", ("__call__", "config", "sites", "dtype"))
        check_members(self.vae, "autoencoder", ("decode", "config"))
        check_members(self.text_encoder, "text encoder", ("__call__", "config"))
        object.__setattr__(self, "scheduler_config", as_pipeline(self.scheduler_config))

    def __repr__(self) -> str:
        kind = "velocity" if self.velocity else "noise"
        devices = "" if self.mesh is None else f", on {self.mesh.size} devices"
        size = self.unet.config.sample_size
        return f"{type(self).__name__}({self.dtype}, latents {size}, predicts {kind}, {len(self.sites)} sites{devices})"

    @property
    def dtype(self) -> str:
        """Of the UNet's weights, and so of its computation."""
        return str(self.unet.dtype)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the UNet's cross-attention layers, in forward order."""
        return self.unet.sites

    @property
    def velocity(self) -> bool:
        """Whether the UNet predicts velocity, as Stable Diffusion 2 at 768 pixels does, and not noise."""
        return self.scheduler_config.get("prediction_type") == "v_prediction"

    def site_of_entropy(self, site: str | None = None) -> str:
        """Where metric E is read: the named site, else the model's own, the paper's, or the last of a model with fewer.

        Raises:
          InputError: the model lacks the named site.
        """
        site = site or self.entropy_site
        if site is not None:
            check_name("cross-attention layer", site, self.sites)
        return site or self.sites[min(METRIC_E_SITE, len(self.sites) - 1)]

    def fingerprint(self, pictures: bool = False) -> str:
        """A hash of everything that determines scores; with `pictures`, also of the autoencoder."""
        parts = (self.unet, self.text_encoder, self.vae)[: 3 if pictures else 2]
        compute = partial(fingerprint, parts, self.scheduler_config, self.tokenizer.identity())
        return self._fingerprints.get(pictures, parts, compute)

    def encode(self, prompts: Sequence[str]) -> tuple[Float[Array, "batch tokens channels"], Tokens]:
        """Text embeddings [batch, tokens, channels], and the token ids and lengths they come from."""
        tokens = self.tokenizer((prompts,) if isinstance(prompts, str) else prompts)
        return self.embed(tokens), tokens

    def embed(self, tokens: Tokens) -> Float[Array, "batch tokens channels"]:
        """Text embeddings [batch, tokens, channels] of tokenized prompts.

        A prompt that fills its batch, as the empty one does in guidance, is encoded once. The last ones are kept, so
        that the next batch with the same prompts, or the same negative ones, finds them here, until a weight of the
        text encoder is replaced.
        """
        rows = len(tokens.input_ids)
        alike = rows > 1 and bool((tokens.input_ids == tokens.input_ids[0]).all())
        ids = tokens.input_ids[:1] if alike else tokens.input_ids
        embedding = self._embeddings.get(
            ids.tobytes(), self.text_encoder, lambda: embed(self.text_encoder, spread(ids, self.mesh))
        )
        return spread(repeat_row(embedding, rows), self.mesh) if alike else embedding

    def decode(self, latents: Float[Array, "batch h w channels"]) -> UInt8[np.ndarray, "batch height width 3"]:
        """Latents [batch, h, w, channels] to images, uint8 [batch, height, width, 3]."""
        return np.asarray(self.start_decoding(spread(latents, self.mesh))[0])

    def start_decoding(self, latents: Array) -> tuple[Array, Array]:
        """The same and whether each row was finite, as arrays that the device may still be computing."""
        rows, height, width, _ = latents.shape
        pixels = height * width * self.vae.config.scale**2
        # rows of a mesh stay together: each device holds its own alone, and would exchange them in a loop
        return decode(self.vae, latents, rows if self.mesh is not None else max(1, DECODED_PIXELS // pixels))

    def noise(
        self, seeds: Sequence[int], height: int | None = None, width: int | None = None
    ) -> Float[Array, "batch h w channels"]:
        """The unit noise that sampling with these seeds starts from, float32 [batch, h, w, channels].

        Args:
          seeds: one a row, in [0, 2³²).
          height: of the images, in pixels; by default what the model was trained on.
          width: likewise.

        Raises:
          InputError: a seed or a size that cannot be.
        """
        check_seeds(tuple(seeds))
        shape = self.latent_shape(height, width)
        if None in shape:
            raise InputError("this model's config has no sample_size; set height and width")
        return unit_noise(jnp.asarray(seeds, jnp.uint32), shape)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[Any, ...]:
        """(h, w, channels) of latents for images of this size; None where neither the size nor the model says."""
        scale, size = self.vae.config.scale, self.unet.config.sample_size
        shape: list[Any] = [*(size if isinstance(size, tuple) else (size, size)), self.unet.config.in_channels]
        for axis, (what, pixels) in enumerate({"height": height, "width": width}.items()):
            if pixels is not None:
                if pixels <= 0 or pixels % scale:
                    raise InputError(f"{what} {pixels} must be a positive multiple of {scale} pixels")
                shape[axis] = pixels // scale
        return tuple(shape)

    def check_latents(self, latents: Any, rows: int, height: int | None = None, width: int | None = None) -> Array:
        """Unit noise given by the user, as float32 [rows, h, w, channels]; any size where none is named.

        Raises:
          InputError: another shape.
        """
        shape = (rows, *self.latent_shape(height, width))
        if height is None and width is None and np.ndim(latents) == 4:
            shape = (rows, *np.shape(latents)[1:3], shape[-1])
        if np.shape(latents) != shape:
            raise InputError(f"latents have shape {np.shape(latents)}; expected {shape}")
        return jnp.asarray(latents, jnp.float32)
