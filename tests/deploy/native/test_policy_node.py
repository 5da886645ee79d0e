"""The policy as a lifecycle node: services, topics and parameters, asked over real DDS as ``ros2`` would."""

import threading
import time

import numpy as np
import onnx
import pytest
from bridge_server import wait_until
from commands import INSTRUCTION, STARTING_S
from onnx import TensorProto, helper

import policies
from moe_robot.deploy.backends.ros2_messages import message_type, ros2
from moe_robot.deploy.backends.ros2_spin import SpunNode
from moe_robot.deploy.exported import Manifest
from moe_robot.deploy.policy_node import PolicyNode
from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options
from moe_robot.deploy.simulation.ros2_server import Ros2Server
from moe_robot.registry import make_environment

COMMANDS = "/forward_position_controller/commands"
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
"""As in ``lifecycle_msgs/msg/Transition``."""


class World(threading.Thread):
    """The simulated robot in real time, without a referee; what it was told is kept."""

    def __init__(self, contract):
        super().__init__(daemon=True)
        self.contract, self.over, self.lives, self.heard = contract, threading.Event(), threading.Event(), []

    def run(self):  # all of it here: what draws pictures belongs to one thread
        env = make_environment("pitstop", **world_options(self.contract))
        env.reset(seed=3)
        self.world, robot = env.unwrapped, SimulatedRobot(env.unwrapped, self.contract)
        server = Ros2Server(robot.sources, robot.sinks)
        server.start()
        self.lives.set()
        while not self.over.wait(self.world.update_s):
            for topic, told in server.take().items():
                robot.obey(topic, told)
                self.heard.append(topic)
            robot.advance()
            for topic, told in robot.messages(time.time(), server.wanted).items():
                server.tell(topic, told)
        server.stop()
        env.close()

    def joints(self):
        return self.world.joint_positions()

    def stop(self):
        self.over.set()
        self.join()


class Person:
    """Somebody at another node: calls services, publishes, and reads the diagnostics."""

    def __init__(self):
        self._spun = SpunNode("person")
        self.node = self._spun.start(lambda why: None)
        self.diagnostics = []
        array = message_type("diagnostic_msgs/msg/DiagnosticArray")
        self.node.create_subscription(array, "/diagnostics", lambda told: self.diagnostics.extend(told.status), 10)
        self._clients, self._beating = {}, threading.Event()

    def call(self, service, kind, **fields):
        client = self._clients.setdefault(service, self.node.create_client(message_type(kind), service))
        assert client.wait_for_service(timeout_sec=20)
        request = message_type(kind).Request()
        for name, value in fields.items():
            setattr(request, name, value)
        future = client.call_async(request)
        wait_until(future.done, service, STARTING_S)
        return future.result()

    def change(self, transition):
        request = message_type("lifecycle_msgs/msg/Transition")(id=transition)
        return self.call("/moe_robot/change_state", "lifecycle_msgs/srv/ChangeState", transition=request).success

    def enable(self, data=True):
        return self.call("/moe_robot/enable", "std_srvs/srv/SetBool", data=data)

    def beat(self):
        """From now on, as long as nobody says otherwise."""
        publisher = self.node.create_publisher(message_type("std_msgs/msg/Empty"), "/moe_robot/heartbeat", 1)
        self.timer = self.node.create_timer(0.05, lambda: publisher.publish(message_type("std_msgs/msg/Empty")()))

    def say(self, text):
        qos = ros2("rclpy.qos")
        latched = qos.QoSProfile(depth=1, durability=qos.DurabilityPolicy.TRANSIENT_LOCAL)
        kind = message_type("std_msgs/msg/String")
        self.node.create_publisher(kind, "/moe_robot/instruction", latched).publish(kind(data=text))

    def sees(self, level, word):
        del self.diagnostics[:]
        found = lambda: [s for s in self.diagnostics if s.level == level and word in s.message]  # noqa: E731
        wait_until(found, f"{word!r} in the diagnostics", 30)
        return {pair.key: pair.value for pair in found()[-1].values}

    def stop(self):
        self._spun.stop()


@pytest.fixture
def world(patient):
    one = World(patient)
    one.start()
    wait_until(one.lives.is_set, "the world", 60)
    yield one
    one.stop()


@pytest.fixture
def person():
    one = Person()
    yield one
    one.stop()


@pytest.fixture
def interface(domain):
    """The node, spun in a thread."""
    rclpy, context = ros2(), ros2("rclpy.context").Context()
    rclpy.init(context=context, signal_handler_options=ros2("rclpy.signals").SignalHandlerOptions.NO)
    one = PolicyNode(context, policies.pointing)
    executor = ros2("rclpy.executors").SingleThreadedExecutor(context=context)
    executor.add_node(one.node)
    over = threading.Event()

    def spin():
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    yield one
    over.set()
    thread.join()
    one.cleanup()
    executor.shutdown()
    one.node.destroy_node()
    rclpy.shutdown(context=context)


