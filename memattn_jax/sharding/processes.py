"""How each process of a run learns its index and the number of processes."""

import re

import jax

from memattn_jax.errors import InputError
from memattn_jax.settings import jax_settings

START_SECONDS = 900  # hosts start minutes apart; each waits this long for the others


def start_processes(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    distributed: bool = False,
) -> tuple[int, int]:
    """Index of this process and number of processes; call it before anything asks JAX for a device.

    Processes connect at most once, to learn this and their devices, and disconnect again: they work for hours on shards
    of their own, and JAX would end all of them when one dies or finishes five minutes after the first. With both
    numbers and no coordinator they do not connect at all, so that one can be restarted alone.

    Args:
      coordinator: host:port of process 0, through which they connect.
      process_id: index of this process.
      num_processes: number of processes.
      distributed: read these three from the metadata of a TPU slice, Slurm or Open MPI.

    Returns:
      Index and count; (0, 1) without arguments.

    Raises:
      InputError: incomplete or invalid values, or no metadata to read them from.
    """
    numbers = {"--process-id": process_id, "--num-processes": num_processes}
    missing = [name for name, value in numbers.items() if value is None]
    if not distributed:
        if coordinator is None and len(missing) == 2:
            return 0, 1
        if missing:
            raise InputError(f"{' and '.join(missing)} missing: --process-id and --num-processes are needed together")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator {coordinator}: expected host:port")
    if process_id is not None and num_processes is not None:
        if not 0 <= process_id < num_processes:
            raise InputError(f"--process-id {process_id}: must be at least 0 and below --num-processes {num_processes}")
        if coordinator is None and not distributed:
            return process_id, num_processes
    try:
        with jax_settings(jax_enable_preemption_service=False):  # it swallows SIGTERM, and outlives the connection
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=START_SECONDS)
    except ValueError:
        raise InputError("--distributed: no cluster found; set --process-id and --num-processes instead") from None
    index, count = jax.process_index(), jax.process_count()  # starts the backend, which needs all processes
    jax.distributed.shutdown()
    return index, count
