"""How the policy brings features to a common size: per feature, strict, and kept in the checkpoint."""

import numpy as np
import pytest
import torch

from moe_policies.config import PolicyConfig
from moe_policies.processor import Processor
from moe_robot.types import ACTION, Features, FeatureStatistics, UserError

FEATURES = Features({"front": (8, 8), "wrist": (8, 8)}, ("a", "b"), ("x", "y"), 10)


def statistics(values):
    quantiles = dict(zip(("q01", "q99"), np.quantile(values, (0.01, 0.99), axis=0), strict=True))
    moments = values.mean(axis=0), values.std(axis=0), values.min(axis=0), values.max(axis=0)
    return FeatureStatistics(*moments, count=len(values), quantiles=quantiles)


@pytest.fixture(scope="module")
def actions():
    values = np.random.default_rng(0).normal(3, 2, size=(1000, 2))
    values[7, 0] = 100.0  # one wild value
    return values


@pytest.fixture(scope="module")
def known(actions):
    pixels = np.random.default_rng(1).uniform(size=(1000, 3))
    vectors = {"observation.state": statistics(actions), ACTION: statistics(actions)}
    return vectors | {f"observation.images.{camera}": statistics(pixels) for camera in FEATURES.cameras}


def processor(known, **normalisation):
    return Processor(PolicyConfig(normalisation=normalisation), FEATURES, known).eval()


def normalised(known, actions, mode):
    return processor(known, action=mode).normalise(ACTION, torch.as_tensor(actions)).numpy()


def test_mean_std_is_the_default(known, actions):
    got = processor(known).normalise(ACTION, torch.as_tensor(actions)).numpy()
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(got.std(axis=0), 1, rtol=1e-4)


def test_min_max_puts_the_extremes_at_one(known, actions):
    got = normalised(known, actions, "min_max")
    np.testing.assert_allclose((got.min(axis=0), got.max(axis=0)), ((-1, -1), (1, 1)), atol=1e-5)


def test_quantiles_are_not_moved_by_one_wild_value(known, actions):
    got = normalised(known, actions, "quantile")
    np.testing.assert_allclose(np.quantile(got, (0.01, 0.99), axis=0), ((-1, -1), (1, 1)), atol=1e-4)
    spread = [
        np.subtract(*np.quantile(values[:, 0], (0.75, 0.25))) for values in (got, normalised(known, actions, "min_max"))
    ]
    assert spread[0] > 5 * spread[1]


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile", "none"])
def test_every_way_has_its_way_back(known, actions, mode):
    there = processor(known, action=mode, state=mode)
    back = there.unnormalise(ACTION, there.normalise(ACTION, torch.as_tensor(actions)))
    np.testing.assert_allclose(back.numpy(), actions, rtol=1e-4, atol=1e-4)


def test_one_camera_may_have_its_own_way(known):
    frame = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    there = processor(known, images="min_max", wrist="none")
    np.testing.assert_allclose(there.image("front", frame).numpy(), 1, atol=0.01)
    np.testing.assert_allclose(there.image("wrist", frame).numpy(), 1, atol=1e-6)
    dark = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    np.testing.assert_allclose(there.image("front", dark).numpy(), -1, atol=0.01)
    np.testing.assert_allclose(there.image("wrist", dark).numpy(), 0, atol=1e-6)


def test_an_entry_that_never_moved_is_centred_and_not_scaled(known):
    still = {**known, ACTION: statistics(np.full((5, 2), 7.0))}
    for mode in ("mean_std", "min_max", "quantile"):
        got = processor(still, action=mode).normalise(ACTION, torch.tensor([[7.0, 8.0]]))
        assert got.tolist() == [[0.0, 1.0]]


def test_what_is_missing_or_unknown_is_refused_by_name(known):
    with pytest.raises(UserError, match="no statistics for 'action'"):
        processor({key: value for key, value in known.items() if key != ACTION})
    bare = FeatureStatistics(*(np.ones(2),) * 4, count=2)
    with pytest.raises(UserError, match="no quantiles in the statistics of 'action'"):
        processor({**known, ACTION: bare}, action="quantile")
    with pytest.raises(UserError, match="unknown feature to normalise 'acton': did you mean action"):
        processor(known, acton="min_max")
    with pytest.raises(UserError, match="unknown normalisation 'minmax': did you mean min_max"):
        processor(known, action="minmax")


def test_the_checkpoint_carries_it(known):
    there = processor(known, action="quantile")
    config = PolicyConfig.from_json(PolicyConfig(normalisation={"action": "quantile"}).to_json())
    again = Processor(config, FEATURES, None)
    again.load_state_dict(there.state_dict())
    value = torch.tensor([[1.0, 2.0]])
    assert torch.equal(again.normalise(ACTION, value), there.normalise(ACTION, value))
