"""Runs a checkpoint on a robot behind a rosbridge server: `moe-robot deploy`, short enough to copy and change.

python scripts/deploy_ros.py runs/demo pitstop "pick up the red cube" [--live] [--record run.mcap]
"""

import argparse
from functools import partial
from pathlib import Path

from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.checkpoint import load_act, policy_directory
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.inference import PolicyProcess
from moe_robot.deploy.loop import ControlLoop, Step
from moe_robot.deploy.operator import KEYS, Operator
from moe_robot.deploy.recording import Recorder
from moe_robot.deploy.report import Report
from moe_robot.processes import endings_wait, workers_are_born


def main() -> None:
    """Nothing moves before a person types e and Enter, and nothing at all without --live."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("contract")
    parser.add_argument("instruction")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--record", type=Path, help="a new file, FILE.mcap: what was sensed, done and decided")
    arguments = parser.parse_args()

    contract = load_contract(arguments.contract)
    io = RosbridgeRobot(contract)
    about = {"contract": arguments.contract, "checkpoint": str(arguments.checkpoint)}
    recorder = Recorder(arguments.record, contract, about, print) if arguments.record else None
    # From here on nothing reaches the robot but through the safety gate.
    robot = GuardedRobot(io, contract, recorder.decided if recorder else None)
    folder = policy_directory(arguments.checkpoint)
    policy = PolicyProcess(partial(load_act, folder, contract, arguments.instruction))
    loop = ControlLoop(robot, contract, policy, arguments.instruction, decay=None)
    operator = Operator(robot, arguments.live, contract.heartbeat_s / 5, print)
    report = Report(robot, io, loop.timings, print)

    with endings_wait() as interrupted:  # Ctrl-C ends the loop between two steps, so that the robot is held
        with workers_are_born():
            policy.start()
            if recorder:
                recorder.start(io.now, arguments.instruction)

        def on_step(step: Step) -> None:
            report.step(step)
            if recorder:
                recorder.step(step)

        robot.start()
        operator.start()
        print(KEYS)
        try:
            loop.run(lambda: interrupted() or operator.wants_to_quit or policy.failure is not None, on_step)
        finally:
            report.end()
            operator.stop()
            robot.stop()
            policy.stop()
            if recorder:
                print("recorded", recorder.stop())
    print(report.summary())
    if policy.failure is not None:
        raise SystemExit(policy.failure)


if __name__ == "__main__":  # the policy's process starts by importing this file
    main()
