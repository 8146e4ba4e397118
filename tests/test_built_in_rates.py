"""The rates that verdicts state, on prompts of the built-in model that no calibration saw; `-s` prints the counts."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from memattn_jax import Guard, StableDiffusion, demo
from memattn_jax.detectors import Scorer, entropy_e
from memattn_jax.detectors.calibration import load_calibration
from memattn_jax.detectors.calibration.conformal import benjamini_hochberg
from memattn_jax.detectors.calibration.verdicts import MEMORIZED, Joint
from memattn_jax.detectors.detection import concatenate
from memattn_jax.detectors.scorer import score_batches
from memattn_jax.report.results import measure

NAMES = ("entropy_e", "noise_norm")
FPR, FDR = 0.05, 0.1


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion.from_pretrained(demo.MODEL, "float32")


@pytest.fixture(scope="module")
def scores(sd) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """{(group, half): {detector: float32 [24]}}, of memorized, control and unseen prompts, as `detect` scores them."""
    scorer = Scorer(sd, NAMES)
    groups = [(group, half) for group in ("memorized", "control", "unseen") for half in demo.HALVES]
    rows = ((prompt, 0) for group in groups for prompt in demo.prompts(*group))
    found = concatenate(list(score_batches(scorer, rows, 24)))
    return {
        group: {name: score[24 * i : 24 * i + 24] for name, score in found.scores.items()}
        for i, group in enumerate(groups)
    }


def of(scores, *groups: tuple[str, str]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([scores[group][name] for group in groups]) for name in NAMES}


def most(prompts: int, rate: float) -> int:
    """The most of these prompts that a 95 % interval around the rate allows."""
    return int(stats.binom.ppf(0.975, prompts, rate))


@pytest.mark.slow
def test_one_false_positive_rate_for_the_verdict(scores):
    """Fitted on the 48 clean prompts of one half, on the shipped calibration's 400, and asked of the other half."""
    clean = [(group, half) for half in demo.HALVES for group in ("control", "unseen")]
    shipped = load_calibration(demo.CALIBRATION).joint(NAMES)
    assert len(shipped.clean) == 300
    for fitted, joint in (("the other half", Joint.fit(of(scores, *clean[:2]))), ("clean.txt", shipped)):
        flagged = [
            joint.verdicts(of(scores, *groups), FPR, True).count(MEMORIZED)
            for groups in ((("memorized", "report"),), clean[2:])
        ]
        print(f"--fpr {FPR:g} fitted on {fitted}: {flagged[0]} of 24 memorized, {flagged[1]} of 48 clean")
        assert flagged[1] <= most(48, FPR) == 6
        assert flagged[0] >= 8


@pytest.mark.slow
def test_false_discoveries_in_a_log(scores):
    """Of all 144 prompts, 48 of them memorized."""
    joint = load_calibration(demo.CALIBRATION).joint(NAMES)
    p = joint.p_values(of(scores, *scores))
    found = p <= benjamini_hochberg(Counter(p.tolist()), FDR)
    true, false = found[:48].sum(), found[48:].sum()
    expected = FDR * found.sum()
    print(f"--fdr {FDR:g}: {true} of 48 memorized, {false} of 96 clean; at most {expected:.1f} false ones expected")
    assert true >= 16
    assert false <= most(found.sum(), FDR)


@pytest.mark.slow
def test_one_site_wherever_metric_e_is_read(sd, scores):
    """generate's E, detect's entropy_e, a guard's score and the calibration's are of one layer, and equal."""
    site = sd.entropy_site
    assert site == load_calibration(demo.CALIBRATION).settings["site"] == Scorer(sd, NAMES).read_site
    assert site != sd.unet.sites[3]
    prompts = demo.prompts("memorized", "choose")
    steps = 5  # of the run, whatever a guard's are
    (found,) = score_batches(Scorer(sd, NAMES, steps=steps), ((prompt, 0) for prompt in prompts), 24)
    expected = found["entropy_e"][:2]
    run = sd.sample(prompts[:2], steps=steps, guard=Guard(10.0, "entropy_e"))
    assert run.entropy_site == site
    np.testing.assert_allclose(entropy_e(run), expected, rtol=1e-4)
    np.testing.assert_allclose(run.guard_scores, scores["memorized", "choose"]["entropy_e"][:2], rtol=1e-4)
    np.testing.assert_allclose(measure(run).metric_e, expected, rtol=1e-4)
    assert not run.mitigated.any()
