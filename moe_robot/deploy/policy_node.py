"""A policy as a ROS 2 lifecycle node: configure loads it, activate lets it be enabled, services enable and stop.

Parameters, services and topics are told in ``docs/deploy.md``. Whatever is asked here goes through the safety gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.backends.ros2_messages import message, message_type, ros2
from moe_robot.deploy.checkpoint import load_act, policy_directory
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.deployment import Deployment
from moe_robot.deploy.diagnostics import diagnostics
from moe_robot.deploy.inference import Act
from moe_robot.deploy.instruction import instruction
from moe_robot.processes import endings_wait
from moe_robot.types import UserError

NAME = "moe_robot"
PARAMETERS = {"checkpoint": "", "contract": "", "instruction": "", "live": False, "blend": -1.0, "robot_wait_s": 5.0}
"""With their defaults; a negative ``blend`` plays the newest chunk."""


class PolicyNode:
    """The node's interface around one deployment. Its callbacks run one after the other in the thread that spins it."""

    def __init__(self, context: Any = None, make: Callable[[], Act] | None = None) -> None:
        """A node on the graph, unconfigured.

        Args:
            context: of rclpy; None for its default one.
            make: loads a policy in a process of its own, in place of a checkpoint's; importable there.
        """
        self._make = make
        self.node = _lifecycle_node(self, context)
        self._deployment: Deployment | None = None
        self._io: Ros2Robot | None = None
        self._trouble: str | None = None
        for name, default in PARAMETERS.items():
            self.node.declare_parameter(name, default)
        trigger = message_type("std_srvs/srv/Trigger")
        self.node.create_service(message_type("std_srvs/srv/SetBool"), "~/enable", self._enable)
        self.node.create_service(trigger, "~/stop", self._stop)
        self.node.create_service(trigger, "~/reset", self._reset)
        qos = ros2("rclpy.qos")
        latched = qos.QoSProfile(depth=1, durability=qos.DurabilityPolicy.TRANSIENT_LOCAL)
        newest = qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.BEST_EFFORT)
        self.node.create_subscription(message_type("std_msgs/msg/String"), "~/instruction", self._instruct, latched)
        self.node.create_subscription(message_type("std_msgs/msg/Empty"), "~/heartbeat", self._beat, newest)
        array = message_type("diagnostic_msgs/msg/DiagnosticArray")
        self._diagnostics = self.node.create_publisher(array, "/diagnostics", 10)
        self.node.create_timer(1.0, self._tell)

    def configure(self) -> None:
        """Load the policy, check it against the contract, and the robot's graph against both.

        Raises:
            UserError: a parameter is missing or wrong, the policy does not fit, or the robot is not all there.
        """
        given = {name: self.node.get_parameter(name).value for name in PARAMETERS}
        for name in ("checkpoint", "contract", "instruction"):
            if not given[name] and not (name == "checkpoint" and self._make):
                raise UserError(f"the parameter {name!r} is empty: set it, for example in the params file")
        contract, task = load_contract(given["contract"]), instruction(given["instruction"])
        make = self._make or partial(load_act, policy_directory(Path(given["checkpoint"])), contract, task)
        decay = None if given["blend"] < 0 else given["blend"]
        self._io, log = Ros2Robot(contract, self.node), self.node.get_logger().info
        self._deployment = Deployment(contract, make, task, self._io, log, given["live"], decay)
        self._deployment.load()
        end = time.monotonic() + given["robot_wait_s"]
        while missing := self._io.missing():
            if time.monotonic() > end:
                raise UserError(missing)
            time.sleep(0.05)

    def activate(self) -> None:
        """Begin to control; the robot is disabled until somebody asks ``~/enable``."""
        assert self._deployment is not None
        self._deployment.run()

    def deactivate(self) -> None:
        """Hold the robot, and control it no more."""
        if self._deployment is not None:
            self._deployment.rest()

    def cleanup(self) -> None:
        """Let go of robot and policy."""
        deployment, self._deployment, self._io = self._deployment, None, None
        if deployment is not None:
            deployment.end()

    def transition(self, step: Callable[[], None]) -> bool:
        """Whether one of the above was done; why not, goes to the log and the diagnostics."""
        self._trouble = None
        try:
            step()
        except Exception as error:  # rclpy would swallow it without a word
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._trouble = kind + " ".join(str(error).split())
            self.node.get_logger().error(self._trouble)
            self.cleanup()
            return False
        return True

    def _enable(self, request: Any, response: Any) -> Any:
        if not request.data:
            return self._stop(request, response)
        refusal = self._deployment.enable() if self._deployment else "the node is not configured"
        dry = self._deployment is not None and self._deployment.robot.dry_run
        response.success, response.message = refusal is None, refusal or f"enabled, {'dry run' if dry else 'live'}"
        return response

    def _stop(self, _: Any, response: Any) -> Any:
        if self._deployment is not None:
            self._deployment.robot.trip("operator", "stop was asked for")
        response.success, response.message = True, "nothing is enabled now"
        return response

    def _reset(self, request: Any, response: Any) -> Any:
        """Hold, and forget all that was sensed and planned: for a robot or a simulation that was put back."""
        self._stop(request, response)
        if self._io is not None:
            self._io.begin_anew()
        return response

    def _instruct(self, told: Any) -> None:
        try:
            task = instruction(told.data)
        except UserError as error:
            self._trouble = str(error)
            self.node.get_logger().error(self._trouble)
            return
        self.node.set_parameters([ros2("rclpy.parameter").Parameter("instruction", value=task)])
        if self._deployment is not None:
            self._deployment.instruct(task)

    def _beat(self, _: Any) -> None:
        if self._deployment is not None:
            self._deployment.robot.beat()

    def _tell(self) -> None:
        fields = diagnostics(
            self.node.get_fully_qualified_name(), time.time(), self._deployment, self._io, self._trouble
        )
        self._diagnostics.publish(message("diagnostic_msgs/msg/DiagnosticArray", fields))


def _lifecycle_node(interface: PolicyNode, context: Any) -> Any:
    lifecycle = ros2("rclpy.lifecycle")
    base, returned = lifecycle.LifecycleNode, lifecycle.TransitionCallbackReturn

    def done(step: Callable[[], None]) -> Any:
        return returned.SUCCESS if interface.transition(step) else returned.FAILURE

    class Node(base):
        def on_configure(self, state: Any) -> Any:
            return done(interface.configure)

        def on_activate(self, state: Any) -> Any:
            return done(interface.activate)

        def on_deactivate(self, state: Any) -> Any:
            return done(interface.deactivate)

        def on_cleanup(self, state: Any) -> Any:
            return done(interface.cleanup)

        on_shutdown = on_error = on_cleanup

    return Node(NAME, context=context)


def main(arguments: Sequence[str] | None = None) -> None:
    """Spin the node until Ctrl-C or ``kill``, then hold the robot and end. ROS's own arguments are understood."""
    rclpy = ros2()
    rclpy.init(args=arguments, signal_handler_options=ros2("rclpy.signals").SignalHandlerOptions.NO)
    interface = PolicyNode()
    executor = ros2("rclpy.executors").SingleThreadedExecutor()
    executor.add_node(interface.node)
    with endings_wait() as interrupted:
        try:
            while not interrupted():
                executor.spin_once(timeout_sec=0.2)
        finally:
            interface.cleanup()
            executor.shutdown()
            interface.node.destroy_node()
            rclpy.shutdown()
