"""Programs that are not ours on the same wire, and ends that are killed."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from bridge_server import wait_until
from ros2_side import COMMANDS, hear, send

from moe_robot.deploy.backends.ros2 import Ros2Robot

pytestmark = pytest.mark.full

CYCLONE = """
from dataclasses import dataclass
import sys, time
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import sequence, float64, uint32, uint8, int32
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

@dataclass
class Time_(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32

@dataclass
class Header_(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time_
    frame_id: str

@dataclass
class JointState_(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    header: Header_
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]

@dataclass
class Dimension_(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayDimension_"):
    label: str
    size: uint32
    stride: uint32

@dataclass
class Layout_(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayLayout_"):
    dim: sequence[Dimension_]
    data_offset: uint32

@dataclass
class Array_(IdlStruct, typename="std_msgs::msg::dds_::Float64MultiArray_"):
    layout: Layout_
    data: sequence[float64]

participant = DomainParticipant(int(sys.argv[1]))
reliable = Qos(Policy.Reliability.Reliable(1_000_000_000), Policy.History.KeepLast(10))
states = DataReader(participant, Topic(participant, "rt/joint_states", JointState_, qos=reliable), qos=reliable)
name = "rt/forward_position_controller/commands"
commands = DataReader(participant, Topic(participant, name, Array_, qos=reliable), qos=reliable)
print("listening", flush=True)
seen = set()
while len(seen) < 2:
    for state in states.take():
        if "state" not in seen:
            print("state", ",".join(state.name), ",".join(f"{p!r}" for p in state.position), flush=True)
            seen.add("state")
    for command in commands.take():
        print("command", ",".join(f"{p!r}" for p in command.data), flush=True)
        seen.add("command")
    time.sleep(0.01)
"""
LOOPBACK = """<CycloneDDS><Domain><General><Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>
<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>
<MaxAutoParticipantIndex>60</MaxAutoParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain>
</CycloneDDS>"""

SERVER = """
import sys, time
sys.path[:0] = sys.argv[1:2]
from ros2_side import COMMANDS, GRIPPER, POSITION, STATES, tell_all
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.simulation.ros2_server import Ros2Server
contract = load_contract(sys.argv[2])
tells = {camera.topic: camera.type for camera in contract.cameras.values()} | {STATES: "sensor_msgs/msg/JointState"}
server = Ros2Server(tells, {COMMANDS: POSITION, GRIPPER: POSITION})
server.start()
while True:
    tell_all(server, contract)
    for topic, told in server.take().items():
        print("heard", topic, *told["data"], flush=True)
    time.sleep(0.05)
"""
CLIENT = """
import sys, time
import numpy as np
sys.path[:0] = sys.argv[1:2]
from ros2_side import send
from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.contract import load_contract
io = Ros2Robot(load_contract(sys.argv[2]))
io.start()
while True:
    if io.latest().joints:
        print("sent" if send(io, np.full(7, float(sys.argv[3]))) else "dropped", flush=True)
    time.sleep(0.05)
"""


def test_another_dds_sees_our_topics_and_types(server, robot, patient, domain, monkeypatch):
    monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)
    peer = subprocess.Popen([sys.executable, "-c", CYCLONE, str(domain)], stdout=subprocess.PIPE, text=True)
    said = {}
    try:
        assert peer.stdout.readline() == "listening\n"

        def both():
            hear(robot, server, patient)
            send(robot, np.linspace(-1, 1, 7))
            return peer.poll() is not None

        wait_until(both, "the peer's end", 60)
        for line in peer.stdout:
            what, *rest = line.split()
            said[what] = rest
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()
    names, positions = (part.split(",") for part in said["state"])
    told = dict(zip(names, map(float, positions), strict=True))
    assert [told[name] for name in patient.topic_names] == list(patient.tool.posture)
    np.testing.assert_array_equal([float(x) for x in said["command"][0].split(",")], np.linspace(-1, 1, 7))


@pytest.fixture
def ends(command, patient_file):
    """Starts either end in a process of its own."""
    support = next(path for path in sys.path if path.endswith("support"))
    return lambda code, *arguments: command(support, patient_file, *arguments, code=code)


def test_the_robots_end_is_killed_and_comes_back(ends, patient, start):
    first = ends(SERVER)
    io = start(Ros2Robot(patient))
    wait_until(lambda: io.latest().joints, "joint states", 60)
    assert send(io, np.full(7, 0.1))
    first.says(rf"heard {COMMANDS} 0\.1 ")
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    second = ends(SERVER)
    wait_until(lambda: io.latest().epoch == 2 and io.latest().joints, "the new epoch", 60)
    assert not send(io, np.full(7, 0.2), epoch=1)
    wait_until(lambda: send(io, np.full(7, 0.3)), "the connection", 60)
    second.says(rf"heard {COMMANDS} 0\.3 ")
    assert not [line for line in second.lines if " 0.1 " in line or " 0.2 " in line]


def test_the_policys_end_is_killed_and_comes_back(ends, server, patient):
    first = ends(CLIENT, 0.1)
    speak_until(server, patient, lambda: "sent" in first.lines)
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    server.take()
    second = ends(CLIENT, 0.2)
    heard = []

    def came():
        heard.extend(told["data"][0] for topic, told in server.take().items() if topic == COMMANDS)
        return 0.2 in heard

    speak_until(server, patient, came)
    assert second.process.poll() is None
    assert set(heard) <= {0.1, 0.2}
    assert heard == sorted(heard)  # none of the first came after one of the second


def speak_until(server, contract, condition):
    from ros2_side import tell_all

    def going():
        tell_all(server, contract)
        return condition()

    wait_until(going, "it", 60)
