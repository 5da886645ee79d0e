"""What the policy server counts, in the text that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

PREFIX = "moe_robot_"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Series:
    """One number per set of labels: a counter that only grows, or a gauge."""

    def __init__(self, name: str, kind: str, help_line: str) -> None:
        self.name, self.kind, self.help_line = name, kind, help_line
        self._values: dict[Labels, float] = {(): 0.0}  # until there are labels

    def add(self, amount: float = 1, **labels: str) -> None:
        """Raise by ``amount``."""
        key = tuple(sorted(labels.items()))
        self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, value: float, **labels: str) -> None:
        """Make it ``value``."""
        self._values[tuple(sorted(labels.items()))] = value

    def clear(self) -> None:
        """Forget all labels, before others take their place."""
        self._values.clear()

    def value(self, **labels: str) -> float:
        """What it is now; 0 where nothing was told."""
        return self._values.get(tuple(sorted(labels.items())), 0.0)

    def lines(self) -> list[str]:
        """As Prometheus reads them."""
        told = [entry for entry in self._values.items() if entry[0] or len(self._values) == 1]
        return [*_head(self.name, self.kind, self.help_line), *(_line(self.name, *entry) for entry in told)]


class Histogram:
    """How many values were at most so large, for each of some bounds."""

    def __init__(self, name: str, bounds: Sequence[float], help_line: str) -> None:
        self.name, self.bounds, self.help_line = name, bounds, help_line
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def note(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts)

    @property
    def mean(self) -> float:
        """Of all that were counted; 0 of none."""
        return self._sum / max(self.count, 1)

    def lines(self) -> list[str]:
        """As Prometheus reads them."""
        text, below = _head(self.name, "histogram", self.help_line), 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            below += count
            text.append(_line(f"{self.name}_bucket", (("le", bound),), below))
        return [*text, _line(f"{self.name}_sum", (), self._sum), _line(f"{self.name}_count", (), below)]


class Metrics:
    """All series of one server."""

    def __init__(self) -> None:
        self.ready = Series("ready", "gauge", "1 while observations are answered.")
        self.robots = Series("robots", "gauge", "Connections that are open.")
        self.queue = Series("queue", "gauge", "Observations that wait for a batch.")
        self.requests = Series("requests_total", "counter", "Frames received, by outcome: ok, refused, failed.")
        self.turned_away = Series("turned_away_total", "counter", "Connections that were not let in, by reason.")
        self.received = Series("received_bytes_total", "counter", "Bytes of observations.")
        self.sent = Series("sent_bytes_total", "counter", "Bytes of answers.")
        self.swaps = Series("swaps_total", "counter", "Checkpoints that took over, or were refused, by outcome.")
        self.generation = Series("generation", "gauge", "Which policy answers: 1 is the first, each swap adds 1.")
        self.restarts = Series("policy_restarts_total", "counter", "Times that the policy's process had ended.")
        self.batch_size = Histogram("batch_size", SIZES, "Observations in one pass of the network.")
        self.waited = Histogram("queue_seconds", SECONDS, "From an observation's arrival to its batch.")
        self.inference = Histogram("inference_seconds", SECONDS, "One pass of the network, as its process measures it.")
        self.total = Histogram("request_seconds", SECONDS, "From an observation's arrival to its answer, sent.")
        self.expert_share = Series("expert_share", "gauge", "Share of a layer's routes in the latest sampled batch.")
        self.expert_routes = Series("expert_routes_total", "counter", "Routes of the sampled batches.")

    def note_load(self, experts: Sequence[str], routes_LE: Sequence[Sequence[int]]) -> None:
        """What the gate did in one batch: routes of each layer to each expert."""
        self.expert_share.clear()
        for layer, routes_E in enumerate(routes_LE):
            for expert, routes in zip(experts, routes_E, strict=True):
                where = {"layer": str(layer), "expert": expert}
                self.expert_share.set(routes / max(sum(routes_E), 1), **where)
                self.expert_routes.add(routes, **where)

    def text(self) -> str:
        """The page that Prometheus fetches."""
        return "\n".join(line for series in vars(self).values() for line in series.lines()) + "\n"


def _head(name: str, kind: str, help_line: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {help_line}", f"# TYPE {PREFIX}{name} {kind}"]


def _line(name: str, labels: Labels, value: float) -> str:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{PREFIX}{name}{'{' + told + '}' if told else ''} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
