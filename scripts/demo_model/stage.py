"""One stage of training: a network and a loss, deterministic and resumable."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, P
from jax.sharding import AxisType, NamedSharding
from tqdm import tqdm

from memattn_jax.training.data import batches
from memattn_jax.training.loop import Checkpoints

M = TypeVar("M", bound=nnx.Module)
CHECKPOINT_EVERY = 500


class Machine(NamedTuple):
    """What a training run is made to fit.

    Attributes:
      dtype: of the network inside the loss; parameters and their updates are float32.
      workers: processes that draw examples; 0 for threads of the one that trains.
    """

    dtype: str = "float32"
    workers: int = 0


def adam(peak: float, steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients, with warm-up and cosine decay to 0."""
    rates = optax.warmup_cosine_decay_schedule(0.0, peak, min(500, steps // 10), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))


def run_stage(
    folder: Path,
    model: M,
    loss: Callable[[M, dict[str, Array], Array], Array],
    examples: Any,
    *,
    rate: float,
    steps: int,
    batch_size: int,
    machine: Machine = Machine(),  # noqa: B008 -- immutable
) -> M:
    """Trains a network to `steps`, from its newest checkpoint in `folder`.

    Args:
      folder: of the checkpoints.
      model: the network at the start.
      loss: of the network, a batch and the number of the step.
      examples: a random-access source of dicts of arrays.
      rate: the highest learning rate.
      steps: updates in all.
      batch_size: rows of an update.
      machine: dtype and workers.
    """
    graph, params = nnx.split(model)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    optimizer = adam(rate, steps)

    @jax.jit(donate_argnames=("params", "state"))
    def update(params: Any, state: Any, batch: dict[str, Array], number: Array) -> Any:
        def cast_loss(params: Any) -> Array:
            cast = jax.tree.map(lambda leaf: leaf.astype(machine.dtype), params)
            return loss(nnx.merge(graph, cast), batch, number).astype(jnp.float32)

        value, gradients = jax.value_and_grad(cast_loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    checkpoints = Checkpoints(folder)
    start = (jnp.int32(0), params, optimizer.init(params))
    step, params, state = checkpoints.restore(jax.device_put(start, NamedSharding(mesh, P())))
    first = int(step)
    reader = itertools.islice(batches(examples, batch_size, 0, first, machine.workers), steps - first)
    progress = tqdm(reader, desc=folder.name, initial=first, total=steps, disable=None)
    for number, batch in enumerate(progress, start=first + 1):
        params, state, value = update(
            params, state, jax.device_put(batch, NamedSharding(mesh, P("data"))), jnp.int32(number)
        )
        if number % 50 == 0:
            progress.set_postfix(loss=f"{value:.4f}")
        if number % CHECKPOINT_EVERY == 0 or number == steps:
            checkpoints.save(number, (jnp.int32(number), params, state))
            if progress.disable:
                print(f"{folder.name}  step {number} of {steps}  loss {value:.4f}", flush=True)
    return nnx.merge(graph, params)
