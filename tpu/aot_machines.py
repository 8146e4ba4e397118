"""Topologies of TPUs without the TPUs: devices to compile for, their memory, and what a program needs of it."""

import os
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

# Before JAX is imported. libtpu looks for a machine's metadata and takes a lock that a second process cannot have; both
# are for running, not for compiling.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

import jax

GIB = 2**30
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)(?:-start)?\(")
CUSTOM_CALL = {"tpu": re.compile(r'custom_call_target="([^"]+)"'), "cuda": re.compile(r"stablehlo\.custom_call @(\w+)")}


# GiB of a device by its `device_kind`, as Google's system architecture pages give them; a TPU7x chip is two devices
MEMORY = {"TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32, "TPU7x": 192 / 2}


class Needs(NamedTuple):
    """What one device needs of a program.

    Attributes:
      argument: bytes of what it is called with, weights among them.
      output: bytes of what it returns.
      alias: bytes of arguments that are given up to hold output.
      temporary: bytes of what lives while it runs.
      code: bytes of the program itself.
      flops: floating-point operations; a loop's body counts once.
      accessed: bytes of memory read and written, as the compiler estimates; likewise.
      collectives: how many of each kind; in a loop's body, once.
      custom_calls: likewise, by target; ConcatBitcast and AllocateBuffer are of the TPU compiler itself.
    """

    argument: int
    output: int
    alias: int
    temporary: int
    code: int
    flops: float
    accessed: float
    collectives: dict[str, int]
    custom_calls: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of memory at the most."""
        return self.argument + self.output - self.alias + self.temporary + self.code


def libtpu_version() -> str:
    """Of the compiler; "none" where it is not installed."""
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "none"


def devices(topology: str) -> list[Any]:
    """The devices of a slice, such as "v5e:2x4".

    Raises:
      ValueError: libtpu knows no such slice, or there is no libtpu.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'topology {topology}: {reason} (libtpu is needed: pip install -e ".[tpu]")') from None


def needs(compiled: jax.stages.Compiled) -> Needs:
    """Reads them off a program that was compiled for a TPU."""
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ""
    return Needs(
        argument=memory.argument_size_in_bytes,
        output=memory.output_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        accessed=cost["bytes accessed"],
        collectives=dict(Counter(COLLECTIVE.findall(text))),
        custom_calls=dict(Counter(CUSTOM_CALL["tpu"].findall(text))),
    )


def cuda_custom_calls(traced: jax.stages.Traced) -> dict[str, int]:
    """How often a program, lowered for NVIDIA GPUs, calls each kernel that XLA does not make itself."""
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return dict(Counter(CUSTOM_CALL["cuda"].findall(text)))
