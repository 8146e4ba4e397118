"""What a key of a LoRA file means: a part of the model, a layer of it, and the tensor's role in the layer's change.

| written by | key |
|---|---|
| kohya, LyCORIS | `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight` |
| diffusers, attention processors | `down_blocks.0.….attn1.processor.to_q_lora.down.weight` |
| diffusers, text encoder | `text_encoder.….q_proj.lora_linear_layer.down.weight` |
| diffusers, PEFT | `unet.….to_q.lora_A.weight`, `base_model.model.….lora_B.default.weight` |
| LyCORIS alone | `lycoris_down_blocks_0_attentions_0_proj_in.lora_down.weight` |
| ComfyUI | `diffusion_model.input_blocks.….lora_up.weight`, `text_encoders.clip_l.transformer.….lora_up.weight` |
"""

import re
from typing import NamedTuple

from memattn_jax.errors import InputError

PREFIX = re.compile(
    r"(?P<unet>lora_unet_|unet\.|(?:model\.)?diffusion_model\.)?(?P<text_encoder>lora_te1?_|text_encoder\.|"
    r"text_encoders\.clip_[lh]\.transformer\.)?"
    r"(?:base_model\.model\.)*(?:lycoris_)?"
)
ENDING = re.compile(
    r"(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<kohya>down|up|mid)\.weight$"
    r"|\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight$"
    r"|\.(?P<dora>lora_magnitude_vector)(?:\.[^.]+){0,2}$"
    r"|\.(?P<own>alpha|dora_scale|diff|diff_b|w_norm|b_norm|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))$"
)
ROLES = {
    "A": "down",
    "B": "up",
    "lora_magnitude_vector": "magnitude",
    "diff": "weight",
    "w_norm": "weight",
    "diff_b": "bias",
    "b_norm": "bias",
}
# what a file is that no model here can use
REFUSED = {
    r"^lora_te[23]_|^text_encoder(_[23]|s\.clip_g)\.": "is for a model with several text encoders, such as SDXL",
    r"^(lora_)?transformer[_.]|(double|single|joint)_blocks": "is for a transformer model, such as SD 3 or Flux",
    r"\.oft_|\.boft_": "holds orthogonal fine-tuning (OFT), not LoRA",
    r"\.on_input$|\.ia3_l": "holds (IA)³, not LoRA",
    r"\.vera_lambda": "holds VeRA, not LoRA",
    r"\.[ab][12]\.weight$": "holds GLoRA, not LoRA",
    r"^bundle_emb\.": "bundles textual inversion embeddings; save them as files of their own",
}
ONLY_SDXL = re.compile(r"transformer_blocks[._][1-9]|(^|[._])(label_emb|add_embedding)[._]")


class Key(NamedTuple):
    """The meaning of a key.

    Attributes:
      part: "unet" or "text_encoder"; None where the key does not say.
      layer: the layer's path, with dots or, where the writer has none, with underscores.
      role: of the tensor in the layer's change, see `kinds`.
    """

    part: str | None
    layer: str
    role: str


def parse_key(key: str, where: str) -> Key | None:
    """The meaning of a key, None where it has none here.

    Raises:
      InputError: it belongs to a model or a method that is not supported; `where` names the file.
    """
    for pattern, what in REFUSED.items():
        if re.search(pattern, key):
            raise InputError(f"{where}: {what} ({key[:60]})")
    ending = ENDING.search(key)
    if ending is None:
        return None
    prefix = PREFIX.match(key)
    assert prefix is not None  # it may be empty
    assert ending.lastgroup is not None
    written = ending[ending.lastgroup]
    layer = key[prefix.end() : ending.start()].replace(".processor.", ".")
    if layer.endswith(".to_out"):  # attention processors have no list there
        layer += ".0"
    return Key(prefix.lastgroup, layer, ROLES.get(written, written))
