"""Entropy and the metrics against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import InputError
from memattn_jax.entropy import is_summary, mean_over_sites, metric_d, metric_e, token_entropy

TOKENS = 77


def attention(*shape: int, seed: int = 0) -> jnp.ndarray:
    logits = np.random.default_rng(seed).normal(size=(*shape, TOKENS)) * 2
    return jnp.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), jnp.float32)


def test_entropy_lies_between_certainty_and_uniformity():
    uniform, certain = jnp.full(TOKENS, 1 / TOKENS), jnp.eye(TOKENS)[3]
    assert token_entropy(uniform) == pytest.approx(np.log(TOKENS), abs=1e-6)
    assert token_entropy(certain) == 0.0
    assert 0 < token_entropy(attention()) < np.log(TOKENS)


def test_masked_tokens_add_nothing_and_no_nan():
    masked = attention(5).at[:, 10:].set(0.0)
    expected = -(np.asarray(masked[:, :10]) * np.log(masked[:, :10])).sum(-1)
    np.testing.assert_allclose(token_entropy(masked), expected, rtol=1e-5)
    assert jnp.isfinite(token_entropy(masked.astype(jnp.bfloat16))).all()


def test_summary_tokens_are_the_end_token_and_the_padding():
    summary = is_summary(jnp.asarray([2, 5]), 6)
    np.testing.assert_array_equal(summary, [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])


def test_sites_weigh_the_same_whatever_their_heads():
    few, many = attention(3, 2, 5), attention(3, 2, 20, seed=1)
    expected = (few.mean(2) + many.mean(2)) / 2
    np.testing.assert_allclose(mean_over_sites({"a": few, "b": many}), expected, rtol=1e-6)


def test_metric_e_is_read_at_the_fourth_site_or_a_named_one():
    taps = {f"site{i}": attention(2, 3, 4, seed=i) for i in range(5)}
    np.testing.assert_array_equal(metric_e(taps), token_entropy(taps["site3"][0].mean(1)))
    np.testing.assert_array_equal(metric_e(taps, "site1"), token_entropy(taps["site1"][0].mean(1)))
    with pytest.raises(InputError, match=r"'mid' .* site0"):
        metric_e(taps, "mid")
    with pytest.raises(InputError, match=r"site number 3 .* site0"):
        metric_e({"site0": taps["site0"]})


@pytest.mark.parametrize(("steps", "last"), [(50, 10), (10, 2), (3, 1)])
def test_metric_d_in_both_forms(steps, last):
    taps = {f"site{i}": attention(steps, 2, 4, seed=i) for i in range(3)}
    lengths = np.asarray([9, 30])
    code, paper = metric_d(taps, lengths), metric_d(taps, lengths, "paper")
    mean = np.stack([np.asarray(tap, np.float64).mean(2) for tap in taps.values()]).mean(0)
    for row, length in enumerate(lengths):
        entropy = -(mean[:, row] * np.log(mean[:, row])).sum(-1)
        summary = -(mean[:, row, length - 1 :] * np.log(mean[:, row, length - 1 :])).sum(-1)
        moved = summary[-last:] - summary[0]
        assert code[row] == pytest.approx(entropy[-last:].mean() + moved.mean(), abs=1e-5)
        assert paper[row] == pytest.approx(entropy[-last:].mean() + np.abs(moved).mean(), abs=1e-5)
    assert not np.allclose(code, paper)
    with pytest.raises(InputError, match="'Paper'; did you mean 'paper'"):
        metric_d(taps, lengths, "Paper")
    with pytest.raises(InputError, match="no tapped sites; sample with taps"):
        metric_d({}, lengths)
