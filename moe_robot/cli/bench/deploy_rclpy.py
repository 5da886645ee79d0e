"""The peer over ROS 2 in ``moe-robot bench deploy``: the loop that people write with rclpy. Needs nothing of ours.

It speaks the lines of ``deploy_client``. Without a gate, ages and a connection to watch it does less than that.
"""

import importlib
import sys
import threading
import time
from contextlib import suppress

POSTURE = [0.15, 0.0, -2.2, 0.0, 2.35, 0.785]


def main() -> None:
    """Answer every picture until told to end."""
    cv2, np, rclpy = (importlib.import_module(name) for name in ("cv2", "numpy", "rclpy"))
    qos, sensors, numbers = (importlib.import_module(name) for name in ("rclpy.qos", "sensor_msgs.msg", "std_msgs.msg"))
    rclpy.init()
    node = rclpy.create_node("plain_loop")
    commands = node.create_publisher(numbers.Float64MultiArray, "/forward_position_controller/commands", 1)

    def command(number: int) -> None:
        commands.publish(numbers.Float64MultiArray(data=[number % 500 * 1e-3, *POSTURE]))

    def answer(picture) -> None:
        pixels = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        command(int(picture.header.frame_id))

    newest = qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(sensors.CompressedImage, "/front/image_raw/compressed", answer, newest)
    node.create_subscription(sensors.JointState, "/joint_states", lambda state: None, newest)
    over = importlib.import_module("rclpy.executors").ExternalShutdownException

    def spin() -> None:
        with suppress(over):
            rclpy.spin(node)

    spinning = threading.Thread(target=spin)
    spinning.start()
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        if line.strip() == "end":
            break
        for i in range(60):
            command(i)
            time.sleep(1 / 30)
        print("sent", flush=True)
    print(time.process_time(), flush=True)
    rclpy.shutdown()
    spinning.join()


if __name__ == "__main__":
    main()