def given(interface, **values):
    parameter = ros2("rclpy.parameter").Parameter
    interface.node.set_parameters([parameter(name, value=value) for name, value in values.items()])


def test_a_life_from_configure_to_cleanup(interface, world, person, patient_file):
    given(interface, contract=str(patient_file), instruction=INSTRUCTION, live=True)
    assert not person.enable().success
    assert person.change(CONFIGURE)
    refused = person.enable()
    assert not refused.success
    assert "activate the node first" in refused.message
    assert person.change(ACTIVATE)
    assert person.sees(b"\x01", "enable it")["state"] == "disabled"
    assert world.heard == []

    person.beat()
    wait_until(lambda: person.enable().success, "the enabling")
    before = world.joints()
    wait_until(lambda: np.abs(world.joints() - before).max() > 0.02, "motion")
    told = person.sees(b"\x00", "enabled")
    assert told["dry run"] == "False"
    assert told["connected"] == "True"

    person.say("press the button")
    wait_until(lambda: interface.node.get_parameter("instruction").value == "press the button", "the instruction")
    person.say("\x1b[2J" * 2500)
    wait_until(lambda: interface._trouble, "the complaint")
    assert "the instruction cannot be printed" in interface._trouble
    assert person.sees(b"\x00", "enabled")

    assert person.call("/moe_robot/stop", "std_srvs/srv/Trigger").success
    assert person.sees(b"\x02", "operator: stop was asked for")["rule"] == "operator"
    wait_until(lambda: person.enable().success, "the enabling")
    epoch = interface._io.epoch
    assert person.call("/moe_robot/reset", "std_srvs/srv/Trigger").success
    assert interface._io.epoch == epoch + 1
    assert person.sees(b"\x02", "operator")["state"] == "held"

    assert person.change(DEACTIVATE)
    assert not person.enable().success
    assert person.change(CLEANUP)
    assert not person.enable().success
    assert person.sees(b"\x01", "") == {}


def test_a_heartbeat_that_ceases_holds_the_robot(interface, world, person, patient_file, tmp_path):
    impatient = tmp_path / "impatient.yaml"
    impatient.write_text(patient_file.read_text().replace("heartbeat_s: 20.0", "heartbeat_s: 1.0"))
    given(interface, contract=str(impatient), instruction=INSTRUCTION)
    assert person.change(CONFIGURE)
    assert person.change(ACTIVATE)
    person.beat()

    def the_silence_holds_it():
        """On a machine that is busy the watchdog may do it before."""
        person.timer.reset()
        wait_until(lambda: person.enable().message.startswith("operator: the robot is enabled already"), "the enabling")
        person.timer.cancel()
        del person.diagnostics[:]
        held = lambda: [s for s in person.diagnostics if s.level == b"\x02"]  # noqa: E731
        wait_until(held, "the hold", 30)
        assert {pair.key: pair.value for pair in held()[0].values}["dry run"] == "True"
        return "heartbeat" in held()[0].message

    assert any(the_silence_holds_it() for _ in range(10))
    assert world.heard == []  # a dry run: nothing was ever sent


def test_what_is_missing_is_told_and_the_node_stays_unconfigured(interface, person, patient_file):
    assert not person.change(CONFIGURE)
    assert person.sees(b"\x01", "the parameter 'contract' is empty") == {}
    wrong = {"contract": "pitstob", "instruction": INSTRUCTION, "robot_wait_s": 0.5}
    given(interface, **wrong)
    assert not person.change(CONFIGURE)
    assert person.sees(b"\x01", "did you mean pitstop?") == {}
    given(interface, contract=str(patient_file))
    assert not person.change(CONFIGURE)
    assert person.sees(b"\x01", "nothing publishes /front/image_raw/compressed") == {}


@pytest.fixture
def exported(patient, tmp_path):
    """What ``moe-robot export`` writes, of a policy that stays where it is."""
    features = patient.features()
    Manifest(features, chunk=8, execute=2).write(tmp_path)
    sensors = [
        helper.make_tensor_value_info(f"observation.images.{camera}", TensorProto.UINT8, [1, *size, 3])
        for camera, size in features.cameras.items()
    ]
    sensors.append(
        helper.make_tensor_value_info("observation.state", TensorProto.FLOAT, [1, len(features.state_names)])
    )
    shape = [1, 8, len(features.action_names)]
    still = helper.make_node(
        "Constant", [], ["action"], value=helper.make_tensor("", TensorProto.FLOAT, shape, [0] * 40)
    )
    graph = helper.make_graph(
        [still], "still", sensors, [helper.make_tensor_value_info("action", TensorProto.FLOAT, shape)]
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "policy.onnx")
    return tmp_path


def test_an_exported_policy_is_loaded_as_a_checkpoint_is(interface, person, patient_file, exported):
    interface._make = None
    given(interface, contract=str(patient_file), instruction=INSTRUCTION, robot_wait_s=0.5, checkpoint=str(exported))
    assert not person.change(CONFIGURE)
    assert person.sees(b"\x01", "nothing publishes /front/image_raw/compressed") == {}  # the policy was taken
