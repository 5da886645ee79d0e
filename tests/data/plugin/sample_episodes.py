"""Small recorded episodes for the tests of storing and loading."""

import hashlib
from pathlib import Path

import numpy as np

from moe_robot.data.record import EpisodeBuilder, EpisodeRecord
from moe_robot.data.store import DatasetWriter
from moe_robot.types import Features

FEATURES = Features({"front": (24, 32), "wrist": (16, 16)}, ("x", "y", "z"), ("dx", "dy"), fps=10)


def images(episode: int, frame: int, smooth: bool = False) -> dict[str, np.ndarray]:
    """Noise pictures: any mistake in order, colour or size shows. Smooth ones survive a video codec."""
    if smooth:
        return {c: smooth_image(episode, frame, *size) for c, size in FEATURES.cameras.items()}
    rng = np.random.default_rng([episode, frame])
    return {c: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for c, size in FEATURES.cameras.items()}


def smooth_image(episode: int, frame: int, height: int, width: int) -> np.ndarray:
    """Four shades of colour of its own for every frame, blurred into each other."""
    corners = np.random.default_rng([episode, frame]).uniform(30, 220, (2, 2, 3))
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = (corners[i][:1] * (1 - across) + corners[i][1:] * across for i in (0, 1))
    return np.round(top * (1 - down) + bottom * down).astype(np.uint8)


def length(episode: int) -> int:
    return 4 + episode % 5


def vectors(episode: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 + episode)
    return rng.normal(size=(length(episode), 3)), rng.normal(size=(length(episode), 2))


def record(episode: int, codec: str = "png") -> EpisodeRecord:
    builder = EpisodeBuilder(FEATURES, codec)
    states, actions = vectors(episode)
    for frame in range(length(episode)):
        builder.add(images(episode, frame, smooth=codec != "png"), states[frame], actions[frame])
    extras = {"env_task": f"task{episode % 2}", "seed": episode, "success": True, "attempts": 1, "noise": 0.1}
    return builder.finish(f"sentence {episode % 3}", extras)


def write_dataset(directory: Path, episodes: int, codec: str = "png") -> Path:
    writer = DatasetWriter(directory, FEATURES, {"environment": "samples"}, codec)
    for episode in range(writer.episodes, episodes):
        writer.append(record(episode, codec))
    writer.commit()
    return directory


def fingerprints(directory: Path) -> dict[str, str]:
    """Hash of every file that belongs to the data set, by name."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.relative_to(directory).parts[0].startswith(".")
    }
