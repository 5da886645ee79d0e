"""Which experts to put on which of N devices: proposed from measured routes, and judged by playing the routes again.

Letters: T tokens · K routes per token · E experts · N devices · S steps (a step is one batch of frames). A frame's
tokens live on one device, as in data parallel training or when robots are divided among machines; a route to an expert
that is not there travels. In each layer everybody waits for the busiest device, so a step takes as long as its maximum.

The greedy start is that of Graham 1969 ("Bounds on multiprocessing timing anomalies": longest processing time first);
copies are the redundant experts of DeepSeek-V3's serving (section 3.4 of its report).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, permutations, product

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

    def counts_SHE(self, devices: int) -> np.ndarray:
        """Routes from tokens that live on each device to each expert in each step, int64 (S, N, E)."""
        place_TK = np.broadcast_to((self.step_T * devices + self.home_T)[:, None], self.ids_TK.shape)
        there = self.ids_TK >= 0
        flat = place_TK[there] * self.experts + self.ids_TK[there]
        size = (self.steps, devices, self.experts)
        return np.bincount(flat, minlength=int(np.prod(size))).reshape(size)

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
    n, goes_EN = here_EN.shape[1], destinations(here_EN)
    there_TK = steps.ids_TK >= 0
    device_TK = goes_EN[np.where(there_TK, steps.ids_TK, 0), steps.home_T[:, None]]
    step_TK = np.broadcast_to(steps.step_T[:, None], steps.ids_TK.shape)
    load = np.bincount((step_TK * n + device_TK)[there_TK], minlength=steps.steps * n)
    away_TK = there_TK & (device_TK != steps.home_T[:, None])
    token, slot = np.nonzero(away_TK)
    sends = len(np.unique(token * n + device_TK[token, slot]))
    return Outcome(load.reshape(steps.steps, n), int(there_TK.sum()), int(away_TK.sum()), sends)


def destinations(here_EN: np.ndarray) -> np.ndarray:
    """From each device (the second axis), where a route to each expert goes: int64 (E, N)."""
    n = here_EN.shape[1]
    holders_EN = np.argsort(~here_EN, axis=1, kind="stable")  # those that have a copy come first
    one_of_EN = np.arange(n) % here_EN.sum(axis=1, keepdims=True)
    return np.where(here_EN, np.arange(n), np.take_along_axis(holders_EN, one_of_EN, axis=1))


def contiguous(experts: int, devices: int) -> np.ndarray:
    """The usual placement: the first experts on the first device, and so on. bool (E, N)."""
    return np.arange(experts)[:, None] * devices // experts == np.arange(devices)


def propose(steps: Steps, devices: int, copies: int = 0) -> np.ndarray:
    """A placement for these steps: bool (E, N).

    Every device holds at most ``ceil((E + copies) / N)`` experts, so that none needs more memory. First the heaviest
    experts go to the least busy device in turn; then experts change places, and move into free ones, while that makes
    the sum over steps of the busiest device smaller; then, while it costs next to nothing, so that tokens find both of
    their experts on one device. Copies are added one by one where they help that sum most, and everything changes
    places once more. Without copies it is never worse than :func:`contiguous` on these steps, by that sum and but for
    the slack.

    Args:
        copies: how many more experts than E the devices hold together.
    """
    counts = steps.counts_SHE(devices).reshape(steps.steps, -1).astype(float)
    room = -(-steps.experts // devices)
    greedy = longest_first(steps.loads_SE().sum(axis=0), devices, room)[:, None] == np.arange(devices)
    starts = [_search(counts, start_EN, room) for start_EN in (greedy, contiguous(steps.experts, devices))]
    here_EN = _keep_together(counts, steps.together_EE(), min(starts, key=lambda start_EN: _time(counts, start_EN)))
    room = -(-(steps.experts + copies) // devices)
    for _ in range(copies):
        here_EN = min(_with_one_more(here_EN, room), key=lambda other_EN: _time(counts, other_EN))
    return _search(counts, here_EN, room) if copies else here_EN


def lower_bound_S(steps: Steps, devices: int, copies: int = 0) -> np.ndarray:
    """Load that the busiest device has at least in each step (S,), wherever experts are: an even share of all routes.

    Without copies also the routes of the hottest expert, which one device does alone.
    """
    loads_SE = steps.loads_SE()
    even_S = np.ceil(loads_SE.sum(axis=1) / devices)
    return even_S if copies else np.maximum(even_S, loads_SE.max(axis=1))


def longest_first(load_E: np.ndarray, devices: int, room: int) -> np.ndarray:
    """Each in turn, the heaviest first, to the least busy device that has room for it. int64 (E,)."""
    at_E = np.zeros(len(load_E), int)
    busy_N, held_N = np.zeros(devices), np.zeros(devices, int)
    for e in np.argsort(-load_E, kind="stable"):
        at_E[e] = np.lexsort((held_N, busy_N, held_N >= room))[0]
        busy_N[at_E[e]] += load_E[e]
        held_N[at_E[e]] += 1
    return at_E


def _time(counts: np.ndarray, here_EN: np.ndarray) -> float:
    """Sum over steps of the busiest device's routes; ``counts`` are (S, N·E), the home device before the expert."""
    goes_NE = destinations(here_EN).T.reshape(-1)
    return float((counts @ (goes_NE[:, None] == np.arange(here_EN.shape[1]))).max(axis=1).sum())


