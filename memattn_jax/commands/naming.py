"""Mitigations by name with fields of their own, as `evaluate --mitigations` takes them."""

from dataclasses import dataclass

from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import MITIGATIONS
from memattn_jax.text import printable

FORMS = (  # of methods that papers report apart
    "attention_mask:mask=summary",
    "clip_embedding:variant=a",
    "clip_embedding:variant=c",
    "guidance_transition:when=dynamic:before=1",
    "guidance_transition:when=opposite",
    "noise_perturbation:form=per-sample",
)
# The authors' limits are Stable Diffusion's. For the built-in model, targets and the limit of the agreement are chosen
# on half of its prompts; the others allow for latents of 16 times fewer pixels.
BUILT_IN = {
    "embedding_optimization": "embedding_optimization:target=1.5",
    "noise_optimization": "noise_optimization:threshold=1.5:weight=0.01",
    "noise_perturbation": "noise_perturbation:radius=12",
    "noise_perturbation:form=per-sample": "noise_perturbation:form=per-sample:target=1:rate=0.05:iterations=50",
    "value_neurons": "value_neurons:refine=layers:noises=4:limit=0.7",
}


@dataclass(frozen=True)
class Named:
    """A mitigation as --mitigations names it, such as attention_mask:mask=summary:begin_scale=1."""

    text: str

    @property
    def name(self) -> str:
        """The method's."""
        return self.text.partition(":")[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Its fields."""
        return tuple(self.text.split(":")[1:])


def named_mitigations(text: str, built_in: bool = False) -> list[Named]:
    """The mitigations that --mitigations names, in order; all of them are every method and form.

    Args:
      text: the option.
      built_in: whether `all` has limits that suit the built-in model.

    Raises:
      InputError: an unknown name, or one that is listed twice.
    """
    chosen = tuple(text.split(","))
    if text == "all":
        own = BUILT_IN if built_in else {}
        chosen = tuple(own.get(name, name) for name in (*MITIGATIONS, *FORMS))
    for one in chosen:
        check_name("mitigation", Named(one).name, tuple(MITIGATIONS), "--mitigations")
        if chosen.count(one) > 1:
            raise InputError(f"--mitigations: {printable(one, 60)} is listed twice")
    return [Named(one) for one in chosen]
