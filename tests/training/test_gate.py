"""The memorization gate on arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.training.gate import (
    LossAverage,
    Thresholds,
    Window,
    fit_thresholds,
    timestep_bins,
    weights,
)


def test_the_score_is_the_entropy_of_the_mean_over_sites_and_heads():
    few, many = (np.random.default_rng(i).dirichlet(np.ones(7), size=(3, heads)) for i, heads in enumerate((2, 5)))
    mean = (few.mean(1) + many.mean(1)) / 2
    expected = -(mean * np.log(mean)).sum(-1)
    mean = mean_over_sites({"a": jnp.asarray(few), "b": jnp.asarray(many)})
    np.testing.assert_allclose(token_entropy(mean), expected, atol=1e-6)


def test_noise_norm():
    a, b = (np.random.default_rng(i).normal(size=(2, 4, 4, 3)) for i in range(2))
    expected = [np.linalg.norm(x - y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(norm(jnp.asarray(a) - jnp.asarray(b)), expected, rtol=1e-6)


def test_bins_cover_the_timesteps_evenly():
    bins = timestep_bins(jnp.arange(1000), 1000, 10)
    np.testing.assert_array_equal(np.bincount(bins), np.full(10, 100))
    assert bins[0] == 0
    assert bins[999] == 9


def test_weights_drop_what_is_not_below_its_bins_threshold():
    gate = Thresholds(jnp.asarray([1.0, 2.0, jnp.inf]))
    bins = jnp.asarray([0, 0, 1, 1, 2, 0])
    scores = jnp.asarray([0.9, 1.0, 1.9, 2.1, 99.0, 5.0])
    dropped = jnp.asarray([False] * 5 + [True])
    np.testing.assert_array_equal(weights(gate, bins, scores, dropped), [1, 0, 1, 0, 1, 1])


def test_fitted_thresholds_are_quantiles_in_each_bin():
    rng = np.random.default_rng(0)
    bins, scores = rng.integers(0, 3, 300), rng.normal(size=300)
    gate = fit_thresholds(jnp.asarray(bins), jnp.asarray(scores), 4, 0.9)
    expected = [np.quantile(scores[bins == b], 0.9) for b in range(3)]
    np.testing.assert_allclose(gate.thresholds(), [*expected, np.inf], rtol=1e-5)
    assert gate.update(jnp.asarray([0]), jnp.asarray([9.0]), jnp.asarray([True])) is gate


def test_a_window_gates_nothing_until_it_has_seen_enough():
    window = Window.empty(bins=2, size=4, quantile=0.5, minimum=3)
    assert np.isinf(window.thresholds()).all()
    ones = jnp.ones(2, jnp.int32)
    window = window.update(ones, jnp.asarray([1.0, 2.0]), jnp.asarray([True, True]))
    assert np.isinf(window.thresholds()).all()
    window = window.update(ones, jnp.asarray([9.0, 3.0]), jnp.asarray([False, True]))  # the 9 does not count
    np.testing.assert_array_equal(window.thresholds(), [np.inf, 2.0])


def test_a_window_remembers_the_last_scores():
    window = Window.empty(bins=1, size=3, quantile=1.0, minimum=1)
    for score in (9.0, 1.0, 2.0, 3.0):
        window = window.update(jnp.zeros(1, jnp.int32), jnp.asarray([score]), jnp.asarray([True]))
    assert window.thresholds() == pytest.approx([3.0])
    assert window.seen == pytest.approx([4])


def test_the_loss_gate_is_that_of_iet_agc():
    """Against its rule, row by row: keep where 1.25 · loss ≥ average; every row's loss enters its average."""
    rng = np.random.default_rng(0)
    gate, averages, seen = LossAverage.empty(bins=3), [None] * 3, []
    for _ in range(20):
        bins, losses, counts = rng.integers(0, 3, 8), rng.uniform(0.1, 1, 8), rng.random(8) < 0.8
        kept = [averages[b] is None or 1.25 * loss >= averages[b] for b, loss in zip(bins, losses, strict=True)]
        ours = weights(gate, jnp.asarray(bins), -jnp.asarray(losses, jnp.float32), jnp.zeros(8, bool))
        np.testing.assert_array_equal(ours, kept)
        seen += kept
        gate = gate.update(jnp.asarray(bins), -jnp.asarray(losses, jnp.float32), jnp.asarray(counts))
        for b, loss, counted in zip(bins, losses, counts, strict=True):
            if counted:
                averages[b] = loss if averages[b] is None else 0.8 * averages[b] + 0.2 * loss
    np.testing.assert_allclose(gate.averages, averages, rtol=1e-5)
    assert 0.2 < np.mean(seen) < 0.9
