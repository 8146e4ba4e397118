"""The result of a sampling run."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
from jax import Array

from memattn_jax.errors import InputError, check_name
from memattn_jax.heatmaps import ChosenSteps, ChosenTokens, picture_heatmap, token_mask
from memattn_jax.pytree import pytree, static

PER_ROW = ("images", "latents", "input_ids", "lengths", "finite", "guard_scores", "mitigated")


@pytree
class Samples:
    """One sampled batch, a pytree. A step is one call of the UNet; PNDM makes one more than asked for.

    Attributes:
      prompts: the texts; empty where embeddings were given in their place.
      seeds: one a row.
      images: uint8 [batch, height, width, 3].
      latents: float32 [batch, h, w, channels], before the decoder.
      taps: {name: {site: [steps, batch, ...]}}, of the conditional rows, sites in forward order.
      input_ids: int32 [batch, tokens].
      lengths: int32 [batch], begin and end token counted.
      timesteps: float32 [steps].
      finite: bool [batch], False where a row's latents or its decoded image, before conversion to uint8, contain NaN or
        infinity; the other rows are unaffected.
      entropy_site: where metric E is read, of `tokens`.
      guard_scores: float32 [batch], what a guard's detector saw; None without one.
      mitigated: bool [batch], the rows that a guard mitigated, those whose score is not finite among them; None
        without one.
      over_heads: names of the taps that are means over heads.
    """

    prompts: tuple[str, ...] = static()
    seeds: tuple[int, ...] = static()
    images: Any
    latents: Array
    taps: Mapping[str, Mapping[str, Any]]
    input_ids: Any
    lengths: Any
    timesteps: Any
    finite: Any
    entropy_site: str = static()
    guard_scores: Any = None
    mitigated: Any = None
    over_heads: tuple[str, ...] = static(default=())

    @property
    def tokens(self) -> Mapping[str, Array]:
        """{site: float32 [steps, batch, heads, tokens]}, attention averaged over pixels; empty where not tapped."""
        return self.taps.get("tokens", {})

    @property
    def maps(self) -> Mapping[str, Array]:
        """{site: float32 [steps, batch, heads, pixels, tokens]}; empty where not tapped."""
        return self.taps.get("maps", {})

    def heatmap(
        self,
        tokens: ChosenTokens,
        site: str | None = None,
        *,
        head: int | None = None,
        steps: ChosenSteps = None,
        tap: str | None = None,
    ) -> np.ndarray:
        """Where tokens look, over each picture: float32 [batch, height, width].

        A value is the share of a pixel's attention that goes to the tokens, from 0 to 1, mean over the chosen layers,
        heads and steps. Sample with taps="heatmaps", with taps="maps" where a head or steps are chosen here, or with a
        `MeanMaps` of your own.

        Args:
          tokens: a token's place, from 0 for the begin token, or several, which are added up; "begin", "words", "end",
            "padding" or "summary" (end and padding); or bool [batch, tokens].
          site: a cross-attention layer; None is the mean of all that were tapped.
          head: of that layer; None is the mean over heads.
          steps: one, from 0 or negative from the end; (first, stop); None is all.
          tap: name of the tap to read; by default "maps", else "heatmaps".

        Raises:
          InputError: what was not tapped, or is not there.
        """
        tap = tap or ("maps" if self.maps else "heatmaps")
        if tap not in self.taps:
            raise InputError(f"heatmap: no tap '{tap}'; sample with taps='heatmaps' or taps='maps'")
        maps = self.taps[tap]
        if site is not None:
            check_name("cross-attention layer", site, tuple(maps))
            maps = {site: maps[site]}
        if steps is not None and len(self.timesteps) > 1 and all(len(own) == 1 for own in maps.values()):
            raise InputError(f"heatmap: tap '{tap}' is a mean over steps; sample with MeanMaps(over_steps=…) or 'maps'")
        if head is not None and tap in self.over_heads:
            raise InputError(f"heatmap: tap '{tap}' is a mean over heads; sample with MeanMaps(heads='each') or 'maps'")
        mask = token_mask(tokens, np.asarray(self.lengths), next(iter(maps.values())).shape[-1])
        (height, width), (h, w) = self.images.shape[1:3], self.latents.shape[1:3]
        return picture_heatmap(maps, mask, (h, w), (height, width), head=head, steps=steps)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:3]))
        named = ", ".join(f"{name} at {len(sites)} sites" for name, sites in self.taps.items())
        steps = f"{len(self.timesteps)} steps"
        return f"Samples({len(self.images)} images of {shape} pixels, {steps}, taps: {named or 'none'})"

    def fetch(self) -> "Samples":
        """The same with images and guard scores in the host's memory, once the device is done."""
        names = ("images", "finite", "guard_scores", "mitigated")
        return replace(self, **jax.device_get({name: getattr(self, name) for name in names}))

    def first_rows(self, count: int) -> "Samples":
        """Without the rows from `count` on."""
        rows: dict[str, Any] = {name: value[:count] for name in PER_ROW if (value := getattr(self, name)) is not None}
        rows |= {"prompts": self.prompts[:count], "seeds": self.seeds[:count]}
        return replace(self, taps=jax.tree.map(lambda tap: tap[:, :count], self.taps), **rows)


def choose_samples(chosen: np.ndarray | Array, changed: Samples, plain: Samples) -> Samples:
    """The rows of `changed` where `chosen`, bool [batch], is set, else those of `plain`, sampled alike."""

    def choose(axis: int, new: Any, old: Any) -> Any:
        shape = [1] * new.ndim
        shape[axis] = -1
        return jax.numpy.where(jax.numpy.reshape(chosen, shape), new, old)

    named = {field.name: (getattr(changed, field.name), getattr(plain, field.name)) for field in fields(plain)}
    own = ("images", "latents", "finite", "input_ids", "lengths")
    rows = {name: choose(0, *named[name]) for name in own if named[name][0] is not None}
    taps = jax.tree.map(lambda new, old: choose(1, new, old), changed.taps, plain.taps)
    return replace(plain, taps=taps, **rows)
