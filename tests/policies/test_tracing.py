"""Which token went where: labels stand at the tokens that they name, and the routes are those that were counted."""

import numpy as np
import torch

from moe_policies.policy import MultimodalPolicy
from moe_robot.types import TellsTokenRoutes

SENTENCES = ["press the red button", "push the green button please"]


def make(features, statistics, **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    shape = {"width": 32, "heads": 2, "hidden": 16, "patches": 2, "glimpses": 2, "stem_channels": 8, "layers": 3}
    return MultimodalPolicy.from_preset("moe", features, statistics, SENTENCES, **{**shape, **overrides}).eval()


def inputs(batch):
    return {key: value[:2] for key, value in batch.items() if "action" not in key} | {"task": list(SENTENCES)}


def changed(policy, batch, other) -> set[str]:
    """Names of the tokens whose weights in the entry layer differ between two observations."""
    policy.predict_action_chunk(batch)
    before = policy.token_routes()[0]
    policy.predict_action_chunk(other)
    after = policy.token_routes()[0]
    moved = (np.abs(before.weights_BNK - after.weights_BNK) > 1e-7).any(axis=(0, 2))
    return {label.name for label, it_moved in zip(before.labels, moved, strict=True) if it_moved}


def test_the_routes_of_the_tokens_are_the_routes_that_are_counted(features, statistics, batch):
    policy = make(features, statistics)
    policy.predict_action_chunk(inputs(batch))
    routing, traced = policy.routing(), policy.token_routes()
    assert isinstance(policy, TellsTokenRoutes)
    assert len(traced) == len(routing.counts_LME) == 4
    for layer, routes in enumerate(traced):
        for m, modality in enumerate(routing.modalities):
            of_modality = [n for n, label in enumerate(routes.labels) if label.modality == modality]
            ids = routes.ids_BNK[:, of_modality]
            assert np.bincount(ids[ids >= 0], minlength=8).tolist() == routing.counts_LME[layer, m].tolist()
            assert (ids[..., 0] >= 0).sum() == routing.tokens_LM[layer, m]


def test_words_that_are_not_there_and_tokens_that_take_no_part_are_minus_one(features, statistics, batch):
    policy = make(features, statistics)
    policy.predict_action_chunk(inputs(batch))
    first, second, _, last = policy.token_routes()
    names = [label.name for label in first.labels]
    assert first.ids_BNK[0, names.index("word 4")].tolist() == [-1, -1]  # the first sentence has four words
    assert (first.ids_BNK[1, names.index("word 4")] >= 0).all()
    glimpse = names.index("front glimpse 0")
    assert (first.ids_BNK[:, glimpse] >= 0).all()
    assert (second.ids_BNK[:, glimpse] == -1).all()
    assert set(np.flatnonzero((last.ids_BNK >= 0).any(axis=(0, 2)))) == {0, 1}
    assert names[:2] == ["arm action", "grasp action"]


def test_labels_stand_at_the_tokens_that_they_name(features, statistics, batch):
    policy, one = make(features, statistics, glimpses=0), inputs(batch)
    state = one["observation.state"] + np.array([0, 0, 1], np.float32)
    assert changed(policy, one, one | {"observation.state": state}) == {"grasp state"}
    corner = one["observation.images.wrist"].copy()
    corner[:, -2:, :2] ^= 255
    assert changed(policy, one, one | {"observation.images.wrist": corner}) == {"wrist patch 1,0"}
    words = ["press the red button", "push the red button please"]
    assert changed(policy, one, one | {"task": words}) == {f"word {i}" for i in range(5)}  # words read each other


def test_a_policy_without_a_gate_or_before_its_first_step_traces_nothing(features, statistics, batch):
    policy = make(features, statistics)
    assert policy.token_routes() == ()
    dense = make(features, statistics, feed_forward="dense-active")
    dense.predict_action_chunk(inputs(batch))
    assert dense.token_routes() == ()


def test_what_a_capacity_dropped_is_told_for_every_modality_and_expert(features, statistics, batch):
    policy = make(features, statistics, capacity_factor=0.5).train()
    policy(batch)
    routing = policy.routing()
    rates = routing.drop_rates()
    assert set(rates) <= {*routing.modalities, *routing.experts}
    lost = routing.dropped_LME.sum()
    assert lost > 0
    assert rates["vision"] == routing.dropped_LME[:, 0].sum() / routing.counts_LME[:, 0].sum()
    assert rates["vision.0"] == routing.dropped_LME[:, :, 0].sum() / routing.counts_LME[:, :, 0].sum()
    policy.eval()
    policy(batch)
    assert policy.routing().drop_rates() == {}