def _search(counts: np.ndarray, start_EN: np.ndarray, room: int) -> np.ndarray:
    """Change places two by two, and move into free ones, while the time falls."""
    here_EN, time = start_EN.copy(), _time(counts, start_EN)
    for _ in range(ROUNDS):
        before = time
        for other_EN in chain(_moves(here_EN, room), _swaps(here_EN)):
            other = _time(counts, other_EN)
            if other < time - 1e-9:
                here_EN[:], time = other_EN, other
        if time == before:
            break
    return here_EN


def _keep_together(counts: np.ndarray, together_EE: np.ndarray, start_EN: np.ndarray) -> np.ndarray:
    """Change places while more of the experts that tokens visit together share a device, within the slack."""
    limit = _time(counts, start_EN) * (1 + SLACK)

    def kept(here_EN: np.ndarray) -> int:
        return int((together_EE * (here_EN.astype(int) @ here_EN.T.astype(int))).sum())

    here_EN, most = start_EN.copy(), kept(start_EN)
    for _ in range(ROUNDS):
        before = most
        for other_EN in _swaps(here_EN):
            now = kept(other_EN)
            if now > most and _time(counts, other_EN) <= limit:
                here_EN[:], most = other_EN, now
        if most == before:
            break
    return here_EN


def _moves(here_EN: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Placements with one expert on another device that has room. ``here_EN`` may be overwritten on the way."""
    experts, devices = here_EN.shape
    for e, a, b in product(range(experts), range(devices), range(devices)):
        if here_EN[e, a] and not here_EN[e, b] and here_EN[:, b].sum() < room:
            yield _changed(here_EN, (e, a, b))


def _swaps(here_EN: np.ndarray) -> Iterator[np.ndarray]:
    """Placements with two experts in each other's place, likewise."""
    experts, devices = here_EN.shape
    for (e, f), (a, b) in product(combinations(range(experts), 2), permutations(range(devices), 2)):
        if here_EN[e, a] and here_EN[f, b] and not here_EN[e, b] and not here_EN[f, a]:
            yield _changed(here_EN, (e, a, b), (f, b, a))


def _with_one_more(here_EN: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Placements with one more copy of some expert."""
    for e, d in np.argwhere(~here_EN & (here_EN.sum(axis=0) < room)):
        more_EN = here_EN.copy()
        more_EN[e, d] = True
        yield more_EN


def _changed(here_EN: np.ndarray, *changes: tuple[int, int, int]) -> np.ndarray:
    other_EN = here_EN.copy()
    for expert, before, after in changes:
        other_EN[expert, before], other_EN[expert, after] = False, True
    return other_EN
