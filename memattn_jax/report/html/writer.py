"""Writes report.html from an audit's folder, with a few prompts of it in memory at a time."""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from memattn_jax.report.html import wording
from memattn_jax.report.html.items import block, index_row, overview, read_items, script_json
from memattn_jax.report.html.plots import axis
from memattn_jax.report.html.thumbnails import Thumbnails, plan
from memattn_jax.text import printable

NAME = "report.html"


def environment() -> Environment:
    """Templates of this package. Whatever they print is escaped, and has its control characters made visible."""
    made = Environment(
        loader=PackageLoader("memattn_jax.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = ("percent", "confidence", "interval", "number", "seconds", "subject", "measure_text", "flat")
    made.filters |= {name: getattr(wording, name) for name in named}
    made.globals |= {"axis": axis, "deciding": wording.deciding}
    return made


def asset(name: str) -> tuple[Markup, str]:
    """A style sheet or script of the package, and its hash for the page's content security policy."""
    text = (resources.files("memattn_jax.report.html") / "assets" / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


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
    found = overview(read_items(folder / "items.jsonl"))
    chosen = plan(found.seeds, found.images, found.others)
    detectors = list(audit["detection"]["detectors"])
    measures = audit["confirmation"]["measures"]
    deciding = [each["name"] for each in measures if each["against"] == "training pictures" and each["decides"]]
    measure = next(iter(deciding), None)
    templates = environment()
    style, style_hash = asset("report.css")
    script, script_hash = asset("report.js")

    def rows() -> Iterator[Markup]:
        for item in read_items(folder / "items.jsonl"):
            yield script_json(index_row(item, found.kinds, detectors, measure))

    def blocks(pool: ThreadPoolExecutor) -> Iterator[Markup]:
        thumbnails = Thumbnails(folder, chosen.edge, pool)
        for item in read_items(folder / "items.jsonl"):
            yield script_json(block(item, thumbnails, chosen, measure))

    facts: dict[str, Any] = {
        "detectors": [
            {"name": name, "threshold": rule["threshold"], "range": found.ranges.get(name)}
            for name, rule in audit["detection"]["detectors"].items()
        ],
        "kinds": found.kinds,
        "measure": measure,
    }
    part = folder / f"{NAME}.part"
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, part.open("w", encoding="utf-8", newline="\n") as out:
        pieces = templates.get_template("report.html").generate(
            audit=audit,
            version=audit["versions"]["memattn_jax"],
            card=escape(audit["model_card"]),
            digest=hashlib.sha256(content).hexdigest(),
            found=found,
            facts=script_json(facts),
            rows=rows(),
            blocks=blocks(pool),
            style=style,
            script=script,
            policy=f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash}; "
            "base-uri 'none'; form-action 'none'",
        )
        out.writelines(pieces)
    return part.replace(folder / NAME)
