"""An audit whose log a search makes: killed and resumed, and with its options checked."""

import json
from functools import partial
from pathlib import Path

import pytest
from audits import KilledError, audit_into, write_inputs

from memattn_jax.audit.verifying import check_folder
from memattn_jax.commands.audit_options import Options
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
    """Audits a UNet of three matrices into a folder."""
    return partial(audit_into, matrices, inputs)


PROPOSALS = """
from memattn_jax.search import Slots

class Animals(Slots):
    def __init__(self):
        super().__init__((("a", "the"), ("dog", "cat", "house"), ("0", "1", "2", "3")), most=2)
"""


def test_search_makes_the_log(make, inputs, tmp_path, monkeypatch):
    """And goes on from where it was; all that it finds is sampled, not a control of it, and no rate is made of it."""
    monkeypatch.setattr("memattn_jax.audit.strata.fewest_control", lambda: 0)
    (tmp_path / "own.py").write_text(PROPOSALS)
    searched = {"search": True, "prompts": None, "kind": None, "proposals": f"{tmp_path / 'own.py'}:Animals"}
    searched |= {"search_chains": 2, "search_steps": 4}
    searched |= {"clean": str(inputs / "clean.csv"), "column": "caption"}  # which the mitigation reads, too
    out, cut = tmp_path / "audit", tmp_path / "cut"
    make(out, **searched)
    made, items = check_folder(out)
    found = (out / "search" / "found.txt").read_text().splitlines()
    state = json.loads((out / "search" / "search.json").read_text())
    assert [item["prompt"] for item in items] == found
    assert 1 < len(found) == made["prompts"]["log"]["prompts"]
    assert state["step"] == 4
    assert "found by a search" in made["verdict"]["refused"]
    assert not any(rate["headline"] for rate in made["rates"])
    assert "search/found.txt" in made["files"]

    write = Store.write

    def killed(store, name, content):
        if name == "search.json" and json.loads(content)["step"] == 2:
            raise KilledError
        write(store, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", killed)
        with pytest.raises(KilledError):
            make(cut, **searched)
    make(cut, **searched)
    for name in ("found.txt", "search.json"):
        assert (cut / "search" / name).read_bytes() == (out / "search" / name).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": "log.txt"}, "--prompts"),
        ({"model": "folder", "clean": "clean.txt"}, "--proposals"),
        ({"search": False, "proposals": "a.py:B"}, "--proposals"),
        ({"proposals": "a.py"}, "NAME"),
        ({"search_temperature": 0.0}, "--search-temperature"),
    ],
)
def test_options_of_a_search(wrong, message, inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "log.txt").write_text("a\n")
    with pytest.raises(InputError, match=message):
        Options(**{"search": True, **wrong}).check()
