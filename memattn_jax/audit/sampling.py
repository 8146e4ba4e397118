"""Images that are sampled on purpose: some seeds of each prompt, as PNG files and as rows of a table that resumes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from memattn_jax.audit.folder import image_name
from memattn_jax.report.results import NO_IMAGE, png
from memattn_jax.runs.progress import Progress
from memattn_jax.runs.run import batches, fill_up, run
from memattn_jax.runs.table import ShardedTable
from memattn_jax.runs.versions import versions
from memattn_jax.sharding.placement import rows_multiple
from memattn_jax.storage import Store

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples, StableDiffusion

SHARD_ROWS = 2048
SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),  # number of the image, from 0
        pa.field("prompt", pa.string()),
        pa.field("log_row", pa.int64()),  # number of the prompt in the log
        pa.field("seed", pa.int64()),
        pa.field("file", pa.string()),  # null where latents or image are not finite
        pa.field("finite", pa.bool_()),
        pa.field("error", pa.string()),
    ]
)


class Shot(NamedTuple):
    """What an image is made from.

    Attributes:
      text: the prompt.
      seed: of the initial noise.
      log_row: number of the prompt in the log.
      error: always None; the log's rows without a prompt are not sampled.
    """

    text: str
    seed: int
    log_row: int
    error: str | None = None


@dataclass
class Camera:
    """Samples images and writes them.

    Attributes:
      sd: the model.
      arguments: of `StableDiffusion.sample`, besides prompts and seeds.
      size: images of a batch.
      images: receives the files.
      settings: what the files' text says of how they were made, as JSON.
    """

    sd: "StableDiffusion"
    arguments: Mapping[str, Any]
    size: int
    images: Store
    settings: str

    def start(self, shots: Sequence[Shot]) -> "Samples":
        """Starts sampling a batch on the device."""
        filled = fill_up(list(shots), rows_multiple(self.size, self.sd.mesh))
        texts, seeds = [shot.text for shot in filled], [shot.seed for shot in filled]
        return self.sd.sample(texts, seeds=seeds, taps=None, wait=False, **self.arguments)

    def describe(self, batch: Sequence[tuple[int, Shot]], made: "Samples | None") -> list[dict[str, Any]]:
        """Writes the images of a batch; returns the table's rows."""
        rows = []
        for place, (number, shot) in enumerate(batch):
            assert made is not None
            row = self.row(number, shot, bool(made.finite[place]))
            if row["finite"]:
                about = {"prompt": shot.text, "seed": shot.seed, "settings": self.settings, "versions": versions()}
                self.images.write(row["file"], png(made.images[place], about))
            rows.append(row)
        return rows

    def row(self, number: int, shot: Shot, finite: bool) -> dict[str, Any]:
        """A row of the table."""
        own = {"row": number, "prompt": shot.text, "log_row": shot.log_row, "seed": shot.seed, "finite": finite}
        name = image_name(shot.log_row, shot.seed) if finite else None
        return own | {"file": name, "error": None if finite else NO_IMAGE}

    def repeat(self, row: dict[str, Any], number: int, shot: Shot) -> dict[str, Any]:
        """The row and the file of a shot that repeats an earlier one: the log may hold a prompt twice."""
        again = self.row(number, shot, row["finite"])
        if row["finite"]:
            content = self.images.read(row["file"])
            if content is None:  # it has been removed in the meantime
                return self.describe([(number, shot)], self.start([shot]).fetch())[0]
            self.images.write(again["file"], content)
        return again


def sample_shots(
    camera: Camera, shots: Sequence[Shot], store: Store, identity: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[list[dict[str, Any]] | None, float | None]:
    """Samples the images that are missing in a table.

    Args:
      camera: how.
      shots: of all rows, in order.
      store: folder of the table.
      identity: what the images depend on besides prompt and seed.
      about: further entries of the manifest.

    Returns:
      All rows, or None where the run was asked to stop; and seconds an image without the first batch, which compiles,
      None where no image was sampled after it.
    """
    table = ShardedTable(store, SCHEMA, dict(identity), shard_rows=SHARD_ROWS)
    table.claim(dict(about), overwrite=False)
    progress = Progress("image", lambda: len(shots))
    size = min(camera.size, max(1, len(shots)))
    lacking = table.missing(shots, lambda shot: (shot.text, shot.seed))
    work = batches(lacking, size, SHARD_ROWS, twins=table.twins)
    done = run(table, work, camera.start, camera.describe, progress, camera.repeat)
    seconds = None
    if progress.first is not None and progress.rows > progress.first[1]:
        seconds = (time.monotonic() - progress.first[2]) / (progress.rows - progress.first[1])
    return (list(table.rows()) if done else None), seconds
