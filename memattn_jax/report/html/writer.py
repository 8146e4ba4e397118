"""Writes report.html from an audit's folder."""

import hashlib
import json
from pathlib import Path

from markupsafe import escape

from memattn_jax.errors import InputError
from memattn_jax.report.html.items import read_items
from memattn_jax.report.html.pages import Gallery, page

NAME = "report.html"


def write_report(folder: Path) -> Path:
    """Writes report.html into the folder of a finished audit, and returns its path.

    The page holds everything that it shows, and its content security policy forbids it to load or send anything. The
    same folder gives the same bytes.

    Args:
      folder: with audit.json, items.jsonl and the pictures that they name.

    Raises:
      InputError: a picture is missing or damaged.
    """
    folder = Path(folder)
    content = (folder / "audit.json").read_bytes()
    audit = json.loads(content)
    measures = audit["confirmation"]["measures"]
    deciding = [each["name"] for each in measures if each["against"] == "training pictures" and each["decides"]]

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise InputError(f"{folder / name}: a picture of the audit cannot be read ({error.strerror})") from None

    gallery = Gallery(
        lambda: read_items(folder / "items.jsonl"),
        {name: rule["threshold"] for name, rule in audit["detection"]["detectors"].items()},
        read,
        next(iter(deciding), None),
    )
    pieces = page(
        "report.html",
        gallery,
        audit=audit,
        version=audit["versions"]["memattn_jax"],
        card=escape(audit["model_card"]),
        digest=hashlib.sha256(content).hexdigest(),
    )
    part = folder / f"{NAME}.part"
    try:
        with part.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(pieces)
        return part.replace(folder / NAME)
    finally:
        part.unlink(missing_ok=True)
