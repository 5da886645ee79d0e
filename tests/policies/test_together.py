"""Plans for several robots in one pass: what each gets is what it would get alone."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moe_policies.policy import MultimodalPolicy
from moe_robot.types import Observation, PlansTogether, UserError

SHAPE = {"width": 32, "layers": 2, "heads": 2, "hidden": 16, "stem_channels": 8, "patches": 2, "glimpses": 2}


def robots(batch, without: str = "") -> list[Observation]:
    """Six robots with sentences of different lengths."""
    sentences = ["press red", "push the green button please", "pick up the blue cube"] * 2
    cameras = [name for name in ("front", "wrist") if name != without]
    return [
        Observation(
            {name: batch[f"observation.images.{name}"][i] for name in cameras}, batch["observation.state"][i], sentence
        )
        for i, sentence in enumerate(sentences)
    ]


def make(features, statistics, **overrides):
    torch.manual_seed(0)
    sentences = ["press the red button", "push the green button please", "pick up the blue cube"]
    return MultimodalPolicy.from_preset("moe", features, statistics, sentences, **(SHAPE | overrides)).eval()


@pytest.mark.parametrize(
    ("overrides", "without"),
    [
        ({}, ""),
        ({"routing_unit": "segment"}, ""),
        ({"routing_unit": "instruction"}, ""),
        ({"sensor_dropout": 0.1}, "wrist"),
    ],
)
def test_every_robot_gets_its_own_plan_and_its_own_routes(features, statistics, batch, overrides, without):
    policy, seen = make(features, statistics, **overrides), robots(batch, without)
    assert isinstance(policy, PlansTogether)
    together, routings = policy.action_chunks(seen), policy.routings()
    assert together.shape == (6, policy.config.chunk, 3)
    assert len(routings) == 6
    for i, observation in enumerate(seen):
        alone = policy.action_chunk(observation)
        assert_close(together[i], alone, rtol=1e-5, atol=1e-5)
        routing = policy.routing()
        assert np.array_equal(routings[i].counts_LME, routing.counts_LME)
        assert np.array_equal(routings[i].tokens_LM, routing.tokens_LM)
        assert np.array_equal(routings[i].top_LME, routing.top_LME)
        np.testing.assert_allclose(routings[i].entropy_LM, routing.entropy_LM, rtol=1e-4)


def test_planning_for_others_leaves_a_robots_own_plan_alone(features, statistics, batch):
    policy, seen = make(features, statistics), robots(batch)
    whole = policy.action_chunk(seen[0])
    assert policy.steps_per_plan > 1
    first = policy.select_action(seen[0])
    policy.action_chunks(seen[1:])
    assert_close(np.stack([first, policy.select_action(seen[0])]), whole[:2])


def test_robots_with_other_sensors_are_not_mixed(features, statistics, batch):
    policy = make(features, statistics, sensor_dropout=0.1)
    mixed = [*robots(batch)[:2], *robots(batch, "wrist")[2:]]
    with pytest.raises(UserError, match="plan for each kind by itself"):
        policy.action_chunks(mixed)
