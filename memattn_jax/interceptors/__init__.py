"""Cross-attention interceptors: edits that change a layer's attention and taps that read it; see `seam.py`.

seam.py    `cross_attention`, which any JAX model can call, and `Interceptor`, which it is called with
edits.py   edits of the attention that the papers use
taps.py    reductions of it
"""

from memattn_jax.interceptors.edits import MaskTokens, OnRows, ScaleBeginToken
from memattn_jax.interceptors.seam import (
    Attention,
    Context,
    Edit,
    Interceptor,
    Sites,
    Tap,
    by_name,
    cross_attention,
    for_rows,
)
from memattn_jax.interceptors.taps import AttentionMaps, EndTokenMap, MeanMaps, TokenMeans

__all__ = [
    "Attention",
    "AttentionMaps",
    "Context",
    "Edit",
    "EndTokenMap",
    "Interceptor",
    "MaskTokens",
    "MeanMaps",
    "OnRows",
    "ScaleBeginToken",
    "Sites",
    "Tap",
    "TokenMeans",
    "by_name",
    "cross_attention",
    "for_rows",
]
