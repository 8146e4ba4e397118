"""The authors' attention arithmetic in PyTorch, as a diffusers attention processor of our own.

It follows `refactored_attention_processor.py` of the reference for one prompt at a time, the only case in which the
reference is right: padding masked on both halves of guidance by the prompt's length, the begin token's logit times c1
on the conditional row, attention recorded as the mean over pixels of the conditional row.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class Settings:
    """One run of the reference.

    Attributes:
      c1: the begin token's factor; None runs without mitigation.
      keep: tokens kept by the mask; None masks nothing.
      recorded: {site: [one (heads, tokens) array a step]}.
    """

    c1: float | None = None
    keep: int | None = None
    recorded: dict[str, list[torch.Tensor]] = field(default_factory=dict)


class ReferenceProcessor:
    def __init__(self, site: str, settings: Settings):
        self.site, self.settings = site, settings

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        query, key, value = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # [rows, heads, pixels, tokens]
        if cross and self.settings.keep is not None:
            logits[..., self.settings.keep :] = -torch.inf
        if cross and self.settings.c1 is not None:
            logits[1::2, :, :, 0] *= self.settings.c1
        probs = torch.softmax(logits, dim=-1)
        if cross:
            self.settings.recorded.setdefault(self.site, []).append(probs[-1].mean(1))
        out = (probs @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def run_reference(pipe, settings: Settings, **options) -> torch.Tensor:
    """Latents of one run; the attention is in `settings.recorded`."""
    names = [name.removesuffix(".processor") for name in pipe.unet.attn_processors]
    processors = {f"{name}.processor": ReferenceProcessor(name, settings) for name in names}
    original = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(processors)
    latents = pipe(output_type="latent", **options).images
    pipe.unet.set_attn_processor(original)
    return latents
