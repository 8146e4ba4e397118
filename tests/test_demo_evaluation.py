"""What the tables about the demo model are computed with."""

import numpy as np
import pytest
from demo_evaluation.classifier import WORDS
from demo_evaluation.duplicates import Diagnosis, diagnose, score_pairs
from demo_evaluation.separation import Auroc, auroc, auroc_interval, choose, text_scores
from demo_evaluation.tables import percent, table
from flax import nnx

from memattn_jax import demo
from memattn_jax.demo.objects import recognised
from memattn_jax.pipeline import StableDiffusion

pytestmark = pytest.mark.slow


def test_auroc_counts_pairs_and_halves_ties():
    assert auroc(np.array([[3.0, 2.0]]), np.array([[1.0, 2.0]])) == pytest.approx(3.5 / 4)


def test_interval_keeps_the_seeds_of_a_prompt_together():
    """A prompt's seeds are copies of one another here, so more seeds are no more evidence."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.5, 1, (24, 1)), rng.normal(0, 1, (24, 1))
    one = auroc_interval(positive, negative)
    many = auroc_interval(np.repeat(positive, 9, axis=1), np.repeat(negative, 9, axis=1))
    assert many == pytest.approx(one)
    assert one.low < one.value < one.high


def test_choice_of_site_step_and_sign():
    rng = np.random.default_rng(0)
    memorized = {site: rng.normal(size=(24, 2, 3)) for site in ("a", "b")}
    control = {site: rng.normal(size=(24, 2, 3)) for site in ("a", "b")}
    memorized["b"][..., 1] -= 5
    assert choose(memorized, control, steps=range(3)) == ("b", 1, -1)
    assert choose(memorized, control, steps=(0,)).step == 0


def test_text_alone_finds_what_is_in_the_text_and_nothing_else():
    told = [f"a{word} word" for word in "bcdefg"], [f"z{word} word" for word in "bcdefg"]
    assert auroc(*text_scores(told, [["ah word"], ["zh word"]])) == 1
    same = ["one word", "another word"]
    assert auroc(*text_scores((same, same), [same, same])) == 0.5


class Centre(nnx.Module):
    """A logit for each of the first pixels' red values."""

    def __call__(self, pictures):
        return pictures[:, 0, : len(WORDS), 0].astype("float32")


def test_recognised_counts_as_many_as_are_named():
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    pictures[0, 0, [3, 5], 0] = 9, 8  # shows words 3 and 5
    pictures[1, 0, 7, 0] = 9
    assert recognised(Centre(), WORDS, pictures, [(WORDS[3], WORDS[5]), (WORDS[7],)]).tolist() == [1, 1]
    assert recognised(Centre(), WORDS, pictures, [(WORDS[3], WORDS[7]), (WORDS[7],)]).tolist() == [0.5, 1]


def test_table():
    text = table(["what", "a", "b"], [["x", 0.12345, Auroc(0.5, 0.25, 0.75)], ["y", 3, percent(0.5)]])
    assert text == "| what | a | b |\n| --- | --- | --- |\n| x | 0.123 | 0.500 [0.25, 0.75] |\n| y | 3 | 50.0 % |\n"


def test_scores_are_compared_within_a_timestep():
    """Two timesteps of five pairs; the second has larger scores throughout, the duplicated ones are larger in each."""
    clean = np.array([0.0, 100.0])[:, None, None] + np.arange(5.0)[:, None] + np.array([-0.25, 0.25])
    diagnosis = Diagnosis(clean + 10, clean)
    assert diagnosis.auroc() == 1.0
    assert diagnosis.caught(0.95) == 1.0
    assert Diagnosis(clean, clean).caught(0.7) == pytest.approx(0.3)
    between, over_noise = diagnosis.spread()
    assert (between, over_noise) == (pytest.approx(np.arange(5.0).std()), pytest.approx(0.25))
    assert Diagnosis(clean, clean).auroc() == 0.5


def test_diagnosis_of_the_built_in_model(monkeypatch):
    """Pictures that it has memorized have a lower loss than noise under the same captions; nothing moves untrained."""
    monkeypatch.setattr("demo_evaluation.duplicates.NOISES", 2)
    sd = StableDiffusion.from_pretrained(demo.MODEL)
    pairs = [(picture, prompt) for prompt, picture in demo.memorized_pictures().items()][:2]
    rng = np.random.default_rng(0)
    pure_noise = [(rng.integers(0, 256, picture.shape, dtype=np.uint8), prompt) for picture, prompt in pairs]
    known, unknown = (score_pairs(sd, some)["negative loss"] for some in (pairs, pure_noise))
    assert known.shape == (5, 2, 2)
    assert known.mean() > unknown.mean()
    lines = diagnose(sd, sd, pairs, pure_noise).splitlines()
    assert len(lines) == 2 + 3 + len(sd.unet.sites)
    assert all(line.split("|")[-2].strip() == "0.500" for line in lines[2:])
