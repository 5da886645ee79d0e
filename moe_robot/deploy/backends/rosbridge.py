"""A robot behind a rosbridge server: the newest of every topic comes in, commands go out at once or are dropped.

A lost connection is made again; the new one is a new epoch, in which the robot must be enabled anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection

from moe_robot.deploy import command_messages
from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.backends.listener import Listener
from moe_robot.deploy.backends.websocket import LastingWebsocket, Timing
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.robot_io import GatedCommand


class RosbridgeRobot(Listener):
    """``RobotIO`` over a websocket to a rosbridge server, of ROS 1 or ROS 2."""

    def __init__(
        self,
        contract: Contract,
        address: str | None = None,
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            contract: of the robot.
            address: in place of the contract's.
            ca_file: certificates to trust in place of the system's; a ``wss://`` certificate is always verified.
            headers: sent when connecting, for example ``Authorization`` for a proxy in front of the bridge.
            timing: how long to wait for what.

        Raises:
            UserError: an address that others could listen on, or no certificates in ``ca_file``.
        """
        super().__init__(contract)
        self._timing = timing or Timing()
        self._websocket = LastingWebsocket(
            address or contract.address, self._converse, lambda why: self._inbox.count("connections failed", why),
            self._timing, contract.insecure_hosts, ca_file, headers,
        )  # fmt: skip
        self._sources = {camera.topic: camera.type for camera in contract.cameras.values()}
        self._sources[contract.joint_states.topic] = "sensor_msgs/msg/JointState"
        self._heard: dict[str, float] = {}
        self._lock = threading.Lock()
        self._outgoing: GatedCommand | None = None
        self._all_said = threading.Event()
        self._all_said.set()
        self._something_to_send = asyncio.Event()

    def start(self) -> None:
        """Begin to connect."""
        self._websocket.start()

    def stop(self) -> None:
        """Let go of the connection, once the last command, which is a hold, has had time to reach the robot."""
        self._all_said.wait(self._timing.write_s)
        if self._connected:
            time.sleep(self._timing.farewell_s)
        self._websocket.stop()

    def send(self, command: GatedCommand) -> bool:
        """Hand a command to the connection that it was judged for. Only the newest waits, no longer than a step."""
        with self._lock:
            if not self._is_for(command):
                return False
            self._drop_outgoing()
            self._outgoing = command
            self._all_said.clear()
            self._websocket.soon(self._something_to_send.set)
        return True

    async def _converse(self, connection: ClientConnection) -> None:
        """All that is said on one connection, until it breaks."""
        for topic, kind in command_messages.topics(self._contract).items():
            await connection.send(wire.advertise(topic, self._spelled(kind)))
        for topic, kind in self._sources.items():
            await connection.send(wire.subscribe(topic, self._spelled(kind), cbor=True))
        self._heard = dict.fromkeys(self._sources, self.now())
        with self._lock:
            self._inbox.begin_epoch()
            answer = connection.response
            self._simulated = answer is not None and answer.headers.get("Server") == wire.SIMULATED
            self._connected = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(connection))
                group.create_task(self._subscribe_again(connection))
                await self._read(connection)
        finally:
            with self._lock:
                self._connected = False
                self._drop_outgoing()

    async def _read(self, connection: ClientConnection) -> None:
        async for frame in connection:
            try:
                self._hear(wire.parse(frame))
            except wire.BadFrame as error:
                self._inbox.count("bad frames", f"the bridge sent {error}")
        raise ConnectionError("the bridge closed the connection")

    def _hear(self, message: Mapping[str, Any]) -> None:
        operation, topic, content = message["op"], message.get("topic"), message.get("msg")
        if operation == "status":
            self._inbox.count("complaints of the bridge", f"the bridge says {str(content)[:200]!r}")
        elif operation != "publish" or not isinstance(topic, str) or topic not in self._sources:
            raise wire.BadFrame(f"{operation[:40]!r} on {str(topic)[:80]!r}, which nobody asked for")
        elif not isinstance(content, Mapping):
            raise wire.BadFrame(f"a message on {topic} without fields")
        else:
            self._heard[topic] = self.now()
            self._inbox.take(topic, content, self.now(), time.time())

    async def _write(self, connection: ClientConnection) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            with self._lock:
                command = self._outgoing
                if command is None or not self._still_holds(command):
                    self._drop_outgoing()
                    continue
                self._outgoing = None
            stamp = self._inbox.stamp(self.now(), time.time())
            async with asyncio.timeout(self._timing.write_s):
                for topic, message in command_messages.messages(command.command, self._contract, stamp).items():
                    await connection.send(wire.publish(topic, message))
            with self._lock:
                if self._outgoing is None:
                    self._all_said.set()

    async def _subscribe_again(self, connection: ClientConnection) -> None:
        """Ask again for silent topics: a bridge that was asked before the publisher was there may never notice it.

        Every other time it is asked for JSON, in case it knows no CBOR.
        """
        cbor = dict.fromkeys(self._sources, True)
        while True:
            await asyncio.sleep(self._timing.silence_s / 4)
            for topic, kind in self._sources.items():
                if self.now() - self._heard[topic] <= self._timing.silence_s:
                    continue
                cbor[topic], self._heard[topic] = not cbor[topic], self.now()
                self._inbox.count("subscribed again", f"{topic} is silent: check that something publishes it")
                await connection.send(wire.unsubscribe(topic))
                await connection.send(wire.subscribe(topic, self._spelled(kind), cbor[topic]))

    def _still_holds(self, command: GatedCommand) -> bool:
        """Whether what was judged some time ago may be sent now: a command for a control step, a hold for longer."""
        waited = self.now() - command.at
        return command.epoch == self._inbox.epoch and (command.hold or waited <= self._contract.period_s)

    def _drop_outgoing(self) -> None:
        if self._outgoing is not None:
            self._inbox.count("commands dropped")
            self._outgoing = None
        self._all_said.set()

    def _spelled(self, kind: str) -> str:
        """A message type as ROS 1 or ROS 2 spells it."""
        return kind if self._contract.ros == 2 else kind.replace("/msg/", "/")
