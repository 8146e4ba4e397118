"""The memorization gate: samples whose score says "memorized" get weight 0 in the loss.

Ren et al. (ECCV 2024, arXiv 2403.11052) announce a training-time mitigation at no cost in speed, but their published
code holds none, and its threshold, step and layers are not known. The form here is an **inference** from their abstract
and from Wen et al.'s released gate: a sample's score is the entropy of its mean cross-attention, of all layers or some,
in the training forward pass itself, its weight is 1 where the score is below γ(t), and γ(t) is a quantile of clean
samples' scores in the timestep's bin. Weights multiply a loss of static shape; nothing is indexed away, so the step
compiles once and costs no forward pass.

    loss = Σ wᵢ mseᵢ / max(1, Σ wᵢ),      wᵢ = 1[scoreᵢ < γ(tᵢ)]

Wen et al.'s gate (ICLR 2024, arXiv 2407.21720) takes ‖ε_c − ε_u‖₂ as the score, at one forward pass more.
"""

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.pytree import pytree, static


@pytree
class Thresholds:
    """γ(t) as a table, fitted before training on held-out clean pairs.

    Attributes:
      values: float32 [bins]; bin b covers timesteps from b · T / bins.
    """

    values: Array

    def thresholds(self) -> Array:
        """γ of each bin, float32 [bins]."""
        return self.values

    def update(self, bins: Array, scores: Array, counts: Array) -> "Thresholds":
        """Fixed: the same whatever is seen."""
        return self


@pytree
class Window:
    """γ(t) as a running quantile of the scores seen last in each bin.

    Attributes:
      scores: float32 [bins, size], the last scores of each bin in a ring.
      seen: int32 [bins], scores ever written to each bin.
      quantile: float, in (0, 1).
      minimum: scores that a bin must have seen before it gates anything.
    """

    scores: Array
    seen: Array
    quantile: Array | float
    minimum: int = static(default=32)

    @classmethod
    def empty(cls, bins: int, size: int, quantile: float, minimum: int = 32) -> "Window":
        """A window that has seen nothing, and gates nothing."""
        return cls(
            jnp.full((bins, size), jnp.nan, jnp.float32), jnp.zeros(bins, jnp.int32), jnp.float32(quantile), minimum
        )

    def thresholds(self) -> Array:
        """γ of each bin, float32 [bins]; infinite where too little was seen."""
        gamma = jnp.nanquantile(self.scores, self.quantile, axis=1)
        return jnp.where(self.seen >= self.minimum, gamma, jnp.inf)

    def update(self, bins: Array, scores: Array, counts: Array) -> "Window":
        """Writes a batch's scores, in its order.

        Args:
          bins: int32 [batch].
          scores: float32 [batch].
          counts: bool [batch], which rows to write: not those whose text was dropped.
        """

        def write(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            ring, seen = carry
            b, score, counts = row
            place = seen[b] % ring.shape[1]
            ring = ring.at[b, place].set(jnp.where(counts, score, ring[b, place]))
            return (ring, seen.at[b].add(counts.astype(jnp.int32))), None

        (ring, seen), _ = jax.lax.scan(write, (self.scores, self.seen), (bins, scores, counts))
        return Window(ring, seen, self.quantile, self.minimum)


Gate = Thresholds | Window


def timestep_bins(timesteps: Array, train_timesteps: int, bins: int) -> Array:
    """The bin of each timestep: int32 [batch]."""
    return timesteps * bins // train_timesteps


def weights(gate: Gate, bins: Array, scores: Array, dropped: Array) -> Array:
    """The weight of each row, float32 [batch]: 0 above γ of its bin; 1 for rows whose text was dropped."""
    return ((scores < gate.thresholds()[bins]) | dropped).astype(jnp.float32)


def fit_thresholds(bins: Array, scores: Array, count: int, quantile: float) -> Thresholds:
    """γ(t) from clean pairs' scores [n] at timesteps whose bins [n] are given; bins with none gate nothing."""
    by_bin = jnp.where(bins == jnp.arange(count)[:, None], scores, jnp.nan)  # [bins, n]
    gamma = jnp.nanquantile(by_bin, quantile, axis=1)
    return Thresholds(jnp.where(jnp.isnan(gamma), jnp.inf, gamma))
