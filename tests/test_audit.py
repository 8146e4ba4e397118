"""An audit of a tiny model from end to end: killed and resumed, verified, and tampered with."""

import json
import shutil
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from audits import KilledError, audit_into, write_inputs
from PIL import Image

from memattn_jax.audit.folder import evidence
from memattn_jax.audit.verifying import check_folder
from memattn_jax.commands import verifying
from memattn_jax.commands.audit_options import PROFILES, Options
from memattn_jax.errors import InputError
from memattn_jax.storage import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def make(matrices, inputs):
    """Audits a UNet of three matrices into a folder, with a provenance that is not UTF-8."""
    return partial(audit_into, matrices, inputs, provenance="a caf\udce9")


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "audit"
    make(out)
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "audit")


def timeless(out: Path) -> dict:
    return json.loads((out / "audit.json").read_text()) | {"times": None}


def test_what_an_audit_says(finished):
    made, items = check_folder(finished)
    detection, confirmation = made["detection"], made["confirmation"]
    assert (detection["scored"], detection["unscored"], made["prompts"]["log"]["unreadable"]) == (13, 1, 1)
    assert 0 < detection["flagged"] < 13
    assert len(items) == 13
    assert confirmation["flagged_sampled"] == detection["flagged"]
    assert made["verdict"]["refused"] is not None
    assert made["prompts"]["log"]["provenance"] == "a caf\ufffd"
    assert made["profile"] == "custom"
    assert {one["kind"] for one in made["rates"]} == {None, "even", "odd"}
    assert any("repeated" in limit for limit in made["limits"])
    for item in items:
        assert [image["seed"] for image in item["images"]] == [0, 1]
        assert len(item["mitigated"]) == (2 if item["flagged"] else 1)
        assert bool(item["heatmaps"]) == item["flagged"]
        assert item["extracted"] is False
        assert all((finished / image["nearest"]).is_file() for image in item["images"])
    again = next(item for item in items if item["row"] == 12)
    assert [image["similarity"] for image in again["images"]] == [one["similarity"] for one in items[0]["images"]]
    assert (finished / "report.html").is_file()


def test_killed_and_resumed(finished, make, tmp_path, monkeypatch):
    out, write, left = tmp_path / "audit", Store.write, 0

    def limited(store, name, content):
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        write(store, name, content)

    monkeypatch.setattr(Store, "write", limited)
    kills = 0
    for allowed in (10, 25, 55, 10**6):
        left = allowed
        try:
            make(out)
        except KilledError:
            kills += 1
    assert kills == 3
    assert evidence(out) == evidence(finished)
    assert timeless(out) == timeless(finished)


def test_another_plan_is_refused(finished, make):
    with pytest.raises(InputError, match=r"steps 2 is now 3"):
        make(finished, steps=3)
    with pytest.raises(InputError, match="holds files"):
        make(finished.parent)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["audit.json", "images/000003-1.png", "detection/00000.parquet", "report.html"])
def test_one_flipped_byte_is_found(copy, name):
    flip(copy / name, 200)
    with pytest.raises(InputError, match=f"{name}.*SHA-256"):
        check_folder(copy)


def test_a_changed_score_is_found_with_its_row(copy):
    text = (copy / "items.jsonl").read_text()
    score = json.loads(text.split("\n")[4])["scores"]["noise_norm"]
    (copy / "items.jsonl").write_text(text.replace(str(score), str(score + 1)))
    with pytest.raises(InputError, match=r"items\.jsonl line 5 \(row 4\)"):
        check_folder(copy)


def test_files_that_are_missing_or_elsewhere(copy):
    (copy / "images/000003-1.png").unlink()
    with pytest.raises(InputError, match=r"images/000003-1\.png is missing"):
        check_folder(copy)
    (copy / "audit.json.sha256").write_text("0  ../secret\n")
    with pytest.raises(InputError, match=r"\.\./secret"):
        check_folder(copy)


