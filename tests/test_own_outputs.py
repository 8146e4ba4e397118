"""Files of this package among prompt files: which are passed over, and by what they are known."""

import json
from pathlib import Path

import pytest

from memattn_jax import demo
from memattn_jax.audit.folder import AUDIT, ITEMS, PLAN, TIMES
from memattn_jax.commands.calibrating import CALIBRATION
from memattn_jax.commands.searching import FOUND, STATE
from memattn_jax.copies.kept import ABOUT, FILES
from memattn_jax.prompts.files import find_files
from memattn_jax.prompts.record import Wanted
from memattn_jax.report.findings import VERDICTS
from memattn_jax.runs.table import MANIFEST

WRITTEN = [  # by a command: the file by which it is known, a part of its content, and what could be read as prompts
    (MANIFEST, {"identity": {}}, ("00000.parquet", "00001.parquet", VERDICTS, "results.jsonl")),
    (CALIBRATION, json.loads(demo.CALIBRATION.read_text(encoding="utf-8")), ()),
    ("evaluation.json", {"detectors": {}}, ("scores.csv",)),
    ("mitigations.json", {"mitigations": {}}, ("mitigations.parquet",)),
    ("copies.json", {"references": 1, "versions": {}}, ("copies.csv", "agreement.csv")),
    ("figures.json", {"figures": []}, ()),
    (PLAN, {"command": "audit"}, (TIMES, AUDIT, ITEMS, "adversarial.json")),
    (STATE, {"settings": {}, "chains": []}, (FOUND,)),
    (ABOUT, {"format": 1, "dimensions": 512}, (FILES,)),
]


def found(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files that are read, and notes."""
    notes: list[str] = []
    files = find_files(str(folder), Wanted(note=notes.append))
    return [Path(file.path).name for file in files], notes


@pytest.mark.parametrize("folder", ["", "out"])
@pytest.mark.parametrize(("manifest", "content", "beside"), WRITTEN, ids=[manifest for manifest, _, _ in WRITTEN])
def test_what_an_earlier_run_wrote_is_not_read(tmp_path, folder, manifest, content, beside):
    """Whether --out is a folder among the prompts, or theirs; other files with such names are read."""
    (tmp_path / "log.txt").write_text("one\n")
    out = tmp_path / folder
    out.mkdir(exist_ok=True)
    for name in (manifest, *beside):
        (out / name).write_text("{}")
    assert sorted(found(tmp_path)[0]) == sorted(["log.txt", manifest, *beside])
    (out / manifest).write_text(json.dumps(content))
    count = 1 + len(beside)
    files = "1 file" if count == 1 else f"{count} files"
    assert found(tmp_path) == (["log.txt"], [f"{out!s}: skipped {files} that this package wrote"])


def test_a_file_that_another_command_would_write_is_a_log(tmp_path):
    (tmp_path / MANIFEST).write_text('{"identity": {}}')
    (tmp_path / ITEMS).write_text("{}")
    assert found(tmp_path)[0] == [ITEMS]
