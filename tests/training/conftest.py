"""A real data set on disk, small and solvable: coloured patches in a picture, and a sentence that names one."""

import numpy as np
import pytest

from moe_robot.data.record import EpisodeBuilder
from moe_robot.data.store import DatasetWriter
from moe_robot.types import Features

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
SIZE = 32


def picture(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """A grey picture with one patch per colour; the places are left or right of the middle, in [-1, 1]."""
    image = np.full((SIZE, SIZE, 3), 120, np.uint8)
    columns = rng.permutation([4, 22])
    for (_, rgb), column in zip(COLOURS.items(), columns, strict=True):
        image[8:20, column : column + 6] = rgb
    return image, {colour: column / 13 - 1 for colour, column in zip(COLOURS, columns, strict=True)}


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations")
    features = Features({"front": (SIZE, SIZE)}, ("joint.pos", "gripper.opening"), ("dx", "gripper"), 10)
    provenance = {"environment": "nowhere/Patches-v0", "options": {"size": SIZE}, "tasks": list(COLOURS)}
    writer = DatasetWriter(folder, features, provenance)
    rng = np.random.default_rng(0)
    for episode in range(80):
        colour = list(COLOURS)[episode % 2]
        builder = EpisodeBuilder(features)
        for _ in range(3):
            image, places = picture(rng)
            state = rng.normal(size=2).astype(np.float32)
            builder.add({"front": image}, state, np.array([places[colour], np.sign(state[1])], np.float32))
        writer.append(builder.finish(f"go to the {colour} one", {"env_task": colour, "seed": episode}))
    writer.commit()
    return folder
