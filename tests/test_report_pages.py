"""--report of detect, generate and evaluate."""

import json
import re

import pytest
import report_pages
from audit_example import PROMPTS

from memattn_jax.commands.options import RunOptions
from memattn_jax.errors import InputError
from memattn_jax.report.html import runs


def script(page: str, name: str):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_detections(tmp_path):
    page = report_pages.write_detection(tmp_path).read_text(encoding="utf-8")
    assert "3 of 8 prompts are flagged at a false-positive rate of 1\u00a0%; 0.1 would be" in page
    assert "m&lt;odel&gt;" in page
    assert [row[1] for row in script(page, "index")] == [True, False, False, True, False, False, True, None]
    assert [script(page, f"block-{row}")["prompt"] for row in range(len(PROMPTS))] == list(PROMPTS)
    assert script(page, "block-0")["excess"] == [1, 4, 2, None]
    assert script(page, "block-0")["blamed"] == [1]
    limits = [one["threshold"] for one in script(page, "facts")["detectors"]]
    assert all(0.9 < limit < 1.1 for limit in limits)


def test_detections_without_calibration_and_tokens(tmp_path):
    page = report_pages.write_detection(tmp_path, calibrated=False, explained=False).read_text(encoding="utf-8")
    assert "8 prompts were scored. Without a calibration there are no verdicts." in page
    assert {row[1] for row in script(page, "index")} == {None}
    assert (script(page, "block-0")["tokens"], script(page, "block-0")["blamed"]) == ([], [])


def test_kept_columns_say_nothing_of_the_prompts(tmp_path):
    """Whatever they are called: a label that a log has is no finding."""
    row = report_pages.detection_row(0, explained=False)
    kept = dict.fromkeys(("memorized", "images", "extracted", "agreement", "heatmaps", "tokens", "blamed"), "0")
    assert runs.detection_item(row | kept, report_pages.DETECTORS) == runs.detection_item(row, report_pages.DETECTORS)
    rows = [report_pages.detection_row(number, explained=False) | kept for number in range(len(PROMPTS))]
    judged = runs.Judged(None, None, list)
    runs.write_detection_page(report_pages.table(tmp_path, rows), report_pages.DETECTORS, judged, {"model": "m"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert script(page, "block-0")["tokens"] == []


def test_a_long_table_is_shown_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHOWN", 4)
    page = report_pages.write_detection(tmp_path).read_text(encoding="utf-8")
    assert [row[0] for row in script(page, "index")] == [
        0,
        3,
        5,
        6,
    ]  # those flagged, and the highest score of the others
    assert "4 of 8 are shown" in page


def test_images(tmp_path):
    page = report_pages.write_images(tmp_path).read_text(encoding="utf-8")
    assert "7 images." in page
    assert script(page, "facts")["kinds"] == ["mitigated", "not mitigated"]
    assert [len(script(page, f"block-{row}")["pictures"]) for row in range(len(PROMPTS))] == [1] * 7 + [0]


def test_evaluations(tmp_path):
    detectors, mitigations = [page.read_text(encoding="utf-8") for page in report_pages.write_evaluations(tmp_path)]
    assert "0.8 to 0.95" in detectors
    assert "– to –" in detectors
    assert detectors.count("<circle") == 1
    assert "0.1 to 0.45" in mitigations
    assert "<script" not in detectors + mitigations


def test_a_process_that_sees_a_part_writes_no_report():
    with pytest.raises(InputError, match="--report"):
        RunOptions(report=True, num_processes=2, process_id=0).check_run()
