"""What all figures share: texts of strangers as labels, names of layers, and figures as files."""

import io
import re
import textwrap
import warnings

from matplotlib.figure import Figure

from memattn_jax.text import printable

FORMATS = ("png", "svg")
DPI = 110
TOKEN = 12  # characters of a token above a picture
PROMPT = 120  # and of a prompt in a title
LETTERS = 10.5  # of a title in an inch
SITE = re.compile(r"(down|mid|up)_blocks?\.?(\d*)\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn2")


def as_label(text: str, length: int) -> str:
    """A stranger's text as matplotlib may draw it: on one line, escaped, shortened, and never read as mathematics."""
    return printable(text, length).replace("$", r"\$")


def wrapped(heading: str, inches: float) -> str:
    """A heading in lines that fit a width."""
    return textwrap.fill(heading, int(LETTERS * inches), break_long_words=False)


def short_site(site: str) -> str:
    """A layer's name for an axis: "down 1 · 0" for down_blocks.1.attentions.0.…; other names as they are."""
    if (named := SITE.fullmatch(site)) is None:
        return as_label(site, 24)
    block, level, attention, layer = named.groups()
    return f"{block} {level}".strip() + f" · {attention}" + f".{layer}" * (layer != "0")


def percent(share: float) -> str:
    """A share as a percentage with two significant digits: "5.1 %"."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file of one of `FORMATS`; the same figure gives the same bytes."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # prompts in any script; missing glyphs become boxes
        figure.savefig(sink, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return sink.getvalue()
