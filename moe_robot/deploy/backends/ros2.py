"""A robot on ROS 2 itself, by rclpy: the newest of every topic comes in, commands go out at once or are dropped.

Publishers that vanish, change or come back begin a new epoch, in which the robot must be enabled anew.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from moe_robot.deploy import command_messages
from moe_robot.deploy.backends.listener import Listener
from moe_robot.deploy.backends.ros2_graph import look
from moe_robot.deploy.backends.ros2_messages import message, message_type, plain, ros2
from moe_robot.deploy.backends.ros2_spin import SpunNode
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.robot_io import GatedCommand, Snapshot
from moe_robot.types import UserError

FAREWELL_S = 1.0
"""The last command, which is a hold, has so long to reach the robot."""
STATES_DEPTH = 10
"""Joint states that may wait to be taken in; of pictures only the newest does."""
NODE = "moe_robot_deploy"


class Ros2Robot(Listener):
    """``RobotIO`` over ROS 2, on a node of its own or on one that somebody else spins."""

    def __init__(self, contract: Contract, node: Any = None, domain: int | None = None) -> None:
        """Nothing is heard yet.

        Args:
            contract: of the robot.
            node: of rclpy, spun by somebody else; None for one of its own, in a thread of its own.
            domain: of its own node; None for that of ``ROS_DOMAIN_ID``.

        Raises:
            UserError: no rclpy can be loaded, a message type is not installed, or the robot speaks ROS 1.
        """
        if contract.ros != 2:
            raise UserError(f"the contract of {contract.robot} says ros: {contract.ros}: reach it over rosbridge")
        self._own = SpunNode(NODE, domain) if node is None else None
        super().__init__(contract)
        self._node: Any = node
        self._sources = {camera.topic: (camera.type, camera.reliability) for camera in contract.cameras.values()}
        self._sources[contract.joint_states.topic] = ("sensor_msgs/msg/JointState", "best_effort")
        self._sinks = command_messages.topics(contract)
        for kind in (*(kind for kind, _ in self._sources.values()), *self._sinks.values()):
            message_type(kind)
        self._lock = threading.Lock()
        self._heard: dict[Any, tuple[str, str]] = {}
        self._spoken: dict[str, Any] = {}
        self._publishers: frozenset[bytes] = frozenset()
        self._missing: str | None = None

    def start(self) -> None:
        """Begin to listen, and to look for the robot."""
        if self._own:
            self._node = self._own.start(self._broken)
        qos = ros2("rclpy.qos")
        heard, spoken = {}, {}
        for topic, (kind, reliability) in self._sources.items():
            depth = STATES_DEPTH if topic == self._contract.joint_states.topic else 1
            profile = qos.QoSProfile(depth=depth, reliability=qos.ReliabilityPolicy[reliability.upper()])
            hear = partial(self._hear, topic)
            heard[self._node.create_subscription(message_type(kind), topic, hear, profile)] = (kind, reliability)
        for topic, kind in self._sinks.items():
            # Reliable and one deep: what could not be delivered gives way to what comes after, a hold in the end.
            # Volatile: a controller that comes later is told nothing of what was said before.
            spoken[topic] = self._node.create_publisher(message_type(kind), topic, qos.QoSProfile(depth=1))
        with self._lock:
            self._heard, self._spoken = heard, spoken

    def stop(self) -> None:
        """Let go of the robot, once the last command has had time to reach it."""
        with self._lock:
            heard, spoken = self._heard, self._spoken
            self._heard, self._spoken, self._connected = {}, {}, False
        patience = ros2("rclpy.duration").Duration(seconds=FAREWELL_S)
        for publisher in spoken.values():
            publisher.wait_for_all_acked(patience)
            self._node.destroy_publisher(publisher)
        for subscription in heard:
            self._node.destroy_subscription(subscription)
        if self._own:
            self._own.stop()

    def latest(self) -> Snapshot:
        """The newest of everything in this epoch."""
        with self._lock:
            self._look()
        return super().latest()

    def send(self, command: GatedCommand) -> bool:
        """Publish a command now, if the robot is still the one that it was judged for."""
        with self._lock:
            self._look()
            if not self._is_for(command):
                return False
            stamp = self._inbox.stamp(self.now(), time.time())
            try:
                for topic, fields in command_messages.messages(command.command, self._contract, stamp).items():
                    self._spoken[topic].publish(message(self._sinks[topic], fields))
            except Exception as error:  # the kinds that ROS raises; this must not
                self._inbox.count("commands dropped", f"ROS refused a command: {type(error).__name__}: {error}")
                return False
        return True

    def begin_anew(self) -> None:
        """Forget all that was heard: the robot was reset, and must be enabled again."""
        self._inbox.begin_epoch()

    def missing(self) -> str | None:
        """What the robot's graph lacks now, one line; None when messages can flow both ways."""
        with self._lock:
            self._look()
            return self._missing

    def _hear(self, topic: str, told: Any) -> None:
        if self._connected:  # else it is of publishers that were not counted yet
            self._inbox.take(topic, plain(told), self.now(), time.time())

    def _look(self) -> None:
        """See who is there. Other publishers than before are another epoch, and so are those that come back."""
        if not self._spoken:
            return
        graph = look(self._node, self._heard, {self._spoken[topic]: kind for topic, kind in self._sinks.items()})
        if graph.missing and graph.missing != self._missing:
            self._inbox.count("connections lost" if self._connected else "searches", graph.missing)
        self._missing = graph.missing
        if not graph.missing and (not self._connected or graph.publishers != self._publishers):
            self._inbox.begin_epoch()
            self._publishers = graph.publishers
        self._connected, self._simulated = not graph.missing, graph.simulated

    def _broken(self, why: str) -> None:
        with self._lock:
            self._connected, self._heard, self._spoken = False, {}, {}
        self._inbox.count("connections failed", why)
