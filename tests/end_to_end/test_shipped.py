"""The checkpoints in assets/checkpoints do what their cards say, within a few episodes."""

from pathlib import Path

import pytest

from moe_robot.evaluation import evaluate
from moe_robot.registry import load_policy

SHIPPED = Path(__file__).parents[2] / "assets" / "checkpoints"
MIB = 2**20


@pytest.mark.parametrize("folder", sorted(SHIPPED.iterdir()), ids=lambda folder: folder.name)
def test_a_shipped_checkpoint_is_small_and_loads(folder):
    assert all(path.stat().st_size <= 15 * MIB for path in folder.rglob("*"))
    policy = load_policy(folder)
    assert sum(p.numel() for p in policy.parameters()) <= 12e6  # type: ignore[attr-defined]
    assert "95 %, Wilson" in (folder / "README.md").read_text()


def test_the_meta_world_policy_opens_a_window(tmp_path):
    results = evaluate(
        SHIPPED / "metaworld-mt10-moe", out=tmp_path, tasks="window-open-v3", episodes=3, seed=100_000, workers=1
    )
    successes = sum(episode.success for episode in results.episodes)
    assert successes >= 2  # 20 of 20 in its card
