"""The peer in ``moe-robot bench deploy``: the same with roslibpy, by a Python that has it. Needs nothing of ours.

It speaks the lines of ``deploy_client``. Without a gate it does less than that.
"""

import base64
import importlib
import sys
import time

TOPICS = {
    "/front/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/forward_position_controller/commands": "std_msgs/msg/Float64MultiArray",
}
POSTURE = [0.15, 0.0, -2.2, 0.0, 2.35, 0.785]


def main(address: str) -> None:
    """Answer every picture until told to end."""
    cv2, np, roslibpy = (importlib.import_module(name) for name in ("cv2", "numpy", "roslibpy"))
    host, port = address.removeprefix("ws://").split(":")
    ros = roslibpy.Ros(host=host, port=int(port))
    ros.run(timeout=20)
    pictures, states, commands = (roslibpy.Topic(ros, topic, kind, queue_length=1) for topic, kind in TOPICS.items())

    def command(number: int) -> None:
        data = [number % 500 * 1e-3, *POSTURE]
        commands.publish(roslibpy.Message({"layout": {"dim": [], "data_offset": 0}, "data": data}))

    def answer(message: dict) -> None:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(message["data"]), np.uint8), cv2.IMREAD_COLOR)
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        command(int(message["header"]["frame_id"]))

    commands.advertise()
    states.subscribe(lambda message: None)
    pictures.subscribe(answer)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        if line.strip() == "end":
            break
        for i in range(60):
            command(i)
            time.sleep(1 / 30)
        print("sent", flush=True)
    print(time.process_time(), flush=True)
    ros.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
