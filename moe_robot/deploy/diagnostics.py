"""What a deployment tells ROS's ``/diagnostics``, as a plain message: the safety gate's state and the broken rule."""

from __future__ import annotations

from typing import Any

from moe_robot.deploy.decision import State
from moe_robot.deploy.deployment import Deployment
from moe_robot.deploy.robot_io import RobotIO

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"
LEVELS = {State.ENABLED: OK, State.DISABLED: WARN, State.HELD: ERROR}


def diagnostics(name: str, stamp: float, deployment: Deployment | None, io: RobotIO | None, trouble: str | None) -> Any:
    """The fields of a ``diagnostic_msgs/msg/DiagnosticArray`` with one status.

    Args:
        name: of the node.
        stamp: now, on the wall clock, seconds.
        deployment: what is configured, or None.
        io: its robot.
        trouble: what went wrong last outside it, one line.
    """
    level, message, values = WARN, trouble or "not configured", {}
    if deployment is not None and io is not None:
        level, message, values = _of(deployment, io)
        if trouble:
            values["trouble"] = trouble
    status = {
        "level": level,
        "name": f"{name}: safety gate",
        "message": message,
        "hardware_id": "",
        "values": [{"key": key, "value": str(value)} for key, value in values.items()],
    }
    second, nanosecond = divmod(round(stamp * 1e9), 10**9)
    return {"header": {"stamp": {"sec": second, "nanosec": nanosecond}, "frame_id": ""}, "status": [status]}


def _of(deployment: Deployment, io: RobotIO) -> tuple[bytes, str, dict[str, object]]:
    state, step, link = deployment.robot.state, deployment.step, io.status()
    failure = step.decision.failure if step else None
    rule = failure.rule if failure else ""
    message = failure.message if failure else state.value
    if deployment.failure:
        message = deployment.failure
    elif not deployment.running:
        message = "not active"
    values: dict[str, object] = {
        "state": state.value,
        "rule": rule,
        "dry run": deployment.robot.dry_run,
        "connected": link.connected,
        "epoch": link.epoch,
    }
    values |= {f"count: {what}": n for what, n in link.counts.items()}
    if link.trouble:
        values["connection"] = link.trouble
    values |= {f"p99 of {stage}, s": f"{seconds:.6f}" for stage, seconds in deployment.timings().items()}
    return ERROR if deployment.failure else LEVELS[state], message, values
