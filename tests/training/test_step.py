"""The training step: what must not change its result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx
from one_step import ROWS, SETTINGS, batch, gradients, step

from memattn_jax import InputError, StableDiffusion
from memattn_jax.training.gate import LossAverage, Thresholds
from memattn_jax.training.objective import add_noise, row_keys
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.start import start, trained
from memattn_jax.training.step import Batch, draw, forward, networks, train_step

GATED = dataclasses.replace(SETTINGS, gate="entropy", dropout=0.0, gate_bins=1, weight_decay=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """Equal settings give the same optimizer here, and so the compiled step of the test before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainSettings, "optimizer", functools.cache(TrainSettings.optimizer))
        yield


@pytest.fixture(scope="module")
def sd(random_model, tmp_path_factory):
    """With the smallest UNet: what its blocks compute is not the matter here."""
    folder = tmp_path_factory.mktemp("step")
    micro.write_model(folder, random_model, unet=micro.WITHOUT_MIDDLE)
    return StableDiffusion.from_pretrained(folder)


def largest_difference(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_timesteps_are_drawn_where_the_settings_say():
    keys = row_keys(jnp.uint32(0), jnp.int32(0), 4000)
    even, high = (draw(keys, (1,), 1000, 0.0, p).timesteps for p in (0.0, 0.5))
    assert (even.min(), even.max()) == (0, 999)
    assert (even >= 600).mean() == pytest.approx(0.4, abs=0.03)
    assert (high >= 600).mean() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("high_noise", [0.0, 0.5])
def test_what_is_dropped_at_random_does_not_depend_on_the_timestep(high_noise):
    """Nor on whether it was drawn from the noisiest two fifths."""
    draws = draw(row_keys(jnp.uint32(0), jnp.int32(0), 4000), (1,), 1000, 0.5, high_noise)
    for other in (draws.timesteps, draws.dropped, draws.noise[:, 0], draws.posterior[:, 0]):
        assert abs(np.corrcoef(draws.uniform, other)[0, 1]) < 0.06


@pytest.mark.slow
def test_micro_batches_and_remat_change_nothing(sd):
    options = {"gate": Thresholds(jnp.asarray([jnp.inf])), "dropout": jnp.float32(0.3)}
    (plain, metrics), _ = step(sd, GATED, **options)
    (state, new), _ = step(sd, dataclasses.replace(GATED, accumulation=2, remat=True), **options)
    assert new["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    np.testing.assert_allclose(new["error"], metrics["error"], rtol=1e-5)
    assert largest_difference(gradients(state), gradients(plain)) < 1e-6


@pytest.mark.slow
def test_gated_rows_are_out_of_the_loss_and_its_gradient(sd):
    """Half the rows scored above their threshold: the update is that of the other half."""
    (_, ungated), _ = step(sd, GATED, Thresholds(jnp.asarray([jnp.inf])))
    gamma = jnp.sort(ungated["score"])[ROWS // 2]
    (state, metrics), _ = step(sd, GATED, Thresholds(gamma[None]))
    np.testing.assert_array_equal(metrics["weight"], (ungated["score"] < gamma).astype(np.float32))
    assert metrics["kept"] == 0.5
    assert metrics["loss"] == pytest.approx(float((metrics["weight"] * ungated["error"]).sum() / 2), rel=1e-5)
    assert largest_difference(state.params, start(sd, GATED)[0].params) > 1e-5
    everything_gated, setup = step(sd, GATED, Thresholds(jnp.asarray([-1.0])))
    assert everything_gated[1]["loss"] == 0.0
    assert largest_difference(everything_gated[0].params, start(sd, GATED)[0].params) == 0.0
    data = batch(sd)
    data.input_ids[2] = setup.empty_ids  # an empty caption is trained on as a dropped one is
    _, metrics = train_step(start(sd, GATED, Thresholds(jnp.asarray([-1.0])))[0], setup, data)
    np.testing.assert_array_equal(metrics["weight"], [0, 0, 1, 0])


def scores(setup, params, data, draws):
    """What a gate compares with its thresholds, by the forward pass alone."""
    return jax.jit(forward, static_argnames="gated")(setup, params, data, draws, gated=True)[1]


@pytest.mark.slow
def test_the_score_is_read_from_the_training_forward_pass(sd):
    """It is the entropy of what the interceptor taps for the noisy latents, and costs next to nothing."""
    from memattn_jax.entropy import mean_over_sites, token_entropy
    from memattn_jax.interceptors import Interceptor, TokenMeans

    (_, metrics), setup = step(sd, GATED, Thresholds(jnp.asarray([jnp.inf])))
    state, _ = start(sd, GATED)
    draws = draw(row_keys(setup.seed, jnp.int32(0), ROWS), (4, 4, 4), 1000, setup.dropout, setup.high_noise)

    @jax.jit
    def tapped(vae, setup, params, data):
        posterior = vae.encode(data.pictures / 127.5 - 1)
        latents = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * draws.posterior
        noisy = add_noise(latents * vae.config.scaling_factor, draws.noise, setup.signal[draws.timesteps])
        unet, text_encoder = networks(setup, params)
        context = text_encoder(data.input_ids)
        return unet(noisy, draws.timesteps, context, Interceptor(taps={"tokens": TokenMeans()}))[1]["tokens"]

    taps = tapped(sd.vae, setup, state.params, batch(sd))
    np.testing.assert_allclose(metrics["score"], token_entropy(mean_over_sites(taps)), atol=1e-5)
    _, up = start(sd, dataclasses.replace(GATED, gate_sites="up_blocks"))
    some = {site: tap for site, tap in taps.items() if site.startswith("up_blocks.")}
    assert 0 < len(some) < len(taps)
    read = scores(up, state.params, batch(sd), draws)
    np.testing.assert_allclose(read, token_entropy(mean_over_sites(some)), atol=1e-5)
    with pytest.raises(InputError, match=r"'middle'.*down_blocks\.0"):
        start(sd, dataclasses.replace(GATED, gate_sites="middle"))


@pytest.mark.slow
def test_the_gates_by_loss_and_by_chance_read_no_attention(sd):
    """The score is the row's loss; or a draw that depends on seed, step and row alone."""
    data, (state, setup) = batch(sd), start(sd, dataclasses.replace(GATED, gate="loss"))
    assert isinstance(state.gate, LossAverage)
    draws = draw(row_keys(setup.seed, jnp.int32(0), ROWS), (4, 4, 4), 1000, 0.0, 0.0)
    run = jax.jit(forward, static_argnames="gated")
    error, losses = run(setup, state.params, data, draws, gated=True)
    np.testing.assert_array_equal(losses, -error)
    state, setup = start(sd, dataclasses.replace(GATED, gate="random", gate_quantile=0.75))
    np.testing.assert_array_equal(state.gate.thresholds(), [0.75])
    np.testing.assert_array_equal(run(setup, state.params, data, draws, gated=True)[1], draws.uniform)
    many = draw(row_keys(setup.seed, jnp.int32(0), 400), (1, 1, 1), 1000, 0.0, 0.0).uniform
    assert 0.68 < float((many < 0.75).mean()) < 0.82


@pytest.mark.slow
def test_noise_norm_gate_scores_what_wen_scores(sd):
    settings = dataclasses.replace(SETTINGS, gate="noise_norm", dropout=0.5, seed=3)
    state, setup = start(sd, settings)
    draws = draw(row_keys(setup.seed, jnp.int32(0), ROWS), (4, 4, 4), 1000, setup.dropout, setup.high_noise)
    dropped = np.asarray(draws.dropped)
    assert dropped.any()
    assert not dropped.all()
    found = np.asarray(scores(setup, state.params, batch(sd), draws))
    np.testing.assert_allclose(found[dropped], 0.0, atol=1e-4)
    assert (found[~dropped] > 1e-2).all()


@pytest.mark.slow
def test_the_gate_costs_no_forward_pass():
    """In layers as large as Stable Diffusion's: FLOPs of a gated step within 0.5 % of an ungated one."""
    from memattn_jax.models.abstract import abstract
    from memattn_jax.models.clip_text import CLIPTextModel
    from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
    from memattn_jax.models.unet import UNet2DConditionModel
    from memattn_jax.models.vae import AutoencoderKL

    def shape(*dimensions, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dimensions, dtype)

    config = UNetConfig(
        block_out_channels=(320, 640),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )
    unet, text = abstract(UNet2DConditionModel, config), abstract(CLIPTextModel, CLIPTextConfig())
    vae = abstract(AutoencoderKL, VAEConfig())

    def flops(gated: bool, score: str) -> float:
        from memattn_jax.training.step import Draws, Setup

        graph, params = nnx.split(unet)
        setup = Setup(
            vae,
            {"text_encoder": text},
            shape(77, dtype=jnp.int32),
            shape(1000),
            shape(dtype=jnp.uint32),
            shape(),
            shape(),
            shape(),
            graphs=(("unet", graph),),
            score=score,
        )
        latents = shape(1, 64, 64, 4)
        draws = Draws(shape(1, dtype=jnp.int32), latents, latents, shape(1, dtype=jnp.bool_), shape(1))
        data = Batch(shape(1, 512, 512, 3, dtype=jnp.uint8), shape(1, 77, dtype=jnp.int32))

        def loss(params, setup, data, draws):
            error, scores = forward(setup, params, data, draws, gated)
            return error.sum(), scores

        traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace({"unet": params}, setup, data, draws)
        return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]

    plain = flops(False, "entropy")
    assert plain < flops(True, "entropy") < 1.005 * plain
    assert flops(True, "noise_norm") > 1.1 * plain


def float_kinds(tree) -> set[str]:
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def half(network):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), network)


