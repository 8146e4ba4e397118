"""How the processes of one run learn which of them they are."""

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
    """Which of how many processes this is; to be called before anything asks JAX for a device.

    Processes meet at most once, to learn this and the devices, and let go of each other again: they work for hours on
    slices of their own, and JAX would end all of them when one dies or is five minutes later than the first. Those that
    are told both numbers and no coordinator do not even meet, so one of them can be started again alone.

    Args:
      coordinator: host:port of process 0, where they meet.
      process_id: this one.
      num_processes: all.
      distributed: find these three from the metadata of a TPU slice, Slurm or Open MPI.

    Returns:
      Index and count; (0, 1) where nothing is given.

    Raises:
      InputError: only some of what is needed, values that cannot be, or no metadata to find them from.
    """
    numbers = {"--process-id": process_id, "--num-processes": num_processes}
    missing = [name for name, value in numbers.items() if value is None]
    if not distributed:
        if coordinator is None and len(missing) == 2:
            return 0, 1
        if missing:
            raise InputError(f"{' and '.join(missing)} not given: --process-id and --num-processes go together")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator {coordinator}: host:port is needed")
    if process_id is not None and num_processes is not None:
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process-id {process_id}: with --num-processes {num_processes}, ids from 0 on, less than it"
            )
        if coordinator is None and not distributed:
            return process_id, num_processes
    try:
        with jax_settings(jax_enable_preemption_service=False):  # it swallows SIGTERM, and outlives the meeting
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=START_SECONDS)
    except ValueError:
        raise InputError("--distributed: no cluster found here; give --process-id and --num-processes") from None
    index, count = jax.process_index(), jax.process_count()  # starts the backend, which takes all processes
    jax.distributed.shutdown()
    return index, count
