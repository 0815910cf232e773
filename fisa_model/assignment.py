"""The assignment of least total cost, and who may be in it while some costs are known only between bounds."""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Costs = NDArray[np.float64]
"""[Q, N], of proposal q for segment n."""


def assign(costs: Costs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of least total cost, min(Q, N) of them: proposals, in order, and their segments."""
    return cast(tuple[NDArray[np.int64], NDArray[np.int64]], linear_sum_assignment(costs))


def may_be_assigned(least: Costs, most: Costs) -> NDArray[np.bool_]:
    """Which proposals, [Q], an assignment needs to know of if costs are anywhere from `least` to `most`.

    Whatever the costs turn out to be, some assignment of least total cost uses none of the others.

    An assignment differs from the one that is best under `most` by chains: a segment takes a proposal that
    another one held, that one the proposal of a third, and the last one a proposal that nobody held, or the
    first one's. A chain that does not pay where all that it takes costs the least, and all that it gives up
    the most, never does.
    """
    if least.shape[0] <= least.shape[1]:
        return np.ones(least.shape[0], dtype=bool)
    proposals, segments = assign(most)
    held = proposals[np.argsort(segments)]
    change = least - most[held, np.arange(len(held))]
    # From segment i, which takes the proposal of the next, to segment j, whose proposal is taken: the change
    # along the cheapest way, by Floyd and Warshall. Ways that cross themselves only make it lower.
    chains = change[held].T
    np.fill_diagonal(chains, 0.0)
    with np.errstate(over="ignore"):
        for k in range(len(held)):
            np.minimum(chains, chains[:, k, None] + chains[k], out=chains)
    before = chains.min(axis=0, initial=0.0)
    needed = np.asarray((before + change).min(axis=1, initial=0.0) < 0)
    needed[held] = True
    return needed
