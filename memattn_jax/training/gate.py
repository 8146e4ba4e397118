"""The memorization gate: pairs that look memorized get weight 0 in the loss.

Ren et al. (ECCV 2024, arXiv 2403.11052) announce a training-time mitigation at no cost in speed, but their published
code has none, and its threshold, step and layers are not known. The form here is an **inference** from their abstract
and from Wen et al.'s released gate: a sample's score is the entropy of its mean cross-attention, of all layers or some,
in the training forward pass itself, its weight is 1 where the score is below γ(t), and γ(t) is a quantile of clean
samples' scores in the timestep's bin. Weights multiply a loss of static shape; nothing is indexed away, so the step
compiles once and costs no forward pass.

    loss = Σ wᵢ mseᵢ / max(1, Σ wᵢ),      wᵢ = 1[scoreᵢ < γ(tᵢ)]

Wen et al.'s gate (ICLR 2024, arXiv 2407.21720) uses ‖ε_c − ε_u‖₂ as the score, which costs one more forward pass. The
gate of IET-AGC (Liu et al., ECCV 2024, arXiv 2407.15328) uses the row's own loss: what is learnt already is dropped.
Its score here is −mse, and γ(t) = −m(t) / margin, with m(t) a moving average of losses.
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
        """Returns the same thresholds: they are fixed."""
        return self


@pytree
class Window:
    """γ(t) as a running quantile of the most recent scores in each bin.

    Attributes:
      scores: float32 [bins, size], a ring buffer of recent scores for each bin.
      seen: int32 [bins], number of scores written to each bin so far.
      quantile: float, in (0, 1).
      minimum: number of scores that a bin needs before it gates anything.
    """

    scores: Array
    seen: Array
    quantile: Array | float
    minimum: int = static(default=32)

    @classmethod
    def empty(cls, bins: int, size: int, quantile: float, minimum: int = 32) -> "Window":
        """A window without scores, which gates nothing yet."""
        return cls(
            jnp.full((bins, size), jnp.nan, jnp.float32), jnp.zeros(bins, jnp.int32), jnp.float32(quantile), minimum
        )

    def thresholds(self) -> Array:
        """γ of each bin, float32 [bins]; infinite where there are too few scores."""
        gamma = jnp.nanquantile(self.scores, self.quantile, axis=1)
        return jnp.where(self.seen >= self.minimum, gamma, jnp.inf)

    def update(self, bins: Array, scores: Array, counts: Array) -> "Window":
        """Adds a batch's scores in order.

        Args:
          bins: int32 [batch].
          scores: float32 [batch].
          counts: bool [batch], which rows to add: not those whose caption was dropped.
        """

        def write(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            ring, seen = carry
            b, score, counts = row
            place = seen[b] % ring.shape[1]
            ring = ring.at[b, place].set(jnp.where(counts, score, ring[b, place]))
            return (ring, seen.at[b].add(counts.astype(jnp.int32))), None

        (ring, seen), _ = jax.lax.scan(write, (self.scores, self.seen), (bins, scores, counts))
        return Window(ring, seen, self.quantile, self.minimum)


@pytree
class LossAverage:
    """γ(t) of IET-AGC: rows are dropped whose loss is less than the bin's moving average by a factor.

    The authors' code has an average of each timestep; here it is of each bin.

    Attributes:
      averages: of losses, float32 [bins]; NaN before the first one.
      decay: of the averages.
      margin: the factor; a row is kept where margin · loss ≥ average.
    """

    averages: Array
    decay: Array | float = 0.8
    margin: Array | float = 1.25

    @classmethod
    def empty(cls, bins: int, margin: float = 1.25) -> "LossAverage":
        """Averages of nothing, which gate nothing yet."""
        return cls(jnp.full(bins, jnp.nan, jnp.float32), jnp.float32(0.8), jnp.float32(margin))

    def thresholds(self) -> Array:
        """γ of each bin for the score −mse, float32 [bins]; infinite before the first loss."""
        return jnp.where(jnp.isnan(self.averages), jnp.inf, -self.averages / self.margin)

    def update(self, bins: Array, scores: Array, counts: Array) -> "LossAverage":
        """Adds a batch's losses in order; see `Window.update`."""

        def add(averages: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
            b, score, counts = row
            old = averages[b]
            new = jnp.where(jnp.isnan(old), -score, self.decay * old - (1 - self.decay) * score)
            return averages.at[b].set(jnp.where(counts, new, old)), None

        averages = jax.lax.scan(add, self.averages, (bins, scores, counts))[0]
        return LossAverage(averages, self.decay, self.margin)


Gate = Thresholds | Window | LossAverage


def timestep_bins(timesteps: Array, train_timesteps: int, bins: int) -> Array:
    """The bin of each timestep: int32 [batch]."""
    return timesteps * bins // train_timesteps


def weights(gate: Gate, bins: Array, scores: Array, dropped: Array) -> Array:
    """The weight of each row, float32 [batch]: 0 above γ of its bin; 1 for rows whose caption was dropped."""
    return ((scores < gate.thresholds()[bins]) | dropped).astype(jnp.float32)


def fit_thresholds(bins: Array, scores: Array, count: int, quantile: float) -> Thresholds:
    """γ(t) from the scores [n] of clean pairs in timestep bins [n]; bins without scores gate nothing."""
    by_bin = jnp.where(bins == jnp.arange(count)[:, None], scores, jnp.nan)  # [bins, n]
    gamma = jnp.nanquantile(by_bin, quantile, axis=1)
    return Thresholds(jnp.where(jnp.isnan(gamma), jnp.inf, gamma))