@pytest.fixture(scope="module")
def mixed(sd):
    """Three steps in bfloat16, with everything that a state may hold, from a model and a gate of the caller's."""
    gate = Thresholds(jnp.asarray([2.0]))
    settings = TrainSettings(
        batch_size=ROWS, learning_rate=1e-5, ema_decay=0.5, gate="entropy", gate_bins=1, dtype="bfloat16"
    )
    before = jax.tree.map(np.array, nnx.state(sd.unet))
    state, setup = start(sd, settings, gate)
    taken = trained(sd, state, setup)
    for _ in range(3):
        state, metrics = train_step(state, setup, batch(sd))
    return before, state, setup, metrics, taken, gate


@pytest.mark.slow
def test_what_is_trained_is_float32_whatever_is_computed_in(sd, mixed):
    """AdamW at 1e-5 moves nearly all parameters, as it does in float32; in bfloat16 most updates are rounded away."""
    before, state, setup, metrics, *_ = mixed
    assert float_kinds((state, metrics, nnx.state(trained(sd, state, setup).unet))) == {"float32"}
    assert float_kinds((setup.vae, setup.frozen, networks(setup, state.params).unet)) == {"bfloat16"}
    pairs = list(zip(*map(jax.tree.leaves, (before, state.params)), strict=True))
    moved = sum(int((old != new).sum()) for old, new in pairs)
    assert moved > 0.99 * sum(old.size for old, _ in pairs)
    assert largest_difference(state.ema, state.params) > 0.0


