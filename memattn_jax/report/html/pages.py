"""A page of a report in pieces, with a few prompts of its gallery in memory at a time."""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from memattn_jax.report.html import wording
from memattn_jax.report.html.items import Item, block, index_row, overview, script_json
from memattn_jax.report.html.plots import axis
from memattn_jax.report.html.thumbnails import Thumbnails, plan
from memattn_jax.text import printable

WORDS = ("percent", "confidence", "interval", "number", "seconds", "subject", "measure_text", "flat")


class Gallery(NamedTuple):
    """What a page shows one by one.

    Attributes:
      items: in the form of a line of items.jsonl of an audit; read anew by every call, which is made three times.
      thresholds: of each score, None where it has none.
      read: the bytes of a picture file that an item names.
      measure: name of the similarity that decides what is a copy; None where nothing was compared.
      noun: what an item is, in the plural.
    """

    items: Callable[[], Iterator[Item]]
    thresholds: Mapping[str, float | None]
    read: Callable[[str], bytes]
    measure: str | None = None
    noun: str = "prompts"


def environment() -> Environment:
    """Templates of this package. Whatever they print is escaped, and has its control characters made visible."""

    def shown(value: Any) -> Any:
        return printable(value).replace(" %", "\u00a0%") if type(value) is str else value

    made = Environment(
        loader=PackageLoader("memattn_jax.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(wording, name) for name in WORDS}
    made.globals |= {"axis": axis, "deciding": wording.deciding, "is_sample": wording.is_sample}
    return made


def asset(name: str) -> tuple[Markup, str]:
    """A style sheet or script of the package, and its hash for the page's content security policy."""
    text = (resources.files("memattn_jax.report.html") / "assets" / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def page(template: str, gallery: Gallery | None, **context: Any) -> Iterator[str]:
    """The pieces of a page, to be written one after the other.

    Everything that it shows is in it, and its content security policy forbids it to load or send anything.

    Args:
      template: name of a template that extends base.html.
      gallery: None for a page without one, which needs no script.
      **context: what the template shows besides; "version" of this package among it.

    Raises:
      InputError: a picture is missing or damaged.
    """
    style, style_hash = asset("report.css")
    script, script_hash = asset("report.js") if gallery else (Markup(), "'none'")
    policy = f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash}; "
    context |= {"style": style, "script": script, "policy": policy + "base-uri 'none'; form-action 'none'"}
    made = environment().get_template(template)
    if gallery is None:
        yield from made.generate(**context)
        return
    found = overview(gallery.items())
    chosen = plan(found.seeds, found.images, found.others)
    detectors = [
        {"name": name, "threshold": threshold, "range": found.ranges.get(name)}
        for name, threshold in gallery.thresholds.items()
    ]
    facts = {
        "detectors": detectors,
        "kinds": found.kinds,
        "measure": gallery.measure,
        "pictures": found.images > 0,
        "noun": gallery.noun,
    }
    row = partial(index_row, kinds=found.kinds, detectors=list(gallery.thresholds), measure=gallery.measure)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        thumbnails = Thumbnails(gallery.read, chosen.edge, pool)
        context |= {
            "facts": script_json(facts),
            "rows": (script_json(row(item)) for item in gallery.items()),
            "blocks": (script_json(block(item, thumbnails, chosen, gallery.measure)) for item in gallery.items()),
        }
        yield from made.generate(**context)
