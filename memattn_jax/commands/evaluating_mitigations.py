"""`memattn evaluate --mitigations`: what each mitigation does to memorized and to clean prompts, on equal seeds."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from memattn_jax import demo
from memattn_jax.commands.mitigating import describe, make_mitigation
from memattn_jax.commands.naming import Named, named_mitigations
from memattn_jax.errors import InputError, check_name
from memattn_jax.prompts import stream_prompts
from memattn_jax.registries import PRESETS
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.commands.evaluate_options import Options
    from memattn_jax.copies.embedding import Embedding
    from memattn_jax.evaluation.mitigated import Fidelity
    from memattn_jax.mitigations import Mitigation

LEARNED_FROM = 50  # clean prompts that a mitigation is fitted to


def texts_for(named: Named, memorized: list[str], clean: list[str], built_in: bool) -> dict[str, Any]:
    """The field of a method with the texts that it learns from or samples, where its options may lack it."""
    fields: dict[str, dict[str, Any]] = {
        "stability_clamp": {"clean": tuple(clean[:LEARNED_FROM])},
        "value_neurons": {"clean": tuple(clean)},
        "pruned_weights": {"memorized": tuple(memorized)},
        "paraphrase_guidance": {"paraphrases": demo.paraphrases()} if built_in else {},
    }
    return fields.get(named.name, {})


def make_all(options: "Options", memorized: list[str], clean: list[str]) -> "dict[str, Mitigation]":
    """The mitigations, not fitted yet; with `all`, those without a file that they need are left out with a warning."""
    made: dict[str, Mitigation] = {}
    for named in named_mitigations(options.mitigations or "", options.built_in_prompts):
        try:
            texts = texts_for(named, memorized, clean, options.built_in_prompts)
            mitigation = make_mitigation(named.name, named.options, texts)
            mitigation.check()
            made[named.text] = mitigation
        except InputError as error:
            if options.mitigations != "all":
                raise
            warnings.warn(f"left out {named.text}: {error}", stacklevel=1)
    return made


def read_kinds(options: "Options", memorized: list[str]) -> list[str | None]:
    """The kind of each memorized prompt, None where the column --kind has none; empty without that column."""
    if options.kind is None or options.memorized is None:
        return []
    read = stream_prompts(options.memorized, options.column, (options.kind,))
    return [prompt.kept[0] for prompt in read if prompt.error is None]


def training_images(options: "Options", memorized: list[str]) -> "list[Image.Image] | None":
    """The training image of each memorized prompt; None where none are given.

    Raises:
      InputError: a prompt that no training image has for a caption.
    """
    from memattn_jax.pictures.decoding import to_rgb
    from memattn_jax.pictures.skipped import UnusableError
    from memattn_jax.training.sources import open_pairs

    if options.pictures is None:
        own = demo.memorized_pictures() if options.built_in_prompts else None
        return None if own is None else [Image.fromarray(own[prompt]) for prompt in memorized]
    wanted = set(memorized)
    found: dict[str, Image.Image] = {}
    pairs = open_pairs(options.pictures)
    for number in range(len(pairs)):
        try:
            image, caption = pairs[number]
        except UnusableError:
            continue
        if caption in wanted:
            found.setdefault(caption, to_rgb(image))
    if missing := [prompt for prompt in memorized if prompt not in found]:
        raise InputError(
            f"--pictures: no image has the caption '{printable(missing[0], 60)}' ({len(missing)} prompts lack theirs)"
        )
    return [found[prompt] for prompt in memorized]


def embeddings_of(options: "Options") -> "list[tuple[Embedding, float]]":
    """SSCD, where its weights are given, with the similarity from which an image is a copy."""
    if options.sscd is None or options.preset is None:
        return []
    from memattn_jax.copies.sscd import load_sscd

    return [(load_sscd(options.sscd, options.preset), PRESETS[options.preset])]


def fidelity_of(options: "Options") -> "Fidelity | None":
    """How well images follow their prompts: CLIP where given, the classifier of the built-in model on its prompts."""
    if options.clip is not None:
        from memattn_jax.evaluation.clip_score import ClipScore

        return ClipScore(options.clip)
    if not options.built_in_prompts:
        return None
    from memattn_jax.demo.objects import ObjectsFound

    return ObjectsFound()


def evaluate_mitigations(options: "Options", memorized: list[str], clean: list[str]) -> None:
    """Samples both sets with every mitigation, and writes tables and a picture; resumes what --out holds."""
    clean_for_fits = demo.clean_prompts() if options.built_in_prompts else clean
    made = make_all(options, memorized, clean_for_fits)
    kinds, fidelity, embeddings = read_kinds(options, memorized), fidelity_of(options), embeddings_of(options)
    images = training_images(options, memorized)
    from tqdm import tqdm

    from memattn_jax.commands.mitigation_study import PLAIN, Study, about_run, identity, measure
    from memattn_jax.evaluation.mitigated import Prompts
    from memattn_jax.mitigations import Mitigation
    from memattn_jax.pictures.decoding import resize_and_crop
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.report.mitigations import write_mitigations
    from memattn_jax.runs.parts import Parts
    from memattn_jax.sharding.placement import make_mesh
    from memattn_jax.storage import Store

    mesh = make_mesh(options.mesh)
    options.check_schedule(options.scheduler, options.steps)
    sd = StableDiffusion.from_pretrained(demo.locate(options.model), options.model_dtype, mesh, **options.source)
    if None in sd.latent_shape():
        raise InputError("the model's config has no sample_size, which evaluate needs")
    for name, mitigation in made.items():
        for site in getattr(mitigation, "sites", None) or ():
            check_name(f"cross-attention layer of {name.partition(':')[0]}", site, sd.sites)
    references = None
    if images is not None:
        size = [side * sd.vae.config.scale for side in sd.latent_shape()[:2]]
        references = np.stack([resize_and_crop(image, *size) for image in images])
    study = Study(sd, Prompts(memorized, clean, references, kinds), options, fidelity, embeddings)
    parts = Parts(Store(options.out), identity(study), overwrite=options.overwrite)
    about, plain = about_run(study), None
    entries: dict[str, Any] = {}
    shown = {} if references is None else {"training image": references}
    try:
        for name, mitigation in tqdm({PLAIN: Mitigation(), **made}.items(), unit="mitigation", disable=None):
            fields = describe(mitigation)
            part = parts.read(name, fields)
            if part is None:
                part = measure(study, mitigation, plain)
                parts.write(name, fields, part)
            if name == PLAIN:
                plain = part.arrays
            entries[name], shown[name] = part.results, part.arrays["shown"]
            text = write_mitigations(options.out, entries, shown, memorized, about)
    except KeyboardInterrupt:
        done = f"{len(entries)} of {counted(1 + len(made), 'mitigation')} are kept in {options.out}"
        raise KeyboardInterrupt(f"{done}; the same command resumes") from None
    print(text, end="")
    if options.report:
        from memattn_jax.report.html.evaluations import write_mitigations_page

        print(f"{write_mitigations_page(options.out)} in {options.out}")
    print(f"mitigations.json, .md, .parquet and .png in {options.out}")
