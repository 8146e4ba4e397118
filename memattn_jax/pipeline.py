"""StableDiffusion: prompts in; pictures, token attention and latents out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from memattn_jax.checkpoints.diffusers_folder import load_part, save_part
from memattn_jax.checkpoints.folder import MODEL_INDEX, check_folder, read_json
from memattn_jax.checkpoints.hub import locate
from memattn_jax.detectors.first_step import noise_levels
from memattn_jax.detectors.scorer import entropy_site
from memattn_jax.errors import InputError, check_name
from memattn_jax.guard import Guard, guarded_denoise, is_memorized
from memattn_jax.interceptors import AttentionMaps, Interceptor, TokenMeans
from memattn_jax.mitigations import AttentionMask
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.parallel import replicate, rows_multiple, spread, take_rows
from memattn_jax.sampling import denoise, unit_noise
from memattn_jax.schedulers import Schedule, as_pipeline, make_schedule
from memattn_jax.tokenizer import Tokenizer, Tokens
from memattn_jax.weight_cache import WeightCache

if TYPE_CHECKING:
    from memattn_jax.detectors import Detection

OWN = "memattn_jax.json"  # in a checkpoint's folder: what its detectors need to know and diffusers does not
KEPT_EMBEDDINGS = 256  # rows; 60 MB for Stable Diffusion 1 in float32
DECODED_PIXELS = 2**18  # decoded at once: one picture of 512 × 512, whose feature maps take 1.2 GB in float32
Taps = Literal["tokens", "maps"]
TAPS = {None: None, "tokens": TokenMeans(), "maps": AttentionMaps()}


@dataclass(frozen=True)
class Samples:
    """One sampled batch. A step is one call of the UNet; PNDM makes one more than asked for.

    Attributes:
      prompts: the texts.
      seeds: one a row.
      images: uint8 [batch, height, width, 3].
      latents: float32 [batch, h, w, channels], before the decoder.
      tokens: {site: float32 [steps, batch, heads, tokens]}, the conditional rows' attention averaged over pixels,
        sites in forward order; empty without taps.
      maps: {site: float32 [steps, batch, heads, pixels, tokens]}; empty unless asked for.
      input_ids: int32 [batch, tokens].
      lengths: int32 [batch], begin and end token counted.
      timesteps: float32 [steps].
      finite: bool [batch], False where a row's latents or its decoded picture, before it is cut to uint8, hold NaN or
        infinity; the other rows are unaffected.
      entropy_site: where metric E is read, of `tokens`.
      guard_scores: float32 [batch], what a guard's detector saw; None without one.
      mitigated: bool [batch], the rows that a guard mitigated, those whose score is not finite among them; None
        without one.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Any
    latents: Array
    tokens: dict[str, Array]
    maps: dict[str, Array]
    input_ids: np.ndarray
    lengths: np.ndarray
    timesteps: np.ndarray
    finite: Any
    entropy_site: str
    guard_scores: Any = None
    mitigated: Any = None

    def fetch(self) -> "Samples":
        """The same with pictures and the guard's findings in the host's memory, once the device is done."""
        names = ("images", "finite", "guard_scores", "mitigated")
        return replace(self, **jax.device_get({name: getattr(self, name) for name in names}))

    def first_rows(self, count: int) -> "Samples":
        """Without the rows from `count` on."""
        names = ("prompts", "seeds", "images", "latents", "input_ids", "lengths", "finite", "guard_scores", "mitigated")
        rows: dict[str, Any] = {name: value[:count] for name in names if (value := getattr(self, name)) is not None}
        for name in ("tokens", "maps"):
            rows[name] = {site: tap[:, :count] for site, tap in getattr(self, name).items()}
        return replace(self, **rows)


def default_dtype() -> str:
    """What a model computes in unless told otherwise: bfloat16 on GPUs and TPUs, float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


@jax.jit
def embed(text_encoder: CLIPTextModel, input_ids: Array) -> Array:
    """Token ids [batch, tokens] to embeddings [batch, tokens, channels]."""
    return text_encoder(input_ids)


@partial(jax.jit, static_argnames="rows")
def repeat_row(embedding: Array, rows: int) -> Array:
    """One prompt's embedding [1, tokens, channels], for several rows."""
    return jnp.repeat(embedding, rows, axis=0)


