"""Scores of prompts: one compiled program for all first-step detectors, one sampling run for all others."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.detectors.attribution import token_gradients
from memattn_jax.detectors.detection import Detection, first_rows
from memattn_jax.detectors.first_step import FirstStep, NoiseLevel, Unconditional, noise_levels
from memattn_jax.detectors.latent_step_deviation import CleanMoves
from memattn_jax.detectors.registry import DETECTORS, DEVIATION, FIRST_STEP, TRAJECTORY, Choices, check_names
from memattn_jax.detectors.text_baseline import text_baseline
from memattn_jax.detectors.trajectory import follow
from memattn_jax.entropy import METRIC_E_SITE, mean_over_sites
from memattn_jax.errors import InputError, check_name
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.parallel import replicate, rows_multiple, spread
from memattn_jax.schedulers import Schedule, make_schedule
from memattn_jax.weight_cache import WeightCache

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion

DEFAULT = ("entropy_e", "noise_norm")


@partial(jax.jit, static_argnames=("parts", "velocity"))
def describe_unconditional(
    unet: UNet2DConditionModel,
    probes: Array,
    empty: Array,
    levels: tuple[NoiseLevel, NoiseLevel],
    *,
    parts: frozenset[str],
    velocity: bool,
) -> Unconditional:
    """What first-step detectors need of the empty prompt, once a model and set of probes; see `FirstStep`."""
    step = FirstStep(unet, probes, empty, empty, levels, velocity=velocity, linearize="energy_gradient" in parts)
    return step.describe_unconditional(parts)


@partial(jax.jit, static_argnames=("names", "site", "velocity", "attribute"))
def score_first_step(
    unet: UNet2DConditionModel,
    probes: Array,
    context: Array,
    empty: Array,
    levels: tuple[NoiseLevel, NoiseLevel],
    unconditional: Unconditional | None,
    *,
    names: tuple[str, ...],
    site: str,
    velocity: bool,
    attribute: bool,
) -> tuple[dict[str, Array], Array | None, Array | None]:
    """Scores of the named first-step detectors, float32 [batch] each, and what tokens are to blame.

    Arguments as in `FirstStep`; `site` is where entropy is read, and with `attribute` the attention and the gradients
    of `Detection` are returned too.
    """
    step = FirstStep(
        unet,
        probes,
        context,
        empty,
        levels,
        unconditional=unconditional,
        velocity=velocity,
        linearize=attribute or any(DETECTORS[name].gradients for name in names),
        sites=None if attribute else (site,),
    )
    scores = {name: DETECTORS[name].score(step, site) for name in names}  # type: ignore[misc]
    if not attribute:
        return scores, None, None
    # [batch, probes, heads, tokens] → [probes, batch, heads, tokens]
    attention = mean_over_sites({site: step.tokens[site].swapaxes(0, 1) for site in unet.sites}).mean(axis=0)
    return scores, attention, token_gradients(step)


@partial(jax.jit, static_argnames="names")
def score_trajectory(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    probes: Array,
    context: Array,
    empty: Array,
    guidance_scale: Array,
    lengths: Array,
    steps: Array,
    clean: CleanMoves,
    *,
    names: tuple[str, ...],
) -> tuple[dict[str, Array], Array]:
    """Scores of the named trajectory detectors, float32 [batch] each, in one sampling run, and its `Detection.moves`.

    Args:
      unet: the model.
      schedule: of DDIM.
      probes: unit noise, [1 or batch, probes, h, w, channels].
      context: text embeddings of the prompts [batch, tokens, channels].
      empty: of the empty prompt [1, tokens, channels].
      guidance_scale: [].
      lengths: int [batch].
      steps: bool [steps], see `Choices`.
      clean: likewise.
      names: the detectors.
    """
    batch, count = len(context), probes.shape[1]
    noise = jnp.broadcast_to(probes, (batch, *probes.shape[1:])).reshape(batch * count, *probes.shape[2:])
    context, lengths = (jnp.repeat(x, count, axis=0) for x in (context, lengths))
    pair = jnp.concatenate([jnp.broadcast_to(empty, context.shape), context])
    run = follow(unet, schedule, noise, pair, guidance_scale, lengths)
    choices = Choices(lengths, steps, clean)
    scores = {name: DETECTORS[name].score(run, choices) for name in names}  # type: ignore[misc]
    means = {name: score.reshape(batch, count).mean(axis=1) for name, score in scores.items()}
    return means, run.moves.T.reshape(batch, count, -1)


def entropy_site(sites: tuple[str, ...], site: str | None) -> str:
    """Where `entropy_e` reads: the named site, else the paper's, the fourth, or the last of a model with fewer.

    Raises:
      InputError: the model lacks the named site.
    """
    if site is not None:
        check_name("cross-attention layer", site, sites)
    return site or sites[min(METRIC_E_SITE, len(sites) - 1)]


@dataclass(frozen=True)
class Scorer:
    """Detectors with their settings, bound to a model; call it with batches of prompts.

    Attributes:
      sd: the model.
      detectors: names, see `DETECTORS`.
      seed: of the first probe. All prompts see the same probes, so what the model makes of the empty prompt is
        computed once; or None: each prompt's own seeds are given with it.
      probes: noises a prompt is seen through, with consecutive seeds; scores are averaged over them.
      steps: of the DDIM schedule whose first timestep, or whole run, is looked at.
      guidance_scale: of the run.
      site: where `entropy_e` reads; by default the model's own, see `StableDiffusion`.
      noise_norm_steps: steps that `noise_norm_steps` averages over, counted from 0; None is all.
      attribute: whether to say which tokens are to blame.
      clean_moves: what `latent_step_deviation` compares to, from a calibration with the same steps.
      calibrating: whether detections are for a calibration, whose clean moves are not known yet:
        `latent_step_deviation` is NaN.
      latents: unit noise [noises, h, w, channels] to look through instead of the seeds', with one probe: a seed is then
        a place in it.

    Raises:
      InputError: see the message.
    """

    sd: "StableDiffusion"
    detectors: tuple[str, ...] = DEFAULT
    seed: int | None = 0
    probes: int = 1
    steps: int = 50
    guidance_scale: float = 7.5
    site: str | None = None
    noise_norm_steps: tuple[int, ...] | None = None
    attribute: bool = False
    clean_moves: CleanMoves | None = None
    calibrating: bool = False
    latents: Array | None = None
    _kept: WeightCache = field(default_factory=lambda: WeightCache(1), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_names(self.detectors)
        if self.probes < 1:
            raise InputError(f"{self.probes} probes; at least 1 is needed")
        if self.latents is not None and self.probes != 1:
            raise InputError(f"latents hold one noise a prompt, and probes is {self.probes}; leave one of the two out")
        if self.seed is not None and not 0 <= self.seed <= 2**32 - self.probes:
            raise InputError(f"seeds must lie in [0, 2**32), not {self.seed} to {self.seed + self.probes - 1}")
        sites = self.sd.unet.sites
        named = self.site or self.sd.entropy_site
        entropy_site(sites, named)
        if named is None and "entropy_e" in self.detectors and len(sites) <= METRIC_E_SITE:
            raise InputError(
                f"entropy_e reads the fourth cross-attention layer; this model has {len(sites)}; name a site"
            )
        if "bright_ending" in self.detectors and not any(site.startswith("down_blocks.0.") for site in sites):
            raise InputError("bright_ending reads the cross-attention of down_blocks.0, and this model has none there")
        if not math.isfinite(self.guidance_scale):
            raise InputError(f"guidance_scale is {self.guidance_scale}; a finite number is needed")
        if self.noise_norm_steps == ():
            raise InputError("noise_norm_steps: no steps; None is all")
        for step in self.noise_norm_steps or ():
            if not 0 <= step < self.steps:
                raise InputError(f"noise_norm_steps: no step {step} among {self.steps}, counted from 0")
        if DEVIATION in self.detectors and not self.calibrating:
            known = 0 if self.clean_moves is None else len(self.clean_moves.mean)
            if known != self.steps:
                raise InputError(
                    f"{DEVIATION} needs {self.steps} steps of clean runs, and there are {known}; a calibration that "
                    f"`detect --calibrate` makes with it has them"
                )

    @cached_property
    def first_step(self) -> tuple[str, ...]:
        """Those of its detectors that see the first step."""
        return tuple(name for name in FIRST_STEP if name in self.detectors)

    @cached_property
    def trajectory(self) -> tuple[str, ...]:
        """Those that see a sampling run."""
        return tuple(name for name in TRAJECTORY if name in self.detectors)

    @cached_property
    def read_site(self) -> str:
        """The cross-attention layer that `entropy_e` reads."""
        return entropy_site(self.sd.unet.sites, self.site or self.sd.entropy_site)

    @cached_property
    def _levels(self) -> tuple[NoiseLevel, NoiseLevel]:
        with jax.ensure_compile_time_eval():
            return replicate(noise_levels(self.sd.scheduler_config, self.steps), self.sd.mesh)

    @property
    def _empty(self) -> Array:
        return self.sd.encode([""])[0]

    def _noise(self, seeds: np.ndarray) -> Array:
        """Seeds [rows] to unit noise [rows, probes, h, w, channels]."""
        numbers = seeds[:, None] + np.arange(self.probes)
        if self.latents is None:
            noise = self.sd.noise(tuple(numbers.ravel().tolist()))
        else:
            noise = self.latents[numbers.ravel()]
        return spread(noise.reshape(*numbers.shape, *noise.shape[1:]), self.sd.mesh)

    @cached_property
    def _shared(self) -> Array:
        """The probes that all prompts see, [1, probes, h, w, channels]."""
        with jax.ensure_compile_time_eval():
            return self._noise(np.array([self.seed]))

    @property
    def _unconditional(self) -> Unconditional | None:
        parts = frozenset[str]().union(*(DETECTORS[name].unconditional for name in self.first_step))
        if self.attribute:
            parts |= {"noise"}
        if not parts:
            return None

        def compute() -> Unconditional:
            return describe_unconditional(
                self.sd.unet, self._shared, self._empty, self._levels, parts=parts, velocity=self.sd.velocity
            )

        return self._kept.get(parts, (self.sd.unet, self.sd.text_encoder), compute)

    def probes_for(self, seeds: Sequence[int] | None) -> Array:
        """The noise that prompts are seen through, [1 or batch, probes, h, w, channels]; see `__call__`."""
        return self._shared if self.seed is not None else self._noise(np.asarray(seeds))

    def first_step_arguments(self, probes: Array, context: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `score_first_step` is called with for a batch of text embeddings: arrays, and what is static."""
        unconditional = self._unconditional if self.seed is not None else None
        arrays = (self.sd.unet, probes, context, self._empty, self._levels, unconditional)
        static = {"site": self.read_site, "velocity": self.sd.velocity, "attribute": self.attribute}
        return arrays, {"names": self.first_step, **static}

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

        On a mesh, a number of prompts that `memattn_jax.parallel.rows_multiple` rounds up to is spread over its
        devices, and first-step detectors exchange nothing; of another number each device computes all.
        """
        prompts = tuple(prompts)
        tokens = self.sd.tokenizer(prompts)
        scores: dict[str, Array | np.ndarray] = {}
        attention = gradients = moves = None
        if self.first_step or self.attribute or self.trajectory:
            context, probes = self.sd.embed(tokens), self.probes_for(seeds)
        if self.first_step or self.attribute:
            arguments, static = self.first_step_arguments(probes, context)
            first, attention, gradients = score_first_step(*arguments, **static)
            scores |= first
        if self.trajectory:
            chosen = np.ones(self.steps, bool)
            if self.noise_norm_steps is not None:
                chosen = np.isin(np.arange(self.steps), self.noise_norm_steps)
            nothing = np.full(self.steps, np.nan, np.float32)
            clean = CleanMoves(nothing, nothing) if self.clean_moves is None else self.clean_moves
            followed, moves = score_trajectory(
                self.sd.unet,
                replicate(make_schedule(self.sd.scheduler_config, "ddim", self.steps), self.sd.mesh),
                probes,
                context,
                self._empty,
                jnp.float32(self.guidance_scale),
                spread(jnp.asarray(tokens.lengths), self.sd.mesh),
                replicate(jnp.asarray(chosen), self.sd.mesh),
                replicate(clean, self.sd.mesh),
                names=self.trajectory,
            )
            scores |= followed
        if "text_baseline" in self.detectors:
            scores["text_baseline"] = text_baseline(prompts)
        return Detection(
            prompts=prompts,
            scores={name: scores[name] for name in self.detectors},
            input_ids=tokens.input_ids,
            lengths=tokens.lengths,
            attention=attention,
            gradients=gradients,
            moves=moves,
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
    rows, size = iter(rows), rows_multiple(size, scorer.sd.mesh)
    while batch := list(islice(rows, size)):
        padded = batch + batch[-1:] * (size - len(batch))
        yield first_rows(scorer([prompt for prompt, _ in padded], [seed for _, seed in padded]), len(batch))
