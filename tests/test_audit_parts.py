"""An audit's options, and what it makes of a row, without a model."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import micro
import numpy as np
import pytest
from PIL import Image

from memattn_jax.audit import adversarial
from memattn_jax.audit.evidence import Nearest, is_memorized
from memattn_jax.audit.folder import Times
from memattn_jax.audit.heatmaps import shown_tokens
from memattn_jax.audit.items import item
from memattn_jax.audit.masks import write_masks
from memattn_jax.audit.wording import limits, percent
from memattn_jax.commands.audit import plan_of, read_sources
from memattn_jax.commands.audit_options import Options
from memattn_jax.commands.auditing import Audit
from memattn_jax.commands.own import file_of
from memattn_jax.errors import InputError
from memattn_jax.report.detection import stands_out
from memattn_jax.search import proposals
from memattn_jax.storage import Store

HERE = Path(__file__).parent
KNOWN = {"pictures": True, "measures": {}, "adversarial": True, "repeated": 0, "not_finite": 0, "built_in": False}
KNOWN |= {"unreadable": 0}


def test_options():
    for wrong, option in (
        ({"model": "m"}, "--prompts"),
        ({"kind": "k"}, "--kind"),
        ({"fdr": 0.1, "fpr": 0.1}, "--fdr"),
        ({"images_per_prompt": 1}, "--images-per-prompt"),
        ({"mitigation": "all"}, "--mitigation"),
        ({"profile": "swift"}, "--profile"),
        ({"sscd": Path(__file__)}, "--preset"),
        ({"verify": HERE}, "--verify"),
        ({"prompts": "gs://bucket/log.csv"}, "--prompts"),
        ({"detectors": "text_baseline"}, "--detectors: text_baseline reads the prompt alone"),
        ({"training_pictures": HERE, "out": HERE / "x"}, "--out .*lies in --training-pictures"),
        ({"prompts": str(HERE), "out": HERE / "x"}, "--out .*lies in --prompts"),
        ({"clean": str(HERE), "out": HERE / "x"}, "--out .*lies in --clean"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: the built-in model is calibrated in float32; add --clean FILE"),
    ):
        with pytest.raises(InputError, match=option):
            Options(**wrong).check()
    quick = Options()
    for right in (quick, Options(dtype="float32"), Options(dtype="bfloat16", clean=__file__)):
        right.check()
    assert (quick.profile_name, Options(steps=7).profile_name) == ("quick", "custom")
    assert Options(profile="thorough", model="m").profile_name == "thorough"


def test_a_kind_may_have_commas_in_its_name(tmp_path):
    """And spaces at its ends: a log's column is named as it is."""
    options = Options(model="m", prompts="log.csv", clean="clean.csv", kind="type (verbatim, template) ", out=tmp_path)
    audit = Audit(options, None, tmp_path, Times(Store(tmp_path)), {})
    assert audit.detect_options().kept == (options.kind,)


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


def test_a_repeated_token_stands_out_where_it_does():
    row = {"tokens": ["<begin>", "b", "b", "b", "b", "<end>"], "length": 6, "blamed": ["b"]}
    row |= {"attention": [0.3, 0.1, 0.2, 0.1, 0.2, 0.1], "attention_excess": [1.0, 0.5, 2.0, 0.7, 0.6, 1.0]}
    assert shown_tokens(row) == [2, 3, 4]
    assert shown_tokens(row | {"blamed": ["b", "b"]}) == [2, 3, 4, 1]
    named = {
        "tokens": ["<begin>", "b", "b", "<end>"],
        "attention_excess": [1.0, 4.0, 1.9, 1.5],
        "blamed": ["b", "<end>"],
    }
    assert stands_out(named) == "b 4x, <end> 1.5x"


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


def test_a_plan_knows_what_files_hold(matrices, tmp_path):
    """A run that resumes makes the rest with what the first rows were made with."""
    paraphrases, own = tmp_path / "p.json", tmp_path / "own.py"
    options = Options(
        mitigation=f"paraphrase_guidance:paraphrases={paraphrases}", search=True, proposals=f"{own}:Animals"
    )
    sources = {"log": {"sha256": "a"}, "clean": {"sha256": "b"}, "training_pictures": None}
    plans = []
    for texts, code in (("a cat", "1"), ("a dog", "1"), ("a dog", "2")):
        paraphrases.write_text(json.dumps({"the cat": [texts]}))
        own.write_text(code)
        plans.append(plan_of(options, matrices, sources))
    assert plans[0] != plans[1] != plans[2]
    assert plans[2] == plan_of(options, matrices, sources)
    assert file_of("memattn_jax.search.proposals:Slots") == Path(proposals.__file__)
    assert file_of("no.such.module:Name") is None


