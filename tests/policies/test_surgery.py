"""A mixture made from a dense policy acts like it; a small policy cut out of a mixture acts like the mixture."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moe_policies.policy import MultimodalPolicy
from moe_robot.registry import load_policy
from moe_robot.types import UserError

SMALL = {"width": 32, "hidden": 32, "layers": 3, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCES = ["press the red button", "push the green button please", "pick up the blue cube"]


def make(features, statistics, preset="moe", **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    return MultimodalPolicy.from_preset(preset, features, statistics, SENTENCES, **(SMALL | overrides)).eval()


def acting(batch, **changes):
    return {key: value for key, value in batch.items() if not key.startswith("action")} | changes


@pytest.mark.parametrize("preset", ["dense-active", "dense-total"])
@pytest.mark.parametrize(
    "overrides", [{}, {"experts_per_token": 3}, {"experts": {"vision": 4, "language": 1}}, {"routed_scale": 2.5}]
)
def test_an_upcycled_policy_acts_like_the_dense_one_until_it_learns(features, statistics, batch, preset, overrides):
    dense = make(features, statistics, preset)
    with torch.no_grad():
        for p in dense.parameters():
            p.add_(0.02 * torch.randn_like(p))
    sparse = dense.upcycled(**overrides).eval()
    assert sparse.config.feed_forward == "moe"
    assert_close(
        sparse.predict_action_chunk(acting(batch)), dense.predict_action_chunk(acting(batch)), rtol=1e-4, atol=1e-5
    )
    sparse.train()
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(batch)[0].backward()
    optimiser.step()
    first, second = sparse.network.moe_layers[0].experts[:2]
    assert not torch.equal(first.out.weight, second.out.weight)


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("moe", {}, "is a mixture already"),
        ("dense-active", {"experts_per_token": 1}, "expected experts_per_token of at least 2"),
        ("dense-active", {"shared_experts": 1}, "no shared experts"),
        ("dense-active", {"width": 64}, "do not fit the dense policy's weights"),
        ("dense-active", {"widht": 64}, "unknown policy config key 'widht': did you mean width"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(features, statistics, preset, overrides, message):
    with pytest.raises(UserError, match=message):
        make(features, statistics, preset).upcycled(**overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"experts_per_token": 3},
        {"activation": "geglu", "shared_experts": 1, "routed_scale": 2.5},
        {"activation": "relu"},
    ],
)
def test_what_an_instruction_uses_is_cut_out_and_acts_the_same(features, statistics, batch, tmp_path, overrides):
    full = make(features, statistics, routing_unit="instruction", **overrides)
    with torch.no_grad():
        for layer in full.network.moe_layers:  # gates that are sure of themselves, each sentence of its own experts
            layer.router.weight_ED.mul_(30)
    used = set()
    for sentence in SENTENCES:
        b = acting(batch, task=[sentence] * len(batch["task"]))
        expected = full.predict_action_chunk(b)
        used.add(tuple(tuple(plans[0].ids_TK[0].tolist()) for plans in full.latest_plans))
        small = full.extracted(sentence)
        assert_close(small.predict_action_chunk(b), expected, rtol=1e-4, atol=1e-5)
        small.save_pretrained(tmp_path / "small")
        again = load_policy(tmp_path / "small")
        assert_close(again.predict_action_chunk(b), expected, rtol=1e-4, atol=1e-5)
        assert small.cost().total_parameters < full.cost().total_parameters
        assert not small.network.moe_layers
    assert len(used) > 1, "all sentences woke the same experts: the test would not notice a wrong cut"


def test_a_policy_cut_out_for_one_instruction_follows_no_other(features, statistics, batch):
    small = make(features, statistics, routing_unit="instruction").extracted(SENTENCES[0])
    with pytest.raises(UserError, match=r"cut out for 'press the red button' and follows nothing else"):
        small.predict_action_chunk(acting(batch, task=[SENTENCES[1]] * len(batch["task"])))


def test_only_gates_that_decide_by_the_instruction_can_be_cut(features, statistics):
    with pytest.raises(UserError, match="decides by token"):
        make(features, statistics).extracted(SENTENCES[0])
    whole_frames = make(features, statistics, routing_unit="instruction", expert_kinds={"vision": "convolution"})
    with pytest.raises(UserError, match="expected all expert_kinds mlp"):
        whole_frames.extracted(SENTENCES[0])


def test_the_instruction_alone_decides_whatever_the_cameras_show(features, statistics, batch):
    policy = make(features, statistics, routing_unit="instruction")
    dark = {key: np.zeros_like(value) for key, value in batch.items() if "images" in key}
    plans = []
    for changes in ({}, dark):
        policy.predict_action_chunk(acting(batch, **changes))
        plans.append([of[0].weights_TK for of in policy.latest_plans])
    for one, other in zip(*plans, strict=True):
        assert_close(one, other)
