"""The simulated robot's side of ROS 2: publishers for what it tells, subscriptions for what it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from moe_robot.deploy.backends.ros2_graph import SIMULATED
from moe_robot.deploy.backends.ros2_messages import message, message_type, plain, ros2
from moe_robot.deploy.backends.ros2_spin import SpunNode
from moe_robot.deploy.simulation.server import RESET, RESET_ANSWER, WAITING, Heard
from moe_robot.types import UserError

COMMANDS_DEPTH = 8
"""Commands that may wait to be taken in: a hold does not displace the command before it."""
DEAF_S = 0.1
"""After a restart: so long a command may still be on its way that was meant for the robot before it."""


class Ros2Server:
    """Speaks ROS 2 for one robot of this process. Every method may be called from any thread, one at a time."""

    def __init__(self, tells: Mapping[str, str], hears: Mapping[str, str], domain: int | None = None) -> None:
        """Nothing is on the graph yet.

        Args:
            tells: topic -> message type, of what others may subscribe to.
            hears: topic -> message type, of what others may publish.
            domain: that of ``ROS_DOMAIN_ID`` when left out.

        Raises:
            UserError: no rclpy can be loaded, or a message type is not installed.
        """
        self._node_of_its_own, self._tells, self._hears = SpunNode(SIMULATED, domain), tells, hears
        for kind in (*tells.values(), *hears.values()):
            message_type(kind)
        self._lock = threading.Lock()
        self._publishers: dict[str, Any] = {}
        self._subscriptions: list[Any] = []
        self._heard = Heard(maxlen=WAITING)
        self._deaf_until = 0.0
        self._reset = threading.Event()
        self._failure: str | None = None

    def start(self) -> None:
        """Join the graph."""
        self._node = self._node_of_its_own.start(partial(setattr, self, "_failure"))
        self._node.create_service(message_type("std_srvs/srv/Trigger"), RESET, self._ask_reset)
        self._appear()

    def stop(self) -> None:
        """Leave the graph."""
        self._node_of_its_own.stop()

    def restart(self) -> None:
        """Leave the graph and come back, as a robot does that begins anew; what was heard is forgotten."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._appear()
        with self._lock:
            self._heard.clear()
            self._deaf_until = time.monotonic() + DEAF_S
        self._reset.clear()

    def wants_reset(self) -> bool:
        """Whether the service was called since the last restart."""
        return self._reset.is_set()

    def wanted(self, topic: str) -> bool:
        """Whether anybody listens to the topic; what is told while nothing is heard could not be answered."""
        return time.monotonic() >= self._deaf_until and self._publishers[topic].get_subscription_count() > 0

    def tell(self, topic: str, content: Mapping[str, Any]) -> None:
        """Publish a message; it may hold bytes and numpy arrays."""
        self._publishers[topic].publish(message(self._tells[topic], content))

    def take(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic -> the newest message that came since this was asked last.

        Raises:
            UserError: the node ended.
        """
        return dict(self.take_each())

    def take_each(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Topic and message of all that came since this or :meth:`take` was asked last, in the order they came.

        Raises:
            UserError: the node ended.
        """
        if self._failure:
            raise UserError(self._failure)
        with self._lock:
            heard = tuple(self._heard)
            self._heard.clear()
            return heard

    def _ask_reset(self, _: Any, response: Any) -> Any:
        self._reset.set()
        response.success, response.message = True, RESET_ANSWER
        return response

    def _appear(self) -> None:
        # Reliable, which is heard by those who ask for less as well; joint states ten deep as ROS's own broadcaster.
        depth, qos = {"sensor_msgs/msg/JointState": 10}, ros2("rclpy.qos").QoSProfile
        self._publishers = {
            topic: self._node.create_publisher(message_type(kind), topic, qos(depth=depth.get(kind, 1)))
            for topic, kind in self._tells.items()
        }
        self._subscriptions = [
            self._node.create_subscription(
                message_type(kind), topic, partial(self._hear, topic), qos(depth=COMMANDS_DEPTH)
            )
            for topic, kind in self._hears.items()
        ]

    def _hear(self, topic: str, told: Any) -> None:
        with self._lock:
            if time.monotonic() >= self._deaf_until:
                self._heard.append((topic, plain(told)))
