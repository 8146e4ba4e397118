"""An audit's options, and what it makes of a row, without a model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memattn_jax.audit.evidence import Nearest, is_memorized
from memattn_jax.audit.heatmaps import shown_tokens
from memattn_jax.audit.masks import write_masks
from memattn_jax.commands.audit import read_sources
from memattn_jax.commands.audit_options import Options
from memattn_jax.errors import InputError
from memattn_jax.storage import Store


def test_options():
    for wrong, option in (
        ({"model": "m"}, "--prompts"),
        ({"kind": "k"}, "--kind"),
        ({"fdr": 0.1, "fpr": 0.1}, "--fdr"),
        ({"images_per_prompt": 1}, "--images-per-prompt"),
        ({"mitigation": "all"}, "--mitigation"),
        ({"profile": "swift"}, "--profile"),
        ({"sscd": Path(__file__)}, "--preset"),
        ({"verify": Path(__file__).parent}, "--verify"),
        ({"prompts": "gs://bucket/log.csv"}, "--prompts"),
    ):
        with pytest.raises(InputError, match=option):
            Options(**wrong).check()
    quick = Options()
    quick.check()
    assert (quick.profile_name, Options(steps=7).profile_name) == ("quick", "custom")
    assert Options(profile="thorough", model="m").profile_name == "thorough"


def test_memorized():
    def alike(count):
        return {"alike": count}

    assert is_memorized(None, 1, True) is True
    assert is_memorized(None, 1, False) is None
    assert [is_memorized(alike(count), 5, False) for count in (1, 2, 3, 5)] == [False, False, True, True]
    assert [is_memorized(alike(count), 2, None) for count in (1, 2)] == [False, True]


def test_shown_tokens():
    row = {
        "tokens": ["<begin>", "a", "b", "c", "<end>", "<padding ×72>"],
        "length": 5,
        "blamed": ["<padding ×72>", "b"],
    }
    row |= {"attention": [0.3, 0.1, 0.05, 0.2, 0.1, 0.25], "attention_excess": [1.0, 0.5, 2.0, 0.7, 1.0, 3.0]}
    assert shown_tokens(row) == [5, 2, 3, 1]
    assert np.isfinite(row["attention"]).all()


def test_masks_show_where_the_copy_is(tmp_path):
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 255, (64, 96, 3), np.uint8)
    image = reference.copy()
    image[:, 48:] = rng.integers(0, 255, (64, 48, 3), np.uint8)
    for name, pixels in (("3-0.png", image), ("reference.png", reference)):
        Image.fromarray(pixels).save(tmp_path / name)
    near = {tmp_path / "3-0.png": Nearest({"correlation": 0.95}, tmp_path / "reference.png", True)}
    shots = {3: [{"file": "3-0.png"}, {"file": None}], 4: [{"file": "4-0.png"}]}
    assert write_masks(shots, tmp_path, near, Store(tmp_path / "masks")) == {3: "masks/000003.png"}
    mask = np.asarray(Image.open(tmp_path / "masks" / "000003.png"))
    assert mask.shape == (64, 96)
    assert mask[:, :40].min() > 250
    assert mask[:, 60:].max() < 20


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_an_unreadable_record_stops_no_audit(folder, tmp_path):
    """In a folder as little as in a file."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log.jsonl"
    path.write_text('{"prompt": "a cat"}\n{"prompt": 7}\n{"prompt": "a dog"}\n')
    log = read_sources(Options(prompts=str(path.parent if folder else path)))["log"]
    assert log["hashed"] == ("prompts" if folder else "file")
