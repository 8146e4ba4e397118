"""The first thing to run on a machine: devices, a sum over them, a step of the built-in model, speed of transfers.

    python tpu/smoke.py [--distributed] [--coordinator HOST:PORT] [--megabytes 64]

Prints one JSON object: versions, devices, a sum over all devices of this process against what it should be, scores of
one prompt a device by the built-in model, the seconds that they took, and how fast arrays travel between the host and
a device. Exit status 1 where a number is not what it should be.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import NamedSharding
from jax import P as Spec

from memattn_jax import StableDiffusion, demo
from memattn_jax.commands.host import kept_programs
from memattn_jax.runs.versions import versions
from memattn_jax.sharding.placement import make_mesh
from memattn_jax.sharding.processes import start_processes


def seconds(run: Callable[[], Any]) -> float:
    """What one call takes, until its arrays are there."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def installed() -> dict[str, str]:
    """Versions of the packages and of what drives the devices."""
    found = versions()
    for name in ("libtpu", "jax-cuda13-plugin"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"platform": jax.devices()[0].client.platform_version.splitlines()[0]}


def collective(devices: list[jax.Device]) -> dict[str, Any]:
    """Every device's number summed over all of them, which they must exchange for it."""
    count = len(devices)
    mesh = jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)
    numbers = jax.device_put(np.arange(1, count + 1), NamedSharding(mesh, Spec("data")))
    summed = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, Spec()))(numbers)
    found = [int(np.asarray(shard.data)) for shard in summed.addressable_shards]
    return {"found": found, "expected": count * (count + 1) // 2}


def step() -> dict[str, Any]:
    """The first-step detectors of the built-in model on one prompt a device, twice: with and without compiling."""
    sd = StableDiffusion.from_pretrained(demo.MODEL, mesh=make_mesh(None))
    prompts = (demo.SHOWCASE * jax.local_device_count())[: jax.local_device_count()]
    first = seconds(lambda: sd.detect(prompts).scores)
    began = time.perf_counter()
    scores = sd.detect(prompts).scores
    again = time.perf_counter() - began
    listed = {name: np.asarray(score).tolist() for name, score in scores.items()}
    return {"prompts": prompts, "scores": listed, "first_seconds": round(first, 3), "again_seconds": round(again, 3)}


def bandwidth(megabytes: int) -> dict[str, float]:
    """GB/s from the host to one device and back, the best of three; an array of `megabytes` · 10⁶ bytes."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, megabytes * 10**6, dtype=np.uint8)
    up, down = [], []
    for _ in range(3):
        up.append(seconds(lambda: jax.device_put(array, jax.local_devices()[0], may_alias=False)))
        there = jax.block_until_ready(jax.device_put(array, jax.local_devices()[0], may_alias=False) + np.uint8(1))
        started = time.perf_counter()
        np.array(there)
        down.append(time.perf_counter() - started)
    size = array.nbytes / 1e9
    return {"to_device": round(size / min(up), 2), "to_host": round(size / min(down), 2)}


def look(chosen: argparse.Namespace) -> dict[str, Any]:
    """All that is found out."""
    process, processes = start_processes(chosen.coordinator, distributed=chosen.distributed)
    devices = jax.local_devices()
    return {
        "versions": installed(),
        "process": process,
        "processes": processes,
        "devices": {"kind": devices[0].device_kind, "here": len(devices), "everywhere": jax.device_count()},
        "sum": collective(devices),
        "step": step(),
        "gigabytes_per_second": bandwidth(chosen.megabytes),
    }


def main(arguments: list[str] | None = None) -> int:
    """Looks, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(description="Tries the devices of a machine.")
    parser.add_argument("--distributed", action="store_true", help="one of several processes, as of detect")
    parser.add_argument("--coordinator", help="HOST:PORT, as of detect")
    parser.add_argument("--megabytes", type=int, default=64, help="of the array that travels")
    with kept_programs():
        report = look(parser.parse_args(arguments))
    print(json.dumps(report, indent=2), flush=True)
    right = set(report["sum"]["found"]) == {report["sum"]["expected"]}
    finite = all(np.isfinite(score).all() for score in report["step"]["scores"].values())
    return 0 if right and finite else 1


if __name__ == "__main__":
    sys.exit(main())
