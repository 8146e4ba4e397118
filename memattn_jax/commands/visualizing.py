"""What `memattn visualize` does: samples prompts a page at a time, draws each page, and then the groups."""

import json
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from memattn_jax import demo
from memattn_jax.commands.options import names_of
from memattn_jax.commands.visualize_options import FORMATS, Groups, Options, chosen_range
from memattn_jax.copies.correlation import normalized_correlation
from memattn_jax.diffusion.run import observe_run
from memattn_jax.diffusion.sampling import Call
from memattn_jax.diffusion.settings import Settings
from memattn_jax.entropy import entropy_over_heads, mean_over_sites, token_entropy
from memattn_jax.errors import InputError
from memattn_jax.heatmaps import enlarge, finest
from memattn_jax.interceptors import MeanMaps, Tap, TokenMeans
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.figures.over_steps import LINES, Band, band_of, plot_entropies
from memattn_jax.report.figures.pages import PAGES, Seen, where_of
from memattn_jax.report.figures.rendering import render
from memattn_jax.report.figures.separation import plot_separation, separation
from memattn_jax.report.figures.tokens import check_tokens, shown_tokens
from memattn_jax.runs.versions import versions
from memattn_jax.sharding.placement import make_mesh, rows_multiple
from memattn_jax.storage import Store
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from memattn_jax.pipeline import Samples

PAGE = 4  # prompts of a figure
SAMPLED = ("steps", "guidance_scale", "scheduler", "height", "width")  # options that are a run's settings
KINDS = dict(zip(demo.SHOWCASE, ("memorized prompt", "clean prompt"), strict=True))
GUIDED = 1.0  # guidance scale up to which there is no difference of noise predictions


def taps_of(sd: StableDiffusion, options: Options) -> dict[str, Tap]:
    """The taps of a run that all figures are drawn from: means that the program makes, so that memory is bounded."""
    steps = chosen_range(options.over_steps, options.steps)
    sites = None if options.site is None else (options.site,)
    maps = MeanMaps(sites, "mean" if options.head is None else "each", steps)
    taps: dict[str, Tap] = {"tokens": TokenMeans(), "heatmaps": maps}
    taps["ending"] = MeanMaps(finest(sd.sites), over_steps=(-1, None))
    if "heads" in options.chosen:
        taps["heads"] = MeanMaps((options.site or sd.site_of_entropy(),), "each", steps)
    return taps


@jax.jit
def entropies(taps: tuple[Array, ...]) -> tuple[Array, Array]:
    """Token means of each site to entropies: float32 [batch, steps], and by site [sites, batch, steps]."""
    mean = token_entropy(mean_over_sites(dict(zip(map(str, range(len(taps))), taps, strict=True))))
    return mean.T, jnp.stack([entropy_over_heads(own).T for own in taps])


def energy(call: Call) -> Array:
    """The squared difference of a call's noise predictions, summed over channels: float32 [batch, h, w]."""
    return jnp.sum(call.noise_difference**2, axis=-1)


