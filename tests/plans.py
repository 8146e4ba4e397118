"""Sampling runs of a UNet alone, for tests that look at the compiled loop."""

import jax
import jax.numpy as jnp
import numpy as np

from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.diffusion.noise import row_keys
from memattn_jax.diffusion.rows import read_rows
from memattn_jax.diffusion.run import plan_run
from memattn_jax.diffusion.sampling import Plan, denoise
from memattn_jax.diffusion.settings import Settings
from memattn_jax.models.kernels.program import Program
from memattn_jax.pytree import as_arrays, as_pytree
from memattn_jax.schedulers import make_schedule


def make_plan(unet, schedule, noise, context, scale=7.5, lengths=None, **options) -> Plan:
    """A run of one prompt a row; `context` is of the negative prompts, then of the prompts, or of these alone."""
    rows = len(noise)
    lengths = np.full(rows, context.shape[1]) if lengths is None else lengths
    return Plan(
        unet=unet,
        schedule=schedule,
        noise=jnp.asarray(noise),
        context=jnp.asarray(context[-rows:]),
        negative=jnp.asarray(context[:rows]),
        guidance_scale=jnp.full((1, rows), scale, jnp.float32),
        lengths=jnp.asarray(lengths, jnp.int32),
        keys=row_keys(jnp.zeros(rows, jnp.uint32)),
        guided=len(context) == 2 * rows,
        **options,
    )


def traced_dtypes(model, prompts, **settings) -> set[str]:
    """The dtypes of what a run returns, which is traced and not compiled."""
    settings = Settings(steps=3, **settings)
    schedule = make_schedule(model.scheduler_config, settings.scheduler, settings.steps)
    rows = read_rows(model, prompts, settings, len(schedule.timesteps))
    mitigation = as_arrays(as_pytree(settings.mitigation or Mitigation()))
    plan = plan_run(model, rows, schedule, settings, mitigation)[0]
    return {str(leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(denoise, plan))}


def compiled(program: Program) -> int:
    """How many programs a function has become so far."""
    return sum(jitted._cache_size() for jitted in (program.plain, *program.by_library.values()))
