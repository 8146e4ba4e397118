"""Gibbs sampling over the words of prompts, for those that a detector scores highest.

Hong et al., "MemBench: Memorized Image Trigger Prompt Dataset for Diffusion Models" (TMLR 2025, arXiv 2407.17095),
section 4: a prompt is drawn in proportion to exp(D / τ), where D is how much it changes the first noise prediction
(Wen et al. 2024), one word at a time. Each step, a random word of each chain is masked, candidates for it come from a
masked language model, every candidate prompt is scored through one and the same noise, and the new word is drawn from
the softmax of D / τ.

What the authors' code does differently: it runs one chain of 150 steps with BERT's 200 likeliest words, takes the
squared norm as D with τ = 0.1 on Stable Diffusion's scale, and keeps one prompt a chain. Here chains share batches,
τ is in units of what scores of clean prompts vary by, and a chain that no longer improves begins anew, so that one run
finds several prompts.

A high score is no proof: the search maximises the detector's errors as well as memory. What it finds must be sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memattn_jax.errors import InputError
from memattn_jax.search.proposals import Proposals, Words

Score = Callable[[Sequence[str]], np.ndarray]  # prompts to float [prompts]; larger: more likely memorized


@dataclass(frozen=True)
class Chain:
    """A chain of the sampler.

    Attributes:
      words: the present ones.
      score: the best so far.
      prompt: that has it.
      since: steps since the best was found.
    """

    words: Words
    score: float = -np.inf
    prompt: str = ""
    since: int = 0


@dataclass(frozen=True)
class State:
    """A search between two steps: all that it goes on from.

    Attributes:
      step: number of steps done.
      chains: as they stand.
      ended: bests of chains that have begun anew, in the order in which they did.
      scored: number of prompts scored.
    """

    step: int
    chains: tuple[Chain, ...]
    ended: tuple[Chain, ...] = ()
    scored: int = 0

    @property
    def found(self) -> list[Chain]:
        """The best prompt of every chain, each prompt once, highest score first."""
        best = {one.prompt: one for one in sorted((*self.ended, *self.chains), key=lambda one: one.score)}
        return sorted((one for one in best.values() if one.prompt), key=lambda one: -one.score)


@dataclass(frozen=True)
class Search:
    """Settings.

    Attributes:
      temperature: τ; in the unit of the scores.
      chains: run side by side.
      steps: of each chain.
      patience: steps without a better score after which a chain begins anew.
      seed: of all draws; a step's depend on it and on the step alone.

    Raises:
      InputError: a number that is not positive.
    """

    temperature: float
    chains: int = 8
    steps: int = 150
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "chains", "steps", "patience"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)}; must be positive and finite")


def search(score: Score, proposals: Proposals, settings: Search, state: State | None = None) -> Iterator[State]:
    """Runs chains, and yields the state after every step.

    Args:
      score: of prompts, each of which must depend on its own text alone. A score that is not finite is never drawn.
      proposals: words for a position.
      settings: see `Search`.
      state: to go on from, of the same settings; the same prompts are found as without an interruption.
    """
    if state is None:
        rng = np.random.default_rng([settings.seed, 0])
        state = State(0, tuple(Chain(proposals.start(rng)) for _ in range(settings.chains)))
    while state.step < settings.steps:
        state = advance(score, proposals, settings, state)
        yield state


def advance(score: Score, proposals: Proposals, settings: Search, state: State) -> State:
    """One step of every chain."""
    rng = np.random.default_rng([settings.seed, state.step + 1])
    words = [chain.words for chain in state.chains]
    positions = [int(rng.integers(len(each))) for each in words]
    options = []
    for each, position, candidates in zip(words, positions, proposals.candidates(words, positions, rng), strict=True):
        choices = dict.fromkeys((each[position], *candidates))  # the present word is always one of them
        options.append([(*each[:position], choice, *each[position + 1 :]) for choice in choices])
    texts = [[proposals.text(each) for each in group] for group in options]
    scores = np.asarray(score([text for group in texts for text in group]), np.float64)
    chains, ended, first = [], list(state.ended), 0
    for chain, group, prompts in zip(state.chains, options, texts, strict=True):
        own = scores[first : first + len(group)]
        first += len(group)
        moved = move(chain, group, prompts, own, settings.temperature, rng)
        if moved.since >= settings.patience:
            ended.append(moved)
            moved = Chain(proposals.start(rng))
        chains.append(moved)
    return State(state.step + 1, tuple(chains), tuple(ended), state.scored + first)


def move(
    chain: Chain,
    options: Sequence[Words],
    prompts: Sequence[str],
    scores: np.ndarray,
    temperature: float,
    rng: np.random.Generator,
) -> Chain:
    """A chain after one step: the word drawn, and the best prompt seen.

    Args:
      chain: before the step.
      options: the words it may have after it.
      prompts: their texts.
      scores: float [options].
      temperature: τ.
      rng: of the draw.
    """
    usable = np.isfinite(scores)
    if not usable.any():
        return replace(chain, since=chain.since + 1)
    energy = np.where(usable, scores, -np.inf) / temperature
    weights = np.exp(energy - energy.max())
    words = options[int(rng.choice(len(options), p=weights / weights.sum()))]
    best = int(np.argmax(np.where(usable, scores, -np.inf)))
    if scores[best] > chain.score:
        return Chain(words, float(scores[best]), prompts[best])
    return replace(chain, words=words, since=chain.since + 1)
