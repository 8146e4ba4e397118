"""How the tensors of a LoRA file change a layer; for NumPy's arrays and JAX's alike.

Weights are PyTorch's: [out, in] or [out, in, h, w]. ΔW, by one of the `formulas` or whole, is scaled by alpha / rank
and by a strength. DoRA (Liu et al., arXiv 2402.09353) then gives W + ΔW the norms that the file holds, one an output
channel or, in LyCORIS's older files, one an input channel. PEFT's strength scales ΔW before that; for LyCORIS's files
it interpolates between W and the outcome, as web UIs do.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple

from memattn_jax.checkpoints.lora.formulas import (
    Shape,
    Shapes,
    Tensors,
    hadamard,
    hadamard_shape,
    kronecker,
    kronecker_shape,
    low_rank,
    low_rank_shape,
)


class Form(NamedTuple):
    """One way to write ΔW.

    Attributes:
      formula: of its tensors; None where only a bias changes.
      shape: of what the formula gives, from its tensors' shapes; raises ValueError where these do not go together.
      rank: the role whose leading axis is the rank; None where there is no rank.
      factor: the role that scales all of ΔW where it is scaled, a small tensor.
    """

    formula: Callable[[Tensors], Any] | None
    shape: Callable[[Shapes], Shape]
    rank: str | None
    factor: str = ""


def forms() -> dict[frozenset[str], Form]:
    """Every complete set of roles."""
    hada = frozenset(f"hada_w{n}_{half}" for n in (1, 2) for half in "ab")
    found = {frozenset(("up", "down", *mid)): Form(low_rank, low_rank_shape, "down", "up") for mid in ((), ("mid",))}
    cores = (frozenset[str](), frozenset(("hada_t1", "hada_t2")))
    found |= {hada | more: Form(hadamard, hadamard_shape, "hada_w1_b", "hada_w1_a") for more in cores}
    halves = ("lokr_w2_a", "lokr_w2_b")
    for left, right in product(
        (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), halves, (*halves, "lokr_t2"))
    ):
        rank = next((role for role in (*right, *left) if role.endswith("_b")), None)
        found[frozenset((*left, *right))] = Form(kronecker, kronecker_shape, rank, left[0])
    whole = itemgetter("weight")
    return found | {frozenset(("weight",)): Form(whole, whole, None, "weight"), frozenset(): Form(None, whole, None)}


FORMS = forms()
NORMS = frozenset(("dora_scale", "magnitude"))
BESIDE = NORMS | {"alpha", "bias"}


def form_of(roles: Collection[str]) -> Form | None:
    """The form that a layer's tensors are written in; None where some are missing or do not belong together."""
    form = FORMS.get(frozenset(roles) - BESIDE)
    if form is None or (form.formula is None and "bias" not in roles):
        return None
    decomposed = len(NORMS.intersection(roles))
    return None if decomposed > (form.formula is not None and "weight" not in roles) else form


@dataclass(frozen=True)
class LayerChange:
    """What one file does to one layer.

    Attributes:
      tensors: by role, float32 or as stored; `form_of` knows their form.
      scale: of ΔW at strength 1, alpha / rank; a number, traced or not.
    """

    tensors: Tensors
    scale: Any

    @property
    def form(self) -> Form:
        """How ΔW is written."""
        form = form_of(self.tensors)
        assert form is not None
        return form

    @property
    def parameters(self) -> tuple[str, ...]:
        """Which of the layer's "weight" and "bias" it changes."""
        return ("weight",) * (self.form.formula is not None) + ("bias",) * ("bias" in self.tensors)

    def apply(self, parameter: str, value: Any, strength: Any) -> Any:
        """The changed parameter, float32.

        Args:
          parameter: "weight" or "bias".
          value: it before, float32 and in PyTorch's layout.
          strength: a number, traced or not.
        """
        if parameter == "bias":
            return value + strength * self.tensors["bias"].reshape(value.shape)
        if "magnitude" in self.tensors:
            changed = value + self.delta(strength, value.shape)
            return changed * (along(self.tensors["magnitude"], value, 0) / norms(changed, 0))
        if "dora_scale" in self.tensors:
            axis = norm_axis(self.tensors["dora_scale"].shape, value.shape)
            changed = value + self.delta(1.0, value.shape)
            changed = changed * (along(self.tensors["dora_scale"], value, axis) / norms(changed, axis))
            return value + strength * (changed - value)
        return value + self.delta(strength, value.shape)

    def delta(self, strength: Any, shape: Shape) -> Any:
        """ΔW, scaled."""
        form = self.form
        assert form.formula is not None
        scaled = {form.factor: self.scale * strength * self.tensors[form.factor]}
        return form.formula({**self.tensors, **scaled}).reshape(shape)

    def problem(self, layer: Shapes) -> str | None:
        """What does not fit a layer whose parameters have these shapes, () for none; None where all fits."""
        shapes = {role: tuple(array.shape) for role, array in self.tensors.items()}
        if lacking := [parameter for parameter in self.parameters if not layer[parameter]]:
            return f"changes a {lacking[0]}, which the layer lacks"
        if "bias" in shapes and math.prod(shapes["bias"]) != layer["bias"][0]:
            return f"changes {list(shapes['bias'])}, not {list(layer['bias'])}"
        if self.form.formula is None:
            return None
        weight = layer["weight"]
        try:
            delta = self.form.shape(shapes)
        except (ValueError, IndexError):
            return f"has shapes that do not go together: {', '.join(f'{role} {list(shapes[role])}' for role in shapes)}"
        if delta[:1] != weight[:1] or math.prod(delta) != math.prod(weight):
            return f"changes {list(delta)}, not {list(weight)}"
        for role in NORMS.intersection(shapes):
            axis = 0 if role == "magnitude" else norm_axis(shapes[role], weight)
            if len(weight) < 2 or math.prod(shapes[role]) != weight[axis]:
                return f"{role} {list(shapes[role])} does not fit {list(weight)}"
        return None


def norm_axis(wanted: Shape, weight: Shape) -> int:
    """The axis of a weight that LyCORIS's norms belong to: 0 for output channels, 1 for input channels."""
    return 0 if wanted[:1] == weight[:1] else 1


def along(values: Any, weight: Any, axis: int) -> Any:
    """The values along one axis of a weight, to be multiplied with it."""
    return values.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def norms(weight: Any, axis: int) -> Any:
    """Euclidean norms over all axes but one, which are kept with size 1."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return (weight * weight).sum(others, keepdims=True) ** 0.5
