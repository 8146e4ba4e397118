"""The seam alone, on arrays: edits in both forms, taps, sites, composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import InputError
from memattn_jax.entropy import token_entropy
from memattn_jax.interceptors import (
    AttentionMaps,
    Interceptor,
    MaskTokens,
    ScaleBeginToken,
    TokenEntropy,
    TokenMeans,
    cross_attention,
)

ROWS, PIXELS, TOKENS, HEADS, DIM = 3, 20, 11, 2, 4
LENGTHS = jnp.asarray([4, 11, 7])
CONDITIONAL = jnp.asarray([False, True, True])


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(ROWS, PIXELS, HEADS, DIM), *[(ROWS, TOKENS, HEADS, DIM)] * 2]
    return tuple(2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def expected_probs(edit_row) -> np.ndarray:
    """Softmax in numpy of logits [heads, pixels, tokens] that `edit_row(row, logits)` changed in place."""
    query, keys, _ = map(np.asarray, inputs())
    logits = np.einsum("bqhd,bkhd->bhqk", query, keys) / np.sqrt(DIM)
    for row in range(ROWS):
        edit_row(row, logits[row])
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


def scale(row: int, logits: np.ndarray) -> None:
    if CONDITIONAL[row]:
        logits[..., 0] *= 1.5


def mask(row: int, logits: np.ndarray) -> None:
    logits[..., LENGTHS[row] :] = -np.inf


SCALE, MASK = ScaleBeginToken(1.5, CONDITIONAL), MaskTokens(LENGTHS)
CASES = {
    "nothing": ((), ()),
    "scale": ((SCALE,), (scale,)),
    "mask": ((MASK,), (mask,)),
    "mask-scale": ((MASK, SCALE), (mask, scale)),
    "scale-mask": ((SCALE, MASK), (scale, mask)),
    "scale-twice": ((SCALE, SCALE), (scale, scale)),
}


@pytest.mark.parametrize("form", ["keys", "logits"])
@pytest.mark.parametrize("case", CASES)
def test_edits(case, form):
    edits, steps = CASES[case]
    probs = expected_probs(lambda row, logits: [step(row, logits) for step in steps])
    query, keys, values = inputs()
    out, taps = cross_attention(query, keys, values, Interceptor(edits, AttentionMaps(), form), "here")
    np.testing.assert_allclose(taps["here"], probs, atol=1e-6)
    np.testing.assert_allclose(out, np.einsum("bhqk,bkhd->bqhd", probs, values), atol=1e-5)
    untapped, nothing = cross_attention(query, keys, values, Interceptor(edits, form=form), "here")
    assert nothing == {}
    np.testing.assert_array_equal(out, untapped)


def test_scale_of_one_for_each_row():
    query, keys, values = inputs()
    scales = jnp.asarray([9.0, 1.0, 2.0])  # the first row is unconditional
    out, _ = cross_attention(query, keys, values, Interceptor((ScaleBeginToken(scales, CONDITIONAL),)), "here")
    plain, _ = cross_attention(query, keys, values, Interceptor(), "here")
    np.testing.assert_allclose(out[:2], plain[:2], atol=1e-6)
    assert np.abs(out[2] - plain[2]).max() > 1e-2


def test_taps_reduce_the_same_map():
    query, keys, values = inputs()
    tapped = {
        type(tap): cross_attention(query, keys, values, Interceptor((MASK,), tap), "here")[1]["here"]
        for tap in (AttentionMaps(), TokenMeans(), TokenEntropy())
    }
    maps = tapped[AttentionMaps]
    assert maps.shape == (ROWS, HEADS, PIXELS, TOKENS)
    np.testing.assert_allclose(tapped[TokenMeans], maps.mean(2), atol=1e-6)
    np.testing.assert_allclose(tapped[TokenEntropy], token_entropy(maps.mean((1, 2))), atol=1e-5)


def test_edits_and_taps_keep_to_their_sites():
    query, keys, values = inputs()
    interceptor = Interceptor((MaskTokens(LENGTHS, sites=("here",)),), TokenMeans(sites=("there",)))
    plain, _ = cross_attention(query, keys, values, Interceptor(), "there")
    here, no_taps = cross_attention(query, keys, values, interceptor, "here")
    there, taps = cross_attention(query, keys, values, interceptor, "there")
    assert no_taps == {}
    assert list(taps) == ["there"]
    np.testing.assert_allclose(there, plain, atol=1e-6)
    assert np.abs(here - plain).max() > 1e-2


def test_unknown_sites_are_named():
    interceptor = Interceptor((MaskTokens(LENGTHS, sites=("a", "nowhere")),), TokenMeans())
    with pytest.raises(InputError, match="unknown cross-attention layer 'nowhere'; expected one of a, b"):
        interceptor.check_sites(("a", "b"))


def test_softmax_and_taps_are_float32_under_bfloat16():
    query, keys, values = (x.astype(jnp.bfloat16) for x in inputs())
    out, taps = cross_attention(query, keys, values, Interceptor((MASK,), TokenMeans()), "here")
    assert out.dtype == jnp.bfloat16
    assert taps["here"].dtype == jnp.float32
    np.testing.assert_allclose(taps["here"].sum(-1), 1.0, atol=1e-5)
    assert not np.asarray(taps["here"][0, :, LENGTHS[0] :]).any()


def test_an_interceptor_is_a_pytree_whose_numbers_are_leaves():
    one, other = (Interceptor((ScaleBeginToken(c, CONDITIONAL), MASK), TokenMeans()) for c in (1.1, 1.2))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.structure(one) != jax.tree.structure(Interceptor((MASK,), TokenMeans()))
    assert jax.tree.structure(one) != jax.tree.structure(Interceptor(one.edits, TokenMeans(sites=("here",))))


@pytest.mark.parametrize(("dtype", "keys_differ"), [(jnp.bfloat16, 0.022), (jnp.float16, 0.0028)])
def test_in_half_precision_only_the_logit_form_is_exact(dtype, keys_differ):
    """Against float32 arithmetic on the same numbers; the key form by as much as `Interceptor` says."""
    rng = np.random.default_rng(0)
    query, keys = (jnp.asarray(4 * rng.normal(size=(2, length, 2, 40)), dtype) for length in (256, 77))
    edits = (MaskTokens(jnp.asarray([9, 77])), ScaleBeginToken(1.25, jnp.asarray([False, True])))

    def maps(dtype, **form):
        interceptor = Interceptor(edits, AttentionMaps(), **form)
        run = jax.jit(cross_attention, static_argnames="site")
        return np.asarray(run(*(x.astype(dtype) for x in (query, keys, keys)), interceptor, site="here")[1]["here"])

    exact = maps(jnp.float32)
    np.testing.assert_allclose(maps(dtype), exact, atol=1e-5)
    difference = np.abs(maps(dtype, form="keys") - exact).max()
    assert keys_differ / 3 < difference < keys_differ