def test_training_pictures_that_cannot_be_read_are_counted(tmp_path, matrices, capsys):
    micro.write_pictures(tmp_path / "pictures", 2)
    picture = next((tmp_path / "pictures").glob("*.png"))
    shutil.copytree(tmp_path / "pictures", tmp_path / "images")
    picture.write_bytes(picture.read_bytes()[:60])
    options = Options(model="m", training_pictures=tmp_path / "pictures", out=tmp_path)
    audit = Audit(options, matrices, tmp_path, Times(Store(tmp_path)), {})
    shots = [{"log_row": 0, "seed": 0, "file": picture.name}]
    facts, _ = audit.compare(shots, [])
    assert facts.unreadable == 1
    assert not facts.nearest[tmp_path / "images" / picture.name].copy
    assert "training pictures: 1 skipped" in capsys.readouterr().out
    assert "1 training picture could not be read; copies" in " ".join(limits(KNOWN | {"unreadable": 1}))


def test_a_training_picture_is_found_again_whatever_its_name(tmp_path, matrices, monkeypatch):
    """One that is not UTF-8 stands with a replacement character in items.jsonl."""
    micro.write_pictures(tmp_path / "pictures", 2)
    shutil.copytree(tmp_path / "pictures", tmp_path / "images")
    picture = tmp_path / "pictures" / "0.png"
    picture.rename(picture.with_name(os.fsdecode(b"caf\xe9.png")))
    options = Options(model="m", training_pictures=picture.parent, adversarial=1, out=tmp_path)
    audit = Audit(options, matrices, tmp_path, Times(Store(tmp_path)), {})
    shots = [{"log_row": 0, "seed": 0, "file": "0.png", "finite": True, "error": None}]
    facts, _ = audit.compare(shots, [])
    row = dict.fromkeys(("p", "over", "error", "tokens", "attention", "attention_excess", "blamed"))
    line = item(row | {"row": 0, "prompt": "a", "length": 3, "verdict": "memorized"}, [], None, shots, [], facts)
    assert (line["extracted"], line["images"][0]["nearest_source"]) == (True, "caf\ufffd.png")
    asked = []
    monkeypatch.setattr(adversarial, "retriggered", lambda sd, prompts, images, *_, batch: asked.append(images))
    assert audit.adversarial([line], facts, None) == {"none": None}
    with Image.open(tmp_path / "images" / "0.png") as expected:
        np.testing.assert_array_equal(asked[0][0], expected.convert("RGB"))


def decided(**by: str) -> dict:
    """What `limits` reads of the measures that decide."""
    return {against.replace("_", " "): {"name": name, "threshold": 0.9} for against, name in by.items()}


@pytest.mark.parametrize(
    ("measures", "by_pixels"),
    [
        (decided(training_pictures="correlation", seeds="correlation"), True),
        (decided(training_pictures="sscd_disc_mixup", seeds="sscd_disc_mixup"), False),
        (decided(seeds="sscd_disc_mixup"), False),
        (decided(training_pictures="disc_large", seeds="disc_large"), False),
        ({}, False),
    ],
)
def test_pixels_are_said_to_decide_where_they_alone_do(measures, by_pixels):
    said = " ".join(limits(KNOWN | {"pictures": "training pictures" in measures, "measures": measures}))
    assert ("by their pixels, without SSCD" in said) is by_pixels


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0003, "0.03 %"), (0.000123, "0.012 %"), (0.0241, "2.4 %"), (1.0, "100 %")]
)
def test_small_rates_keep_their_digits(share, text):
    assert percent(share) == text


def test_weights_are_not_pruned_for_no_prompt(tmp_path, matrices):
    """Where no prompt is flagged, an audit finishes with nothing mitigated."""
    options = Options(model="m", mitigation="pruned_weights", out=tmp_path)
    audit = Audit(options, matrices, tmp_path, Times(Store(tmp_path)), {})
    found = SimpleNamespace(rows=[{"row": 0, "prompt": "a", "length": 3, "verdict": "clean"}])
    assert audit.mitigation(found) is None
    assert audit.mitigated(found, None) == []


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_an_unreadable_record_stops_no_audit(folder, tmp_path):
    """In a folder as little as in a file."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "log.jsonl"
    path.write_text('{"prompt": "a cat"}\n{"prompt": 7}\n{"prompt": "a dog"}\n')
    log = read_sources(Options(prompts=str(path.parent if folder else path)))["log"]
    assert log["hashed"] == ("prompts" if folder else "file")
