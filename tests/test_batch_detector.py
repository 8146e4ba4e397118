"""Detection as a function of columns, as engines call it."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from plans import compiled

from memattn_jax import demo
from memattn_jax.detectors.calibration.calibration import Calibration
from memattn_jax.detectors.calibration.file import to_json
from memattn_jax.detectors.calibration.fit import calibrate
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.errors import InputError
from memattn_jax.prompts.noise_seed import noise_seed
from memattn_jax.runs import BatchDetector

pytestmark = pytest.mark.slow

PROMPTS = [f"a photo of {number} cats" for number in range(11)]
COLUMNS = {"prompt": np.array([*PROMPTS[:5], None, "", 7, *PROMPTS[5:]], object), "id": np.arange(14)}
BAD = [5, 6, 7]


@pytest.fixture(scope="module")
def detector(model: Path) -> BatchDetector:
    """Without verdicts, batches of four."""
    return BatchDetector(model, ["noise_norm"], batch_size=4)


@pytest.fixture(scope="module")
def calibration(detector: BatchDetector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    """Fitted on scores of clean prompts; the attention in it is made up."""
    scorer = detector.loaded[0]
    found = [scorer(PROMPTS[first : first + 4]) for first in (0, 4)]
    tokens = np.full(found[0].input_ids.shape, 1 / found[0].input_ids.shape[1], np.float32)
    fitted = calibrate(scorer, [dataclasses.replace(one, attention=tokens) for one in found], 0.2)
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    path.write_text(to_json(fitted))
    return path, fitted


def test_columns_in_columns_out(detector, sd):
    out = detector(COLUMNS)
    assert list(out) == ["prompt", "id", "noise_norm", "error"]
    assert out["id"] is COLUMNS["id"]
    good = [row for row in range(14) if row not in BAD]
    expected = sd.detect(PROMPTS, ["noise_norm"], batch_size=4)["noise_norm"]
    np.testing.assert_allclose(out["noise_norm"][good], expected, rtol=1e-5)
    assert np.isnan(out["noise_norm"][BAD]).all()
    assert [row for row, error in enumerate(out["error"]) if error] == BAD
    assert "row 5: null" in out["error"][5]


def test_the_built_in_calibration_is_for_the_built_in_model_as_it_is():
    """Whatever dtype the machine would choose."""
    own = BatchDetector()
    assert (own.dtype, own.calibration) == ("float32", demo.CALIBRATION)
    for other in (BatchDetector(dtype="bfloat16"), BatchDetector(loras=["x"]), BatchDetector("somewhere")):
        assert other.calibration is None
    assert BatchDetector("somewhere").dtype is None


def test_batches_compile_once(detector):
    from memattn_jax.detectors.programs import score_first_step

    detector({"prompt": PROMPTS[:2]})
    before = compiled(score_first_step)
    rows = [detector({"prompt": PROMPTS[:count]})["noise_norm"] for count in (1, 3, 9)]
    assert compiled(score_first_step) == before
    np.testing.assert_allclose(rows[2][:3], rows[1], rtol=1e-5)
    assert detector({"prompt": []})["noise_norm"].shape == (0,)


def test_pickles_as_its_arguments(detector):
    assert detector.loaded
    again = pickle.loads(pickle.dumps(detector))
    assert "loaded" not in vars(again)
    assert len(pickle.dumps(detector)) < 1000
    np.testing.assert_array_equal(
        again({"prompt": PROMPTS[:3]})["noise_norm"], detector({"prompt": PROMPTS[:3]})["noise_norm"]
    )


def test_verdicts_are_those_of_the_calibration(model, calibration):
    path, fitted = calibration
    out = BatchDetector(model, ["noise_norm"], path, batch_size=4)(COLUMNS)
    assert list(out) == ["prompt", "id", "noise_norm", "p", "verdict", "error"]
    good = [row for row in range(14) if row not in BAD]
    joint = fitted.joint(["noise_norm"])
    scores = {"noise_norm": out["noise_norm"][good]}
    np.testing.assert_array_equal(out["p"][good], joint.p_values(scores))
    assert list(out["verdict"][good]) == joint.verdicts(scores, 0.2, joint.resolves(0.2))
    assert list(out["verdict"][BAD]) == [None] * 3
    assert np.isnan(out["p"][BAD]).all()


def test_a_score_that_is_not_finite_is_an_error(detector, sd):
    broken = BatchDetector("unused", ["noise_norm"], batch_size=4)
    vars(broken)["loaded"] = Scorer(sd, ["noise_norm"], latents=sd.noise((0,)) * np.nan), None
    out = broken({"prompt": PROMPTS[:1]})
    assert np.isnan(out["noise_norm"][0])
    assert "not finite: noise_norm" in out["error"][0]


@pytest.mark.parametrize(
    ("columns", "message"), [({"text": ["a"]}, "prompt"), ({"prompt": ["a"], "noise_norm": [0]}, "noise_norm")]
)
def test_wrong_columns(detector, columns, message):
    with pytest.raises(InputError, match=message):
        detector(columns)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"fpr": 1.5}, {"fpr": 0.1}])
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=min(wrong)):
        BatchDetector("model", **wrong)


def test_detectors_are_named_as_in_detect():
    """One by itself, and a wrong one is refused before a worker has it."""
    assert BatchDetector("model", "noise_norm").detectors == ("noise_norm",)
    for wrong, message in (
        ("noise_nrom", "did you mean 'noise_norm'"),
        (["entropy_e"] * 2, "two detectors"),
        ([], "no det"),
    ):
        with pytest.raises(InputError, match=message):
            BatchDetector("model", wrong)


def test_noise_of_each_prompt_is_that_of_the_command(model, sd, calibration, tmp_path):
    """A calibration with separate noise for each prompt asks for it in batches too."""
    own = dataclasses.replace(calibration[1], settings={**calibration[1].settings, "seed": None})
    (tmp_path / "own.json").write_text(to_json(own))
    found = BatchDetector(model, ["noise_norm"], calibration=tmp_path / "own.json", batch_size=4)({"prompt": PROMPTS})
    seeds = [noise_seed(prompt, 0, 1) for prompt in PROMPTS]
    expected = sd.detect(PROMPTS, ["noise_norm"], seeds=seeds, batch_size=4)["noise_norm"]
    np.testing.assert_allclose(found["noise_norm"], expected, rtol=1e-5)


def test_a_rate_of_no_verdicts_is_refused(model, calibration):
    detector = BatchDetector(model, ["text_baseline"], calibration=calibration[0], fpr=0.1)
    with pytest.raises(InputError, match=r"fpr=0.1: .* no scores of text_baseline"):
        detector({"prompt": PROMPTS})
