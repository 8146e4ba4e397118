"""NeMo: memorization neurons of the values, switched off (Hintersdorf et al., NeurIPS 2024, arXiv 2406.02366).

A neuron is an output channel of `to_v` in the cross-attention of the down and middle blocks; its activation is |value|,
mean over tokens, which the text alone decides. For each row by itself:

    agreement(S)   largest MS-SSIM, over noises, of nd with and without the neurons S, nd = f(x_T) − x_T, rescaled
    noises         those that look memorized: nd agrees with another noise's by more than `limit`; none, no neurons
    selection      S = neurons over θ standard deviations from clean prompts' mean, and the k largest;
                   θ = 5 and k = 0, then θ − ¼ and k + 1, until agreement(S) ≤ `limit` or θ is 1
    refinement     layers, then single neurons, are given back where agreement stays below `limit`

and the neurons left are multiplied by `factor` in the run. Read in the authors' code; f is the prediction at the second
timestep, as there, where the scheduler is not stepped in between. Cost, before the run: for each noise a forward pass
of every agreement, tens to hundreds of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.mitigation import Mitigation, Start, Step
from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors import Edit
from memattn_jax.mitigations.checks import check_counts, check_finite
from memattn_jax.mitigations.neuron_search import Neurons, ScaleValues, Search, activations
from memattn_jax.mitigations.prompt_files import read_texts
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.pytree import host_only, pytree, static

Refinement = Literal["none", "layers", "neurons"]


@pytree
class ValueNeurons(Mitigation):
    """See the module; `fit` before it is used, as the commands do.

    Attributes:
      clean: clean prompts, or a prompt file; the authors take 50,000.
      factor: of the neurons.
      limit: of the agreement. Images of one scale alone, of fewer than 22 latents a side, agree more.
      noises: of each row, its own among them.
      refine: "none", "layers" or "neurons".
      to_v: the layers' weights, float32 [1, text channels, channels] by site; None before it is fitted.
      mean: of clean prompts' activations, float32 [1, channels] by site; likewise.
      deviation: their standard deviation, likewise.

    Raises:
      FileNotFoundError: no such file.
      InputError: a file without prompts, a number out of range, or an unknown refinement.
    """

    clean: Sequence[str] | str | Path = host_only(default=())
    factor: float = 0.0
    limit: float = 0.428
    noises: int = static(default=10)
    refine: Refinement = static(default="neurons")
    to_v: Mapping[str, Any] | None = None
    mean: Mapping[str, Any] | None = None
    deviation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_name("refinement", self.refine, get_args(Refinement))
        check_counts(2, noises=self.noises)
        object.__setattr__(self, "clean", read_texts(self.clean))

    def check(self) -> None:
        """See `Mitigation.check`: fewer than two clean prompts."""
        if (given := len(read_texts(self.clean))) < 2:
            raise InputError(f"value_neurons learns from clean prompts; clean=FILE has {given}, expected two or more")

    def fit(self, model: Any, **settings: Any) -> "ValueNeurons":
        """See `Mitigation.fit`.

        Raises:
          InputError: fewer than two clean prompts, embeddings that are not finite, or a UNet of your own without such
            layers.
        """
        if self.to_v is not None:
            return self
        self.check()
        clean = read_texts(self.clean)
        if not isinstance(model.unet, UNet2DConditionModel):
            raise InputError(f"value_neurons searches Stable Diffusion's UNet, not {type(model.unet).__name__}")
        found = {leaf.name: leaf.param[...] for leaf in leaves(model.unet)}
        sites = [site for site in model.sites if not site.startswith("up_blocks")]
        weights = {site: found[f"{site}.to_v.weight"] for site in sites}
        weights = {site: jnp.asarray(value, jnp.float32)[None] for site, value in weights.items()}
        parts = [activations(model.encode([text])[0], weights) for text in clean]
        seen = {site: np.concatenate([part[site] for part in parts]) for site in weights}
        check_finite("value_neurons: an embedding of the clean prompts", *seen.values())
        mean = {site: value.mean(axis=0, keepdims=True) for site, value in seen.items()}
        deviation = {site: value.std(axis=0, ddof=1, keepdims=True) for site, value in seen.items()}
        return replace(self, to_v=weights, mean=mean, deviation=deviation)

    def begin(self, start: Start) -> Neurons:
        """See `Mitigation.begin`: the neurons of each row.

        Raises:
          InputError: it is not fitted.
        """
        if self.to_v is None or self.mean is None or self.deviation is None:
            raise InputError("value_neurons is not fitted: fit(model) first")
        active = activations(start.context, self.to_v)
        z = {site: jnp.abs(value - self.mean[site]) / self.deviation[site] for site, value in active.items()}
        search = Search(start, active, z, factor=self.factor, limit=self.limit, noises=self.noises)
        chosen, bound = search.select()
        if self.refine != "none":
            chosen = search.refine_layers(chosen, bound)
        return search.refine_neurons(chosen, bound) if self.refine == "neurons" else chosen

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """See `Mitigation.edits`."""
        return (ScaleValues(step.memory, self.factor),)
