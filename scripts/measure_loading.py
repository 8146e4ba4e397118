"""Seconds and memory of loading a full-size model from each container, beside diffusers', and of converting it.

    python scripts/measure_loading.py --preset sd14 --scratch FOLDER

A model with random weights is written to the folder as diffusers would, and converted to a single file and to Orbax.
Then each container is loaded and a guidance pair computed, in a process of its own and in turn with diffusers, which
does not read Orbax; a first round, which fills XLA's cache, is not counted. Prints Markdown tables and writes their
numbers to loading.json. Takes 14 GB of disk, 6 GB of memory and half an hour on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmark.worker import peak_bytes
from demo_evaluation.tables import table

CHANNELS = {"sd14": 768, "sd21": 1024}  # of text embeddings
PAIR = ("imports", "load", "pair")


def inputs(preset: str) -> tuple[np.ndarray, np.ndarray]:
    """Latents [2, 64, 64, 4] and text embeddings [2, 77, channels]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 64, 64, 4), np.float32), rng.standard_normal((2, 77, CHANNELS[preset]), np.float32)


def ours(path: str, preset: str) -> list[float]:
    """Times after importing, loading and a guidance pair."""
    import jax

    from memattn_jax.commands.host import kept_programs
    from memattn_jax.pipeline import StableDiffusion

    times = [time.perf_counter()]
    with kept_programs():
        sd = StableDiffusion.from_pretrained(path, "float32")
        jax.block_until_ready((sd.unet, sd.vae, sd.text_encoder))
        times.append(time.perf_counter())
        latents, context = inputs(preset)
        jax.block_until_ready(jax.jit(lambda unet, *rest: unet(*rest))(sd.unet, latents, np.float32(981), context))
    return [*times, time.perf_counter()]


def theirs(path: str, preset: str) -> list[float]:
    """The same with diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    times = [time.perf_counter()]
    if Path(path).is_dir():
        pipe = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    else:
        config = Path(path).with_name("diffusers")
        pipe = StableDiffusionPipeline.from_single_file(
            path, config=str(config), local_files_only=True, torch_dtype=torch.float32
        )
    times.append(time.perf_counter())
    latents, context = inputs(preset)
    with torch.no_grad():
        pipe.unet(torch.from_numpy(latents.transpose(0, 3, 1, 2)), 981, torch.from_numpy(context))
    return [*times, time.perf_counter()]


def side(name: str, path: str, preset: str) -> dict[str, float]:
    """What a process of one side measures of itself."""
    started = time.perf_counter()
    times = [started, *{"ours": ours, "theirs": theirs}[name](path, preset)]
    spent = {part: end - start for part, start, end in zip(PAIR, times, times[1:], strict=False)}
    return spent | {"gb": peak_bytes() / 1e9}


def in_a_process(*arguments: str) -> dict[str, float]:
    """Runs this script as one side."""
    done = subprocess.run([sys.executable, __file__, "--side", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def converted(source: Path, place: Path, container: str) -> dict[str, float]:
    """Seconds and peak memory of `memattn convert`, in a process of its own."""
    code = (
        "import json, sys, time; from pathlib import Path\n"
        "from benchmark.worker import peak_bytes; from memattn_jax.checkpoints.checkpoint import Source\n"
        "from memattn_jax.commands.converting import convert\n"
        "start = time.perf_counter(); convert(sys.argv[1], Source(), Path(sys.argv[2]), sys.argv[3], None)\n"
        "print(json.dumps({'seconds': time.perf_counter() - start, 'gb': peak_bytes() / 1e9}))"
    )
    command = [sys.executable, "-c", code, str(source), str(place), container]
    here = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    return json.loads(done.stdout.splitlines()[-1])


def write(preset: str, folder: Path) -> None:
    """A diffusers folder with random weights."""
    from benchmark import models

    from memattn_jax.checkpoints.clip import clip_tokenizer
    from memattn_jax.checkpoints.single_file.family import SCHEDULER
    from memattn_jax.checkpoints.tokenizer_files import save_tokenizer
    from memattn_jax.checkpoints.writing.folder import write_settings

    models.write(preset, folder)["write"].run()
    second = preset == "sd21"
    write_settings(folder, SCHEDULER | {"prediction_type": "v_prediction" if second else "epsilon"}, None)
    save_tokenizer(clip_tokenizer("!" if second else "<|endoftext|>"), folder / "tokenizer")


def measure(preset: str, scratch: Path, rounds: int) -> dict[str, Any]:
    """Everything; see the module."""
    scratch = scratch.resolve()
    places = {
        "diffusers": scratch / preset / "diffusers",
        "single-file": scratch / preset / "model.safetensors",
        "orbax": scratch / preset / "orbax",
    }
    if not places["diffusers"].exists():
        write(preset, places["diffusers"])
    conversions = {
        container: converted(places["diffusers"], place, container)
        for container, place in places.items()
        if container != "diffusers"
    }
    conversions["diffusers"] = converted(places["single-file"], scratch / preset / "again", "diffusers")
    largest = max(path.stat().st_size for path in places["diffusers"].rglob("*.safetensors")) / 1e9
    loads: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for container, place in places.items():
            for name in ("ours",) if container == "orbax" else ("ours", "theirs"):
                measured = in_a_process(name, str(place), preset)
                if number:
                    loads.setdefault(f"{container} {name}", []).append(measured)
    return {"preset": preset, "largest_part_gb": largest, "conversions": conversions, "loads": loads}


def report(found: dict[str, Any]) -> str:
    """The tables."""
    loads = {
        name: {key: median(each[key] for each in measured) for key in measured[0]}
        for name, measured in found["loads"].items()
    }
    rows = []
    for name, spent in loads.items():
        container, who = name.split()
        other = loads.get(f"{container} theirs", loads["diffusers theirs"])
        ratio = (spent["load"] + spent["pair"]) / (other["load"] + other["pair"])
        rows.append([container, who, *(f"{spent[key]:.1f}" for key in (*PAIR, "gb")), "" if who == "theirs" else ratio])
    header = ["container", "", "imports, s", "loading, s", "first pair, s", "peak, GB", "loading and pair, ratio"]
    largest = found["largest_part_gb"]
    conversions = [
        [f"to {container}", f"{spent['seconds']:.0f}", f"{spent['gb']:.2f}", spent["gb"] / largest]
        for container, spent in found["conversions"].items()
    ]
    return table(header, rows) + "\n" + table(["", "s", "peak, GB", "of the largest part"], conversions)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=tuple(CHANNELS), default="sd14")
    parser.add_argument("--scratch", type=Path, required="--side" not in sys.argv)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(side(*chosen.side)))
        return
    found = measure(chosen.preset, chosen.scratch, chosen.rounds)
    (chosen.scratch / f"loading-{chosen.preset}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main()
