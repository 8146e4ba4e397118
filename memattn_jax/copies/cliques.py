"""Whether seeds of one prompt agree, for which no training pictures are needed.

Carlini et al. (arXiv 2301.13188, section 4.2.1) connect those pictures of a prompt that are near each other, and expect
memorization where the largest clique has 10 of 500.
"""

import numpy as np


def largest_clique(close: np.ndarray) -> np.ndarray:
    """The largest set of pictures of which each two are close; exactly, by branch and bound.

    The bound is a greedy colouring, as a clique has at most one vertex of each colour (Tomita & Seki, 2003). Seeds of a
    prompt mostly agree or do not, which is quick; the worst graphs take a time that is exponential in their size.

    Args:
      close: bool [n, n], symmetric, such as `tiled_distance(x, x) < threshold`; the diagonal does not matter.

    Returns:
      int [size], their indices, ascending.
    """
    neighbours = [sum(1 << int(other) for other in np.flatnonzero(row)) & ~(1 << own) for own, row in enumerate(close)]
    best: list[int] = []

    def coloured(candidates: int) -> list[tuple[int, int]]:
        """Vertices with their colours, which ascend from 1."""
        found, colour = [], 0
        while candidates:
            colour += 1
            free = candidates
            while free:
                vertex = (free & -free).bit_length() - 1
                found.append((vertex, colour))
                candidates &= ~(1 << vertex)
                free &= ~(1 << vertex) & ~neighbours[vertex]
        return found

    # a loop and no recursion, as a clique may have more members than Python has levels
    chosen: list[int] = []
    everything = (1 << len(neighbours)) - 1
    levels = [(everything, coloured(everything))]
    while levels:
        candidates, branches = levels[-1]
        if not branches or len(chosen) + branches[-1][1] <= len(best):
            levels.pop()
            if chosen:
                chosen.pop()
            continue
        vertex, _ = branches.pop()
        levels[-1] = (candidates & ~(1 << vertex), branches)
        chosen.append(vertex)
        if len(chosen) > len(best):
            best = list(chosen)
        inner = candidates & neighbours[vertex]
        levels.append((inner, coloured(inner)))
    return np.array(sorted(best), int)
