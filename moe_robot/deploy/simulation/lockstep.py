"""A simulated robot that waits: it tells what it senses, and moves by one control step when it is told to.

Whoever answers may take as long as it takes, and gets the very world of an evaluation. What belongs to one moment
bears the same mark, in the ``frame_id`` of its header; it is told again with a new stamp until the answer is there, and
an answer bears the mark of the moment it answers, so that none counts for another, however often it comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from moe_robot.deploy.command_messages import mark_of
from moe_robot.deploy.simulation.robot import SimulatedRobot
from moe_robot.deploy.simulation.server import Server

RETELL_S = 0.08
"""Between two tellings of one moment: stamps stay younger than a contract allows, and a lost picture comes again."""
LOOK_S = 0.002
STEP = " step "
"""In a mark, between which episode it is of and the number of the control step."""


def await_commands(
    robot: SimulatedRobot, server: Server, mark: str, give_up: Callable[[], bool], sleep: Callable[[float], None]
) -> Mapping[str, Mapping[str, Any]] | None:
    """Tell one moment until it was answered on every command topic: topic -> message. None after ``give_up()``.

    What bears another mark is left out, and what bears none: a hold does not move the world on.
    """
    contents: Mapping[str, Mapping[str, Any]] = {}
    heard: dict[str, Mapping[str, Any]] = {}
    told_at = float("-inf")
    while not give_up():
        for topic, message in server.take_each():
            if mark_of(message) == mark:
                heard[topic] = message
            if len(heard) == len(robot.sinks):
                return heard
        if time.monotonic() - told_at >= RETELL_S and all(map(server.wanted, robot.sources)):
            contents = contents or robot.contents(robot.sources)
            told_at = time.monotonic()
            for topic, message in robot.stamped(contents, time.time(), mark).items():
                server.tell(topic, message)
        sleep(LOOK_S)
    return None
