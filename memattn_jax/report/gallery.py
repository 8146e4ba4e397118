"""Batches of images: sampled on the device, written as files and as rows of a table."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from memattn_jax.report.results import Measured, measure, picture_row, png
from memattn_jax.runs.run import fill_up
from memattn_jax.runs.table import row_name
from memattn_jax.runs.versions import versions

if TYPE_CHECKING:
    from memattn_jax.pipeline import Samples, StableDiffusion
    from memattn_jax.report.carried import Carried
    from memattn_jax.runs.table import ShardedTable


class Picture(NamedTuple):
    """What a picture is made from.

    Attributes:
      text: the prompt.
      seed: of its noise.
      error: why there is no prompt.
      recipe: which of the gallery's recipes makes it.
      place: of the prompt, file and line.
      kept: values that the prompt's record brings along.
    """

    text: str
    seed: int
    error: str | None = None
    recipe: int = 0
    place: str = ""
    kept: tuple[str | None, ...] = ()

    @property
    def same(self) -> tuple[str, int, int]:
        """What the picture depends on."""
        return self.text, self.seed, self.recipe


class Recipe(NamedTuple):
    """How images are made.

    Attributes:
      arguments: of `StableDiffusion.sample`, besides prompts and seeds.
      settings: the same for the table, as JSON.
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
      carried: columns that prompts bring along.
      keep: whether to keep what was sampled.
      made: what was: recipe, batch, and place in it.
    """

    sd: "StableDiffusion"
    recipes: list[Recipe]
    size: int
    table: "ShardedTable"
    carried: "Carried"
    keep: bool = False
    made: list[tuple[int, "Samples", int]] = field(default_factory=list)

    def start(self, jobs: list[Picture]) -> Measured:
        """Gives a batch to the device."""
        filled = fill_up(jobs, self.size)
        texts, seeds = [job.text for job in filled], [job.seed for job in filled]
        return measure(self.sd.sample(texts, seeds=seeds, wait=False, **self.recipes[jobs[0].recipe].arguments))

    def describe(self, batch: list[tuple[int, Picture]], measured: Measured | None) -> list[dict[str, Any]]:
        """Writes the images of a batch; returns the table's rows."""
        self.table.begin()  # earlier pictures go before new ones come
        rows: list[dict[str, Any]] = []
        place = 0
        for number, job in batch:
            if job.error is not None or measured is None:
                unmade = {"row": number, "prompt": job.text, "seed": job.seed, "error": job.error}
                rows.append(self.carried(unmade, job))
                continue
            made_with = self.recipes[job.recipe].settings
            row = picture_row(number, measured, place, self.sd.tokenizer, made_with, versions())
            if row["file"] is not None:
                self.table.store.write(row["file"], png(measured.run.images[place], row))
            if self.keep:
                self.made.append((job.recipe, measured.run, place))
            rows.append(self.carried(row, job))
            place += 1
        return rows

    def repeat(self, row: dict[str, Any], number: int, job: Picture) -> dict[str, Any]:
        """The row, and the picture's file, of a job whose picture is an earlier row's."""
        if row["file"] is None:
            return self.carried.repeat(row, number, job)
        content = self.table.store.read(row["file"])
        if content is None:  # someone has moved it away since
            return self.describe([(number, job)], self.start([job]).fetch())[0]
        name = row_name(number, "png")
        self.table.store.write(name, content)
        return self.carried.repeat(row | {"file": name}, number, job)

    def count(self) -> tuple[int, int]:
        """Images and rows of the whole table; says how many rows lack one, and how many prompts were cut."""
        found = Counter((row["file"] is not None, row["cut"]) for row in self.table.rows(["file", "cut"]))
        made = sum(rows for (image, _), rows in found.items() if image)
        if failed := found.total() - made:
            print(f"{failed} rows have no image; the column error says why")
        if cut := sum(rows for (_, cut), rows in found.items() if cut):
            print(self.carried.told(cut))
        return made, found.total()
