"""The seam alone, on arrays: edits at each stage, taps, sites, composition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memattn_jax import InputError
from memattn_jax.interceptors import (
    AttentionMaps,
    EndTokenMap,
    Interceptor,
    MaskTokens,
    OnRows,
    ScaleBeginToken,
    TokenMeans,
    by_name,
    cross_attention,
    for_rows,
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


SCALE, KEY_SCALE = ScaleBeginToken(1.5), ScaleBeginToken(1.5, stage="inputs")
MASK, MAPS = MaskTokens(LENGTHS), {"maps": AttentionMaps()}


def run(edits=(), taps=None, site="here", arrays=None):
    """The output, and {name: tap} at this site."""
    interceptor = Interceptor(edits, taps or {}, conditional=CONDITIONAL, lengths=LENGTHS)
    out, tapped = cross_attention(*(arrays or inputs()), interceptor, site)
    return out, tapped.get(site, {})


CASES = {
    "nothing": ((), ()),
    "scale": ((SCALE,), (scale,)),
    "mask": ((MASK,), (mask,)),
    "mask-scale": ((MASK, SCALE), (mask, scale)),
    "scale-mask": ((SCALE, MASK), (scale, mask)),
    "scale-twice": ((SCALE, SCALE), (scale, scale)),
    "scale key": ((KEY_SCALE,), (scale,)),
    "mask-scale key": ((MASK, KEY_SCALE), (mask, scale)),
}


@pytest.mark.parametrize("case", CASES)
def test_edits(case):
    edits, steps = CASES[case]
    probs = expected_probs(lambda row, logits: [step(row, logits) for step in steps])
    out, taps = run(edits, MAPS)
    np.testing.assert_allclose(taps["maps"], probs, atol=1e-6)
    np.testing.assert_allclose(out, np.einsum("bhqk,bkhd->bqhd", probs, inputs()[2]), atol=1e-5)
    untapped, nothing = run(edits)
    assert nothing == {}
    np.testing.assert_array_equal(out, untapped)


def test_scale_of_one_for_each_row():
    scales = jnp.asarray([9.0, 1.0, 2.0])  # the first row is unconditional
    out, plain = run((ScaleBeginToken(scales),))[0], run()[0]
    np.testing.assert_allclose(out[:2], plain[:2], atol=1e-6)
    assert np.abs(out[2] - plain[2]).max() > 1e-2


@pytest.mark.parametrize("edit", [SCALE, KEY_SCALE, MASK], ids=["scale", "scale key", "mask"])
def test_on_some_rows(edit):
    rows = np.asarray([True, False, True])
    runs = (jax.tree.leaves(run(edits, MAPS)) for edits in ((OnRows(edit, rows),), (edit,), ()))
    for of_some, of_all, without in zip(*runs, strict=True):
        np.testing.assert_array_equal(of_some[rows], of_all[rows])
        np.testing.assert_array_equal(of_some[~rows], without[~rows])


def test_edits_of_inputs_logits_and_probabilities():
    """What an edit returns at its stage is what the softmax, the taps and the output are made of."""

    def values(attention, context):
        return attention._replace(values=2 * attention.values)

    def favoured(attention, context):
        return attention.add_bias(jnp.where(jnp.arange(TOKENS) == 1, jnp.log(3.0), 0.0))

    def uniform(attention, context):
        return attention._replace(probs=jnp.full_like(attention.probs, 1 / TOKENS))

    uniform.stage = "probs"
    plain, maps = run(taps=MAPS)
    np.testing.assert_allclose(run((values,))[0], 2 * plain, rtol=1e-5)
    odds = run((favoured,), MAPS)[1]["maps"] / maps["maps"]
    np.testing.assert_allclose(odds[..., 1] / odds[..., 2], 3.0, rtol=1e-4)
    out, taps = run((uniform,), MAPS)
    np.testing.assert_allclose(taps["maps"], 1 / TOKENS)
    np.testing.assert_allclose(out, np.broadcast_to(inputs()[2].mean(1, keepdims=True), out.shape), atol=1e-5)


def test_taps_reduce_the_same_map():
    """Several by name, also of a plain function; each row's own end token."""

    def peak(probs, context):
        return probs.max(axis=(2, 3))

    _, taps = run((MASK,), MAPS | {"tokens": TokenMeans(), "end": EndTokenMap(), "peak": peak})
    maps = np.asarray(taps["maps"])
    assert maps.shape == (ROWS, HEADS, PIXELS, TOKENS)
    np.testing.assert_allclose(taps["tokens"], maps.mean(2), atol=1e-6)
    np.testing.assert_array_equal(taps["peak"], maps.max((2, 3)))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(taps["end"][row], maps[row, ..., length - 1].mean(0), atol=1e-6)


