"""Weights that memorized prompts use, pruned (Chavhan et al., arXiv 2406.18566).

    S_ij = |W_ij| · ‖X_j‖₂      W the output layer of a perceptron, X its inputs: of all pixels and prompts at one call
    pruned                      W_ij in the top `share` of its output i, and S_ij over that of the empty prompt

at any of the first calls of a run; S is Wanda's score (Sun et al., ICLR 2024, arXiv 2306.11695). The authors published
no code; this is after notes on the paper. Cost: none in a run; two runs of the memorized prompts, once a model. Pruned
weights do not hold against an embedding that is optimised for the picture (Kowalczuk et al., arXiv 2507.16880).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.diffusion.run import observe_run
from memattn_jax.diffusion.sampling import Call
from memattn_jax.diffusion.settings import Settings
from memattn_jax.errors import InputError
from memattn_jax.interceptors import Interceptor
from memattn_jax.mitigations.around import AroundUNet
from memattn_jax.mitigations.checks import check_counts, check_finite, check_share
from memattn_jax.mitigations.prompt_files import read_texts
from memattn_jax.models.attention import BasicTransformerBlock
from memattn_jax.pytree import host_only, pytree

TAP = "inputs"


@pytree
class PrunedWeights(Mitigation):
    """See the module; `fit` before it is used, as the commands do.

    Attributes:
      memorized: memorized prompts, or a prompt file.
      share: of each output's weights that may be pruned.
      calls: of a run, from the first, that are looked at.
      batch: runs at once.
      pruned: bool [1, in, out] by layer; None before it is fitted.

    Raises:
      FileNotFoundError: no such file.
      InputError: a file without prompts, or a number out of range.
    """

    memorized: Sequence[str] | str | Path = host_only(default=())
    share: float = host_only(default=0.01)
    calls: int = host_only(default=10)
    batch: int = host_only(default=8)
    pruned: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_counts(1, calls=self.calls, batch=self.batch)
        check_share(share=self.share)
        object.__setattr__(self, "memorized", read_texts(self.memorized))

    def check(self) -> None:
        """See `Mitigation.check`: no memorized prompts."""
        if not self.memorized:
            raise InputError("pruned_weights needs the prompts to forget: memorized=FILE")

    def fit(self, model: Any, **settings: Any) -> "PrunedWeights":
        """See `Mitigation.fit`.

        Raises:
          InputError: no memorized prompts, runs that are not finite, or a UNet of your own without such layers.
        """
        if self.pruned is not None:
            return self
        self.check()
        prompts = read_texts(self.memorized)
        if not any(isinstance(module, BasicTransformerBlock) for _, module in nnx.iter_modules(model.unet)):
            raise InputError(
                f"pruned_weights: {type(model.unet).__name__} has no perceptrons of Stable Diffusion's kind"
            )
        recording = replace(model, unet=Recording(model.unet))
        run = Settings(**settings)
        own, empty = (self.squares(recording, texts, run) for texts in (prompts, [""] * len(prompts)))
        check_finite("pruned_weights: a run of the memorized prompts", *own.values())
        check_finite("pruned_weights: a run of the empty prompt", *empty.values())
        weights = {leaf.name: np.abs(np.asarray(leaf.param[...], np.float32)) for leaf in leaves(model.unet)}
        pruned = {
            layer: used_weights(weights[f"{layer}.weight"], own[layer], empty[layer], self.share)[None] for layer in own
        }
        return replace(self, pruned=pruned)

    def squares(self, model: Any, prompts: Sequence[str], run: Settings) -> dict[str, np.ndarray]:
        """Σ X² of each input of each layer, float32 [calls, in]; prompt i has seed i."""
        total: dict[str, np.ndarray] = {}
        for first in range(0, len(prompts), self.batch):
            texts = prompts[first : first + self.batch]
            seeds = tuple(range(first, first + len(texts)))
            kept = observe_run(model, texts, replace(run, seeds=seeds), layer_inputs)
            for layer, rows in kept.items():
                total[layer] = total.get(layer, 0) + rows[: self.calls].sum(axis=1)
        return total

    def weights(self, unet: Any) -> Any:
        """See `Mitigation.weights`.

        Raises:
          InputError: it is not fitted.
        """
        if self.pruned is None:
            raise InputError("pruned_weights is not fitted: fit(model, steps=…) first")
        for leaf in leaves(unet):  # of a copy, as JAX makes one for each trace
            layer, _, parameter = leaf.name.rpartition(".")
            if parameter == "weight" and layer in self.pruned:
                value = leaf.param[...]
                setattr(leaf.owner, leaf.attribute, nnx.Param(jnp.where(self.pruned[layer][0], 0, value)))
        return unet


def used_weights(weights: np.ndarray, own: np.ndarray, empty: np.ndarray, share: float) -> np.ndarray:
    """Which weights to prune, bool [in, out]; see the module.

    Args:
      weights: |W|, float32 [in, out].
      own: Σ X² with the memorized prompts, float32 [calls, in].
      empty: with the empty prompt, likewise.
      share: of each output's weights.
    """
    pruned = np.zeros(weights.shape, bool)
    if share == 0:
        return pruned
    most = max(1, round(share * len(weights)))
    for of_own, of_empty in zip(np.sqrt(own), np.sqrt(empty), strict=True):
        scores = weights * of_own[:, None]
        least = np.partition(scores, -most, axis=0)[-most]
        pruned |= (scores >= least) & (scores > weights * of_empty[:, None])
    return pruned


def layer_inputs(call: Call) -> dict[str, Array]:
    """Observer: what `Recording` taps."""
    return call.taps[TAP]


@pytree
class Recording(AroundUNet):
    """A UNet that taps Σ X² over pixels of each input of its perceptrons' output layers, [batch, in]."""

    unet: Any

    def __call__(
        self, latents: Array, timesteps: Array, context: Array, interceptor: Interceptor
    ) -> tuple[Array, dict[str, Any]]:
        """As the UNet."""
        copy = nnx.merge(*nnx.split(self.unet))
        found: dict[str, Array] = {}
        for path, module in nnx.iter_modules(copy):
            if isinstance(module, BasicTransformerBlock):
                name = ".".join((*map(str, path), "ff.net.2"))
                module.ff = Perceptron(module.ff, name, found)  # type: ignore[assignment]
        with jax.disable_jit():  # what a function inside keeps could not leave a program of its own
            output, taps = copy(latents, timesteps, context, interceptor)
        return output, taps | {TAP: found}


class Perceptron:
    """A `FeedForward` that keeps the squares of what its last layer receives."""

    def __init__(self, layer: Any, name: str, found: dict[str, Array]):
        self.layer, self.name, self.found = layer, name, found

    def __call__(self, hidden: Array) -> Array:
        """[batch, pixels, channels] to the same."""
        first, _, last = self.layer.net
        inner = first(hidden)
        self.found[self.name] = jnp.sum(inner.astype(jnp.float32) ** 2, axis=1)
        return last(inner)
