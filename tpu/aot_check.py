"""Compiles what `detect`, `generate` and `finetune` run for TPU slices that are not there, and says what it needs.

    python tpu/aot_check.py --preset sd14 --topology v5e:2x4 --program detector --json FILE

For each program and slice, per device: bytes of arguments (weights among them), of temporary arrays and of code, FLOPs,
bytes read and written, collectives. The same programs are lowered for NVIDIA GPUs, and their calls of foreign kernels
are counted. Needs no TPU and no weights, `pip install -e ".[tpu,train]"` and patience for the presets of full size.

Exit status: 0 all of it fits; 1 a program needs more memory than a device has; 2 a wrong argument.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import aot_machines as machines  # before JAX
import aot_programs as programs
import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from memattn_jax.errors import InputError
from memattn_jax.registries import FIRST_STEP
from memattn_jax.runs.versions import versions
from memattn_jax.sharding.placement import make_mesh
from memattn_jax.training.settings import TrainSettings

PROGRAMS = ("detector", "sampler", "finetuning")


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compiles for TPU slices without a TPU, and says what is needed.")
    parser.add_argument("--preset", choices=programs.NAMES, default="demo")
    parser.add_argument("--topology", default="v5e:2x2", help='slices, as "v5e:2x2,v6e:2x4,v5p:2x2x1,tpu7x:2x2x1"')
    parser.add_argument("--program", default=",".join(PROGRAMS), help="with commas between; all three by default")
    parser.add_argument("--rows", type=int, default=8, help="prompts or pictures of a batch, per device")
    parser.add_argument("--dtype", default="bfloat16", help="fine-tuning keeps its weights in float32")
    parser.add_argument("--detectors", default="entropy_e,noise_norm", help="as of detect, those of the first step")
    parser.add_argument("--no-explain", action="store_true", help="as of detect")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler")
    parser.add_argument("--remat", action="store_true", help="as of finetune")
    parser.add_argument("--budget-gib", type=float, help="memory of a device, instead of what its kind has")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    chosen = parser.parse_args(arguments)
    for name in ("topology", "program", "detectors"):
        setattr(chosen, name, getattr(chosen, name).split(","))
    if other := set(chosen.detectors) - set(FIRST_STEP):
        parser.error(f"{', '.join(sorted(other))}: no detector of the first step; those are {', '.join(FIRST_STEP)}")
    if unknown := set(chosen.program) - set(PROGRAMS):
        parser.error(f"no program {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    if chosen.rows < 1 or chosen.steps < 3:
        parser.error("at least 1 row and 3 steps are needed")
    return chosen


def build(name: str, chosen: argparse.Namespace, rows: int, mesh: Mesh | None = None) -> programs.Program:
    """One of the programs, for `rows` prompts or pictures of all devices together; without a mesh, of one device."""
    sd = programs.model(chosen.preset, mesh)
    if name == "finetuning":
        settings = TrainSettings(batch_size=rows, dtype=chosen.dtype, remat=chosen.remat, gate="entropy")
        return programs.finetuning(sd, rows, settings)
    sd = programs.cast(sd, chosen.dtype)
    if name == "sampler":
        return programs.sampler(sd, rows, chosen.steps)
    return programs.detector(sd, rows, tuple(chosen.detectors), not chosen.no_explain)


def compile_for(topology: str, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What a program needs on each device of a slice, as JSON types; an error where it cannot be compiled."""
    devices = machines.devices(topology)
    kind = devices[0].device_kind
    if chosen.budget_gib is None and kind not in machines.MEMORY:
        raise InputError(f"{topology}: the memory of a {kind} is not known here; give --budget-gib")
    gib = machines.MEMORY[kind] if chosen.budget_gib is None else chosen.budget_gib
    budget = int(gib * machines.GIB)
    rows = chosen.rows * len(devices)
    mesh = make_mesh(f"data={len(devices)}", devices)
    assert mesh is not None
    result = {"program": name, "topology": topology, "device": kind, "devices": len(devices), "rows": chosen.rows}
    lowered = programs.on_mesh(build(name, chosen, rows, mesh), mesh, rows).lower()
    started = time.perf_counter()
    try:
        needs = machines.needs(lowered.compile())
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"budget": budget, "fits": False, "error": str(error).splitlines()[0]}
    seconds = round(time.perf_counter() - started, 1)
    total = {"total": needs.total, "budget": budget, "fits": needs.total <= budget, "compile_seconds": seconds}
    return result | needs._asdict() | total


def tell(result: dict[str, Any]) -> str:
    """One line for a person."""
    place = f"{result['program']:10} {result['topology']:12} {result['devices']} × {result['device']}"
    if "error" in result:
        return f"{place}: DOES NOT FIT, {result['error']}"
    sizes = "  ".join(
        f"{name} {result[name] / machines.GIB:.3f}" for name in ("argument", "temporary", "code", "total")
    )
    exchanged = ", ".join(f"{count} {kind}" for kind, count in result["collectives"].items()) or "none"
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    return (
        f"{place}: GiB {sizes} of {result['budget'] / machines.GIB:g}, {verdict}  TFLOP {result['flops'] / 1e12:.4g}  "
        f"GB moved {result['accessed'] / 1e9:.4g}  collectives {exchanged}  compiled in {result['compile_seconds']} s"
    )


def main(arguments: list[str] | None = None) -> int:
    """Compiles, prints, writes; returns the exit status."""
    chosen = options(arguments)
    used = versions() | {"libtpu": machines.libtpu_version()}
    names = ("preset", "rows", "dtype", "detectors", "no_explain", "steps", "remat")
    settings = {name: getattr(chosen, name) for name in names}
    print(" ".join(f"{name} {version}" for name, version in used.items()))
    report: dict[str, Any] = {"versions": used, "settings": settings, "tpu": [], "cuda": []}
    try:
        for topology in chosen.topology:
            for name in chosen.program:
                report["tpu"].append(compile_for(topology, name, chosen))
                print(tell(report["tpu"][-1]), flush=True)
        for name in chosen.program:
            calls = machines.cuda_custom_calls(build(name, chosen, chosen.rows).trace())
            report["cuda"].append({"program": name, "rows": chosen.rows, "custom_calls": calls})
            found = ", ".join(f"{count} {kind}" for kind, count in calls.items()) or "none"
            print(f"{name:10} for CUDA: custom calls {found}", flush=True)
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(result["fits"] for result in report["tpu"]) else 1


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read a TPU's program without the TPU
    sys.exit(main())
