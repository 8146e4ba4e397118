"""How XLA compiles in tests, and in the commands that they start."""

# Without the optimisation of LLVM a program compiles in half the time or less; tiny models run no slower for it.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def xla_flags(devices: int = 1) -> str:
    """The value of XLA_FLAGS for a process with this many virtual CPU devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={devices}"
