"""Pictures made small enough that a report holds thousands of them."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from memattn_jax.errors import InputError
from memattn_jax.pictures.skipped import first_line

QUALITY = 80
MASK_EDGE = 32  # of a map of where the copy is, which is smooth
REPORT_BYTES = 100_000_000  # of all thumbnails together, about: what a browser opens in a second or two
COSTS = {192: 9000, 128: 4600, 96: 3000}  # bytes of a thumbnail of this edge, about, as text


class Plan(NamedTuple):
    """How pictures are kept.

    Attributes:
      edge: of a thumbnail, in pixels at most.
      seeds: pictures of a prompt at most, and as many with the mitigation.
    """

    edge: int
    seeds: int


def plan(seeds: int, images: int, others: int) -> Plan:
    """The largest thumbnails, and the most of them, with which the report stays near `REPORT_BYTES`.

    Args:
      seeds: images of a prompt at most.
      images: of all prompts, without and with the mitigation.
      others: training pictures and heatmaps, which are all kept.
    """
    for edge, cost in COSTS.items():
        if (images + others) * cost <= REPORT_BYTES:
            return Plan(edge, seeds)
    affordable = REPORT_BYTES / cost - others
    return Plan(edge, max(1, int(seeds * affordable / images)))


class Thumbnails:
    """Makes data URIs of picture files, several at a time."""

    def __init__(self, read: Callable[[str], bytes], edge: int, pool: ThreadPoolExecutor) -> None:
        self.read, self.edge, self.pool = read, edge, pool

    def pictures(self, files: list[str]) -> list[str]:
        """Data URIs of pictures in colour; raises InputError where a file is no picture."""
        return list(self.pool.map(lambda file: self.encode(file, "RGB", self.edge), files))

    def mask(self, file: str) -> str:
        """The data URI of a map in grey, whose brightness is what it maps; raises as `pictures` does."""
        return self.encode(file, "L", MASK_EDGE)

    def encode(self, file: str, mode: str, edge: int) -> str:
        """One data URI, of a picture that is never enlarged."""
        sink = io.BytesIO()
        try:
            with Image.open(io.BytesIO(self.read(file))) as picture:
                small = picture.convert(mode)
        except OSError as error:
            raise InputError(f"{file}: cannot be read as a picture ({first_line(error)})") from None
        small.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.save(sink, "WEBP", quality=QUALITY, method=2)
        return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
