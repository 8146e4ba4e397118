"""The training loop: batches in, checkpoints and metrics out, exact resumption."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.runs.stream import asked_to_stop
from memattn_jax.sharding.placement import replicate, spread
from memattn_jax.text import printable
from memattn_jax.training.settings import TrainSettings
from memattn_jax.training.step import Batch, Setup, TrainState, train_step

DIFFERENCES = 120  # characters of an error that lists settings


class Checkpoints:
    """The newest states of a run, saved with Orbax; incomplete checkpoints of a killed process are ignored."""

    def __init__(self, folder: Path, keep: int = 2):
        import orbax.checkpoint as ocp

        self.ocp = ocp
        self.manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        )

    def save(self, step: int, state: Any) -> None:
        """Writes a pytree of arrays as the state after a step.

        Raises:
          OSError: it could not be written, for example because the disk is full; the previous one is kept.
        """
        leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        needed, free = sum(leaf.nbytes for leaf in leaves.values()), shutil.disk_usage(self.manager.directory).free
        try:
            if free < needed:
                raise OSError(f"{needed} bytes needed on the disk, {free} free")
            self.manager.save(step, args=self.ocp.args.StandardSave(leaves))
        except (OSError, ValueError) as error:  # tensorstore raises ValueError
            good = self.manager.latest_step()
            kept = "there is no earlier one" if good is None else f"the one of step {good} is intact"
            reason = str(error).splitlines()[0]
            raise OSError(f"the checkpoint of step {step} was not written ({reason}); {kept}") from None

    def restore(self, like: Any) -> Any:
        """The newest state, with the structure and shardings of `like`; `like` itself if there is none.

        Raises:
          InputError: its files cannot be read.
        """
        step = self.manager.latest_step()
        if step is None:
            return like
        leaves, structure = jax.tree.flatten(like)
        template = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
        try:
            stored = self.manager.restore(step, args=self.ocp.args.StandardRestore(template))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.manager.directory / str(step)}: cannot be read ({printable(str(error), 100)}); remove it, and "
                "the same command goes on from the checkpoint before it, where there is one"
            ) from None
        return jax.tree.unflatten(structure, [stored[name] for name in sorted(stored)])


def check_settings(out: Path, settings: TrainSettings, inputs: dict[str, str]) -> None:
    """Writes the settings and inputs of a new run; refuses to resume with different ones.

    Args:
      out: the run's folder.
      settings: of this run.
      inputs: what else determines the results, such as the model and the data's fingerprint.

    Raises:
      InputError: the folder holds a run with other settings; the message names them.
    """
    path = out / "settings.json"
    new = asdict(settings) | inputs
    if not path.exists():
        if last_checkpoint(out) is not None:
            raise InputError(f"{out}: holds checkpoints without the settings.json of their run; choose another --out")
        path.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        return
    try:
        old = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise InputError(f"{path} is damaged; choose another --out") from None
    differing = [f"{k} {old.get(k)!r} is now {new[k]!r}" for k in new if old.get(k) != new[k]]
    if differing:
        listed = printable("; ".join(differing), DIFFERENCES)
        raise InputError(f"{out} holds a run with other settings: {listed}; choose another --out")


def keep_until(path: Path, step: int) -> None:
    """Removes metrics after a step, left by an interrupted run, which will be written again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()[:step]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def last_checkpoint(out: Path) -> int | None:
    """The step of the newest complete checkpoint of a run; None if there is none."""
    return max((int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit()), default=None)


def pinned_step(state: TrainState) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step` for a state on a mesh, which keeps its shardings; XLA might choose others."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(train_step, donate_argnames="state", out_shardings=(shardings, None))


class Callbacks(NamedTuple):
    """Functions that a training run calls.

    Attributes:
      start: called before the first step, which compiles, with the number of steps already done.
      step: called after each step with its number, metrics and the new state.
    """

    start: Callable[[int], None] = lambda _: None
    step: Callable[[int, dict[str, float], TrainState], None] = lambda *_: None


def train(
    state: TrainState,
    setup: Setup,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    steps: int,
    out: Path,
    checkpoint_every: int = 500,
    mesh: jax.sharding.Mesh | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 -- immutable
) -> tuple[TrainState, bool]:
    """Trains to `steps`, from the newest checkpoint in `out` if there is one.

    SIGTERM finishes the current step, saves, and returns; Ctrl-C does the same and then raises KeyboardInterrupt, and a
    second one raises it at once. After SIGKILL the run resumes from the last checkpoint, with the same losses as a run
    that was never interrupted.

    Args:
      state: the first state; its arrays are donated.
      setup: the constants of the run.
      batches: returns the batches from a given number on.
      steps: total number of updates.
      out: receives checkpoints/ and metrics.jsonl, one line per step.
      checkpoint_every: steps between checkpoints.
      mesh: devices to split the batch over; parameters keep the shardings that the model was loaded with, and the
        optimizer's moments and the moving average have the same.
      callbacks: called before and during training.

    Returns:
      The last state, and whether training is finished.

    Raises:
      InputError: the loss or its gradient is not finite; the last checkpoint is from before.
    """
    checkpoints = Checkpoints(out / "checkpoints")
    state, setup = replicate((state, setup), mesh)
    state = checkpoints.restore(state)
    first = int(state.step)
    keep_until(out / "metrics.jsonl", first)
    update = train_step if mesh is None else pinned_step(state)
    callbacks.start(first)
    with asked_to_stop() as stopping, (out / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for step, batch in zip(range(first + 1, steps + 1), batches(first), strict=False):
            rows = spread(Batch(batch["pictures"], batch["input_ids"]), mesh)
            state, metrics = update(state, setup, rows)
            line: dict[str, Any] = {"step": step} | {
                name: float(metrics[name]) for name in ("loss", "gradient_norm", "kept")
            }
            line["score"] = float(metrics["score"].mean())
            if not math.isfinite(line["loss"] + line["gradient_norm"]):
                raise InputError(
                    f"step {step}: loss {line['loss']}, gradient norm {line['gradient_norm']}: training has diverged; "
                    "choose a lower --learning-rate and another --out"
                )
            log.write(json.dumps(line) + "\n")
            log.flush()
            due = step == steps or step % checkpoint_every == 0
            if due:  # before anything that may fail
                checkpoints.save(step, state)
            callbacks.step(step, line, state)
            if stopping():
                if not due:
                    checkpoints.save(step, state)
                break
        if stopping() == signal.SIGINT:
            raise KeyboardInterrupt
    return state, int(state.step) == steps
