"""Our client in ``moe-robot bench deploy``: every picture decoded, judged by the gate and answered. Run as a module.

Lines come in and go out: it says ``ready``; after ``outage`` it goes on commanding for two seconds and says ``sent``;
after ``end`` it says how many seconds of processor time it took.
"""

from __future__ import annotations

import sys
import threading
import time

from moe_robot.cli.bench.deploy_robot import NATIVE, RATE_HZ, bench_contract, position_of
from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.robot_io import JointCommand

LOOK_S = 0.001


def main(address: str) -> None:
    """Answer until told to end."""
    contract = bench_contract()
    io = Ros2Robot(contract) if address == NATIVE else RosbridgeRobot(contract, address)
    robot = GuardedRobot(io, contract)
    robot.start()
    asked: list[str] = []
    reader = threading.Thread(target=lambda: asked.extend(line.strip() for line in iter(sys.stdin.readline, "")))
    reader.daemon = True
    reader.start()
    print("ready", flush=True)
    answered = -1
    while "end" not in asked:
        image = robot.sense().images.get("front")
        number = int(image.message["header"]["frame_id"]) if image and image.message else answered
        if image and number != answered and "outage" not in asked:
            answered = number
            if robot.state is not State.ENABLED:
                robot.enable(live=True)
            robot.step(JointCommand(position_of(number)[None], None, image.sensed))
        if "outage" in asked:
            asked.remove("outage")
            for i in range(2 * RATE_HZ):
                robot.step(JointCommand(position_of(i)[None], None, io.now()))
                time.sleep(1 / RATE_HZ)
            print("sent", flush=True)
        time.sleep(LOOK_S)
    print(time.process_time(), flush=True)
    robot.stop()


if __name__ == "__main__":
    main(sys.argv[1])
