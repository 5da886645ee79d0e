"""A ROS 2 node that is spun in a thread of its own, in a context of its own: signals stay those of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moe_robot.deploy.backends.ros2_messages import ros2
from moe_robot.types import UserError


class SpunNode:
    """One node. Its callbacks run one after the other in its thread."""

    def __init__(self, name: str, domain: int | None = None) -> None:
        """Nothing runs yet; ``domain`` is that of ``ROS_DOMAIN_ID`` when left out."""
        ros2()
        self._name, self._domain = name, domain
        self._context: Any = None
        self._node: Any = None

    def start(self, broken: Callable[[str], None]) -> Any:
        """The rclpy node, spinning; ``broken`` is told in one line when it ceases by itself.

        Raises:
            UserError: ROS cannot be started here.
        """
        rclpy, executors = ros2(), ros2("rclpy.executors")
        self._context = ros2("rclpy.context").Context()
        no_signals = ros2("rclpy.signals").SignalHandlerOptions.NO
        try:
            rclpy.init(context=self._context, domain_id=self._domain, signal_handler_options=no_signals)
            self._node = rclpy.create_node(self._name, context=self._context)
        except Exception as error:  # the kinds that rclpy raises differ by what is wrong
            raise UserError(f"ROS 2 cannot be started: {' '.join(str(error).split())[:300]}") from None
        self._executor = executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, args=[broken], name=f"ROS {self._name}", daemon=True)
        self._thread.start()
        return self._node

    def stop(self) -> None:
        """End the thread and take the node off the graph. Safe to call again."""
        if self._node is None:
            return
        node, self._node = self._node, None
        self._executor.shutdown()
        self._thread.join()
        node.destroy_node()
        ros2().shutdown(context=self._context)

    def _spin(self, broken: Callable[[str], None]) -> None:
        try:
            self._executor.spin()
        except Exception as error:  # what a callback or ROS raised: nothing is heard from here on
            if self._node is not None:
                broken(f"the ROS node ended: {type(error).__name__}: {error}")
