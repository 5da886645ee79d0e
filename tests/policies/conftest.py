"""A small data set's worth of features, statistics and batches for the policy tests."""

import numpy as np
import pytest

from moe_robot.types import Features, FeatureStatistics

SENTENCES = ["press the red button", "push the green button please", "pick up the blue cube"]


def _statistics_of(features: Features) -> dict[str, FeatureStatistics]:
    sizes = {f"observation.images.{camera}": 3 for camera in features.cameras}
    sizes |= {"observation.state": len(features.state_names), "action": len(features.action_names)}
    return {
        key: FeatureStatistics(np.full(n, 0.4), np.full(n, 0.3), np.zeros(n), np.ones(n), 100)
        for key, n in sizes.items()
    }


@pytest.fixture
def statistics_of():
    return _statistics_of


@pytest.fixture
def features() -> Features:
    return Features(
        {"front": (48, 48), "wrist": (48, 48)}, ("j1.pos", "j2.pos", "gripper.pos"), ("x", "y", "gripper"), 10
    )


@pytest.fixture
def statistics(features):
    return _statistics_of(features)


@pytest.fixture
def batch(features):
    rng = np.random.default_rng(0)
    b = 6
    images = {
        f"observation.images.{camera}": rng.integers(0, 255, (b, *size, 3), dtype=np.uint8)
        for camera, size in features.cameras.items()
    }
    return images | {
        "observation.state": rng.normal(size=(b, 3)).astype(np.float32),
        "task": [SENTENCES[i % 3] for i in range(b)],
        "action": rng.normal(size=(b, 8, 3)).astype(np.float32),
        "action_is_pad": np.arange(8)[None].repeat(b, 0) >= 6,
    }
