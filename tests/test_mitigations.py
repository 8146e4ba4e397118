"""The mitigations in sampling runs: rows, numbers, guards, and what happens to prompts on the host."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from plans import compiled

from memattn_jax import InputError
from memattn_jax.commands.mitigating import describe, make_mitigation
from memattn_jax.diffusion.sampling import denoise
from memattn_jax.mitigations import AttentionMask, Mitigation, compose
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.mitigations.embedding_noise import EmbeddingNoise
from memattn_jax.mitigations.embedding_optimization import EmbeddingOptimization
from memattn_jax.mitigations.guard import Guard
from memattn_jax.mitigations.guidance_transition import GuidanceTransition
from memattn_jax.mitigations.paraphrase_guidance import ParaphraseGuidance
from memattn_jax.mitigations.random_words import RandomNumbers, RandomTokens, RepeatedWords
from memattn_jax.mitigations.spike_attenuation import SpikeAttenuation, attenuate
from memattn_jax.mitigations.stability_clamp import StabilityClamp
from memattn_jax.pytree import pytree
from memattn_jax.registries import MITIGATIONS, load
from memattn_jax.schedulers import make_schedule
from memattn_jax.schedulers.clean import clean_prediction

PROMPTS = ["the cat", "a", "the hill of the sun"]
RUN = {"steps": 3, "seeds": [0, 1, 2], "taps": None}
PARAPHRASES = {"the cat": ["a cat", "the land"], "a": ["the"]}


@pytest.fixture(scope="module")
def fitted(matrices):
    return StabilityClamp(tuple("abcdef"), width=1.0, mild_calls=1).fit(matrices, steps=3, scheduler="euler")


@pytest.fixture(scope="module")
def everything(fitted):
    """All places of a run at once, so that one program shows them: iterative, drawn, per step, of other texts."""

    def make(number: float) -> Mitigation:
        return compose(
            RandomTokens(2),
            ClipEmbedding("b"),
            EmbeddingNoise(number),
            EmbeddingOptimization(number, iterations=2),
            SpikeAttenuation(number),
            GuidanceTransition("dynamic", number),
            ParaphraseGuidance(PARAPHRASES, search=number),
            dataclasses.replace(fitted, width=10 * number),
        )

    return make


@pytest.mark.slow
def test_rows_numbers_and_guards(matrices, everything):
    """A row has other neighbours, place and numbers beside it, in one program; a guard leaves clean rows alone."""
    settings = RUN | {"scheduler": "euler"}
    run = matrices.sample(PROMPTS, mitigation=everything(0.1), **settings)
    size = np.abs(run.latents).max()
    assert np.asarray(run.finite).all()
    before = compiled(denoise)
    others = settings | {"seeds": [7, 0, 9]}
    moved = matrices.sample(["an odd line", "the cat", "a land"], mitigation=everything(0.1), **others)
    np.testing.assert_allclose(moved.latents[1] / size, run.latents[0] / size, atol=1e-5)
    number = matrices.sample(PROMPTS, mitigation=everything(0.2), **settings)
    assert compiled(denoise) == before
    assert np.abs(number.latents - run.latents).max() / size > 1e-3

    scores = matrices.detect(PROMPTS, "noise_norm", seeds=[0, 1, 2])["noise_norm"]
    guard = Guard(float(np.sort(scores)[1]), mitigation=everything(0.1))
    guarded = matrices.sample(PROMPTS, guard=guard, **settings)
    unmitigated = matrices.sample(PROMPTS, **settings)
    for row, mitigated in enumerate(guarded.mitigated):
        np.testing.assert_allclose(
            guarded.latents[row] / size, (run if mitigated else unmitigated).latents[row] / size, atol=1e-5
        )
    assert guarded.mitigated.sum() == 1


@pytest.mark.slow
def test_regions_of_clean_runs(matrices, fitted):
    """Means and deviations of the norms that the runs' latents have; one calibration a number of steps."""
    run = {"steps": 3, "scheduler": "euler", "taps": None}
    seen = [[], []]
    for latents in seen:
        matrices.sample(
            list("abcdef"), seeds=range(6), callback=lambda b, kept=latents: kept.append(np.asarray(b.latents)), **run
        )
    after = np.stack(seen[0]).reshape(3, 6, -1)
    norms = np.linalg.norm(after[1:] - after[:-1], axis=-1)
    np.testing.assert_allclose(fitted.regions[0, 1:, 1], np.stack([norms.mean(1), norms.std(1)], -1), rtol=1e-4)
    lengths = np.linalg.norm(after, axis=-1)  # after each step, as the clamp compares them
    np.testing.assert_allclose(fitted.regions[0, :, 0], np.stack([lengths.mean(1), lengths.std(1)], -1), rtol=1e-4)
    assert fitted.fit(matrices) is fitted
    with pytest.raises(InputError, match="clean=FILE has 1"):
        StabilityClamp(("a",)).fit(matrices)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "pndm"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_clean_image_of_a_prediction(sd, scheduler, prediction_type):
    """Noised by what a schedule says a latent is, an image is found again; PNDM knows nothing of rescaling."""
    config = sd.scheduler_config | {"prediction_type": prediction_type, "rescale_betas_zero_snr": scheduler == "pndm"}
    schedule = make_schedule(config, scheduler, 5)
    factors = clean_prediction(config, schedule, scheduler)
    image, noise = np.random.default_rng(0).standard_normal((2, 8))
    signal = np.cumprod(1 - np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2)
    for (of_latents, of_output), t, scale in zip(factors, schedule.timesteps, schedule.input_scale, strict=True):
        alpha = np.sqrt(np.interp(float(t), np.arange(1000), signal))
        sigma = np.sqrt(1 - alpha**2)
        latents = (alpha * image + sigma * noise) / float(scale)
        output = noise if prediction_type == "epsilon" else alpha * noise - sigma * image
        np.testing.assert_allclose(of_latents * latents + of_output * output, image, rtol=2e-2, atol=2e-2)


