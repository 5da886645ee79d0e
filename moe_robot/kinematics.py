"""Forward kinematics, Jacobian and damped least squares of a serial chain of revolute joints (numpy only).

N joints. Poses are of the tool in the chain's base frame: a position in metres and a 3x3 rotation matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class SerialChain:
    """A chain of N revolute joints.

    The tool pose is ``L_0 · Rot(axis_0, q_0) · L_1 · Rot(axis_1, q_1) · ... · L_N``, where ``L_i`` are fixed links.

    Attributes:
        link_rotations: (N + 1, 3, 3) rotation of each fixed link.
        link_positions: (N + 1, 3) translation of each fixed link, metres.
        axes: (N, 3) unit axis of each joint in its own frame.
        limits: (N, 2) lower and upper joint position, radians.
    """

    link_rotations: np.ndarray
    link_positions: np.ndarray
    axes: np.ndarray
    limits: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.axes)
        shapes = (self.link_rotations.shape, self.link_positions.shape, self.axes.shape, self.limits.shape)
        if shapes != ((n + 1, 3, 3), (n + 1, 3), (n, 3), (n, 2)):
            raise ValueError(f"a chain of {n} joints needs {n + 1} links, {n} axes and {n} limits, got shapes {shapes}")

    @cached_property
    def _skew(self) -> np.ndarray:
        """(N, 3, 3) cross-product matrix of each axis: Rot(axis, q) = I + sin q · K + (1 - cos q) · K²."""
        skew = np.zeros((len(self.axes), 3, 3))
        x, y, z = self.axes.T
        skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -z, y, -x
        skew[:, 1, 0], skew[:, 2, 0], skew[:, 2, 1] = z, -y, x
        return skew

    @cached_property
    def _turning(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three (N, 4, 4) matrices A, B, C: link i, then a turn of joint i by q, is A + sin q · B + (1 - cos q) · C."""
        links = _homogeneous(self.link_rotations[:-1], self.link_positions[:-1])
        skew = np.zeros_like(links)
        skew[:, :3, :3] = self._skew
        return links, links @ skew, links @ skew @ skew

    @cached_property
    def _tool(self) -> np.ndarray:
        """(4, 4): the last link."""
        return _homogeneous(self.link_rotations[-1:], self.link_positions[-1:])[0]

    def _steps(self, q: np.ndarray) -> np.ndarray:
        """(N, 4, 4): from each joint's frame after its turn to the one before."""
        still, sine, cosine = self._turning
        return still + np.sin(q)[:, None, None] * sine + (1.0 - np.cos(q))[:, None, None] * cosine

    def _frames(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Joint axes (N, 3) and joint origins (N, 3) in the base frame, then tool position and rotation."""
        steps = self._steps(q)
        frames = np.empty_like(steps)  # of each joint after its turn, which leaves its own axis and origin in place
        frames[0] = steps[0]
        for i in range(1, len(steps)):
            np.matmul(frames[i - 1], steps[i], out=frames[i])
        tool = frames[-1] @ self._tool
        axes = (frames[:, :3, :3] @ self.axes[:, :, None])[:, :, 0]
        return axes, frames[:, :3, 3], tool[:3, 3], tool[:3, :3]

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tool position (3,) in metres and rotation (3, 3) at joint positions ``q`` (N,) in radians."""
        _, _, position, rotation = self._frames(np.asarray(q, dtype=float))
        return position, rotation

    def position(self, q: np.ndarray) -> np.ndarray:
        """(3,) tool position in metres, as of :meth:`forward` in less than half its time: no rotation is built."""
        point = self._tool[:, 3]
        for step in self._steps(np.asarray(q, dtype=float))[::-1]:
            point = step.dot(point)
        return point[:3]

    def jacobian(self, q: np.ndarray) -> np.ndarray:
        """(6, N): tool velocity in the base frame, three linear (m/s) over three angular (rad/s) rows, per rad/s."""
        axes, origins, position, _ = self._frames(np.asarray(q, dtype=float))
        return np.concatenate([np.cross(axes, position - origins), axes], axis=1).T

    def step(self, q: np.ndarray, twist: np.ndarray, damping: float = 0.02) -> np.ndarray:
        """Joint change (N,) for a small tool displacement ``twist`` (6,): metres, then a rotation vector, base frame.

        Damped least squares (Wampler 1986; Nakamura and Hanafusa 1986): ``J^T (J J^T + damping² I)^-1 twist``.
        """
        jacobian = self.jacobian(q)
        return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping**2 * np.eye(6), twist)

    def solve(
        self,
        q: np.ndarray,
        position: np.ndarray,
        rotation: np.ndarray,
        posture: np.ndarray,
        iterations: int = 4,
        damping: float = 0.02,
        posture_gain: float = 0.1,
    ) -> np.ndarray:
        """Joint positions (N,) that bring the tool to a pose, by damped least squares from ``q``.

        What the pose leaves free (the null space) drifts toward ``posture`` by ``posture_gain`` of its distance per
        iteration, so that the elbow does not wander. The result is inside the limits; an unreachable pose is met as
        nearly as the iterations allow. Only ``q`` and the target decide the result: nothing is remembered.

        Args:
            q: (N,) where to start, radians.
            position: (3,) tool position, metres, base frame.
            rotation: (3, 3) tool rotation, base frame.
            posture: (N,) preferred joint positions, radians.
        """
        q = np.array(q, dtype=float)
        identity_6, identity_n = np.eye(6), np.eye(len(q))
        twist = np.empty(6)
        for _ in range(iterations):
            axes, origins, tool_position, tool_rotation = self._frames(q)
            twist[:3] = position - tool_position
            twist[3:] = rotation_vector(rotation @ tool_rotation.T)
            arms = tool_position - origins
            jacobian = np.empty((6, len(q)))
            jacobian[:3] = _cross_rows(axes, arms).T
            jacobian[3:] = axes.T
            inverse = np.linalg.solve(jacobian @ jacobian.T + damping**2 * identity_6, jacobian).T
            free = identity_n - inverse @ jacobian
            q = q + inverse @ twist + free @ (posture_gain * (posture - q))
            q = np.minimum(np.maximum(q, self.limits[:, 0]), self.limits[:, 1])
        return q


def _homogeneous(rotations: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(M, 3, 3) and (M, 3) -> (M, 4, 4)."""
    frames = np.zeros((len(positions), 4, 4))
    frames[:, :3, :3], frames[:, :3, 3], frames[:, 3, 3] = rotations, positions, 1.0
    return frames


def _cross_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cross product of (N, 3) arrays; several times faster than ``np.cross`` on a handful of rows."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The rotation vector (axis times angle in [0, pi], radians) of a 3x3 rotation matrix."""
    r = rotation
    vector = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])  # 2 sin(angle) · axis
    sine = 0.5 * math.sqrt(float(vector @ vector))
    cosine = 0.5 * (float(r[0, 0] + r[1, 1] + r[2, 2]) - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        return vector * (0.5 * angle / sine)
    if cosine > 0:
        return 0.5 * vector
    # Half a turn: the antisymmetric part vanishes, the axis is the largest column of R + I.
    column = (r + np.eye(3))[:, int(np.argmax(np.diag(r)))]
    return angle * column / np.linalg.norm(column)


def yaw_rotation(yaw: float) -> np.ndarray:
    """The rotation (3, 3) by ``yaw`` radians about the base frame's z axis."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def wrap_angle(angle: float, period: float = 2 * math.pi) -> float:
    """``angle`` moved by whole periods into [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2
