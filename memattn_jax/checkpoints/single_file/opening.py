"""Opens a single file: its tensors sorted by part and renamed, its configs, scheduler and tokenizer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from memattn_jax.checkpoints.checkpoint import Checkpoint, Part, Source
from memattn_jax.checkpoints.clip import END
from memattn_jax.checkpoints.folder import CONFIGS, open_folder
from memattn_jax.checkpoints.places import find_model
from memattn_jax.checkpoints.single_file import configs, family
from memattn_jax.checkpoints.single_file.inference_yaml import prediction_beside
from memattn_jax.checkpoints.single_file.renaming import Tensors, below, left_out
from memattn_jax.checkpoints.single_file.text import modern_openclip
from memattn_jax.checkpoints.single_file.unet import modern_unet
from memattn_jax.checkpoints.single_file.vae import modern_vae
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import InputError
from memattn_jax.models.configs import CLIPTextConfig
from memattn_jax.text import counted, printable

CONFIGS_KEY = "memattn_jax.configs"  # in the metadata of a file that this package wrote
PAD = "!"  # the padding token of Stable Diffusion 2


def open_single_file(path: Path, source: Source, vae: Part | None = None) -> Checkpoint:
    """Reads what a single file says of itself, and no weights.

    Args:
      path: in safetensors or a pickle. A .yaml of the same name beside it may say what the UNet predicts.
      source: what the file does not say. Without a `config`, geometry and family are derived from the tensors, and the
        tokenizer is CLIP's own.
      vae: an autoencoder to take instead of the file's.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a Stable Diffusion 1.x or 2.x file, a part that is missing, or a damaged file.
    """
    where = str(path)
    if source.variant is not None:
        raise InputError(f"{where}: is a single file, which has no variants; leave out --variant")
    raw, metadata = read_tensors(path)
    tensors = family.as_named(raw)
    family.refuse_others(where, tensors)
    family.check_names(where, tensors)
    base = None
    if source.config is not None:
        base = open_folder(find_model(Path(source.config)))
    elif CONFIGS_KEY in metadata:
        base = recorded(where, metadata[CONFIGS_KEY], source.prediction_type)
    openclip = not below(tensors, family.CLIP)
    unet = moving_average(where, tensors) if source.ema else below(tensors, family.UNET)
    found = {
        "unet": renamed_all(where, unet, modern_unet),
        "text_encoder": modern_text(tensors, base) if openclip else modern_clip(tensors),
    }
    if vae is None:
        stored = {name: t for name, t in below(tensors, family.VAE).items() if not name.startswith("loss.")}
        found["vae"] = renamed_all(where, stored, modern_vae)
    if missing := [name for name, of_part in found.items() if not of_part]:
        hint = "; add --vae FILE" if missing == ["vae"] else ""
        raise InputError(f"{where}: lacks the {' and the '.join(missing)}{hint}")
    stated = family.stated_prediction(tensors, metadata) or prediction_beside(path, default=base is None)
    if base is not None:
        parts = {name: Part(where, base.parts[name].config, as_is(found[name])) for name in found}
        if source.config is not None:
            scheduler = family.with_own_schedule(base.scheduler_config, tensors)
            if stated or source.prediction_type:
                prediction = family.prediction_type(where, stated, second=openclip, asked=source.prediction_type)
                scheduler["prediction_type"] = prediction
            base = replace(base, scheduler_config=scheduler)
    else:
        prediction = family.prediction_type(where, stated, second=openclip, asked=source.prediction_type)
        pixels = family.trained_size(metadata, large=openclip and prediction == "v_prediction")
        parts = derived_parts(where, found, pixels, "gelu" if openclip else "quick_gelu")
        scheduler = family.scheduler_config(tensors, prediction)
        base = Checkpoint(where, parts, scheduler, tokenizer=None, pad=PAD if openclip else END)
    return replace(base, where=where, parts=parts | ({} if vae is None else {"vae": vae}))


def modern_text(tensors: Tensors, base: Checkpoint | None) -> dict[str, np.ndarray]:
    """OpenCLIP's tensors, with the number of layers that the configs say, if there are any."""
    text = None if base is None else base.parts["text_encoder"].config
    layers = text.num_hidden_layers if isinstance(text, CLIPTextConfig) else None
    return modern_openclip(below(tensors, family.OPENCLIP), layers)


