"""Small recorded episodes for the tests of storing and loading."""

import hashlib
from pathlib import Path

import numpy as np

from moe_robot.data.record import EpisodeBuilder, EpisodeRecord
from moe_robot.data.store import DatasetWriter
from moe_robot.types import Features

FEATURES = Features({"front": (24, 32), "wrist": (16, 16)}, ("x", "y", "z"), ("dx", "dy"), fps=10)


def images(episode: int, frame: int) -> dict[str, np.ndarray]:
    """Noise pictures: any mistake in order, colour or size shows."""
    rng = np.random.default_rng([episode, frame])
    return {c: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for c, size in FEATURES.cameras.items()}


def length(episode: int) -> int:
    return 4 + episode % 5


def vectors(episode: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 + episode)
    return rng.normal(size=(length(episode), 3)), rng.normal(size=(length(episode), 2))


def record(episode: int) -> EpisodeRecord:
    builder = EpisodeBuilder(FEATURES)
    states, actions = vectors(episode)
    for frame in range(length(episode)):
        builder.add(images(episode, frame), states[frame], actions[frame])
    extras = {"env_task": f"task{episode % 2}", "seed": episode, "success": True, "attempts": 1, "noise": 0.1}
    return builder.finish(f"sentence {episode % 3}", extras)


def write_dataset(directory: Path, episodes: int) -> Path:
    writer = DatasetWriter(directory, FEATURES, {"environment": "samples"})
    for episode in range(writer.episodes, episodes):
        writer.append(record(episode))
    writer.commit()
    return directory


def fingerprints(directory: Path) -> dict[str, str]:
    """Hash of every file that belongs to the data set, by name."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.relative_to(directory).parts[0].startswith(".")
    }
