"""`memattn audit --search`: a log of prompts that nobody gave, found by a Gibbs sampler over their words."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from memattn_jax import demo
from memattn_jax.commands.audit_options import Options
from memattn_jax.demo.grammar import slots
from memattn_jax.detectors import Scorer
from memattn_jax.detectors.scorer import score_batches
from memattn_jax.prompts import read_prompts
from memattn_jax.search import Proposals, Search, search
from memattn_jax.search.gibbs import Score
from memattn_jax.search.state import from_json, to_json
from memattn_jax.storage import Store
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion

DETECTOR = "noise_norm"  # what the search raises, as in MemBench
STATE, FOUND = "search.json", "found.txt"
CLEAN = 64  # prompts whose scores give the unit of the temperature
LISTED = 8


def score_by(sd: "StableDiffusion", batch: int) -> Score:
    """The score that the search raises: of prompts, all through one noise."""
    scorer = Scorer(sd, [DETECTOR])

    def score(prompts: "list[str]") -> np.ndarray:
        found = score_batches(scorer, ((prompt, 0) for prompt in prompts), batch)
        return np.concatenate([np.asarray(part.scores[DETECTOR]) for part in found])

    return score  # type: ignore[return-value]


def search_log(sd: "StableDiffusion", options: Options, own: Proposals | None) -> Options:
    """Searches, or goes on with a search, and returns options with which its prompts are audited as a log.

    Args:
      sd: the model.
      options: of the command.
      own: where words come from; None is the grammar of the built-in model.
    """
    store = Store(options.out / "search")
    clean = demo.clean_prompts() if options.clean is None else read_prompts(options.clean, options.column)
    score = score_by(sd, 4 * options.batch_size)
    unit = float(np.nanstd(score(clean[:CLEAN])))
    settings = Search(options.search_temperature * unit, options.search_chains, options.search_steps, seed=options.seed)
    about = asdict(settings) | {"proposals": options.proposals, "model": sd.fingerprint()}
    stored = store.read(STATE)
    state = None if stored is None else from_json(stored, about)
    proposals = slots(sd.tokenizer) if own is None else own
    with tqdm(total=settings.steps, unit="step", desc="searching", disable=None) as bar:
        bar.update(0 if state is None else state.step)
        for now in search(score, proposals, settings, state):
            store.write(STATE, to_json(now, about))
            bar.update()
            state = now
    assert state is not None
    print(f"the search scored {counted(state.scored, 'prompt')}; highest {DETECTOR}:")
    for chain in state.found[:LISTED]:
        print(f"  {chain.score:.4f}  {printable(chain.prompt, 80)}")
    store.write(FOUND, "".join(f"{chain.prompt}\n" for chain in state.found).encode())
    return replace(
        options,
        prompts=str(Path(options.out, "search", FOUND)),
        provenance=f"found by a search for prompts with a high {DETECTOR}",
    )