def score_maps(sd: StableDiffusion, prompts: Sequence[str], options: Options, ending: np.ndarray) -> np.ndarray:
    """Each pixel's part of bright ending's score: mean over steps of |ε_c − ε_u| · m / mean(m), [batch, height, width].

    Args:
      sd: the model.
      prompts: a batch.
      options: of the command.
      ending: m, float [batch, height, width].
    """
    named = {name: getattr(options, name) for name in SAMPLED} | {"scheduler": "ddim"}
    settings = Settings(seeds=options.seed, taps=None, **named)
    kept = observe_run(sd, prompts, settings, energy)  # [steps, batch, h, w]
    norms = enlarge(np.sqrt(kept).mean(axis=0), (ending.shape[1], ending.shape[2]))
    weights = ending / np.maximum(ending.mean(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return norms * weights


def sample(sd: StableDiffusion, prompts: list[str], options: Options, size: int) -> "Samples":
    """A batch, filled up with its last prompt so that all batches share a program."""
    filled = [*prompts, *prompts[-1:] * (size - len(prompts))]
    named = {name: getattr(options, name) for name in SAMPLED}
    return sd.sample(filled, seeds=options.seed, taps=taps_of(sd, options), **named)


def see(sd: StableDiffusion, prompts: list[str], options: Options, size: int) -> list[Seen]:
    """Samples a batch of prompts, and reads from it what figures show."""
    run = sample(sd, prompts, options, size)
    mean = np.asarray(mean_over_sites(run.tokens))  # [steps, batch, tokens]
    entropy = np.asarray(entropies(tuple(run.tokens.values()))[0])
    ending = run.heatmap("end", tap="ending")
    wanted = "copy" in options.chosen and options.guidance_scale > GUIDED
    scores = score_maps(sd, run.prompts, options, ending) if wanted else None
    memorized = demo.memorized_pictures() if options.built_in and run.images.shape[1:3] == (64, 64) else {}
    seen = []
    for row, prompt in enumerate(prompts):
        shown = shown_tokens(sd.tokenizer, run.input_ids[row], int(run.lengths[row]), options.wanted)
        nearest, similarity = most_similar(run.images[row], memorized, prompt)
        masks = [np.broadcast_to(each.mask, mean.shape[1:]) for each in shown]
        heads = run.taps.get("heads", {})
        count = next((own.shape[2] for own in heads.values()), 0)
        seen.append(
            Seen(
                prompt=prompt,
                kind=KINDS.get(prompt, "") if options.showcase else "",
                image=run.images[row],
                shown=shown,
                shares=mean[:, row] @ np.array([each.mask for each in shown], np.float32).T,
                entropy=entropy[row],
                heatmaps=np.array([run.heatmap(mask, head=options.head, tap="heatmaps")[row] for mask in masks]),
                heads=np.array(
                    [[run.heatmap(mask, head=head, tap="heads")[row] for mask in masks] for head in range(count)]
                ),
                ending=ending[row],
                score=None if scores is None else scores[row],
                nearest=nearest,
                similarity=similarity,
            )
        )
    return seen


def most_similar(image: np.ndarray, memorized: dict[str, np.ndarray], prompt: str) -> tuple[np.ndarray | None, float]:
    """The memorized image that correlates most with an image, or a memorized prompt's own, and its correlation."""
    if not memorized:
        return None, np.nan
    pictures = np.stack([memorized[prompt]] if prompt in memorized else list(memorized.values()))
    correlations = normalized_correlation(image[None], pictures)[0]
    return pictures[correlations.argmax()], float(correlations.max())


def group_entropies(
    sd: StableDiffusion, name: str, prompts: list[str], options: Options, size: int, bar: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Entropies of the group of this name, of its prompts where all are finite: float32 [prompts, steps], and by site.

    Raises:
      InputError: there is no such prompt.
    """
    means, sites = [], []
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        run = sample(sd, batch, options, size)
        mean, own = jax.device_get(entropies(tuple(run.tokens.values())))
        means.append(mean[: len(batch)])
        sites.append(own[:, : len(batch)])
        bar.update(len(batch))
    by_site = np.concatenate(sites, axis=1)
    finite = np.isfinite(by_site).all(axis=(0, 2))
    if not finite.any():
        raise InputError(f"the attention of every {name} prompt is not finite; load the model in float32")
    if lost := len(prompts) - int(finite.sum()):
        warnings.warn(f"left out {counted(lost, f'{name} prompt')} with attention that is not finite", stacklevel=1)
    return np.concatenate(means)[finite], dict(zip(sd.sites, by_site[:, finite], strict=True))


def clean_band(options: Options, dtype: str) -> Band | None:
    """The built-in model's clean prompts at its default settings; None for anything else."""
    named = {name: getattr(options, name) for name in SAMPLED}
    edges = demo.clean_entropy({"model": options.model_name, "negative_prompt": "", "dtype": dtype} | named)
    return None if edges is None else Band("90 % of clean prompts", edges[0], None, edges[1])


def check_head(sd: StableDiffusion, options: Options) -> None:
    """Raises InputError where --site has no such head."""
    if options.head is None or options.site is None:
        return
    heads, (block, level, *_) = sd.unet.config.heads, options.site.split(".")
    count = heads[-1] if block == "mid_block" else heads[int(level) if block == "down_blocks" else -1 - int(level)]
    if options.head >= count:
        raise InputError(f"--head {options.head}: {printable(options.site, 80)} has heads 0 to {count - 1}")


class Writer:
    """Writes figures in the chosen formats, and remembers what was written."""

    def __init__(self, store: Store, formats: Sequence[str]):
        """Takes the folder and some of `FORMATS`."""
        self.store, self.formats = store, formats
        self.files: list[dict[str, Any]] = []

    def __call__(self, figure: "Figure", name: str, prompts: Sequence[int], page: int | None = None) -> None:
        """Writes a figure of these prompts, the first of several pages being 1."""
        stem = name if page is None else f"{name}-{page:03d}"
        for kind in self.formats:
            self.store.write(f"{stem}.{kind}", render(figure, kind))
            self.files.append({"file": f"{stem}.{kind}", "figure": name, "prompts": list(prompts)})


def describe(number: int, seen: Seen, seed: int) -> dict[str, Any]:
    """The numbers of one prompt's figures, for JSON."""
    tokens = [
        {"token": shown.label, "share": float(share), "highest": float(heat.max())}
        for shown, share, heat in zip(seen.shown, seen.shares.mean(axis=0), seen.heatmaps, strict=True)
    ]
    known = {"number": number, "prompt": seen.prompt, "heading": seen.heading, "seed": seed}
    return known | {"tokens": tokens, "entropy": seen.entropy.tolist()}


def finite_or_null(value: Any) -> Any:
    """A JSON value in which numbers that are not finite, which JSON does not have, are null."""
    if isinstance(value, dict):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_pages(
    sd: StableDiffusion, prompts: list[str], options: Options, size: int, write: Writer
) -> list[dict[str, Any]]:
    """Samples and draws all prompts, a page at a time; returns their numbers."""
    site = options.site or sd.site_of_entropy()
    where = {
        "heatmaps": (where_of(options.site, options.head, options.over_steps),),
        "heads": (where_of(site, None, options.over_steps).replace("mean over heads, ", ""),),
    }
    rows = []
    for first in range(0, len(prompts), PAGE):
        part: list[Seen] = []
        numbers = range(first, min(first + PAGE, len(prompts)))
        while len(part) < len(numbers):
            start = first + len(part)
            part += see(sd, prompts[start : min(start + size, numbers.stop)], options, size)
        page = 1 + first // PAGE if len(prompts) > PAGE else None
        for name in options.chosen:
            if name in PAGES:
                write(PAGES[name](part, *where.get(name, ())), name, numbers, page)
        rows += [describe(number, seen, options.seed) for number, seen in zip(numbers, part, strict=True)]
    return rows


def draw_groups(
    sd: StableDiffusion, groups: Groups, options: Options, write: Writer, rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Draws what compares groups of prompts; returns the numbers of separation."""
    clean, memorized, found = clean_band(options, sd.dtype), None, None
    if groups is not None:
        size, names = rows_multiple(options.batch_size, sd.mesh), ("memorized", "clean")
        with tqdm(total=sum(map(len, groups)), unit="prompt", disable=None) as bar:
            pairs = [group_entropies(sd, *each, options, size, bar) for each in zip(names, groups, strict=True)]
        means, by_site = zip(*pairs, strict=True)
        memorized, clean = map(band_of, means, names)
        if "separation" in options.chosen:
            areas = separation(*by_site)
            counts = len(means[0]), len(means[1])
            write(plot_separation(areas, sd.sites, sd.site_of_entropy(), counts), "separation", ())
            by_name = dict(zip(sd.sites, areas.tolist(), strict=True))
            found = {"memorized": counts[0], "clean": counts[1], "auroc": by_name}
    if "entropy" in options.chosen:
        drawn = rows[: len(LINES)]
        headings = [row["heading"] for row in drawn]
        lines = {
            heading if headings.count(heading) == 1 else f"{heading} ({row['number']})": np.array(row["entropy"])
            for heading, row in zip(headings, drawn, strict=True)
        }
        write(plot_entropies(lines, clean, memorized), "entropy", [row["number"] for row in drawn])
    return found


def visualize(options: Options) -> None:
    """Draws the figures that the options ask for."""
    prompts, groups = options.texts, options.groups
    store = Store(options.out)
    mesh = make_mesh(options.mesh)
    options.check_schedule(options.scheduler, options.steps)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), options.model_dtype, mesh, **options.source)
    check_head(sd, options)
    if options.wanted is not None:
        check_tokens(sd.tokenizer, prompts, options.wanted)
    write = Writer(store, names_of(options.format, FORMATS, "--format", "format"))
    # pages and groups share a compiled program where they can
    size = min(options.batch_size, PAGE) if groups else min(options.batch_size, PAGE, len(prompts))
    rows = draw_pages(sd, prompts, options, rows_multiple(size, mesh), write)
    found = draw_groups(sd, groups, options, write, rows)
    content = {
        "model": options.model_name,
        "fingerprint": sd.fingerprint(),
        "settings": {name: getattr(options, name) for name in (*SAMPLED, "seed", "site", "head", "over_steps")}
        | {"dtype": sd.dtype, "entropy_site": sd.site_of_entropy()},
        "versions": versions(),
        "figures": write.files,
        "prompts": rows,
        "separation": found,
    }
    store.write("figures.json", json.dumps(finite_or_null(content), indent=1, ensure_ascii=False).encode())
    for file in write.files:
        print(file["file"])
    print(f"{counted(len(write.files), 'figure')} and figures.json in {store}")
