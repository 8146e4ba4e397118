"""The formulas of ΔW, a change of a weight, from the tensors of a LoRA file; for NumPy's arrays and JAX's alike.

    LoRA   up · down                                         (Hu et al., arXiv 2106.09685; LoCon for convolutions)
           mid ×₁ up ×₂ down                                 (LyCORIS, Tucker's decomposition of a kernel)
    LoHa   (w1_a · w1_b) ⊙ (w2_a · w2_b)                     (Hyeon-Woo et al., arXiv 2108.06098)
    LoKr   w1 ⊗ w2, each whole or a product                  (Yeh et al., arXiv 2309.14859)

ΔW is [out, in], [out, in · h · w] or [out, in, h, w]. Each formula has a companion that says the shape it gives, from
its tensors' shapes, and raises ValueError where these do not go together: a file is checked before anything is read.
"""

import math
from collections.abc import Mapping
from typing import Any

Tensors = Mapping[str, Any]  # by role
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by role


def flat(array: Any) -> Any:
    """[rows, …] to [rows, columns]."""
    return array.reshape(array.shape[0], -1)


def tucker(core: Any, first: Any, second: Any) -> Any:
    """[i, j, h, w], [i, out] and [j, in] to [out, in, h, w]."""
    return (first.T @ core.transpose(2, 3, 0, 1) @ second).transpose(2, 3, 0, 1)


def low_rank(tensors: Tensors) -> Any:
    """LoRA and LoCon."""
    up, down = flat(tensors["up"]), flat(tensors["down"])
    return tucker(tensors["mid"], up.T, down) if "mid" in tensors else up @ down


def hadamard(tensors: Tensors) -> Any:
    """LoHa."""

    def factor(n: int) -> Any:
        first, second = tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"]
        return tucker(tensors[f"hada_t{n}"], first, second) if f"hada_t{n}" in tensors else first @ second

    return factor(1) * factor(2)


def kronecker(tensors: Tensors) -> Any:
    """LoKr."""

    def factor(n: int) -> Any:
        if f"lokr_w{n}" in tensors:
            return tensors[f"lokr_w{n}"]
        first, second = tensors[f"lokr_w{n}_a"], tensors[f"lokr_w{n}_b"]
        return tucker(tensors[f"lokr_t{n}"], first, second) if f"lokr_t{n}" in tensors else first @ second

    left, right = factor(1), factor(2)
    (a, b), (c, d, *kernel) = left.shape, right.shape
    return (left[:, None, :, None, None] * right.reshape(1, c, 1, d, -1)).reshape(a * c, b * d, *kernel)


def product_shape(first: Shape, second: Shape, core: Shape | None) -> Shape:
    """Of a matrix product, or with a core of `tucker`."""
    if core is None:
        (rows, inner), (also_inner, columns) = first, second
        kernel: Shape = ()
    else:
        (inner, rows), (also_inner, columns), (core_inner, core_also, *kernel_size) = first, second, core
        kernel = tuple(kernel_size)
        if (core_inner, core_also) != (inner, also_inner) or len(kernel) != 2:
            raise ValueError
        also_inner = inner
    if inner != also_inner:
        raise ValueError
    return rows, columns, *kernel


def low_rank_shape(shapes: Shapes) -> Shape:
    """See `low_rank`."""
    up, down = ((shapes[role][0], math.prod(shapes[role][1:])) for role in ("up", "down"))
    return product_shape(up[::-1] if "mid" in shapes else up, down, shapes.get("mid"))


def hadamard_shape(shapes: Shapes) -> Shape:
    """See `hadamard`."""
    one, two = (product_shape(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"], shapes.get(f"hada_t{n}")) for n in (1, 2))
    if one != two:
        raise ValueError
    return one


def kronecker_shape(shapes: Shapes) -> Shape:
    """See `kronecker`."""

    def factor(n: int) -> Shape:
        if f"lokr_w{n}" in shapes:
            return shapes[f"lokr_w{n}"]
        return product_shape(shapes[f"lokr_w{n}_a"], shapes[f"lokr_w{n}_b"], shapes.get(f"lokr_t{n}"))

    (a, b), (c, d, *kernel) = factor(1), factor(2)
    return a * c, b * d, *kernel
