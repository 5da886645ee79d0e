"""The only place that sends to a robot: the safety gate in front of it, and a watchdog thread beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Decision, Failure, State
from moe_robot.deploy.robot_io import Command, RobotIO
from moe_robot.deploy.safety import SafetyGate
from moe_robot.deploy.sync import Sensed, match

PATIENCE = 1.5
"""Control steps that the watchdog waits for the loop: with a quarter step between its looks, a hold comes within 2."""
LOOKS_PER_STEP = 4


class Watchdog:
    """Calls ``bite`` when it was not fed for too long, once, from a thread of its own."""

    def __init__(
        self, patience_s: float, look_every_s: float, clock: Callable[[], float], bite: Callable[[], None]
    ) -> None:
        self._patience, self._every, self._clock, self._bite = patience_s, look_every_s, clock, bite
        self._fed: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look; before the first feeding nothing is missed."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def feed(self) -> None:
        """The loop is alive."""
        self._fed = self._clock()

    def look(self) -> bool:
        """Bite if it is time; whether it was."""
        fed = self._fed
        if fed is None or self._clock() - fed <= self._patience:
            return False
        self._fed = None
        self._bite()
        return True

    def _watch(self) -> None:
        while not self._stopped.wait(self._every):
            self.look()


class GuardedRobot:
    """A robot behind the safety gate. Every method may be called from any thread.

    Judging a command and sending it are one step that nothing comes between: once the watchdog has stopped the robot,
    a command that was already on its way finds the gate shut.
    """

    def __init__(self, io: RobotIO, contract: Contract, tell: Callable[[Decision, float], None] | None = None) -> None:
        """Nothing is connected yet; ``tell`` is given every decision and its time, and must neither wait nor raise."""
        self._io, self._gate, self._lock, self._tell = io, SafetyGate(contract), threading.Lock(), tell
        self._sensed: Sensed | None = None
        self._enablings, self._moved, self._enabled_epoch = 0, False, -1
        period = contract.period_s
        self._watchdog = Watchdog(PATIENCE * period, period / LOOKS_PER_STEP, io.now, self._bite)

    def start(self) -> None:
        """Connect, and start the watchdog. The robot is disabled."""
        self._io.start()
        self._watchdog.start()

    def stop(self) -> None:
        """Hold the robot if it is enabled, then let go of it."""
        self.trip("operator", "the program ends")
        self._watchdog.stop()
        self._io.stop()

    def now(self) -> float:
        """Seconds, on the robot's clock that never jumps."""
        return self._io.now()

    @property
    def state(self) -> State:
        """Whether commands may pass."""
        return self._gate.state

    @property
    def enablings(self) -> int:
        """How often the robot was enabled: what was planned for an earlier time is not for this one."""
        return self._enablings

    @property
    def moved(self) -> bool:
        """Whether a command has passed on this connection since the robot was enabled first."""
        return self._moved

    @property
    def dry_run(self) -> bool:
        """Whether commands are only judged and shown."""
        return self._gate.dry_run

    def sense(self) -> Sensed:
        """The newest pictures and joint states. The watchdog sees this as a sign of life of the loop."""
        sensed = match(self._io.latest())
        self._sensed = sensed
        self._watchdog.feed()
        return sensed

    def look(self) -> Sensed:
        """As :meth:`sense`, between two steps: no sign of life, and not what commands are judged by."""
        return match(self._io.latest())

    def step(self, command: Command | None, enabling: int | None = None) -> Decision:
        """Judge a command by what the last :meth:`sense` gave, and send what the gate says. Call it in every step.

        Args:
            command: None when there is none.
            enabling: the number (:attr:`enablings`) of the one that the command was planned for, to be left out when
                another has come between; None for a command that fits any.
        """
        with self._lock:
            if enabling is not None and enabling != self._enablings:
                command = None
            return self._send(self._gate.check(command, self._sensed or NOTHING, self._io.now()))

    def enable(self, live: bool = False) -> Failure | None:
        """As :meth:`SafetyGate.enable`, by what can be sensed now."""
        sensed = match(self._io.latest())
        with self._lock:
            self._sensed = sensed
            refusal = self._gate.enable(sensed, self._io.now(), live)
            if refusal is None:
                self._enablings += 1
                self._moved = self._moved and sensed.epoch == self._enabled_epoch
                self._enabled_epoch = sensed.epoch
            return refusal

    def beat(self) -> None:
        """The operator says that all is well."""
        with self._lock:
            self._gate.beat(self._io.now())

    def trip(self, rule: str, wrong: str) -> Decision:
        """Hold now and stay held: the operator's stop."""
        with self._lock:
            return self._send(self._gate.trip(rule, wrong, self._sensed, self._io.now()))

    def _bite(self) -> None:
        self.trip("watchdog", "the control loop gave no sign of life for more than a step and a half")

    def _send(self, decision: Decision) -> Decision:
        self._moved = self._moved or decision.passed is not None
        if decision.send is not None:
            self._io.send(decision.send)
        if self._tell is not None:
            self._tell(decision, self._io.now())
        return decision


NOTHING = Sensed({}, None, None, 0)
"""Before anything was sensed."""
