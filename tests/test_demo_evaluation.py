"""What the tables about the demo model are computed with."""

import jax
import numpy as np
import pytest
from demo_data import DemoData
from demo_data.grammar import OBJECTS
from demo_evaluation.classifier import WORDS
from demo_evaluation.duplicates import Diagnosis, diagnose, score_pairs
from demo_evaluation.graded import background_likeness, levels
from demo_evaluation.likeness import CORRELATION
from demo_evaluation.sampling import Observed, kept
from demo_evaluation.separation import Auroc, Share, auroc, auroc_interval, choose, share, text_scores
from demo_evaluation.tables import table
from flax import nnx
from PIL import Image
from scipy import stats

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


@pytest.mark.parametrize(("found", "count"), [(0, 24), (5, 24), (24, 24)])
def test_shares_have_exact_intervals(found, count):
    """At each bound, what was found is at the edge of what is likely; of none or all, the bound is in closed form."""
    value = share(np.arange(count) < found)
    assert value.value == found / count
    if found == 0:
        assert value.low == 0
        assert (1 - value.high) ** count == pytest.approx(0.025)
    elif found == count:
        assert value.high == 1
        assert value.low**count == pytest.approx(0.025)
    else:
        assert stats.binom.sf(found - 1, count, value.low) == pytest.approx(0.025)
        assert stats.binom.cdf(found, count, value.high) == pytest.approx(0.025)


def test_own_and_nearest():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = np.stack([targets[[0, 1]], targets[[1, 2]], targets[[0, 0]]])
    assert (CORRELATION.own(images, targets) > 0.99).tolist() == [[True, False], [True, False], [False, False]]
    assert (CORRELATION.nearest(images, targets[:2]) > 0.99).tolist() == [[True, True], [True, False], [True, True]]


def test_samples_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        rng = np.random.default_rng(len(made))
        return Observed(rng.random((2, 3)), {"a.b": rng.random((2, 3, 4))}, rng.random(2), rng.random(2))

    first, second = (kept(tmp_path / "new" / "some.npz", make) for _ in range(2))
    assert made == [1]
    assert first.entropy.keys() == {"a.b"}
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def data() -> DemoData:
    """Grey squares for objects."""
    return DemoData({word: Image.new("RGBA", (40, 40), (128, 128, 128)) for word in OBJECTS})


def test_levels_rise(data):
    found = levels(data)
    assert [level.rate for level in found[:5]] == [1, 4, 16, 64, 256]
    assert [level.name for level in found[:5]] == [*(f"ladder {times}" for times in (1, 4, 16, 64)), "memorized-report"]
    assert [level.title for level in found[5:]] == ["template, new object", "template, known object"]
    assert [len(level.texts) for level in found] == [24] * 5 + [12] * 2
    assert found[4].texts == [caption.text for caption in data.groups.halves["memorized", "report"]]


def test_backgrounds_are_compared_without_the_object(data):
    level = next(level for level in levels(data) if level.is_template)
    others = np.stack([data.template_picture(caption, blank=True) for caption in level.captions])
    alike = background_likeness(data, level, np.stack([level.pictures, others, others[::-1]], axis=1))
    np.testing.assert_allclose(alike[:, :2], 1, atol=1e-4)
    assert alike[:, 2].max() < 0.99


def test_choice_of_site_step_and_sign():
    rng = np.random.default_rng(0)
    memorized = {site: rng.normal(size=(24, 2, 3)) for site in ("a", "b")}
    control = {site: rng.normal(size=(24, 2, 3)) for site in ("a", "b")}
    memorized["b"][..., 1] -= 5
    assert choose(memorized, control, steps=range(3)) == ("b", 1, -1)
    assert choose(memorized, control, steps=(0,)).step == 0
    assert choose(memorized, control, steps=(1,), signs=(1,)).sign == 1


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
    text = table(["what", "a", "b"], [["x", 0.12345, Auroc(0.5, 0.25, 0.75)], ["y", 3, Share(0.5, 0.2, 0.8)]])
    rows = "| x | 0.123 | 0.500 [0.25, 0.75] |\n| y | 3 | 50.0 % [20, 80] |\n"
    assert text == f"| what | a | b |\n| --- | --- | --- |\n{rows}"


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