@pytest.mark.slow
def test_a_run_leaves_the_callers_model_and_gate_alone(sd, mixed):
    """No attribute nor array of them changes or is donated, nor of a model that was taken out before a step."""
    before, *_, taken, gate = mixed
    remat = dataclasses.replace(SETTINGS, remat=True)
    assert trained(sd, *start(sd, remat)).unet.remat is sd.unet.remat is False
    for tree in (nnx.state(sd.unet), nnx.state(taken.unet)):
        jax.tree.map(np.testing.assert_array_equal, tree, before)
    assert gate.values == pytest.approx([2.0])


def test_a_model_to_train_is_float32(sd):
    text_encoder = half(sd.text_encoder)
    with pytest.raises(InputError, match=r'bfloat16 .*dtype="float32"'):
        start(dataclasses.replace(sd, unet=half(sd.unet), text_encoder=text_encoder), SETTINGS)
    with pytest.raises(InputError, match="bfloat16"):
        start(
            dataclasses.replace(sd, text_encoder=text_encoder), dataclasses.replace(SETTINGS, train_text_encoder=True)
        )
    _, setup = start(dataclasses.replace(sd, text_encoder=text_encoder), SETTINGS)
    assert float_kinds(setup.frozen) == {"float32"}  # what is not trained is cast to what is computed in


def test_settings_of_the_host_program_change_no_draw(sd):
    def draws():
        return draw(row_keys(jnp.uint32(3), jnp.int32(5), 2), (2,), 1000, 0.5, 0.5)

    expected = draws()
    with jax.enable_x64(True):
        wide = draws()
    with jax.default_prng_impl("rbg"):
        other = draws()
    for ours in (wide, other):
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
        assert [x.dtype for x in ours] == [x.dtype for x in expected]
