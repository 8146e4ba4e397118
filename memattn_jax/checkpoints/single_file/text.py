"""The names of a single file's text encoder in transformers.

Stable Diffusion 1 stores transformers' CLIPTextModel. Stable Diffusion 2 stores OpenCLIP's text tower
(mlfoundations/open_clip, src/open_clip/transformer.py), whose last layer is not used and whose queries, keys and values
are one matrix.
"""

import numpy as np

from memattn_jax.checkpoints.single_file.renaming import Tensors, below, numbered, renamed, under

LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
NOT_READ = ("text_projection", "logit_scale", "attn_mask", "visual.")  # of OpenCLIP, for comparing with pictures
SD2 = (23, 1024)  # layers that are read of Stable Diffusion 2's tower, and its width


def layers_used(blocks: list[dict[str, np.ndarray]], layers: int | None = None) -> list[dict[str, np.ndarray]]:
    """The blocks without the last one, which is not read; all of them where the file leaves it out.

    Args:
      blocks: the tensors of each.
      layers: how many there are without it; where it is not known, Stable Diffusion 2's width tells files that were
        written by diffusers' own script.
    """
    if layers is not None:
        return blocks[:-1] if len(blocks) == layers + 1 else blocks
    widths = [width for block in blocks[:1] if "ln_1.weight" in block for width in block["ln_1.weight"].shape]
    return blocks if (len(blocks), *widths) == SD2 else blocks[:-1]


def modern_openclip(tensors: Tensors, layers: int | None = None) -> dict[str, np.ndarray]:
    """The tensors of OpenCLIP's text tower under transformers' names, without its last layer.

    Args:
      tensors: those below "cond_stage_model.model.", without this prefix.
      layers: see `layers_used`.
    """
    found: dict[str, np.ndarray] = {}
    outside = {"token_embedding": "text_model.embeddings.token_embedding", "ln_final": "text_model.final_layer_norm"}
    for name, tensor in tensors.items():
        if name == "positional_embedding":
            found["text_model.embeddings.position_embedding.weight"] = tensor
        elif not name.startswith(("transformer.resblocks.", *NOT_READ)):
            found |= renamed({name: tensor}, outside)
    for number, layer in enumerate(layers_used(numbered(below(tensors, "transformer.resblocks.")), layers)):
        path = f"text_model.encoder.layers.{number}"
        for name, tensor in renamed(layer, LAYER).items():
            if name.startswith("attn.in_proj_") and tensor.ndim and len(tensor) % 3 == 0:
                leaf = name.removeprefix("attn.in_proj_")
                for projection, third in zip("qkv", np.split(tensor, 3), strict=True):
                    found[f"{path}.self_attn.{projection}_proj.{leaf}"] = third
            else:
                found |= under(path, {name: tensor})
    return found