CHANGED = {  # what is changed: how, and what is said of it
    "a rate": (lambda made: made["rates"][0].update(low=0.0, count=9), "rate of memorized, log does not follow"),
    "a mitigated rate": (lambda made: made["mitigation"]["rates"][-1].update(rate=0.123), "rates with the mitigation"),
    "no mitigated rate": (lambda made: made["mitigation"]["rates"].pop(), "rates with the mitigation"),
    "the verdict": (
        lambda made: made["verdict"].update(sentence="0 % are memorized."),
        "the verdict does not follow",
    ),
    "a count": (lambda made: made["detection"].update(flagged=0), "0 prompts flagged, where"),
    "the log": (lambda made: made["prompts"]["log"].update(prompts=10**6), "1000000 prompts in prompts.log, where"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_does_not_follow(copy, what):
    """Whoever writes new digests beside a changed number is found too."""
    change, message = CHANGED[what]
    made = json.loads((copy / "audit.json").read_text())
    change(made)
    (copy / "audit.json").write_text(json.dumps(made))
    (copy / "audit.json.sha256").write_text(f"{audit_digest(copy)}  audit.json\n")
    with pytest.raises(InputError, match=message):
        check_folder(copy)


def audit_digest(out: Path) -> str:
    from memattn_jax.audit.folder import file_digest

    return file_digest(out / "audit.json")


def test_rows_are_checked_by_the_model(finished, matrices, monkeypatch, capsys):
    monkeypatch.setattr(verifying, "load_again", lambda options, recorded: matrices)
    verifying.verify(Options(verify=finished, rows=3))
    assert "3 rows sampled again" in capsys.readouterr().out
    _, items = check_folder(finished)
    made = json.loads((finished / "audit.json").read_text())
    changed = dict(items[2], scores={"noise_norm": items[2]["scores"]["noise_norm"] * 1.01})
    with pytest.raises(InputError, match="row 2: noise_norm"):
        verifying.check_scores(matrices, finished, made, [items[0], changed])
    other = dict(items[2], images=items[3]["images"])
    with pytest.raises(InputError, match=r"row 2: images/000003-"):
        verifying.check_images(matrices, finished, made, [other])


def test_adversarial_test_asks_for_the_extracted_pictures(monkeypatch, finished, inputs):
    from memattn_jax.audit import adversarial

    asked = []

    def retriggered(sd, prompts, images, mitigation, attack, run, batch):
        asked.append((prompts, images, attack.seed, batch))
        return {"prompts": len(prompts)}

    monkeypatch.setattr(adversarial, "retriggered", retriggered)
    _, items = check_folder(finished)
    copied = [dict(items[place], images=[dict(items[place]["images"][0], copy=True)]) for place in (2, 3)]
    tried = {"none": None, "mask": None}
    pictures = [inputs / "pictures" / item["images"][0]["nearest_source"] for item in copied]
    found = adversarial.bring_back(None, copied, finished, pictures, tried, 7, {}, 3)
    assert found == {"none": {"prompts": 2}, "mask": {"prompts": 2}}
    prompts, images, seed, batch = asked[0]
    assert prompts == [item["prompt"] for item in copied]
    assert (images.shape, images.dtype, seed, batch) == ((2, 8, 8, 3), np.uint8, 7, 3)


def test_images_that_are_not_finite_are_no_evidence(tmp_path):
    """They are written nowhere, and their prompt is neither memorized nor clean."""
    from types import SimpleNamespace

    from memattn_jax.audit.items import Facts, item
    from memattn_jax.audit.sampling import Camera, Shot

    camera = Camera(None, {}, 2, Store(tmp_path / "images"), "{}")
    made = SimpleNamespace(finite=[False, True], images=np.zeros((2, 8, 8, 3), np.uint8))
    shots = camera.describe([(0, Shot("a", 0, 5)), (1, Shot("a", 1, 5))], made)
    assert [shot["file"] for shot in shots] == [None, "000005-1.png"]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["000005-1.png"]
    row = {
        "row": 5,
        "prompt": "a",
        "length": 3,
        "verdict": "unknown",
        "p": None,
        "over": [],
        "error": None,
        "noise_norm": None,
    }
    row |= {
        "tokens": ["<begin>", "a", "<end>"],
        "attention": [0.5, None, 0.25],
        "attention_excess": None,
        "blamed": None,
    }
    line = item(row, ["noise_norm"], None, shots, [], Facts(tmp_path / "images", tmp_path / "mitigated"))
    assert (line["stratum"], line["memorized"], line["extracted"]) == ("unknown", None, None)
    assert "NaN" in line["error"]


def test_the_documentation_has_the_profiles():
    page = (Path(__file__).parents[1] / "docs" / "auditing.md").read_text(encoding="utf-8")
    for name, profile in PROFILES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        cells = [cell.strip().split(" ")[0] for cell in row.strip("|").split("|")][1:]
        assert cells == [str(number) if number else "–" for number in profile]


def test_an_embedding_decides_where_there_is_one(tmp_path):
    from memattn_jax.audit import evidence as compared
    from memattn_jax.copies.embedding import Measure
    from memattn_jax.copies.search import Search

    class Brightness:
        measure = Measure("sscd_fake", "any")

        def __call__(self, pictures):
            light = pictures.mean(axis=(1, 2, 3)) > 128
            return np.stack([light, ~light], axis=1).astype(np.float32)

    for name, value in (("a", 10), ("b", 250), ("light", 240)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    search = Search(tmp_path / "index", [(Brightness(), 0.75)])
    dark, light, reference = (tmp_path / f"{name}.png" for name in ("a", "b", "light"))
    found, measures = compared.nearest(search, [dark, light], [reference])
    assert (found[dark].copy, found[light].copy) == (False, True)
    assert set(found[light].similarity) == {"sscd_fake", "correlation", "1 - tiled l2"}
    assert [one["name"] for one in measures if one["decides"]] == ["sscd_fake"]
    (agreed,), _ = compared.agreements(search, [[dark, light, reference]])
    assert (agreed["measure"], agreed["alike"]) == ("sscd_fake", 2)


def test_asked_to_stop(finished, make, tmp_path, monkeypatch, capsys):
    asked = 0

    @contextmanager
    def soon():
        def stopping():
            nonlocal asked
            asked += 1
            return signal.SIGTERM if 6 < asked < 100 else None  # while images are sampled

        yield stopping

    monkeypatch.setattr("memattn_jax.runs.run.asked_to_stop", soon)
    make(tmp_path / "audit")
    said = capsys.readouterr().out
    assert "the same command resumes" in said
    assert "mitigation, at most, without passes of its own: " in said
    assert 0 < len(list((tmp_path / "audit" / "images").iterdir())) < 26
    asked = 100
    make(tmp_path / "audit")
    assert timeless(tmp_path / "audit") == timeless(finished)