def test_words_are_inserted_by_the_seed_alone():
    words = ["the", "hill", "of", "the", "sun"]
    for mitigation in (RandomNumbers(2), RepeatedWords(2)):
        first, same, other = mitigation.prompts(["the hill of the sun"] * 3, [4, 4, 5])
        assert first == same != other
        new = first.split()
        assert len(new) == 7
        kept = iter(new)
        assert all(word in kept for word in words)  # in order
    assert all(int(word) < 100_000 for word in RandomNumbers(3).prompts(["a"], [0])[0].split() if word != "a")
    assert RepeatedWords(2).prompts([""], [0]) == [""]


def test_tokens_are_inserted_between_begin_and_end(sd):
    tokens = sd.tokenizer(["the hill", "Z " * 75])
    changed = RandomTokens(3).tokens(tokens, [1, 2], sd.tokenizer.size)
    assert changed.lengths.tolist() == [tokens.lengths[0] + 3, 77]
    for before, after, length in zip(tokens.input_ids, changed.input_ids, changed.lengths, strict=True):
        assert after[0] == before[0]
        assert after[length - 1] == tokens.input_ids[0, tokens.lengths[0] - 1]
        assert (after[1 : length - 1] != after[length - 1]).all()
    kept = iter(changed.input_ids[0, 1 : changed.lengths[0] - 1])
    assert all(token in kept for token in tokens.input_ids[0, 1 : tokens.lengths[0] - 1])


def test_masked_tokens_hide_no_spikes():
    """Beside masked padding, logits are damped as if the other tokens were all that there are."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 16, 12)).astype(np.float32)
    alone = attenuate(logits[..., :7], 0.5, 0.3)
    masked = np.asarray(attenuate(np.where(np.arange(12) < 7, logits, -np.inf), 0.5, 0.3))
    np.testing.assert_allclose(masked[..., :7], alone, rtol=1e-6)
    assert np.isneginf(masked[..., 7:]).all()
    assert 0.1 < np.mean(alone != logits[..., :7]) < 0.9


def test_texts_compile_nothing():
    """What only the host reads is no part of a program, and outlives JAX's trees."""
    one, other = (ParaphraseGuidance({"a": [text]}) for text in "bc")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.map(lambda x: x, other).alternatives(["a", "z"], [0, 0]) == [["c"], ()]
    assert describe(one)["paraphrases"] != describe(other)["paraphrases"]


