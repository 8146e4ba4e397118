"""How XLA compiles in tests, and in the commands that they start."""

from importlib.metadata import version

# Without LLVM's optimisation, without the newer way to emit fusions and without the search for a schedule of many
# threads, a program compiles in a third of the time or less; tiny models run no slower for it. Code in one piece
# instead of up to 32, each compiled by itself, saves another tenth where two workers keep both cores busy.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # later versions have the newer way alone, and not the flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int = 1) -> str:
    """The value of XLA_FLAGS for a process with this many virtual CPU devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={devices}"
