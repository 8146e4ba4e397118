"""Scores of prompts: detectors with their settings, bound to a model."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.detection import Detection, first_rows
from memattn_jax.detectors.first_step import Inputs, Levels, Unconditional, noise_levels
from memattn_jax.detectors.programs import Kept, describe_unconditional, score_first_step, score_trajectory
from memattn_jax.detectors.protocol import Detector, FirstStepDetector, TrajectoryDetector
from memattn_jax.diffusion.model import Model
from memattn_jax.diffusion.noise import row_keys
from memattn_jax.diffusion.sampling import Plan
from memattn_jax.diffusion.weight_cache import WeightCache
from memattn_jax.errors import InputError, check_name
from memattn_jax.pytree import as_arrays, as_pytree
from memattn_jax.registries import DETECTORS, load
from memattn_jax.schedulers import make_schedule
from memattn_jax.sharding.placement import replicate, rows_multiple, spread

DEFAULT = ("entropy_e", "noise_norm")
Named = Mapping[str, Detector]


def named_detectors(detectors: "str | Detector | Sequence[str | Detector] | Named", **options: Any) -> Named:
    """Detectors by name.

    Args:
      detectors: names, see `DETECTORS`, and objects of your own, which go by their class' name; or {name: object}.
      options: of detectors that names stand for; each takes those that it has fields for. `site` is also that of
        objects with a field for it that is None.

    Raises:
      InputError: an unknown name, one twice, or none at all.
    """
    if isinstance(detectors, Mapping):
        return {name: at_site(one, options.get("site")) for name, one in detectors.items()}
    given: list[Any] = [detectors] if isinstance(detectors, str) or hasattr(detectors, "needs") else list(detectors)
    if not given:
        raise InputError(f"no detectors; expected at least one of {', '.join(DETECTORS)}")
    named: dict[str, Detector] = {}
    for one in given:
        name = one if isinstance(one, str) else type(one).__name__
        if name in named:
            raise InputError(f"two detectors are named {name}; give them as {{name: detector}}")
        if isinstance(one, str):
            check_name("detector", one, DETECTORS)
            kind = load(DETECTORS[one][1])
            named[one] = kind(**{name: options[name] for name in options_of(kind) if name in options})
        elif hasattr(one, "needs"):
            named[name] = at_site(one, options.get("site"))
        else:
            raise InputError(f"{type(one).__name__} is not a detector; see memattn_jax.detectors.protocol")
    return named


def at_site(detector: Detector, site: str | None) -> Detector:
    """The detector, reading this cross-attention layer where it has a field `site` and names none itself."""
    if site is None or not is_dataclass(detector) or getattr(detector, "site", site) is not None:
        return detector
    return replace(detector, site=site)


def options_of(kind: type) -> tuple[str, ...]:
    """Names of the options that a class of detectors takes."""
    return tuple(inspect.signature(kind).parameters)


@dataclass(frozen=True)
class Scorer:
    """Detectors with their settings, bound to a model; call it with batches of prompts.

    Attributes:
      model: the networks.
      detectors: by name, or as `named_detectors` takes them.
      seed: of the first probe. All prompts see the same probes, so what the model makes of the empty prompt is
        computed once; or None: each prompt's own seeds are given with it.
      probes: noises a prompt is seen through, with consecutive seeds; scores are averaged over them.
      steps: of the DDIM schedule whose first timestep, or whole run, is looked at.
      guidance_scale: of the run; 1 or less turns guidance off, as where images are sampled.
      site: where metric E is read, by detectors that name no layer themselves; by default the model's own, see
        `StableDiffusion`.
      options: of detectors that are given by name.
      attribute: whether to compute how much each token contributes.
      calibrating: whether detections are for a calibration: detectors that are not fitted give NaN, and what they
        kept; else they are refused.
      latents: unit noise [noises, h, w, channels] to look through instead of the seeds', with one probe: a seed is then
        a place in it.

    Raises:
      InputError: see the message.
    """

    model: Model
    detectors: Any = DEFAULT
    seed: int | None = 0
    probes: int = 1
    steps: int = 50
    guidance_scale: float = 7.5
    site: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    attribute: bool = False
    calibrating: bool = False
    latents: Array | None = None
    _kept: WeightCache = field(default_factory=WeightCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise InputError(f"probes is {self.probes}; must be at least 1")
        if self.latents is not None and self.probes != 1:
            raise InputError(
                f"latents is one noise sample per prompt, but probes is {self.probes}; omit one of the two"
            )
        if self.seed is not None and not 0 <= self.seed <= 2**32 - self.probes:
            raise InputError(f"seeds must be in [0, 2**32), not {self.seed} to {self.seed + self.probes - 1}")
        if not math.isfinite(self.guidance_scale):
            raise InputError(f"guidance_scale is {self.guidance_scale}; must be finite")
        self.model.site_of_entropy(self.site)
        named = named_detectors(self.detectors, **{"site": self.site, **self.options})
        bound = {name: detector.bind(self.model, self.steps) for name, detector in named.items()}
        object.__setattr__(self, "detectors", {name: as_arrays(as_pytree(one)) for name, one in bound.items()})
        if missing := [name for name in self.unfitted if not self.calibrating]:
            raise InputError(
                f"{missing[0]} must be fitted on clean prompts; `detect --calibrate` with it creates a calibration "
                "that contains the fit"
            )

    @cached_property
    def first_step(self) -> dict[str, FirstStepDetector]:
        """Names of the detectors that use the first step."""
        return {name: one for name, one in self.detectors.items() if one.needs == "first step"}

    @cached_property
    def trajectory(self) -> dict[str, TrajectoryDetector]:
        """The detectors that use a sampling run, or the image that it ends with."""
        return {name: one for name, one in self.detectors.items() if one.needs in ("trajectory", "image")}

    @property
    def unfitted(self) -> tuple[str, ...]:
        """The detectors that must still be fitted on clean prompts."""
        return tuple(name for name, one in self.trajectory.items() if not one.fitted)

    @property
    def judging(self) -> tuple[str, ...]:
        """The detectors that use the model, not just the prompt's text."""
        return tuple(name for name, one in self.detectors.items() if one.needs != "prompt")

    @property
    def read_site(self) -> str:
        """The cross-attention layer that metric E reads."""
        return self.model.site_of_entropy(self.site)

    @cached_property
    def _levels(self) -> Levels:
        with jax.ensure_compile_time_eval():
            return replicate(noise_levels(self.model.scheduler_config, self.steps), self.model.mesh)

    def _noise(self, seeds: np.ndarray) -> Array:
        """Seeds [rows] to unit noise [rows, probes, h, w, channels]."""
        numbers = seeds[:, None] + np.arange(self.probes)
        if self.latents is None:
            noise = self.model.noise(tuple(numbers.ravel().tolist()))
        else:
            noise = self.latents[numbers.ravel()]
        return spread(noise.reshape(*numbers.shape, *noise.shape[1:]), self.model.mesh)

    @cached_property
    def _shared(self) -> Array:
        """The noise samples that all prompts share, [1, probes, h, w, channels]."""
        with jax.ensure_compile_time_eval():
            return self._noise(np.array([self.seed]))

    @property
    def _unconditional(self) -> Unconditional:
        parts = frozenset[str]().union(*(detector.shared for detector in self.first_step.values()))
        if self.attribute:
            parts |= {"noise"}
        if not parts:
            return Unconditional()

        def compute() -> Unconditional:
            empty, lengths = self._empty
            inputs = Inputs(self.model.unet, self._shared, empty, empty, lengths, self._levels)
            return describe_unconditional(replace(inputs, velocity=self.model.velocity), parts=parts)

        return self._kept.get(parts, (self.model.unet, self.model.text_encoder), compute)

    @property
    def _empty(self) -> tuple[Array, Array]:
        """The empty prompt's embedding [1, tokens, channels] and length [1]."""
        embedding, tokens = self.model.encode([""])
        return embedding, jnp.asarray(tokens.lengths)

    def probes_for(self, seeds: Sequence[int] | None) -> Array:
        """The noise samples of each prompt, [1 or batch, probes, h, w, channels]; see `__call__`."""
        return self._shared if self.seed is not None else self._noise(np.asarray(seeds))

    def inputs(self, probes: Array, context: Any, lengths: Any) -> Inputs:
        """The inputs of first-step detectors, for a batch of text embeddings [batch, tokens, channels] and lengths."""
        return Inputs(
            self.model.unet,
            probes,
            context,
            self._empty[0],
            lengths,
            self._levels,
            self._unconditional if self.seed is not None else Unconditional(),
            velocity=self.model.velocity,
            entropy_site=self.read_site,
        )

    def plan(self, probes: Array, context: Array, lengths: Array) -> Plan:
        """The sampling run for trajectory detectors: the noise samples of a prompt are consecutive rows."""
        batch, mesh = len(context), self.model.mesh
        noise = jnp.broadcast_to(probes, (batch, *probes.shape[1:])).reshape(-1, *probes.shape[2:])
        context, lengths = (jnp.repeat(x, self.probes, axis=0) for x in (context, lengths))
        return Plan(
            unet=self.model.unet,
            schedule=replicate(make_schedule(self.model.scheduler_config, "ddim", self.steps), mesh),
            noise=noise,
            context=context,
            negative=spread(jnp.broadcast_to(self._empty[0], context.shape), mesh),
            guidance_scale=replicate(jnp.full((1, 1), max(1.0, self.guidance_scale), jnp.float32), mesh),
            lengths=lengths,
            keys=spread(row_keys(jnp.zeros(len(noise), jnp.uint32)), mesh),  # DDIM draws nothing
        )

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Detection:
        """Scores one batch; a score depends on its prompt, its seed and the settings alone.

        Another prompt, length, seed or number compiles nothing; another number of prompts does.

        Args:
          prompts: the texts.
          seeds: of each prompt's first probe, where the scorer has no seed of its own.
        """
        return self.start(prompts, seeds).fetch()

    def start(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Detection:
        """The same, as arrays that the device may still be computing; `fetch` waits for them.

        On a mesh, a number of prompts that `rows_multiple` rounds up to is spread over its devices, and first-step
        detectors exchange nothing; of another number each device computes all.
        """
        prompts = tuple(prompts)
        tokens = self.model.tokenizer(prompts)
        scores: dict[str, Any] = {}
        kept: Kept = {}
        attribution = None
        if self.first_step or self.attribute or self.trajectory:
            context, probes = self.model.embed(tokens), self.probes_for(seeds)
            lengths = spread(jnp.asarray(tokens.lengths), self.model.mesh)
        if self.first_step or self.attribute:
            first, attribution = score_first_step(
                self.inputs(probes, context, lengths), self.first_step, attribute=self.attribute
            )
            scores |= first
        if self.trajectory:
            plan = self.plan(probes, context, lengths)
            followed, kept = score_trajectory(plan, replicate(self.trajectory, self.model.mesh), probes=self.probes)
            scores |= followed
        for name, detector in self.detectors.items():
            if detector.needs == "prompt":
                scores[name] = detector.score(prompts)
        return Detection(
            prompts=prompts,
            scores={name: scores[name] for name in self.detectors},
            input_ids=tokens.input_ids,
            lengths=tokens.lengths,
            attention=None if attribution is None else attribution.attention,
            gradients=None if attribution is None else attribution.gradients,
            kept=kept,
        )


def score_batches(scorer: Scorer, rows: Iterable[tuple[str, int]], size: int) -> Iterator[Detection]:
    """Scores any number of prompts in batches of one size, so that one program serves all.

    Args:
      scorer: the detectors.
      rows: prompts with the seed of each one's first probe, which counts where the scorer has no seed of its own; read
        a batch at a time.
      size: prompts a batch, rounded up to what divides among the devices; the last one is filled up with its last
        prompt, and yielded without the filling.
    """
    rows, size = iter(rows), rows_multiple(size, scorer.model.mesh)
    while batch := list(islice(rows, size)):
        padded = batch + batch[-1:] * (size - len(batch))
        yield first_rows(scorer([prompt for prompt, _ in padded], [seed for _, seed in padded]), len(batch))
