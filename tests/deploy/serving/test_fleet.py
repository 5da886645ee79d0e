"""Many robots at once: each gets the plan of its own observation, and batches say the same as one by one."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from robots import seen_by
from websockets.asyncio.client import connect

from moe_robot.deploy.serving.observations import Sensed
from moe_robot.deploy.serving.wire import pack, unpack

SHIPPED = Path(__file__).parents[3] / "assets/checkpoints/pitstop-demo-moe"


async def _fleet(address: str, mirror, robots: int, seconds: float) -> tuple[int, int]:
    """Answers, and how many robots the largest batch held."""
    end = time.monotonic() + seconds
    batches = [0]

    async def live(robot: int) -> int:
        async with connect(address, compression=None, proxy=None, open_timeout=60) as connection:
            await connection.recv()
            step = 0
            while step < 3 or time.monotonic() < end:
                picture, state, task = seen_by(robot, step).values()
                await connection.send(pack(seen_by(robot, step, openpi=robot % 2 == 1)))
                answer = unpack(await connection.recv())
                np.testing.assert_allclose(answer["actions"], mirror.expected(state, picture, task), rtol=1e-6)
                batches.append(answer["server_timing"]["batch"])
                step += 1
            return step

    return sum(await asyncio.gather(*(live(i) for i in range(robots)))), max(batches)


def test_sixty_four_robots_at_once_get_their_own_plans(server, mirror):
    answers, batch = asyncio.run(_fleet(server.address, mirror, 64, seconds=2))
    assert answers >= 3 * 64
    assert batch > 1
    assert server.metric('requests_total{outcome="failed"}') == server.metric('requests_total{outcome="refused"}') == 0


@pytest.mark.full
def test_sixty_four_robots_for_a_minute(server, mirror):
    asyncio.run(_fleet(server.address, mirror, 64, seconds=60))
    assert server.metric('requests_total{outcome="failed"}') == server.metric('requests_total{outcome="refused"}') == 0
    assert server.metric("robots") == 0


def test_one_by_one_never_batches(serve, checkpoint, mirror):
    served = serve(checkpoint, "--max-batch", "1")
    assert asyncio.run(_fleet(served.address, mirror, 8, seconds=0))[1] == 1


def test_more_robots_than_are_let_in_are_told_so(serve, checkpoint, mirror):
    served = serve(checkpoint, "--max-robots", "2")
    with pytest.raises(Exception, match="503"):
        asyncio.run(_fleet(served.address, mirror, 8, seconds=0))
    assert served.metric('turned_away_total{reason="full"}') > 0


def _robots(tasks: list[str]) -> list[Sensed]:
    rng = np.random.default_rng(0)
    return [
        Sensed(
            {
                "observation.images.front": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8),
                "observation.images.wrist": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8),
                "observation.state": rng.normal(0.3, 0.2, 19).astype(np.float32),
            },
            task,
        )
        for task in tasks
    ]


def test_a_trained_mixture_says_in_a_batch_what_it_says_alone_and_forgets_old_sentences(monkeypatch):
    from moe_policies import pretrained  # brings torch
    from moe_robot.deploy.serving.acting import ServedPolicy

    policy = ServedPolicy(SHIPPED, "cpu", 1)
    tasks = ["pick up the red cube", "press the blue button now", "press the red button", "what is this"]
    robots = _robots(4 * tasks)
    together = policy.answer(robots)
    alone = [policy.answer([robot])[0] for robot in robots]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    experts, routes_LE = policy.load() or ((), np.zeros(0))
    assert routes_LE.shape == (3, len(experts))
    monkeypatch.setattr(pretrained, "REMEMBERED", 3)
    np.testing.assert_allclose(policy.answer(robots), together, atol=1e-5)
    assert len(policy.policy.network.text.encoder._cache) == 3
