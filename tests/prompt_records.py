"""What tests of prompt files compare."""

from pathlib import Path

from memattn_jax.prompts import stream_prompts


def records(path: Path, column: str = "prompt", keep: tuple[str, ...] = ()) -> list[str]:
    """Texts, and what follows the file's name in an error."""
    shown = []
    for prompt in stream_prompts(path, column, keep):
        shown.append(prompt.text if prompt.error is None else "! " + prompt.error.replace(f"{path}: ", ""))
    return shown