@partial(jax.jit, static_argnames="rows_at_once")
def decode(vae: AutoencoderKL, latents: Array, rows_at_once: int) -> tuple[Array, Array]:
    """Latents [batch, h, w, channels] to pictures, uint8 [batch, height, width, 3], some rows at a time.

    Also whether latents and pixels of each row were finite, bool [batch]: the pictures no longer show it.
    """

    def picture(latents: Array) -> tuple[Array, Array]:
        pixels = vae.decode(latents[None] / vae.config.scaling_factor).astype(jnp.float32)[0]
        finite = jnp.isfinite(pixels).all() & jnp.isfinite(latents).all()
        return jnp.round(jnp.clip(pixels / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8), finite

    if latents.shape[0] <= rows_at_once:
        return jax.vmap(picture)(latents)
    return jax.lax.map(picture, latents, batch_size=rows_at_once)


def as_list(value: object, rows: int, what: str) -> list:
    """One value for all rows, or one a row."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | Array) or np.ndim(value) == 0:
        return [value] * rows
    if len(value) != rows:
        raise InputError(f"{len(value)} {what} for {rows} prompts; give one, or one for each")
    return list(value)


def check_seeds(seeds: Sequence[int], count: int = 1) -> None:
    """Raises InputError unless each seed and the `count` − 1 after it lie in [0, 2³²)."""
    first, last = min(seeds), max(seeds) + count - 1
    if not 0 <= first <= last < 2**32:
        raise InputError(f"seeds must lie in [0, 2**32), not {first} to {last}")


@dataclass(frozen=True)
class StableDiffusion:
    """A Stable Diffusion 1.x or 2.x checkpoint, ready to sample.

    Attributes:
      unet, vae, text_encoder: the networks, NNX modules.
      tokenizer: prompts to token ids.
      scheduler_config: the checkpoint's scheduler_config.json in the form of `schedulers.as_pipeline`, which is what
        becomes of the one given; every scheduler is built from it.
      mesh: the devices that the weights lie on and batches are spread over, see `memattn_jax.parallel`; None is one.
      entropy_site: the cross-attention layer that metric E is read at wherever none is named, as memattn_jax.json in
        the checkpoint's folder names it; None is the paper's, the fourth.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    scheduler_config: dict
    mesh: Mesh | None = None
    entropy_site: str | None = None
    _embeddings: WeightCache = field(
        default_factory=lambda: WeightCache(KEPT_EMBEDDINGS), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheduler_config", as_pipeline(self.scheduler_config))

    @classmethod
    def from_pretrained(
        cls, model: str | Path, dtype: str | None = None, mesh: Mesh | None = None
    ) -> "StableDiffusion":
        """Loads a diffusers folder, as PyTorch's `save_pretrained` writes it, with safetensors.

        Args:
          model: the folder, or "owner/name" on the Hugging Face hub.
          dtype: "float32", "bfloat16" or "float16", of weights and computation; softmax, norms' statistics, the
            scheduler and everything measured stay float32. By default bfloat16 on GPUs and TPUs, float32 on CPUs.
          mesh: from `memattn_jax.parallel.make_mesh`, to run on several devices.

        Raises:
          FileNotFoundError: no such folder.
          InputError: another family of models, a missing part, or weights that do not fit their config.
        """
        folder = locate(model)
        dtype = default_dtype() if dtype is None else dtype
        check_folder(folder)
        parts, problems = [], []
        for part in ("unet", "vae", "text_encoder"):
            try:
                parts.append(load_part(folder, part, dtype, mesh))
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError("; ".join(dict.fromkeys(problems)))
        unet, vae, text_encoder = parts
        tokenizer = Tokenizer(folder / "tokenizer", text_encoder.config.max_position_embeddings)
        for what, have, want in (
            ("tokens", len(tokenizer.clip), text_encoder.config.vocab_size),
            ("text channels", text_encoder.config.hidden_size, unet.config.cross_attention_dim),
            ("latent channels", vae.config.latent_channels, unet.config.in_channels),
        ):
            if have > want or (have < want and what != "tokens"):
                raise InputError(f"{folder}: parts of different models, {have} {what} meet {want}")
        scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
        site = read_json(folder / OWN).get("entropy_site") if (folder / OWN).is_file() else None
        entropy_site(unet.sites, site)
        return cls(unet, vae, text_encoder, tokenizer, scheduler_config, mesh, site)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a diffusers folder that PyTorch's StableDiffusionPipeline loads, with the same bits.

        The scheduler's config is written in its corrected form, as the pipeline does; a scheduler class of Flax, which
        diffusers no longer has, under the name of PyTorch's.
        """
        folder = Path(folder)
        for part in ("unet", "vae", "text_encoder"):
            save_part(getattr(self, part), folder, part)
        self.tokenizer.clip.save_pretrained(folder / "tokenizer")
        (folder / "scheduler").mkdir(exist_ok=True)
        class_name = str(self.scheduler_config.get("_class_name", "DDIMScheduler")).removeprefix("Flax")
        scheduler = self.scheduler_config | {"_class_name": class_name}
        index = MODEL_INDEX | {"scheduler": ["diffusers", class_name]}
        files = {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}
        if self.entropy_site is not None:
            files[OWN] = {"entropy_site": self.entropy_site}
        for path, content in files.items():
            (folder / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def dtype(self) -> str:
        """Of the UNet's weights, and so of its computation."""
        return str(self.unet.conv_in.kernel[...].dtype)

    @property
    def velocity(self) -> bool:
        """Whether the UNet predicts velocity, as Stable Diffusion 2 at 768 pixels does, and not noise."""
        return self.scheduler_config.get("prediction_type") == "v_prediction"

    def encode(self, prompts: Sequence[str]) -> tuple[Array, Tokens]:
        """Text embeddings [batch, tokens, channels], and the token ids and lengths they come from."""
        tokens = self.tokenizer((prompts,) if isinstance(prompts, str) else prompts)
        return self.embed(tokens), tokens

    def embed(self, tokens: Tokens) -> Array:
        """Text embeddings [batch, tokens, channels] of tokenized prompts.

        A prompt that fills its batch, as the empty one does in guidance, is encoded once. The last ones are kept, so
        that the next batch with the same prompts, or the same negative ones, finds them here, until a weight of the
        text encoder is replaced.
        """
        rows = len(tokens.input_ids)
        alike = rows > 1 and bool((tokens.input_ids == tokens.input_ids[0]).all())
        ids = tokens.input_ids[:1] if alike else tokens.input_ids
        embedding = self._embeddings.get(
            ids.tobytes(), self.text_encoder, lambda: embed(self.text_encoder, spread(ids, self.mesh))
        )
        return spread(repeat_row(embedding, rows), self.mesh) if alike else embedding

    def decode(self, latents: Array) -> np.ndarray:
        """Latents [batch, h, w, channels] to pictures, uint8 [batch, height, width, 3]."""
        return np.asarray(self._decode(spread(latents, self.mesh))[0])

    def _decode(self, latents: Array) -> tuple[Array, Array]:
        """The same and whether each row was finite, as arrays that the device may still be computing."""
        rows, height, width, _ = latents.shape
        pixels = height * width * self.vae.config.scale**2
        # rows of a mesh stay together: each device holds its own alone, and would exchange them in a loop
        return decode(self.vae, latents, rows if self.mesh is not None else max(1, DECODED_PIXELS // pixels))

    def noise(self, seeds: Sequence[int]) -> Array:
        """The unit noise that sampling with these seeds starts from, float32 [batch, h, w, channels]."""
        return self._noise(None, tuple(seeds), None, None)

    def _noise(
        self,
        latents: Array | np.ndarray | None,
        seeds: tuple[int, ...],
        height: int | None,
        width: int | None,
    ) -> Array:
        """The given latents if they fit, else the seeds' noise: float32 [batch, h, w, channels]."""
        scale, size = self.vae.config.scale, self.unet.config.sample_size
        trained = size if isinstance(size, tuple) else (size, size)
        shape: list[Any] = [len(seeds), *trained, self.unet.config.in_channels]
        for axis, what, pixels in ((1, "height", height), (2, "width", width)):
            if pixels is not None:
                if pixels <= 0 or pixels % scale:
                    raise InputError(f"{what} {pixels} is not a positive multiple of {scale} pixels")
                shape[axis] = pixels // scale
        if latents is None:
            if None in shape:
                raise InputError("this model names no sample_size; give height and width")
            return unit_noise(jnp.asarray(seeds, jnp.uint32), tuple(shape[1:]))
        if height is None and width is None and np.ndim(latents) == 4:
            shape[1:3] = np.shape(latents)[1:3]
        if np.shape(latents) != tuple(shape):
            raise InputError(f"latents have the shape {np.shape(latents)}; {tuple(shape)} would fit")
        return jnp.asarray(latents, jnp.float32)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        steps: int = 50,
        guidance_scale: float | Sequence[float] = 7.5,
        scheduler: str = "ddim",
        negative_prompts: str | Sequence[str] | None = None,
        latents: Array | np.ndarray | None = None,
        height: int | None = None,
        width: int | None = None,
        mitigation: AttentionMask | None = None,
        guard: Guard | None = None,
        taps: Taps | None = "tokens",
        wait: bool = True,
    ) -> Samples:
        """Generates one picture for each prompt, in one compiled program.

        A row depends on its prompt, its seed and the settings, not on the rows beside it. Another number, prompt or
        length compiles nothing; another number of prompts or steps, size, scheduler or kind of mitigation does.
        Without a mitigation the program is the default mitigation's, switched off by its numbers, so that rows which a
        guard leaves alone have the same bits.

        Args:
          prompts: the texts.
          seeds: one for all rows or one a row, in [0, 2³²).
          steps: sampling steps.
          guidance_scale: classifier-free guidance, one for all rows or one a row; 1 or less is no guidance, and
            where no row has any, the unconditional half is not computed.
          scheduler: "ddim" (as in the papers), "pndm", "euler" or "dpm-solver++".
          negative_prompts: one for all rows or one a row; the empty prompt by default.
          latents: unit noise [batch, h, w, channels] to start from instead of the seeds'; the scheduler scales it.
          height: of the pictures, in pixels; by default what the model was trained on.
          width: likewise.
          mitigation: for example `mitigations.AttentionMask()`, of all rows.
          guard: mitigates the rows that its detector finds memorized, instead; the others are what they are without.
          taps: "tokens", the mean attention per token; "maps", whole attention maps (a large amount of memory) and
            the means; None.
          wait: False returns at once, with arrays that the device is still computing; `Samples.fetch` waits for them.

        Raises:
          InputError: see the message.
        """
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        batch = len(prompts)
        if not batch:
            raise InputError("no prompts: at least one is needed")
        if guard is not None and mitigation is not None:
            raise InputError("a guard brings its own mitigation; give one of the two")
        if taps is not None:
            check_name("taps", taps, get_args(Taps))
        seeds = tuple(int(seed) for seed in as_list(seeds, batch, "seeds"))
        check_seeds(seeds)
        scales = np.maximum(np.asarray(as_list(guidance_scale, batch, "guidance scales"), np.float32), 1.0)
        if not np.isfinite(scales).all():
            raise InputError("a guidance scale is not finite; numbers such as 7.5 are")
        negative = as_list("" if negative_prompts is None else negative_prompts, batch, "negative prompts")
        schedule = make_schedule(self.scheduler_config, scheduler, steps)
        noise = self._noise(latents, seeds, height, width)
        filled = rows_multiple(batch, self.mesh)
        if filled > batch:
            rows = np.minimum(np.arange(filled), batch - 1)  # with the last one again
            prompts, seeds, negative = ([values[row] for row in rows] for values in (prompts, seeds, negative))
            scales, noise = scales[rows], noise[rows]
            mitigation = None if mitigation is None else take_rows(mitigation, batch, rows)
            guard = None if guard is None else replace(guard, mitigation=take_rows(guard.mitigation, batch, rows))
        samples = self._run(tuple(prompts), tuple(seeds), negative, scales, schedule, noise, mitigation, guard, taps)
        samples = samples.first_rows(batch) if filled > batch else samples
        return samples.fetch() if wait else samples

    def _run(
        self,
        prompts: tuple[str, ...],
        seeds: tuple[int, ...],
        negative: list[str],
        scales: np.ndarray,
        schedule: Schedule,
        noise: Array,
        mitigation: AttentionMask | None,
        guard: Guard | None,
        taps: Taps | None,
    ) -> Samples:
        """`sample` with what it was told made whole; as many rows as divide among the devices."""
        batch, mesh = len(prompts), self.mesh
        context, tokens = self.encode(prompts)
        conditional = np.ones(batch, bool)
        lengths = tokens.lengths
        if (scales > 1).any():
            context = jnp.concatenate([self.encode(negative)[0], context])
            conditional = np.repeat([False, True], batch)
            lengths = np.tile(lengths, 2)
        arrays = (self.unet, replicate(schedule, mesh), spread(noise, mesh), context, spread(scales, mesh))
        guard_scores = mitigated = None
        if guard is None:
            rule = AttentionMask() if mitigation is None else mitigation
            edits = rule.edits(lengths, conditional, context.shape[1], active=mitigation is not None)
            final, tapped = denoise(*arrays, Interceptor(edits=spread(edits, mesh), tap=TAPS[taps]))
        else:
            final, tapped, guard_scores = guarded_denoise(
                *arrays,
                TAPS[taps],
                self.encode([""])[0],
                spread(tokens.lengths, mesh),
                replicate(noise_levels(self.scheduler_config, guard.steps), mesh),
                jnp.float32(guard.threshold),
                spread(guard.mitigation, mesh),
                detector=guard.detector,
                site=entropy_site(self.unet.sites, guard.site or self.entropy_site),
                velocity=self.velocity,
            )
            mitigated = is_memorized(guard_scores, jnp.float32(guard.threshold))
        tapped = {site: tapped[site] for site in self.unet.sites} if tapped else {}  # jit sorts by name
        maps = tapped if taps == "maps" else {}
        images, finite = self._decode(final)
        return Samples(
            prompts=prompts,
            seeds=seeds,
            images=images,
            latents=final,
            tokens={site: tap.mean(axis=-2) for site, tap in maps.items()} if maps else tapped,
            maps=maps,
            input_ids=tokens.input_ids,
            lengths=tokens.lengths,
            timesteps=np.asarray(schedule.timesteps),
            finite=finite,
            entropy_site=entropy_site(self.unet.sites, self.entropy_site),
            guard_scores=guard_scores,
            mitigated=mitigated,
        )

    def detect(
        self,
        prompts: Sequence[str],
        detectors: Sequence[str] = ("entropy_e", "noise_norm"),
        *,
        seeds: int | Sequence[int] = 0,
        latents: Array | np.ndarray | None = None,
        batch_size: int = 16,
        **settings: Any,
    ) -> "Detection":
        """Scores prompts for memorization; computes only the steps and layers that the detectors need.

        A score depends on its prompt, its seed and the settings, not on the prompts beside it.

        Args:
          prompts: the texts, any number.
          detectors: names, see `memattn_jax.detectors.DETECTORS`.
          seeds: of the noise the prompts are seen through: one for all, whose empty-prompt forwards are made once; or
            one a prompt.
          latents: unit noise to look through instead of the seeds', as of `sample`: [1, h, w, channels] for all prompts
            or [batch, h, w, channels], one a prompt; with one probe.
          batch_size: prompts scored at once; fewer prompts than this are one batch.
          settings: see `memattn_jax.detectors.Scorer`: probes, steps, guidance_scale, site, noise_norm_steps,
            attribute, clean_moves.

        Returns:
          A `Detection`; `detection["noise_norm"]` is float32 [prompts].

        Raises:
          InputError: see the message.
        """
        from memattn_jax.detectors.detection import concatenate
        from memattn_jax.detectors.scorer import Scorer, score_batches

        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not prompts:
            raise InputError("no prompts: at least one is needed")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
        names = (detectors,) if isinstance(detectors, str) else tuple(detectors)
        if latents is not None:
            noises = 1 if np.shape(latents)[:1] == (1,) else len(prompts)
            latents = self._noise(latents, (0,) * noises, None, None)
            seeds = 0 if noises == 1 else range(noises)  # places in the latents
        seed = None if np.ndim(seeds) else int(seeds)  # type: ignore[arg-type]
        scorer = Scorer(self, names, seed, latents=latents, **settings)
        rows = as_list(seeds, len(prompts), "seeds")
        check_seeds(rows, scorer.probes)
        size = min(batch_size, len(prompts))
        return concatenate(list(score_batches(scorer, zip(prompts, rows, strict=True), size)))
