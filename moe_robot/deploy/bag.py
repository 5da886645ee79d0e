"""Reads recordings by a contract's topics: MCAP files, rosbag2 folders, ROS 1 bags. Needs the extra ``bags``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_robot.deploy import cdr
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.contract_topics import Camera
from moe_robot.deploy.recorded import COMPRESSED, JOINT_STATE, compressed_topic
from moe_robot.registry import unknown
from moe_robot.types import UserError


@dataclass(frozen=True)
class Letter:
    """One recorded message.

    Attributes:
        topic: where it was recorded.
        message: plain dicts, lists, numbers, texts and arrays.
        at: when it was recorded, seconds on the wall clock of then.
    """

    topic: str
    message: Mapping[str, Any]
    at: float


class Bag:
    """An open recording."""

    def __init__(self, path: Path, contract: Contract) -> None:
        """Open it.

        Raises:
            UserError: it cannot be read, or lacks something that the contract says the robot tells.
        """
        cdr.check_installed()
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore

        self._path, self._bad = path, AnyReaderError
        with ExitStack() as stack:
            try:  # bags of ROS 2 Humble and before hold no message definitions: these types have not changed since
                store = get_typestore(Stores.ROS2_HUMBLE)
                self._reader = stack.enter_context(AnyReader([path], default_typestore=store))
            except FileNotFoundError:
                raise UserError(f"there is no recording {path}: give an MCAP file or a rosbag2 folder") from None
            except Exception as error:  # whatever a damaged file makes the library raise
                raise UserError(f"{path} cannot be read: {_said(error)}; mcap recover mends what was cut") from error
            self.types = {connection.topic: connection.msgtype for connection in self._reader.connections}
            """Topic -> message type of everything in it."""
            self.contract = self._fitted(contract)
            """The contract with the topics and types that the pictures are recorded under."""
            self._stack = stack.pop_all()

    @property
    def begins(self) -> float:
        """When its first message was recorded, seconds on the wall clock of then."""
        return self._reader.start_time * 1e-9

    @property
    def sources(self) -> tuple[str, ...]:
        """Topics of pictures and joint states."""
        return (self.contract.joint_states.topic, *(camera.topic for camera in self.contract.cameras.values()))

    def letters(self, topics: Collection[str]) -> Iterator[Letter]:
        """All messages on these topics in the order they were recorded; topics that are not there are left out.

        Raises:
            UserError: a part of the file is damaged.
        """
        chosen = [connection for connection in self._reader.connections if connection.topic in topics]
        try:
            for connection, at, data in self._reader.messages(chosen) if chosen else ():
                yield Letter(connection.topic, cdr.plain(self._reader.deserialize(data, connection.msgtype)), at * 1e-9)
        except Exception as error:  # as above
            raise UserError(f"{self._path} is damaged: {_said(error)}") from error

    def close(self) -> None:
        """Let go of the file. Safe to call again."""
        self._stack.close()

    def _fitted(self, contract: Contract) -> Contract:
        states = contract.joint_states.topic
        self._check(states, JOINT_STATE, "joint states")
        cameras = {name: self._camera(name, camera) for name, camera in contract.cameras.items()}
        return replace(contract, cameras=cameras)

    def _camera(self, name: str, camera: Camera) -> Camera:
        topic = compressed_topic(camera.topic)
        if camera.type != COMPRESSED and camera.topic not in self.types and topic in self.types:
            camera = replace(camera, topic=topic, type=COMPRESSED)
        self._check(camera.topic, camera.type, f"camera {name!r}")
        return camera

    def _check(self, topic: str, kind: str, what: str) -> None:
        if topic not in self.types:
            raise UserError(f"{self._path} has no {what}: {unknown('topic', topic, self.types)}")
        if self.types[topic] != kind:
            raise UserError(f"{self._path}: {topic} is a {self.types[topic]}, expected {kind}; correct the contract")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
