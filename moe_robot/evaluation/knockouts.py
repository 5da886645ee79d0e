"""What a policy with something switched off is called: on screens and pages, and as a key of stored results."""

from __future__ import annotations

from collections.abc import Iterable

from moe_robot.evaluation.episode import Job
from moe_robot.types import GATE_CONTENT, GATE_MODALITY, GATE_ROLES

GATES = {
    GATE_MODALITY: "gate without its modality term",
    GATE_CONTENT: "gate without the token",
    GATE_ROLES: "gate with permuted roles",
}
GATES_NOTE = (
    "In the gate rows all experts are on and the trained gate is changed: without the bonus per modality and what "
    "training made of it; blind to what a token holds, so that its modality alone decides; or with every modality "
    "sent to another role's experts."
)


def without(job: Job) -> str:
    """What is off in a job: ``"without vision experts"``, ``"without front and wrist"``, or ``""`` for all on."""
    if job.knockout:
        return knocked_out(job.knockout)
    return sensors_missing(job.sensors_off) if job.sensors_off else ""


def knocked_out(name: str) -> str:
    """``"vision"`` -> ``"without vision experts"``, ``"gate.content"`` -> ``"gate without the token"``."""
    return GATES.get(name, f"without {name} experts")


def heading(names: Iterable[str]) -> str:
    """What is off in rows of these names, for a title."""
    return f"experts switched off{' or the gate changed' if changes_gate(names) else ''}"


def changes_gate(names: Iterable[str]) -> bool:
    """Whether one of these is a part of the gate."""
    return not GATES.keys().isdisjoint(names)


def sensors_missing(names: str) -> str:
    """``"front+wrist"`` -> ``"without front and wrist"``."""
    return f"without {names.replace('+', ' and ')}"


def knockout_key(name: str) -> str:
    """``"vision"`` -> ``"experts vision"``, ``"gate.content"`` -> ``"gate content"``: keys of committed results."""
    return name.replace(".", " ", 1) if name in GATES else f"experts {name}"
