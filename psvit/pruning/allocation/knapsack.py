"""The multiple-choice knapsack, solved to optimality."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

# of the search, which takes a few hundred at most where costs differ; the best found by then counts
NODES = 5000


def choose_levels(
    cost: Mapping[str, np.ndarray],
    saved: Mapping[str, Mapping[str, np.ndarray]],
    goals: Mapping[str, float],
) -> dict[str, int]:
    """One level for each group, with the least total cost that saves every goal.

    Solved by HiGHS, through scipy. Level 0 is the group as it is. Of choices that cost the same,
    the one that cuts least; where no level costs anything, to a hundredth.

    Args:
        cost: for each group the predicted cost of its levels.
        saved: for each resource and group what its levels save.
        goals: for each resource what is to be saved in all, in the unit of ``saved``.

    Raises:
        ValueError: no choice of levels saves the goals.
    """
    names = list(cost)
    sizes = [len(cost[name]) for name in names]
    owner = np.repeat(np.arange(len(names)), sizes)
    one_each = (owner == np.arange(len(names))[:, None]).astype(float)
    costs = np.concatenate([cost[name] for name in names])
    constraints = [LinearConstraint(one_each, 1, 1)]
    # of choices that cost the same, the one that cuts least: worth less than any measured digit
    least_cut = np.zeros(len(owner))
    for resource, goal in goals.items():
        savings = np.concatenate([saved[resource][name] for name in names]).astype(float)
        # scaled, as the solver's tolerance is absolute
        unit = max(float(np.abs(savings).max()), 1e-30)
        constraints.append(LinearConstraint(savings[None] / unit, goal / unit, np.inf))
        least_cut += 1e-6 * savings / max(np.abs(savings).sum(), 1e-30)
    with _unheard():
        result = milp(
            # scaled, as the solver takes differences below 1e-7 for none
            1e5 * (costs + least_cut),
            constraints=constraints,
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            # where nothing costs anything, to prove which choice cuts least may take minutes
            options={"mip_rel_gap": 0.0 if costs.any() else 0.01, "node_limit": NODES},
        )
    if result.x is None:
        raise ValueError(f"no choice of levels saves {dict(goals)}")
    chosen = result.x.round().astype(bool)
    return {name: int(np.flatnonzero(chosen[owner == i])[0]) for i, name in enumerate(names)}


@contextmanager
def _unheard() -> Iterator[None]:
    """What HiGHS prints for its developers, whatever ``disp`` says, goes nowhere.

    It is written past Python's streams, and perhaps only when C's buffer is flushed.
    """
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    heard = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(heard, 1)
        os.close(heard)
