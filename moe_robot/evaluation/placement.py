"""Which experts to put on which of N devices: proposed from measured routes, and judged by playing the routes again.

Letters: T tokens · K routes per token · E experts · N devices · S steps (a step is one batch of frames). A frame's
tokens live on one device, as in data parallel training or when robots are divided among machines; a route to an expert
that is not there travels. In each layer everybody waits for the busiest device, so a step takes as long as its maximum.

The greedy start is that of Graham 1969 ("Bounds on multiprocessing timing anomalies": longest processing time first);
copies of hot experts follow GShard's and DeepSeek-V3's serving practice of redundant experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

SLACK = 0.02
"""A swap that keeps more pairs of experts together may cost this part of the step time, no more."""
ROUNDS = 50
"""Passes over all swaps at most; a pass without a gain ends the search long before."""


@dataclass(frozen=True)
class LayerRoutes:
    """Where the tokens of many frames went in one layer.

    Attributes:
        frame_T: int64 (T,), the frame of each token.
        ids_TK: int64 (T, K), its experts; -1 for a route that it does not make.
    """

    frame_T: np.ndarray
    ids_TK: np.ndarray


@dataclass(frozen=True)
class Steps:
    """The routes of one layer, as they fall into steps.

    Attributes:
        step_T: int64 (T,), which step each token is in, from 0 to ``steps`` - 1.
        home_T: int64 (T,), the device on which it lives.
        ids_TK: as in :class:`LayerRoutes`.
        experts: E.
    """

    step_T: np.ndarray
    home_T: np.ndarray
    ids_TK: np.ndarray
    steps: int
    experts: int

    def loads_SE(self) -> np.ndarray:
        """Routes to each expert in each step, int64 (S, E)."""
        step_TK = np.broadcast_to(self.step_T[:, None], self.ids_TK.shape)
        there = self.ids_TK >= 0
        flat = step_TK[there] * self.experts + self.ids_TK[there]
        return np.bincount(flat, minlength=self.steps * self.experts).reshape(self.steps, self.experts)

    def together_EE(self) -> np.ndarray:
        """How many tokens went to both experts of a pair, int64 (E, E), the diagonal 0."""
        chosen_TE = np.zeros((len(self.ids_TK), self.experts), np.int64)
        token, slot = np.nonzero(self.ids_TK >= 0)
        chosen_TE[token, self.ids_TK[token, slot]] = 1
        pairs_EE = chosen_TE.T @ chosen_TE
        np.fill_diagonal(pairs_EE, 0)
        return pairs_EE


@dataclass(frozen=True)
class Outcome:
    """What a placement of one layer did in each step, and how many of its routes travelled.

    Attributes:
        load_SN: int64 (S, N), routes that each device worked on.
        routes: all of them.
        leaving: those that left the device of their token.
        sends: transfers when a token goes once to each device that it needs, however many of its experts are there.
    """

    load_SN: np.ndarray
    routes: int
    leaving: int
    sends: int

    def skew_S(self) -> np.ndarray:
        """The busiest device over the mean, per step; 1 is even. Steps without routes are left out."""
        busy = self.load_SN[self.load_SN.any(axis=1)]
        return busy.max(axis=1) / busy.mean(axis=1)


def draw_steps(
    layers: Sequence[LayerRoutes], frames: np.ndarray, experts: int, devices: int, batch: int, steps: int, seed: int
) -> list[Steps]:
    """Make steps of ``batch`` different frames drawn from ``frames``; the i-th of a step lives on device i mod N.

    Args:
        layers: of one policy, all of the same frames.
        frames: numbers of those to draw from.

    Returns:
        one per layer; the same frames meet in all.
    """
    rng = np.random.default_rng(seed)
    drawn_SB = np.stack([rng.permutation(frames)[:batch] for _ in range(steps)])
    found = []
    for layer in layers:
        order = np.argsort(layer.frame_T, kind="stable")
        first = np.searchsorted(layer.frame_T[order], drawn_SB)
        size = np.searchsorted(layer.frame_T[order], drawn_SB, side="right") - first
        tokens = [order[a : a + n] for a, n in zip(first.ravel(), size.ravel(), strict=True)]
        step_B = np.repeat(np.arange(steps), drawn_SB.shape[1])
        home_B = np.tile(np.arange(drawn_SB.shape[1]) % devices, steps)
        ids_TK = layer.ids_TK[np.concatenate(tokens)]
        found.append(Steps(np.repeat(step_B, size.ravel()), np.repeat(home_B, size.ravel()), ids_TK, steps, experts))
    return found


def play(steps: Steps, here_EN: np.ndarray) -> Outcome:
    """Send every route of the steps to where its expert is.

    A route goes to a copy on its token's own device if there is one, otherwise to one of the copies, by that device's
    number.

    Args:
        here_EN: bool (E, N), on which devices each expert lies; each on one at least.
    """
    n = here_EN.shape[1]
    goes_EN = np.stack([_nearest(np.flatnonzero(here_N), n) for here_N in here_EN])
    there_TK = steps.ids_TK >= 0
    device_TK = goes_EN[np.where(there_TK, steps.ids_TK, 0), steps.home_T[:, None]]
    step_TK = np.broadcast_to(steps.step_T[:, None], steps.ids_TK.shape)
    load = np.bincount((step_TK * n + device_TK)[there_TK], minlength=steps.steps * n)
    away_TK = there_TK & (device_TK != steps.home_T[:, None])
    token, slot = np.nonzero(away_TK)
    sends = len(np.unique(token * n + device_TK[token, slot]))
    return Outcome(load.reshape(steps.steps, n), int(there_TK.sum()), int(away_TK.sum()), sends)


def _nearest(places: np.ndarray, n: int) -> np.ndarray:
    """From each of the n devices, the copy that it uses (n,)."""
    return np.array([home if home in places else places[home % len(places)] for home in range(n)])


def contiguous(experts: int, devices: int) -> np.ndarray:
    """The usual placement: the first experts on the first device, and so on. bool (E, N)."""
    return np.arange(experts)[:, None] * devices // experts == np.arange(devices)


def propose(steps: Steps, devices: int, copies: int = 0) -> np.ndarray:
    """A placement for these steps: bool (E, N).

    Every device holds at most ``ceil((E + copies) / N)`` experts, so that none needs more memory. First the hottest
    experts get the copies; then the heaviest go to the least busy device in turn; then experts change places, and move
    into free ones, while that makes the sum over steps of the busiest device smaller; last, while it costs next to
    nothing, so that tokens find both of their experts on one device. Without copies it is never worse than
    :func:`contiguous` on these steps, by that sum and but for the slack.

    Args:
        copies: how many more experts than E the devices hold together.
    """
    loads_SE = steps.loads_SE().astype(float)
    copied_E = _copies(loads_SE.sum(axis=0), copies, devices)
    owner_C = np.repeat(np.arange(steps.experts), copied_E)  # C, the copies of all experts
    share_SC = loads_SE[:, owner_C] / copied_E[owner_C]
    room = -(-len(owner_C) // devices)
    starts = [longest_first(share_SC.sum(axis=0), owner_C, devices, room)]
    if not copies:
        starts.append(contiguous(steps.experts, devices).argmax(axis=1))
    searched = [_search(share_SC, owner_C, start, devices, room) for start in starts]
    best = min(searched, key=lambda at_C: _step_time(share_SC, at_C, devices))
    at_C = _keep_together(share_SC, steps.together_EE(), owner_C, best, devices)
    here_EN = np.zeros((steps.experts, devices), bool)
    here_EN[owner_C, at_C] = True
    return here_EN


def lower_bound_S(steps: Steps, devices: int, copies: int = 0) -> np.ndarray:
    """Load that the busiest device has at least in each step (S,), wherever experts are: an even share of all routes.

    Without copies also the routes of the hottest expert, which one device does alone.
    """
    loads_SE = steps.loads_SE()
    even_S = np.ceil(loads_SE.sum(axis=1) / devices)
    return even_S if copies else np.maximum(even_S, loads_SE.max(axis=1))


def longest_first(load_C: np.ndarray, owner_C: np.ndarray, devices: int, room: int) -> np.ndarray:
    """Each in turn, the heaviest first, to the least busy device that has room and no copy of it yet. int64 (C,).

    Experts with several copies come before all others, to the emptiest devices, so that there are enough for them.
    """
    many_C = np.bincount(owner_C)[owner_C]
    at_C = np.full(len(load_C), -1)
    busy_N, held_N = np.zeros(devices), np.zeros(devices, int)
    for c in np.lexsort((np.arange(len(load_C)), -load_C, -many_C)):
        free_N = (held_N < room) & ~np.isin(np.arange(devices), at_C[(owner_C == owner_C[c]) & (at_C >= 0)])
        weights = (busy_N, held_N) if many_C[c] == 1 else (held_N, busy_N)
        at_C[c] = np.lexsort((weights[1], weights[0], ~free_N))[0]
        busy_N[at_C[c]] += load_C[c]
        held_N[at_C[c]] += 1
    return at_C


def _copies(load_E: np.ndarray, more: int, devices: int) -> np.ndarray:
    """How many copies each expert gets: one more at a time for the one whose copies are busiest."""
    copied_E = np.ones(len(load_E), int)
    for _ in range(more):
        heat_E = np.where(copied_E < devices, load_E / copied_E, -1.0)
        copied_E[int(heat_E.argmax())] += 1
    return copied_E


def _device_loads(share_SC: np.ndarray, at_C: np.ndarray, devices: int) -> np.ndarray:
    return share_SC @ (at_C[:, None] == np.arange(devices))


def _step_time(share_SC: np.ndarray, at_C: np.ndarray, devices: int) -> float:
    return float(_device_loads(share_SC, at_C, devices).max(axis=1).sum())


def _search(share_SC: np.ndarray, owner_C: np.ndarray, start_C: np.ndarray, devices: int, room: int) -> np.ndarray:
    """Change places two by two, and move into free ones, while the step time falls."""
    at_C, time = start_C.copy(), _step_time(share_SC, start_C, devices)
    for _ in range(ROUNDS):
        before = time
        for other_C in _neighbours(at_C, owner_C, devices, room):
            other = _step_time(share_SC, other_C, devices)
            if other < time - 1e-9:
                at_C[:], time = other_C, other
        if time == before:
            break
    return at_C


def _neighbours(at_C: np.ndarray, owner_C: np.ndarray, devices: int, room: int) -> Iterator[np.ndarray]:
    """Placements one change away from ``at_C``, which may be overwritten with one of them on the way."""
    for c in range(len(at_C)):
        for d in range(devices):
            if d != at_C[c] and (at_C == d).sum() < room and not ((owner_C == owner_C[c]) & (at_C == d)).any():
                moved_C = at_C.copy()
                moved_C[c] = d
                yield moved_C
    yield from _swaps(at_C, owner_C)


def _swaps(at_C: np.ndarray, owner_C: np.ndarray) -> Iterator[np.ndarray]:
    for a, b in combinations(range(len(at_C)), 2):
        if at_C[a] == at_C[b] or owner_C[a] == owner_C[b]:
            continue
        swapped_C = at_C.copy()
        swapped_C[[a, b]] = at_C[[b, a]]
        if all((swapped_C[owner_C == owner_C[c]] == swapped_C[c]).sum() == 1 for c in (a, b)):
            yield swapped_C


def _keep_together(
    share_SC: np.ndarray, together_EE: np.ndarray, owner_C: np.ndarray, start_C: np.ndarray, devices: int
) -> np.ndarray:
    """Change places while more of the experts that tokens visit together share a device, within the slack."""
    limit = _step_time(share_SC, start_C, devices) * (1 + SLACK)
    pairs_CC = together_EE[np.ix_(owner_C, owner_C)]

    def kept(at_C: np.ndarray) -> int:
        return int(pairs_CC[at_C[:, None] == at_C[None]].sum())

    at_C, most = start_C.copy(), kept(start_C)
    for _ in range(ROUNDS):
        before = most
        for other_C in _swaps(at_C, owner_C):
            now = kept(other_C)
            if now > most and _step_time(share_SC, other_C, devices) <= limit:
                at_C[:], most = other_C, now
        if most == before:
            break
    return at_C
