"""Runs a checkpoint on a robot behind a rosbridge server: `moe-robot deploy`, short enough to copy and change.

python scripts/deploy_ros.py runs/demo pitstop "pick up the red cube" [--live]
"""

import argparse
from functools import partial
from pathlib import Path

from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.checkpoint import load_act
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.inference import PolicyProcess
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.operator import KEYS, Operator
from moe_robot.deploy.report import Report
from moe_robot.processes import endings_wait, workers_are_born


def main() -> None:
    """Nothing moves before a person types e and Enter, and nothing at all without --live."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("contract")
    parser.add_argument("instruction")
    parser.add_argument("--live", action="store_true")
    arguments = parser.parse_args()

    contract = load_contract(arguments.contract)
    io = RosbridgeRobot(contract)
    robot = GuardedRobot(io, contract)  # from here on nothing reaches the robot but through the safety gate
    policy = PolicyProcess(partial(load_act, arguments.checkpoint, contract, arguments.instruction))
    loop = ControlLoop(robot, contract, policy, arguments.instruction, decay=None)
    operator = Operator(robot, arguments.live, contract.heartbeat_s / 5, print)
    report = Report(robot, io, loop.timings, print)

    with endings_wait() as interrupted:  # Ctrl-C ends the loop between two steps, so that the robot is held
        with workers_are_born():
            policy.start()
        robot.start()
        operator.start()
        print(KEYS)
        try:
            loop.run(lambda: interrupted() or operator.wants_to_quit or policy.failure is not None, report.step)
        finally:
            report.end()
            operator.stop()
            robot.stop()
            policy.stop()
    print(report.summary())
    if policy.failure is not None:
        raise SystemExit(policy.failure)


if __name__ == "__main__":  # the policy's process starts by importing this file
    main()
