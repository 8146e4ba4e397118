"""Long runs over many rows: resumable tables, overlap of host and device work, and detection for other engines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memattn_jax.runs.batch_detector import BatchDetector as BatchDetector


def __getattr__(name: str) -> Any:
    """`BatchDetector`, imported when it is asked for: tables need no JAX."""
    if name != "BatchDetector":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from memattn_jax.runs.batch_detector import BatchDetector

    return BatchDetector