def test_every_name_can_be_made(tmp_path):
    table, clean = tmp_path / "paraphrases.json", tmp_path / "clean.txt"
    table.write_text(json.dumps(PARAPHRASES))
    clean.write_text("a\n\nb\n")
    options = {
        "paraphrase_guidance": (f"paraphrases={table}",),
        "pruned_weights": (f"memorized={clean}", "share=0.02"),
        "stability_clamp": (f"clean={clean}",),
        "value_neurons": (f"clean={clean}", "refine=layers"),
    }
    for name in MITIGATIONS:
        made = make_mitigation(name, options.get(name, ()))
        assert json.loads(json.dumps(describe(made), default=list)).keys() == describe(made).keys()


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("clip_embedding", ["variant=d"], "variant 'd'"),
        ("guidance_transition", ["when=now"], "transition 'now'"),
        ("noise_perturbation", ["form=x"], "form 'x'"),
        ("paraphrase_guidance", [], "paraphrases=FILE"),
        ("spike_attenuation", ["strength=inf"], "strength=inf"),
    ],
)
def test_wrong_options_are_named(name, options, named):
    with pytest.raises(InputError, match=named):
        make_mitigation(name, tuple(options))


def test_paraphrases_of_another_form(tmp_path):
    path = tmp_path / "p.json"
    for text in ("[1]", '{"a": "b"}', "{"):
        path.write_text(text)
        with pytest.raises(InputError, match="JSON"):
            ParaphraseGuidance(path)
    with pytest.raises(FileNotFoundError):
        ParaphraseGuidance(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["pruned_weights", "stability_clamp", "value_neurons"])
def test_what_is_not_fitted_is_refused(matrices, name):
    with pytest.raises(InputError, match=f"{name} is not fitted"):
        matrices.sample(PROMPTS, mitigation=load(MITIGATIONS[name])(), **RUN)


def test_a_clamp_is_of_one_number_of_steps(matrices):
    fitted = StabilityClamp(tuple("ab")).fit(matrices, steps=3)
    with pytest.raises(InputError, match="runs of 3 calls; this run has 4"):
        matrices.sample(PROMPTS, mitigation=fitted, **RUN | {"steps": 4})


@pytest.mark.parametrize("name", ["pruned_weights", "value_neurons"])
def test_what_a_mitigation_cannot_learn_is_named(sd, name):
    kind = load(MITIGATIONS[name])
    with pytest.raises(InputError, match="=FILE"):
        kind().fit(sd)
    other = dataclasses.replace(sd, unet=SimpleNamespace(config=None, sites=(), dtype="float32", __call__=None))
    with pytest.raises(InputError, match="SimpleNamespace"):
        kind(("a", "b")).fit(other)


def test_alternatives_of_two_do_not_compose():
    with pytest.raises(InputError, match="alternatives"):
        compose(ParaphraseGuidance(PARAPHRASES), AttentionMask(), ParaphraseGuidance(PARAPHRASES))


@pytree
class LastWording(Mitigation):
    """Takes the last of a prompt's other texts."""

    def alternatives(self, prompts, seeds):
        return [["the q"] if prompt == "the a" else ["x", "y z", "the c d"] for prompt in prompts]

    def embeddings(self, start):
        return start.alternatives[:, -1]


def test_a_neighbour_with_more_wordings_adds_none(matrices):
    """A row with fewer repeats its own, not the prompt, which another mitigation may have changed."""
    run = RUN | {"mitigation": LastWording()}
    alone = matrices.sample(["the a"], **run | {"seeds": [1]}).latents[0]
    beside = matrices.sample(["the a", "the b"], **run | {"seeds": [1, 1]}).latents[0]
    np.testing.assert_allclose(beside, alone, atol=1e-5 * np.abs(alone).max())


@pytree
class Moved(Mitigation):
    """Embeddings that no text has."""

    def embeddings(self, start):
        return start.context + 0.5


@pytree
class LateWording(Moved):
    """And at every step the last of the other texts."""

    def alternatives(self, prompts, seeds):
        return [["the q", "x"] if prompt == "a" else [] for prompt in prompts]

    def begin(self, start):
        return start.alternatives[:, -1]

    def guidance(self, step, prediction, memory):
        return prediction._replace(conditional=step.predict(memory)), memory


def test_a_row_without_other_wordings_has_its_own_whatever_it_has_become(matrices):
    """Not the plain prompt's, with which the other change would be lost."""
    run = RUN | {"seeds": 0}
    moved = matrices.sample(["the cat"], mitigation=Moved(), **run).latents[0]
    for prompts in (["the cat"], ["the cat", "a"]):
        found = matrices.sample(prompts, mitigation=LateWording(), **run).latents[0]
        np.testing.assert_allclose(found, moved, atol=1e-5 * np.abs(moved).max())
