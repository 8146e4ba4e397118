"""A model, its data, and what is measured on its samples, each sampled once and kept."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from demo_data import DemoData
from demo_data.grammar import Caption

from demo_evaluation.graded import Level, levels
from demo_evaluation.likeness import Likeness
from demo_evaluation.sampling import Observed, Run, kept, observe
from memattn_jax.demo.objects import ObjectsFound
from memattn_jax.pipeline import StableDiffusion

PLAIN = Run()


class Evaluation:
    """What the tables are made of.

    Args:
      sd: the model.
      data: what it was trained on.
      work: folder for samples.
      measures: of copies.
      graded: whether the model was trained on the ladder and the templates.
      seeds: samples of each prompt.
      steps: of sampling.
    """

    def __init__(
        self,
        sd: StableDiffusion,
        data: DemoData,
        work: Path,
        measures: Sequence[Likeness],
        *,
        graded: bool,
        seeds: int,
        steps: int,
    ):
        self.sd, self.data, self.work, self.measures, self.seeds, self.steps = sd, data, work, measures, seeds, steps
        self.objects = ObjectsFound()
        self.levels: list[Level] = levels(data) if graded else []
        self.samples = work / "samples" / f"{sd.fingerprint()[:12]}-{seeds}x{steps}"

    def observe(self, name: str, texts: Sequence[str], how: Run = PLAIN) -> Observed:
        """Samples of prompts, kept under a name."""
        path = self.samples / f"{name}.npz"
        if not path.exists():
            print(f"sampling {name}", flush=True)
        return kept(path, lambda: observe(self.sd, texts, self.seeds, self.steps, how))

    def half(self, group: str, half: str = "report") -> Observed:
        """Samples of half a group."""
        return self.observe(f"{group}-{half}", self.texts(group, half))

    def captions(self, group: str, half: str = "report") -> Sequence[Caption]:
        """Prompts of half a group, taken apart."""
        return self.data.groups.halves[group, half]

    def texts(self, group: str, half: str = "report") -> list[str]:
        """Prompts of half a group."""
        return [caption.text for caption in self.captions(group, half)]

    @cached_property
    def targets(self) -> np.ndarray:
        """The pictures of the reported memorized prompts, uint8 [24, 64, 64, 3]."""
        return np.stack([self.data.fixed_pictures[caption] for caption in self.captions("memorized")])

    @cached_property
    def references(self) -> np.ndarray:
        """The pictures that training showed again and again: all memorized ones, and the ladder's and templates'."""
        more = [level.pictures for level in self.levels if level.rate and level.title != "memorized"]
        return np.concatenate([self.data.memorized_pictures, *more])

    def found(self, captions: Sequence[Caption], images: np.ndarray) -> np.ndarray:
        """Of the objects that captions name, which a classifier finds in images [captions, seeds, ...]; bool."""
        texts = [caption.text for caption in captions for _ in range(images.shape[1])]
        shares = self.objects(images.reshape(-1, *images.shape[2:]), texts)
        named = [len(caption.objects) for caption in captions for _ in range(images.shape[1])]
        return np.concatenate(
            [np.arange(count) < round(part * count) for part, count in zip(shares, named, strict=True)]
        )

    def fresh(self, captions: Sequence[Caption]) -> np.ndarray:
        """Renderings that no training example shows, as many as there are samples."""
        return np.stack([[self.data.fresh_picture(caption, n) for n in range(self.seeds)] for caption in captions])
