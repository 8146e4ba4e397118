"""Which files of a part hold its weights, by their names alone: the same in a folder and in a listing of the hub.

Names are those that diffusers and transformers write and wrote:

    diffusion_pytorch_model[.variant].safetensors       or .bin; model and pytorch_model likewise
    diffusion_pytorch_model[.variant]-00001-of-00002.safetensors, or with the variant after the number
    diffusion_pytorch_model.safetensors.index[.variant].json, or .variant.index.json
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

FORMATS = ("safetensors", "bin")  # in the order they are looked for; likewise below
OF_TRANSFORMERS = ("model", "pytorch_model")
NAMES = ("diffusion_pytorch_model", *OF_TRANSFORMERS)
VARIANTS = ("", "fp16", "bf16", "non_ema")
FILE = re.compile(
    rf"(?P<stem>{'|'.join(NAMES)})(?:\.(?P<early>\w+))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<late>\w+))?"
    rf"\.(?P<format>{'|'.join(FORMATS)})"
)
INDEX = re.compile(
    rf"(?P<stem>{'|'.join(NAMES)})\.(?P<format>{'|'.join(FORMATS)})(?:\.(?P<early>\w+))?\.index(?:\.(?P<late>\w+))?\.json"
)


@dataclass(frozen=True)
class Weights:
    """The files of one set of weights.

    Attributes:
      variant: such as "fp16"; empty for the plain ones.
      files: a file, or shards.
      index: the file that names the shards; None where there is none.
    """

    variant: str
    files: tuple[str, ...]
    index: str | None


def choose_weights(names: Iterable[str], variant: str | None = None) -> Weights | None:
    """The weights to read; None where there are none.

    Args:
      names: of the files in a part's folder.
      variant: to be preferred; where the part lacks it, and by default, the first of `VARIANTS` that there is.

    Where an earlier save left its shards beside one file that has all, diffusers reads the shards if their index is
    there too, and transformers never does.
    """
    found: dict[tuple[str, str, str], Weights] = {}
    whole: dict[tuple[str, str, str], str] = {}
    for name in sorted(names):
        match = FILE.fullmatch(name) or INDEX.fullmatch(name)
        if match is None:
            continue
        key = (match["early"] or match["late"] or "", match["format"], match["stem"])
        weights = found.get(key, Weights(key[0], (), None))
        if match.re is INDEX:
            found[key] = replace(weights, index=name)
        elif match["shard"]:
            found[key] = replace(weights, files=(*weights.files, name))
        else:
            whole[key] = name
    for key, name in whole.items():
        if key not in found or found[key].index is None or key[2] in OF_TRANSFORMERS:
            found[key] = Weights(key[0], (name,), None)
    preferred = VARIANTS if variant is None else (variant, *VARIANTS)
    for wanted in preferred:
        for kind in FORMATS:
            for stem in NAMES:
                if (wanted, kind, stem) in found:
                    return found[wanted, kind, stem]
    return None


def is_weights(name: str) -> bool:
    """Whether a file is named as the weights of a part."""
    return FILE.fullmatch(name) is not None


def variants(names: Iterable[str]) -> list[str]:
    """The variants that these files are of, without the plain one."""
    matches = filter(None, (FILE.fullmatch(name) or INDEX.fullmatch(name) for name in names))
    return sorted({match["early"] or match["late"] for match in matches} - {None})
