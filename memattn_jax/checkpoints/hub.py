"""Locates a model: a local folder, or a repository on the Hugging Face Hub, which is downloaded once."""

from pathlib import Path

PATTERNS = ["model_index.json", "memattn_jax.json", "scheduler/*.json", "tokenizer/*"]
PATTERNS += [f"{part}/*" for part in ("unet", "vae", "text_encoder")]
NOT_READ = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.xml", "*.non_ema.*"]
HALF = "*.fp16.*"  # a second copy of the weights, read only where there is no other


def is_folder(model: str | Path) -> bool:
    """Whether a model's name is a folder, existing or not, rather than a repository on the hub."""
    return Path(model).exists() or str(model).count("/") != 1 or str(model).startswith(("/", ".", "~"))


def locate(model: str | Path) -> Path:
    """The folder of a model.

    Args:
      model: a folder, or "owner/name" on the hub; `HF_HUB_OFFLINE` and `HF_HOME` are honoured.

    Raises:
      FileNotFoundError: not found in either place.
    """
    if is_folder(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        for unread in ([*NOT_READ, HALF], NOT_READ):
            folder = Path(snapshot_download(str(model), allow_patterns=PATTERNS, ignore_patterns=unread))
            if any((folder / "unet").glob("*.safetensors")):
                break
        return folder
    except (HfHubHTTPError, OSError, ValueError) as error:  # refused, unreachable, or an invalid name
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"no such model: {model}, not a local folder and not found on the Hugging Face Hub ({reason})"
        ) from None
