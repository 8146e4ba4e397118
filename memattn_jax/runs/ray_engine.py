"""Scores computed by Ray's actors: the run, its table and its resumption stay as they are, and batches go elsewhere.

The process that reads prompts and writes the table hands each batch to the actor with the least to do. An actor loads
and compiles once. Where one dies, or its node does, its batches go to the others, and Ray starts it again if there is
room. Rows are written by the one process alone, so each is there once.
"""

import logging
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memattn_jax.detectors.detection import Detection, first_rows
from memattn_jax.errors import InputError
from memattn_jax.sharding.placement import rows_multiple
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.detectors.scorer import Scorer

QUEUED = 2  # batches an actor, so that it has the next one when one is done
CONNECT_SECONDS = 10
REASON = 100  # characters of what an actor died of
REFUSAL = 150  # and of what Ray says of an address
DEATHS = 4  # of actors by one batch, which then is the cause


class RayWorker:
    """What an actor runs: a scorer, made once."""

    def __init__(self, make: "Callable[[], Scorer]"):
        self.scorer = make()

    def ready(self) -> None:
        """Returns once the scorer is there."""

    def score(self, texts: list[str], seeds: list[int]) -> Detection:
        """Scores of a batch, in the host's memory; on a mesh it is filled up to what divides among the devices."""
        filling = rows_multiple(len(texts), self.scorer.model.mesh) - len(texts)
        scores = self.scorer(texts + texts[-1:] * filling, seeds + seeds[-1:] * filling)
        return first_rows(scores, len(texts))


class RayActors:
    """Actors with a scorer each; `start` may be called while a thread waits for earlier batches.

    Attributes:
      ahead: batches to have in progress, so that no actor waits.
      queued: of each actor, the batches that it may still be working on.
      away: {actor: what becomes ready when it is there again}, of those that are starting.
    """

    def __init__(self, make: "Callable[[], Scorer]", address: str | None = None, actors: int | None = None):
        """Connects to a cluster, starts actors on it and waits for the first of them.

        Args:
          make: makes a scorer in an actor; must pickle.
          address: of the cluster, "auto" for the one that this machine belongs to; None starts Ray on this machine.
          actors: how many; by default one a GPU, else one a node with TPUs, which has all chips of it, else one a node.

        Raises:
          InputError: Ray is not installed, there is no such cluster, Ray refuses it, or no actor can make a scorer.
        """
        try:
            import ray
        except ImportError:
            raise InputError('--engine ray needs Ray: pip install "memattn-jax[ray]"') from None
        if not ray.is_initialized():
            try:
                answers(address)
                ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR)
            except OSError:
                raise InputError(f"--ray-address {address}: no Ray cluster there") from None
            except (ValueError, RuntimeError) as error:  # an address of another form, a cluster of another version
                option = "--engine ray" if address is None else f"--ray-address {address}"
                raise InputError(f"{option}: {printable(' '.join(str(error).split()), REFUSAL)}") from None
        count, wants = share_out([node["Resources"] for node in ray.nodes() if node["Alive"]])
        remote: Any = ray.remote(max_restarts=-1, scheduling_strategy="SPREAD", **wants)(RayWorker)
        self.actors: list[Any] = [remote.remote(make) for _ in range(actors or count)]
        self.ahead = QUEUED * len(self.actors)
        self.queued: dict[int, list[Any]] = {place: [] for place in range(len(self.actors))}
        self.away: dict[int, Any] = {place: self.awaken(place) for place in self.queued}
        self.lock = threading.Lock()
        self.least_busy()

    def awaken(self, place: int) -> Any:
        """What becomes ready when an actor is there again, and fails when it never will be."""
        return self.actors[place].ready.options(max_task_retries=-1).remote()

    def least_busy(self) -> int:
        """The actor with the fewest batches; waits where all are starting.

        Raises:
          InputError: all of them have died for good.
        """
        import ray
        from ray.exceptions import RayActorError

        while True:
            waiting = list(self.away.values())
            present = len(self.away) < len(self.queued)
            back = ray.wait(waiting, num_returns=1, timeout=0 if present else None)[0] if waiting else []
            for place in [place for place, reference in self.away.items() if reference in back]:
                try:
                    ray.get(self.away.pop(place))
                except RayActorError as error:
                    del self.queued[place]
                    if not self.queued:
                        raise InputError(f"no Ray actor could load the model: {reason_of(error)}") from None
            here = [place for place in self.queued if place not in self.away]
            if here:
                break
        for place in here:
            references = self.queued[place]
            self.queued[place] = ray.wait(references, num_returns=len(references), timeout=0)[1] if references else []
        return min(here, key=lambda place: len(self.queued[place]))

    def submit(self, texts: list[str], seeds: list[int]) -> tuple[int, Any]:
        """Gives a batch to an actor: its place, and a reference to the result."""
        with self.lock:
            place = self.least_busy()
            reference = self.actors[place].score.remote(texts, seeds)
            self.queued[place].append(reference)
        return place, reference

    def start(self, texts: Sequence[str], seeds: Sequence[int]) -> "Pending":
        """Starts scoring a batch; `fetch` of what it returns waits."""
        return Pending(self, list(texts), list(seeds))

    def lost(self, place: int) -> None:
        """Notes that an actor, or what it computed, is gone."""
        with self.lock:
            if place in self.queued and place not in self.away:
                self.queued[place] = []
                self.away[place] = self.awaken(place)


class Pending:
    """A batch that an actor computes, and another one if that is lost."""

    def __init__(self, actors: RayActors, texts: list[str], seeds: list[int]):
        self.actors, self.texts, self.seeds = actors, texts, seeds
        self.place, self.reference = actors.submit(texts, seeds)

    def fetch(self) -> Detection:
        """Waits for it; raises what the actor raised, and InputError where one actor after the other dies of it."""
        import ray
        from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError

        died = 0
        while True:
            try:
                return ray.get(self.reference)
            except (RayActorError, ObjectLostError) as error:
                died += isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError)
                if died == DEATHS:
                    raise InputError(
                        f"{DEATHS} Ray actors died of the same {counted(len(self.texts), 'prompt')}; try a smaller "
                        f"--batch-size ({reason_of(error)})"
                    ) from None
                self.actors.lost(self.place)
                self.place, self.reference = self.actors.submit(self.texts, self.seeds)


def reason_of(error: Exception) -> str:
    """The last line of what Ray says of an actor's death."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1], REASON)


def answers(address: str | None) -> None:
    """Raises OSError where nothing listens at host:port, for which Ray itself would wait minutes."""
    if found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
        socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()


def share_out(nodes: Sequence[dict[str, float]]) -> tuple[int, dict[str, Any]]:
    """How many actors the nodes of a cluster hold, and what each of them asks for.

    Args:
      nodes: each one's resources, as `ray.nodes` names them.
    """
    if gpus := int(sum(node.get("GPU", 0) for node in nodes)):
        return gpus, {"num_gpus": 1}
    if chips := [node["TPU"] for node in nodes if node.get("TPU")]:
        return len(chips), {"resources": {"TPU": min(chips)}}
    return len(nodes), {"num_cpus": 1}
