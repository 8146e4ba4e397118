"""A search on disk, so that the same command goes on with it."""

import json
from dataclasses import asdict
from math import inf
from typing import Any

from memattn_jax.search.gibbs import Chain, State


def to_json(state: State, settings: dict[str, Any]) -> bytes:
    """A state and what it was made with; a chain without a best prompt has no score."""
    content = {"settings": settings, **asdict(state)}
    for chain in (*content["chains"], *content["ended"]):
        chain["score"] = chain["score"] if chain["prompt"] else None
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(content: bytes, settings: dict[str, Any]) -> State | None:
    """The inverse; None where it was made with other settings."""
    stored = json.loads(content)
    if stored.pop("settings") != json.loads(json.dumps(settings)):
        return None

    def chains(given: list[dict[str, Any]]) -> tuple[Chain, ...]:
        return tuple(
            Chain(tuple(one["words"]), -inf if one["score"] is None else one["score"], one["prompt"], one["since"])
            for one in given
        )

    return State(stored["step"], chains(stored["chains"]), chains(stored["ended"]), stored["scored"])
