"""The schema of audits, and the example that other tests show."""

import json

import audit_example
import pytest

from memattn_jax.audit import schema
from memattn_jax.errors import InputError


def test_example_fits(tmp_path):
    audit = audit_example.write_audit(tmp_path / "audit", rows=10)
    schema.check(audit, "audit.json")
    for number, line in enumerate((tmp_path / "audit" / "items.jsonl").read_text().split("\n")[:-1]):
        schema.check(json.loads(line), f"items.jsonl line {number}", "item")
    assert all((tmp_path / "audit" / name).exists() for name in audit["files"])


def test_places_that_do_not_fit_are_named(tmp_path):
    audit = audit_example.write_audit(tmp_path, rows=2)
    audit["rates"][1]["low"] = -0.1
    with pytest.raises(InputError, match=r"audit\.json: rates\.1\.low"):
        schema.check(audit, "audit.json")
    with pytest.raises(InputError, match=r"audit\.json: the whole.*schema"):
        schema.check({}, "audit.json")