def test_context_says_where_and_when():
    seen = []

    def tap(probs, context):
        seen.append(context)
        return probs.mean(2)

    interceptor = Interceptor(taps={"mine": tap}, step=3, conditional=CONDITIONAL, lengths=LENGTHS).at(jnp.float32(981))
    cross_attention(*inputs(), interceptor, "here")
    (context,) = seen
    assert (context.site, context.step, context.timestep) == ("here", 3, 981)
    np.testing.assert_array_equal(context.conditional, CONDITIONAL)
    np.testing.assert_array_equal(context.lengths, LENGTHS)


def test_edits_and_taps_keep_to_their_sites():
    edits, taps = (MaskTokens(LENGTHS, sites=("here",)),), {"tokens": TokenMeans(sites=("there",))}
    plain, _ = run(site="there")
    here, no_taps = run(edits, taps, "here")
    there, tapped = run(edits, taps, "there")
    assert no_taps == {}
    assert list(tapped) == ["tokens"]
    np.testing.assert_allclose(there, plain, atol=1e-6)
    assert np.abs(here - plain).max() > 1e-2
    assert by_name({"there": tapped}, taps) == {"tokens": {"there": tapped["tokens"]}}


@pytest.mark.parametrize(("stage", "part"), [("logits", "bias"), ("probs", "logits"), ("logits", "values")])
def test_an_edit_changes_what_its_stage_is_named_for(stage, part):
    """What came before it has been used, and a change of that would be lost."""

    @dataclasses.dataclass(frozen=True)
    class Late:
        stage: str

        def __call__(self, attention, context):
            old = getattr(attention, part)
            return attention._replace(**{part: jnp.zeros(()) if old is None else old + 1})

    with pytest.raises(InputError, match=f"an edit of stage '{stage}' may change {stage} alone, but it changed {part}"):
        run((Late(stage),))


def test_numbers_for_other_rows_are_refused():
    with pytest.raises(InputError, match="3 numbers for 4 rows"):
        for_rows(jnp.ones(3), 4)
    assert for_rows(jnp.asarray([1, 2]), 4).tolist() == [1, 1, 2, 2]


def test_unknown_sites_and_stages_are_named():
    with pytest.raises(InputError, match="'nowhere'"):
        Interceptor((MaskTokens(LENGTHS, sites=("a", "nowhere")),)).check_sites(("a", "b"))
    with pytest.raises(InputError, match="'elsewhere'"):
        Interceptor(taps={"x": TokenMeans(sites=("elsewhere",))}).check_sites(("a", "b"))
    with pytest.raises(InputError, match="'logit'"):
        Interceptor((ScaleBeginToken(1.0, stage="logit"),)).check_sites(("a", "b"))


def test_softmax_and_taps_are_float32_under_bfloat16():
    out, taps = run((MASK,), {"tokens": TokenMeans()}, arrays=[x.astype(jnp.bfloat16) for x in inputs()])
    assert out.dtype == jnp.bfloat16
    assert taps["tokens"].dtype == jnp.float32
    np.testing.assert_allclose(taps["tokens"].sum(-1), 1.0, atol=1e-5)
    assert not np.asarray(taps["tokens"][0, :, LENGTHS[0] :]).any()


def test_an_interceptor_is_a_pytree_whose_numbers_are_leaves():
    taps = {"tokens": TokenMeans()}
    one, other = (Interceptor((ScaleBeginToken(c), MASK), taps) for c in (1.1, 1.2))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.structure(one) != jax.tree.structure(Interceptor((MASK,), taps))
    assert jax.tree.structure(one) != jax.tree.structure(Interceptor(one.edits, {"tokens": TokenMeans(sites=("a",))}))


@pytest.mark.parametrize(("dtype", "keys_differ"), [(jnp.bfloat16, 0.022), (jnp.float16, 0.0028)])
def test_in_half_precision_only_the_logits_are_scaled_exactly(dtype, keys_differ):
    """Against float32 arithmetic on the same numbers; a scaled key by as much as `ScaleBeginToken` says."""
    rng = np.random.default_rng(0)
    query, keys = (jnp.asarray(4 * rng.normal(size=(2, length, 2, 40)), dtype) for length in (256, 77))

    def maps(dtype, **stage):
        edits = (MaskTokens(jnp.asarray([9, 77])), ScaleBeginToken(1.25, **stage))
        interceptor = Interceptor(edits, MAPS, conditional=jnp.asarray([False, True]))
        once = jax.jit(cross_attention, static_argnames="site")
        tapped = once(*(x.astype(dtype) for x in (query, keys, keys)), interceptor, site="here")[1]
        return np.asarray(tapped["here"]["maps"])

    exact = maps(jnp.float32)
    np.testing.assert_allclose(maps(dtype), exact, atol=1e-5)
    difference = np.abs(maps(dtype, stage="inputs") - exact).max()
    assert keys_differ / 3 < difference < keys_differ
