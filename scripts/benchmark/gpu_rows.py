"""The rows of a GPU: Stable Diffusion in bfloat16 against PyTorch's, eager and compiled, at several batch sizes."""

from benchmark.rows import Row, Side, beside, torch_unet, unet

HALF = "bfloat16"
PAIRS = {"sd14": (1, 4, 16), "sd21": (1, 4, 16)}  # prompts
DETECTED = (16, 64, 256)
ROUNDS = 9


def pairs(preset: str, prompts: int, compiled: bool) -> Row:
    """Guidance pairs of some prompts."""
    other = "torch.compile" if compiled else "diffusers"
    ours = unet(preset, "pair", dtype=HALF, prompts=prompts)
    theirs = torch_unet(preset, dtype=HALF, prompts=prompts, compiled=compiled)
    about = f"UNet, guidance pairs of {prompts} prompts, {preset}, against {other}"
    return Row(about, ours, theirs, ROUNDS, dtype=HALF, prompts=prompts)


def detected(call: str, about: str, prompts: int) -> Row:
    """Detection of a batch, against a step's guidance pairs of the same prompts."""
    side = unet("sd14", call, dtype=HALF, prompts=prompts)
    about = f"{about} of {prompts} prompts, against their guidance pairs"
    return Row(about, side, beside(side), ROUNDS, dtype=HALF, prompts=prompts)


def sampled(prompts: int) -> Row:
    """A fifty-step sample."""
    ours, theirs = (
        Side(f"{side}:sample_full", {"folder": "sd14", "dtype": HALF, "prompts": prompts}, "50 steps")
        for side in ("ours", "peer")
    )
    about = f"fifty-step sample of {prompts} prompts, SD 1.4, against diffusers"
    return Row(about, ours, theirs, 5, dtype=HALF, prompts=prompts)


GPU_ROWS: dict[str, Row] = {
    f"unet_{preset}_{prompts}{'_compiled' if compiled else ''}": pairs(preset, prompts, compiled)
    for preset, sizes in PAIRS.items()
    for prompts in sizes
    for compiled in (False, True)
}
GPU_ROWS |= {f"sample_sd14_{prompts}": sampled(prompts) for prompts in (1, 16)}
for size in DETECTED:
    GPU_ROWS[f"entropy_e_{size}"] = detected("detector", "metric E", size)
    GPU_ROWS[f"default_{size}"] = detected("default", "the default detectors and explanation", size)
GPU_ROWS["first_step_16"] = detected("first_step", "all first-step detectors", 16)
