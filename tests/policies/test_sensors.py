"""A missing sensor is absent: its tokens and experts are masked, and what stands in its place is not read."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moe_policies.config import MODALITIES
from moe_policies.policy import MultimodalPolicy
from moe_policies.presets import PRESETS
from moe_robot.types import Observation, UserError

SMALL = {"width": 32, "hidden": 32, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCES = ["press the red button", "push the green button please"]
VISION, LANGUAGE = MODALITIES.index("vision"), MODALITIES.index("language")


def make(features, statistics, preset="moe", **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    return MultimodalPolicy.from_preset(preset, features, statistics, SENTENCES, **(SMALL | overrides)).eval()


def acting(batch):
    return {key: value for key, value in batch.items() if not key.startswith("action")}


def scrambled(batch, sensor, features):
    """The batch with other contents of one sensor."""
    changed = dict(batch)
    state = np.array(batch["observation.state"])
    grasp = ["gripper" in name for name in features.state_names]
    if sensor in features.cameras:
        changed["observation.images." + sensor] = 255 - np.array(batch["observation.images." + sensor])
    elif sensor == "language":
        changed["task"] = ["pick up the blue cube"] * len(batch["task"])
    else:
        columns = [i for i, is_grasp in enumerate(grasp) if is_grasp == (sensor == "grasp")]
        state[:, columns] += 3.0
        changed["observation.state"] = state
    return changed


@pytest.mark.parametrize("preset", ["moe", "dense-active", "switch", "typed", "jacobs1991"])
def test_what_a_missing_sensor_would_have_said_changes_nothing(features, statistics, batch, preset):
    policy = make(features, statistics, preset)
    for sensor in policy.sensors:
        policy.disable_sensors([sensor])
        one, other = (policy.predict_action_chunk(acting(b)) for b in (batch, scrambled(batch, sensor, features)))
        assert_close(one, other)
        assert one.isfinite().all()
        policy.disable_sensors([])
        whole, changed = (policy.predict_action_chunk(acting(b)) for b in (batch, scrambled(batch, sensor, features)))
        assert (whole - changed).abs().max() > 1e-6


def test_the_experts_of_a_missing_sense_get_no_token_and_are_in_no_count(features, statistics, batch):
    policy = make(features, statistics, gate_prior=0.0)
    policy.disable_sensors(["language"])
    policy.predict_action_chunk(acting(batch))
    routing = policy.routing()
    columns = [e for e, role in enumerate(routing.roles) if role == "language"]
    assert routing.counts_LME[:, :, columns].sum() == 0
    assert routing.counts_LME[:, LANGUAGE].sum() == 0
    policy.disable_sensors(list(features.cameras))
    policy.predict_action_chunk(acting(batch))
    routing = policy.routing()
    columns = [e for e, role in enumerate(routing.roles) if role == "vision"]
    assert routing.counts_LME[:, :, columns].sum() == 0
    assert routing.counts_LME[:, VISION].sum() == 0
    assert routing.counts_LME.sum() > 0


def test_one_camera_of_two_leaves_the_vision_experts_awake(features, statistics, batch):
    policy = make(features, statistics)
    policy.predict_action_chunk(acting(batch))
    before = policy.routing().counts_LME[0, VISION].sum()
    policy.disable_sensors([next(iter(features.cameras))])
    policy.predict_action_chunk(acting(batch))
    assert policy.routing().counts_LME[0, VISION].sum() == before / len(features.cameras)


def test_sensors_are_named_and_not_all_can_be_missing(features, statistics):
    policy = make(features, statistics)
    assert policy.sensors == (*features.cameras, "arm", "grasp", "language")
    with pytest.raises(UserError, match="unknown sensor 'gras': did you mean grasp"):
        policy.disable_sensors(["gras"])
    with pytest.raises(UserError, match="all sensors are missing"):
        policy.disable_sensors(policy.sensors)
    assert make(features, statistics, text="none").sensors == (*features.cameras, "arm", "grasp")


def observation(batch, **changes) -> Observation:
    images = {key.removeprefix("observation.images."): batch[key][0] for key in batch if "images" in key}
    whole = Observation(images, batch["observation.state"][0], batch["task"][0])
    return dataclasses.replace(whole, **changes)


def test_only_a_policy_trained_to_do_without_acts_without(features, statistics, batch):
    camera, *others = features.cameras
    lacks = {name: observation(batch).images[name] for name in others}
    with pytest.raises(UserError, match=r"lacks camera.*sensor_dropout"):
        make(features, statistics).select_action(observation(batch, images=lacks))
    policy = make(features, statistics, sensor_dropout=0.1)
    without = policy.select_action(observation(batch, images=lacks))
    policy.reset()
    policy.disable_sensors([camera])
    assert_close(without, policy.select_action(observation(batch)))
    policy.disable_sensors([])
    policy.reset()
    blind_state = policy.select_action(observation(batch, state=None))
    policy.reset()
    policy.disable_sensors(["arm", "grasp"])
    assert_close(blind_state, policy.select_action(observation(batch)))
    policy.reset()
    with pytest.raises(UserError, match="no instruction"):
        policy.select_action(observation(batch, task=None))


def test_sensor_dropout_hides_sensors_in_training_only_and_never_all(features, statistics, batch):
    policy = make(features, statistics, sensor_dropout=0.9).train()
    torch.manual_seed(0)
    for _ in range(5):
        loss, _ = policy(batch)
        assert loss.isfinite()
        kept = torch.stack(list(policy._dropped(200).values()))
        assert kept.any(dim=0).all()
        assert 0.0 < kept.float().mean() < 0.5
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())
    policy.eval()
    assert_close(policy.predict_action_chunk(acting(batch)), policy.predict_action_chunk(acting(batch)))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_with_sensors_that_come_and_go(features, statistics, batch, preset):
    policy = make(features, statistics, preset, sensor_dropout=0.5).train()
    loss, _ = policy(batch)
    loss.backward()
    assert loss.isfinite()
