"""Memorized prompts that nobody gave: a Gibbs sampler over the words of a prompt, and where its words come from.

gibbs.py      the chains, driven by a detector's score
proposals.py  the words that a position may take: those of the built-in model's grammar, of a list, or a function's
"""

from memattn_jax.search.gibbs import Chain, Search, State, search
from memattn_jax.search.proposals import Proposals, Slots

__all__ = ["Chain", "Proposals", "Search", "Slots", "State", "search"]
