"""What is measured of mitigations: shares, distances, and an entry of the table."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from memattn_jax import InputError
from memattn_jax.evaluation import adversarial
from memattn_jax.evaluation.adversarial import Attack, can_apply, retriggered
from memattn_jax.evaluation.mitigated import Plain, Prompts, Sampled, describe
from memattn_jax.evaluation.shares import bootstrap_interval, frechet_distance, share_interval
from memattn_jax.mitigations import Mitigation, compose
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.report.mitigations import draw


def test_shares_have_the_interval_of_clopper_and_pearson():
    for hits, trials in ((0, 24), (3, 24), (24, 24)):
        wanted = scipy.stats.binomtest(hits, trials).proportion_ci(method="exact")
        np.testing.assert_allclose(share_interval(hits / trials, trials), (wanted.low, wanted.high), rtol=1e-9)
    low, high = share_interval(0.53, 10)  # of several seeds a prompt: between those of 5 and of 6 prompts
    assert share_interval(0.5, 10)[0] < low < 0.53 < high < share_interval(0.6, 10)[1]
    with pytest.raises(InputError, match="trials"):
        share_interval(0.5, 0)


def test_frechet_distance():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 5)) * [[[1.0]], [[2.0]]] + [[[0.0]], [[1.0]]]
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    low, high = bootstrap_interval(frechet_distance, x, y)
    assert low < high
    assert bootstrap_interval(lambda values: float(values.mean()), np.full(9, 2.0)) == (2.0, 2.0)


def sampled(images: np.ndarray, finite=None) -> Sampled:
    finite = np.ones(images.shape[:2], bool) if finite is None else finite
    return Sampled(images, finite, 6.0, 0.1, 1000)


def whole(images: np.ndarray) -> Plain:
    return Plain(images, np.ones(images.shape[:2], bool))


def test_pairs_with_an_image_that_is_not_finite_are_in_no_number():
    """Of those without a mitigation too."""
    images = np.random.default_rng(0).integers(0, 255, (3, 2, 16, 16, 3)).astype(np.uint8)
    spoilt, finite = images.copy(), np.ones((3, 2), bool)
    spoilt[0], finite[0] = 0, False
    spoilt[1, 1], finite[1, 1] = 0, False
    prompts = Prompts(["a", "b", "c"], ["d", "e", "f"])
    for entry in (
        describe(prompts, (sampled(images), sampled(images)), (Plain(spoilt, finite), Plain(spoilt, finite))),
        describe(prompts, (sampled(spoilt, finite), sampled(spoilt, finite)), (whole(images), whole(images))),
    ):
        assert (entry["reproduced"], entry["correlation"]) == (1.0, pytest.approx(1.0))
        assert entry["change_clean"] == pytest.approx(0, abs=1e-6)
        assert entry["frechet_clean"] == pytest.approx(0, abs=1e-9)
        assert entry["frechet_clean_high"] == pytest.approx(0, abs=1e-9)
    none = describe(
        prompts, (sampled(images), sampled(images)), (Plain(images, ~finite & finite), Plain(images, ~finite & finite))
    )
    assert (none["reproduced"], none["reproduced_high"], none["frechet_clean"]) == (None, 1.0, None)


def test_what_is_measured():
    """Copies of own images, by prompt and kind; agreement, fidelity; rows that are not finite are in no share."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8)
    copies = np.repeat(references[:, None], 2, axis=1)
    copies[0, 1] = 255 - copies[0, 1]
    clean = rng.integers(0, 255, (2, 2, 16, 16, 3)).astype(np.uint8)
    finite = np.ones((3, 2), bool)
    finite[2] = False
    prompts = Prompts(["a", "b", "c"], ["d", "e"], references, ["template", "verbatim", "verbatim"])

    class Red:
        """An embedding that tells how alike two images are by their first pixel."""

        measure = ("red", "none")

        def __call__(self, images):
            return np.stack([images[:, 0, 0, 0] > 127, images[:, 0, 0, 0] <= 127], axis=1).astype(np.float32)

    both, plain = (sampled(copies, finite), sampled(clean)), (whole(copies), whole(clean))
    entry = describe(
        prompts, both, plain, lambda images, texts: np.array([text == "a" for text in texts]), [(Red(), 0.5)]
    )
    assert entry["reproduced"] == pytest.approx(3 / 4)
    assert (entry["samples"], entry["prompts"], entry["not_finite"]) == (6, 3, 2)
    assert entry["kinds"]["template"]["reproduced"] == 0.5
    assert entry["kinds"]["verbatim"] == {"prompts": 2, "reproduced": 1.0} | {
        name: entry["kinds"]["verbatim"][name] for name in ("reproduced_low", "reproduced_high")
    }
    assert entry["agreement"] == pytest.approx((-1 + 1) / 2, abs=1e-6)
    assert entry["change_clean"] == pytest.approx(0, abs=1e-6)
    assert entry["frechet_clean"] == pytest.approx(0, abs=1e-9)
    assert (entry["fidelity"], entry["fidelity_clean"]) == (0.5, 0)
    (alike,) = entry["similarity"].values()
    assert alike["reproduced"] == pytest.approx(3 / 4)
    without = describe(Prompts(["a", "b", "c"], ["d", "e"]), both, plain)
    assert without["reproduced"] == 1
    assert without["fidelity"] is None


def test_prompts_without_a_kind_are_in_none():
    images = np.random.default_rng(0).integers(0, 255, (3, 2, 16, 16, 3)).astype(np.uint8)
    both, plain = (sampled(images), sampled(images)), (whole(images), whole(images))
    texts = ["a", "b", "c"]
    entry = describe(Prompts(texts, texts, kinds=["template", None, None]), both, plain)
    assert {kind: one["prompts"] for kind, one in entry["kinds"].items()} == {"template": 1}
    assert "kinds" not in describe(Prompts(texts, texts, kinds=[None] * 3), both, plain)


def test_adversarial_samples_that_are_not_finite_are_in_no_share(monkeypatch):
    """Nor do they count as pictures that did not come back."""
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3)).astype(np.uint8)

    class Samples:
        def __init__(self, finite):
            self.finite, self.images = finite, np.where(finite[:, None, None, None], images, 0)

    left = [np.array([True, True, False]), np.zeros(3, bool)]
    monkeypatch.setattr(adversarial, "sample", lambda *_: Samples(left.pop(0)))
    entry = retriggered(None, ["a", "b", "c"], images, Mitigation(), Attack(), {}, np.zeros((2, 3, 4, 5)))
    assert (entry["retriggered"], entry["control"], entry["not_finite"]) == (1.0, None, 4)
    assert entry["retriggered_low"] == pytest.approx(share_interval(1.0, 2)[0])
    assert (entry["control_low"], entry["control_high"]) == (0.0, 1.0)


@pytest.mark.parametrize(("variant", "applies"), [("a", False), ("b", False), ("c", True)])
def test_what_changes_no_token_applies_to_optimised_embeddings(variant, applies):
    assert can_apply(ClipEmbedding(variant)) is can_apply(compose(ClipEmbedding(variant))) is applies


def test_prompts_above_pictures_are_no_mathematics(tmp_path):
    draw(tmp_path / "a.png", {"none": np.zeros((2, 4, 4, 3), np.uint8)}, ["$20 #1 & $30", "a {$1} b {$2}\x1b"])
    assert (tmp_path / "a.png").stat().st_size > 1000
