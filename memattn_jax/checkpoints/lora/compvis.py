"""Names of a UNet's layers in the original code of CompVis and Stability, which some writers of LoRA follow."""

from collections.abc import Collection, Iterator
from itertools import count, takewhile

from memattn_jax.checkpoints.single_file.unet import OUTSIDE, RESIDUAL

OUTER = {ours: original for original, ours in OUTSIDE.items()} | {"conv_in": "input_blocks.0.0"}
RESNET = {ours: original for original, ours in RESIDUAL.items()}
MIDDLE = tuple(f"middle_block.{i}" for i in range(3))


def blocks(paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each ResNet, transformer and resampler of a UNet with its original name, such as `input_blocks.4.1`."""
    owners = {".".join(path.split(".")[:4]) for path in paths} | {".".join(path.split(".")[:3]) for path in paths}

    def numbered(prefix: str) -> list[str]:
        return list(takewhile(owners.__contains__, (f"{prefix}.{i}" for i in count())))

    yield from zip(("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"), MIDDLE, strict=True)
    for side, ours in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks")):
        number = int(side == "input_blocks")  # number 0 is conv_in there
        for level in count():
            resnets = numbered(f"{ours}.{level}.resnets")
            if not resnets:
                break
            attentions = numbered(f"{ours}.{level}.attentions")
            for resnet, attention in zip(resnets, attentions or [""] * len(resnets), strict=True):
                yield resnet, f"{side}.{number}.0"
                if attention:
                    yield attention, f"{side}.{number}.1"
                number += 1
            if f"{ours}.{level}.upsamplers.0" in owners:  # in the last block of its resolution
                yield f"{ours}.{level}.upsamplers.0", f"{side}.{number - 1}.{2 if attentions else 1}"
            if f"{ours}.{level}.downsamplers.0" in owners:  # a block of its own
                yield f"{ours}.{level}.downsamplers.0", f"{side}.{number}.0"
                number += 1


def compvis_names(paths: Collection[str]) -> dict[str, str]:
    """{path of a layer of our UNet: its path in the original code}; layers without one are left out."""
    owners = dict(blocks(paths))
    names = {path: OUTER[path] for path in paths if path in OUTER}
    for path in paths:
        for length in (3, 4):
            parts = path.split(".")
            owner, inner = ".".join(parts[:length]), ".".join(parts[length:])
            if owner in owners and inner:
                inner = RESNET.get(inner, inner)
                if "downsamplers" in owner:
                    inner = "op"
                names[path] = f"{owners[owner]}.{inner}"
    return names