def modern_clip(tensors: Tensors) -> dict[str, np.ndarray]:
    """CLIP's tensors, below text_model. also where the file leaves that out, as NovelAI's and its descendants do."""
    inner = ("embeddings.", "encoder.", "final_layer_norm.")
    return {
        f"text_model.{name}" if name.startswith(inner) else name: tensor
        for name, tensor in below(tensors, family.CLIP).items()
    }


def recorded(where: str, text: str, prediction: str | None) -> Checkpoint:
    """The configs that this package wrote into a file's metadata; the parts have no tensors yet.

    Raises:
      InputError: they are damaged, or of networks that are not supported.
    """
    try:
        content = json.loads(text)
        parts = {name: Part(where, CONFIGS[name].from_json(content[name], where), dict) for name in CONFIGS}
        scheduler = dict(content["scheduler"]) | ({} if prediction is None else {"prediction_type": prediction})
        site, pad, length = content["entropy_site"], content["pad"], content.get("length", 77)
        if not isinstance(pad, str):
            raise ValueError("the padding token is no text")
        if type(length) is not int or not 2 <= length < 2**31:
            raise ValueError("the tokenizer's length is no number of tokens")
        return Checkpoint(where, parts, scheduler, None, pad, length, site)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError, IndexError) as error:
        raise InputError(f"{where}: its metadata hold no configs that can be used ({error})"[:200]) from None


def renamed_all(where: str, tensors: Tensors, modern: Callable[[Tensors], dict[str, np.ndarray]]) -> Tensors:
    """The tensors under diffusers' names; raises InputError for those that have none."""
    found = modern(tensors)
    if unknown := left_out(tensors, found):
        raise InputError(f"{where}: {counted(len(unknown), 'tensor')} unexpected, such as {printable(unknown[0], 80)}")
    return found


def derived_parts(where: str, found: Mapping[str, Tensors], pixels: int, activation: str) -> dict[str, Part]:
    """The parts with configs derived from their tensors; those without tensors are left out.

    Args:
      where: names the file in errors.
      found: {part: its tensors under diffusers' names}.
      pixels: width of the pictures that the model was trained on.
      activation: of the text encoder.

    Raises:
      InputError: a tensor that tells the geometry is missing.
    """
    parts = {}
    for name, tensors in found.items():
        try:
            if name == "unet":
                config = configs.unet_config(tensors) | {"sample_size": pixels // 8}
            elif name == "vae":
                config = configs.vae_config(tensors) | {"sample_size": pixels}
            else:
                config = configs.text_config(tensors) | {"hidden_act": activation}
        except (KeyError, IndexError, StopIteration, ValueError) as error:
            raise InputError(f"{where}: the {name} lacks tensors that tell its geometry ({error!r})") from None
        parts[name] = Part(where, CONFIGS[name].from_json(config, where), as_is(tensors))
    return parts


def as_is(tensors: Tensors) -> Callable[[], Tensors]:
    """What a `Part` calls for tensors that have been found already."""
    return lambda: tensors


def moving_average(where: str, tensors: Tensors) -> dict[str, np.ndarray]:
    """The moving average of the UNet's weights, under the names of the weights.

    Source: CompVis/latent-diffusion, ldm/modules/ema.py, LitEma, which drops the dots of a name.

    Raises:
      InputError: the file has none.
    """
    average = {}
    for name in below(tensors, family.UNET):
        stored = tensors.get(family.EMA + f"diffusion_model.{name}".replace(".", ""))
        if stored is None:
            raise InputError(f"{where}: has no moving average ({family.EMA}…) of the weights; leave out --ema")
        average[name] = stored
    return average
