"""What is wrong with an audit's inputs is found before a model is loaded; and what its folder may hold already."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from memattn_jax import demo
from memattn_jax.audit.folder import AUDIT, EVIDENCE, PLAN, claim, to_json
from memattn_jax.commands.audit import audit_model, main, read_sources
from memattn_jax.commands.audit_options import Options
from memattn_jax.errors import InputError

SEARCH = {"search": True, "prompts": None}


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> dict:
    """Options of an audit whose model cannot be loaded."""
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", None)
    for name in ("log", "clean"):
        lines = [f"a prompt {number},user {number}" for number in range(21)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["prompt,user", *lines]) + "\n")
    (tmp_path / "captions.csv").write_text("caption\na cat\n")
    (tmp_path / "numbers.jsonl").write_text('{"prompt": 7}\n' * 1001)
    (tmp_path / "sscd.pt").write_text("no network")
    (tmp_path / "own.py").write_text("class Words:\n    start = candidates = None\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_text("no image")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("log", "clean")}
    return {"model": str(demo.MODEL), "prompts": files["log"], "clean": files["clean"], "out": tmp_path / "out"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "user"}, "--kind user: more than 20 different values"),
        ({"kind": "group"}, "no column 'group'"),
        ({"prompts": "captions.csv"}, "no column 'prompt'"),
        ({"prompts": "numbers.jsonl"}, "none of its records is a prompt; the last one: .*line 1001"),
        ({"sscd": Path("sscd.pt"), "preset": "nemo"}, r"sscd\.pt"),
        ({"training_pictures": Path("pictures")}, "pictures: none of 1 image can be read"),
        (SEARCH | {"proposals": "gone.py:Words"}, r"--proposals gone\.py: no such file"),
        (SEARCH | {"proposals": "own.py:Words"}, r"--proposals own\.py:Words: no attribute `text`"),
    ],
    ids=["kinds", "no kind", "column", "no prompts", "sscd", "pictures", "no proposals", "other proposals"],
)
def test_before_a_model_is_loaded(inputs, wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = Options(**inputs | wrong)
    options.check()
    with pytest.raises(InputError, match=message):
        main(options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_size_leaves_no_plan(inputs):
    model = SimpleNamespace(latent_shape=lambda: (None, None, 4))
    options = Options(**inputs)
    with pytest.raises(InputError, match="no sample_size, which audit needs"):
        audit_model(model, options, read_sources(options), None)
    assert not options.out.exists()


def test_a_log_is_read_once_and_counted(inputs):
    found = read_sources(Options(**inputs))
    assert (found["log"]["prompts"], found["clean"]["prompts"]) == (21, 21)


def test_an_audit_is_replaced_beside_files_of_others(tmp_path):
    claim(tmp_path, {"seed": 0}, overwrite=False)
    for name in (AUDIT, "audit.json.sha256.asc", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / EVIDENCE[0]).mkdir()
    claim(tmp_path, {"seed": 1}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {PLAN, "audit.json.sha256.asc", "notes.txt"}
    assert json.loads((tmp_path / PLAN).read_text()) == {"seed": 1}


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_text("x")
    with pytest.raises(InputError, match="no audit that could be resumed"):
        claim(tmp_path, {"seed": 1}, overwrite=True)
    assert (tmp_path / "images" / "mine.png").exists()


def test_names_that_are_not_utf8(tmp_path):
    """Those of files and folders: as Python has them, JSON cannot hold them."""
    plan = {"source": b"bilder-\xe9".decode(errors="surrogateescape")}
    assert json.loads(to_json(plan)) == {"source": "bilder-\ufffd"}
    for _ in range(2):
        claim(tmp_path, plan, overwrite=False)
