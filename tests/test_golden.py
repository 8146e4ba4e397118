"""The authors' own numbers, from the committed runs; see golden/README.md. Both prompts ride in one batch."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plans import make_plan

from memattn_jax.checkpoints.diffusers_folder import load_part
from memattn_jax.diffusion.pairs import interleave
from memattn_jax.diffusion.sampling import denoise
from memattn_jax.entropy import metric_d, metric_e
from memattn_jax.interceptors import Interceptor, TokenMeans
from memattn_jax.mitigations import AttentionMask, Mitigation
from memattn_jax.schedulers import make_schedule

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def unet():
    return load_part(GOLDEN / "model", "unet", "float32")


@pytest.fixture(scope="module", params=["base", "miti"])
def run(request, unet):
    """The reference's arrays, stacked over its two prompts, and our latents and taps."""
    files = [np.load(GOLDEN / f"{request.param}_{prompt}.npz") for prompt in (0, 3)]
    golden = {name: np.stack([file[name] for file in files]) for name in files[0].files}
    context = np.concatenate([golden["negative_prompt_embeds"], golden["prompt_embeds"]])[:, 0]
    mitigation = AttentionMask() if request.param == "miti" else Mitigation()
    schedule = make_schedule(json.loads((GOLDEN / "model/scheduler/scheduler_config.json").read_text()), "ddim", 10)
    np.testing.assert_array_equal(schedule.timesteps, golden["timesteps"][0])
    noise = np.moveaxis(golden["init_latents"][:, 0], 1, -1)
    lengths = golden["prompt_length"]
    taps = {"tokens": TokenMeans()}
    plan = make_plan(unet, schedule, noise, context, 7.5, lengths, mitigation=mitigation, taps=taps)
    latents, tapped = denoise(plan)
    return golden, latents, {site: tapped["tokens"][site] for site in unet.sites}, mitigation, context


def test_latents(run):
    golden, latents, *_ = run
    np.testing.assert_allclose(np.moveaxis(latents, -1, 1), golden["final_latents"][:, 0], atol=1e-3)


def test_first_call_of_the_unet(run, unet):
    golden, _, _, mitigation, context = run
    lengths = jnp.asarray(golden["prompt_length"])
    edits = mitigation.edits(SimpleNamespace(lengths=lengths))
    conditional = np.tile([False, True], 2)
    interceptor = Interceptor(edits, conditional=conditional, lengths=np.repeat(lengths, 2))
    context = interleave(context[:2], context[2:])
    pairs = golden["unet0_in"].reshape(4, *golden["unet0_in"].shape[2:])
    call = jax.jit(lambda unet, *args: unet(*args)[0])
    out = call(unet, np.moveaxis(pairs, 1, -1), jnp.float32(golden["timesteps"][0, 0]), context, interceptor)
    expected = golden["unet0_out"].reshape(pairs.shape)
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), expected, atol=1e-4)


def test_token_means(run):
    golden, _, taps, *_ = run
    ours = np.stack(list(taps.values()), axis=2)  # [steps, batch, layers, heads, tokens]
    np.testing.assert_allclose(ours.swapaxes(0, 1), golden["tokens"], atol=1e-4)


def test_metrics(run):
    """As `detect.py` computes them, whose 0 · log 0 would be NaN under the mask."""
    golden, _, taps, *_ = run

    def entropy(a):
        return -np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0).sum(-1)

    for row, (tokens, length) in enumerate(
        zip(golden["tokens"].astype(np.float64), golden["prompt_length"], strict=True)
    ):
        mean = tokens.mean((1, 2))
        summary = entropy(mean[:, length - 1 :])
        expected_d = entropy(mean)[-2:].mean() + summary[-2:].mean() - summary[0]
        assert metric_e(taps)[row] == pytest.approx(entropy(tokens[0, 3].mean(0)), abs=1e-4)
        assert metric_d(taps, golden["prompt_length"])[row] == pytest.approx(expected_d, abs=1e-4)
