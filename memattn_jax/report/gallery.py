"""Batches of images: sampled on the device, written as files and as rows of a table."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from memattn_jax.report.results import Measured, image_row, measure, png
from memattn_jax.runs.run import fill_up
from memattn_jax.runs.shards import row_name
from memattn_jax.runs.versions import versions
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.runs.table import ShardedTable


class ImageJob(NamedTuple):
    """What an image is made from.

    Attributes:
      text: the prompt.
      seed: of the initial noise.
      error: why there is no prompt.
      recipe: index of the gallery's recipe for it.
      place: file and line of the prompt.
      kept: values of the kept columns in the prompt's record.
    """

    text: str
    seed: int
    error: str | None = None
    recipe: int = 0
    place: str = ""
    kept: tuple[str | None, ...] = ()

    @property
    def same(self) -> tuple[str, int, int]:
        """Everything that the image depends on."""
        return self.text, self.seed, self.recipe


class Recipe(NamedTuple):
    """How images are made.

    Attributes:
      arguments: of `StableDiffusion.sample`, besides prompts and seeds.
      settings: the same as recorded in the table, for JSON.
    """

    arguments: dict[str, Any]
    settings: dict[str, Any]


@dataclass
class Gallery:
    """Samples images and writes them.

    Attributes:
      sd: the model.
      recipes: all images of a batch share one.
      size: images per batch.
      table: receives one row per image.
      carried: columns from the prompt records.
      keep: whether to keep the batches in memory.
      made: the images that are kept: recipe, batch, and place in it.
    """

    sd: "StableDiffusion"
    recipes: list[Recipe]
    size: int
    table: "ShardedTable"
    carried: "Carried"
    keep: bool = False
    made: list[tuple[int, Measured, int]] = field(default_factory=list)

    def start(self, jobs: list[ImageJob]) -> Measured:
        """Starts sampling a batch on the device."""
        filled = fill_up(jobs, self.size)
        texts, seeds = [job.text for job in filled], [job.seed for job in filled]
        return measure(self.sd.sample(texts, seeds=seeds, wait=False, **self.recipes[jobs[0].recipe].arguments))

    def describe(self, batch: list[tuple[int, ImageJob]], measured: Measured | None) -> list[dict[str, Any]]:
        """Writes the images of a batch; returns the table's rows."""
        self.table.begin()  # old images are removed before new ones are written
        rows: list[dict[str, Any]] = []
        place = 0
        for number, job in batch:
            if job.error is not None or measured is None:
                unmade = {"row": number, "prompt": job.text, "seed": job.seed, "error": job.error}
                rows.append(self.carried(unmade, job))
                continue
            made_with = self.recipes[job.recipe].settings
            row = image_row(number, measured, place, self.sd.tokenizer, made_with, versions())
            if row["file"] is not None:
                self.table.store.write(row["file"], png(measured.run.images[place], row))
            if self.keep:
                self.made.append((job.recipe, measured, place))
            rows.append(self.carried(row, job))
            place += 1
        return rows

    def repeat(self, row: dict[str, Any], number: int, job: ImageJob) -> dict[str, Any]:
        """The row and the image file of a job with the same image as an earlier row."""
        if row["file"] is None:
            return self.carried.repeat(row, number, job)
        content = self.table.store.read(row["file"])
        if content is None:  # it has been removed in the meantime
            return self.describe([(number, job)], self.start([job]).fetch())[0]
        name = row_name(number, "png")
        self.table.store.write(name, content)
        return self.carried.repeat(row | {"file": name}, number, job)

    def count(self) -> tuple[int, int]:
        """Number of images and rows of the whole table; prints how many images are missing or prompts cut."""
        found = Counter((row["file"] is not None, row["cut"]) for row in self.table.rows(["file", "cut"]))
        made = sum(rows for (image, _), rows in found.items() if image)
        if failed := found.total() - made:
            print(f"{counted(failed, 'row')} without an image; see the column error")
        if cut := sum(rows for (_, cut), rows in found.items() if cut):
            print(self.carried.describe_cut(cut))
        return made, found.total()
