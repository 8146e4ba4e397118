"""The rows: what is timed against what, and how often."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memattn_jax import demo


@dataclass(frozen=True)
class Side:
    """One side of a row.

    Attributes:
      process: "module:function" in this package, which makes the calls.
      settings: its arguments; "folder" names one of `models.PARTS`, or is a path.
      call: which of the calls.
    """

    process: str
    settings: Mapping[str, Any]
    call: str


@dataclass(frozen=True)
class Row:
    """A ratio, ours over the other side.

    Attributes:
      about: what it compares.
      ours: our side.
      other: PyTorch's, or another program of ours.
      rounds: how often both are run, in turn.
      measure: what the ratio is of.
      same: whether both sides compute the same numbers, which is then checked.
      at_most: what the ratio is meant to stay under.
      dtype: that both sides compute in.
      prompts: that a call works on.
    """

    about: str
    ours: Side
    other: Side
    rounds: int
    measure: Literal["seconds", "peak_bytes"] = "seconds"
    same: bool = False
    at_most: float | None = field(default=None, kw_only=True)
    dtype: str = field(default="float32", kw_only=True)
    prompts: int = field(default=1, kw_only=True)


PROMPT = demo.SHOWCASE[0]
DEMO = str(demo.MODEL)
SIZES = {"sd14": 64, "sd21": 96, DEMO: 16}  # of latents, by folder


def unet(preset: str, call: str, **settings: Any) -> Side:
    """Ours, in a process that holds this program, and the plain one beside any other."""
    size = SIZES[preset]
    calls = tuple(dict.fromkeys(("pair", call)))
    return Side("ours:unet", {"folder": preset, "size": size, "calls": calls} | settings, call)


def torch_unet(preset: str, **settings: Any) -> Side:
    """PyTorch's."""
    return Side("peer:unet", {"folder": preset, "size": SIZES[preset]} | settings, "pair")


def beside(row: Side) -> Side:
    """The plain guidance pair in the same process."""
    return Side(row.process, row.settings, "pair")


def both(function: str, call: str, **settings: Any) -> tuple[Side, Side]:
    """The same function and call on both sides."""
    return Side(f"ours:{function}", settings, call), Side(f"peer:{function}", settings, call)


TAPPED, MITIGATED, DETECTOR, FIRST_STEP = (
    unet("sd14", call) for call in ("tapped", "mitigated", "detector", "first_step")
)
START = Side("peer:start", {"prompt": PROMPT}, "start")

ROWS: dict[str, Row] = {
    "unet_sd14": Row(
        "UNet, guidance pair, SD 1.4, against diffusers",
        unet("sd14", "pair"),
        torch_unet("sd14"),
        7,
        same=True,
        at_most=1.0,
    ),
    "unet_sd14_compiled": Row(
        "the same against torch.compile", unet("sd14", "pair"), torch_unet("sd14", compiled=True), 5, same=True
    ),
    "unet_sd14_bfloat16": Row(
        "the same in bfloat16, against diffusers in bfloat16",
        unet("sd14", "pair", dtype="bfloat16"),
        torch_unet("sd14", dtype="bfloat16"),
        5,
        at_most=1.0,
        dtype="bfloat16",
    ),
    "unet_sd21": Row(
        "UNet, guidance pair, SD 2.1 at 768 pixels, against diffusers",
        unet("sd21", "pair"),
        torch_unet("sd21"),
        3,
        same=True,
    ),
    "unet_demo": Row(
        "UNet, guidance pair, the built-in model, against diffusers",
        unet(DEMO, "pair"),
        torch_unet(DEMO),
        21,
        same=True,
    ),
    "detector_sd14": Row(
        "metric E of one prompt, against a guidance pair", DETECTOR, beside(DETECTOR), 9, at_most=0.12
    ),
    "first_step_sd14": Row(
        "all first-step detectors of one prompt, against a guidance pair", FIRST_STEP, beside(FIRST_STEP), 3
    ),
    "sample_demo_10": Row(
        "ten-step sample of the built-in model, against diffusers", *both("sample", "10 steps", prompt=PROMPT), 9
    ),
    "sample_demo": Row(
        "fifty-step sample of the built-in model, against diffusers",
        *both("sample", "50 steps", prompt=PROMPT),
        9,
        at_most=0.6,
    ),
    "sample_demo_batch": Row(
        "ten-step samples of the built-in model, 24 prompts, against diffusers",
        *both("sample", "10 steps", prompt=PROMPT, prompts=24),
        5,
        prompts=24,
    ),
    "vae_sd14": Row(
        "decoding a picture of 512 pixels, against diffusers",
        *both("vae", "decode", folder="sd14", size=64),
        3,
    ),
    "text_sd14": Row(
        "encoding two prompts, SD 1.4, against transformers",
        *both("text_encoder", "encode", folder="sd14"),
        9,
        same=True,
    ),
    "load_sd14": Row("reading the UNet, SD 1.4, against diffusers", *both("load", "load", folder="sd14"), 5),
    "start_cold": Row(
        "first picture of the built-in model, nothing compiled before, against diffusers",
        Side("ours:start", {"prompt": PROMPT}, "cold"),
        START,
        3,
    ),
    "start_warm": Row(
        "first picture of the built-in model, the second time, against diffusers",
        Side("ours:start", {"prompt": PROMPT}, "warm"),
        START,
        5,
    ),
    "memory_sd14": Row(
        "peak memory of loading and a guidance pair, SD 1.4, against diffusers",
        unet("sd14", "pair"),
        torch_unet("sd14"),
        2,
        "peak_bytes",
        at_most=1.0,
    ),
    "taps_sd14": Row("all 16 layers tapped, against none", TAPPED, beside(TAPPED), 20, at_most=1.005),
    "mitigated_sd14": Row("mitigated, against plain", MITIGATED, beside(MITIGATED), 20, at_most=1.0),
}
