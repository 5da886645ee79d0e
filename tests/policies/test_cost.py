"""What a policy says it costs is what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_policies.policy import MultimodalPolicy
from moe_policies.presets import PRESETS

SENTENCE = "press the red button now please my friend"  # eight words with the two marks of the encoder left out


def make(features, statistics, preset, **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    return (
        MultimodalPolicy.from_preset(preset, features, statistics, [SENTENCE], **overrides).eval().requires_grad_(False)
    )


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        *((preset, {}) for preset in PRESETS),
        ("moe", {"layers": 3, "experts_per_token": 3, "hidden": 96}),
        ("moe", {"head": "flow"}),
        ("moe", {"glimpses": 0}),
        ("moe", {"search": "things"}),
        ("moe", {"text": "none"}),
        ("moe", {"routing_unit": "instruction", "shared_experts": 2}),
        ("moe", {"gate_hears": True}),
        ("moe", {"state_octaves": 3}),
        ("moe", {"vision": "bundled:efficientnet-lite0"}),
    ],
)
def test_flops_agree_with_torch_within_two_percent(features, statistics, batch, preset, overrides):
    policy = make(features, statistics, preset, **overrides)
    told, counted = told_and_counted(policy, batch)
    assert told.total_flops == pytest.approx(counted, rel=0.02)
    assert set(told.flops) == {"stems", "attention", "gate", "experts", "head"}


def test_experts_of_unlike_cost_count_with_their_mean(features, statistics, batch):
    kinds = {"vision": "convolution", "language": "attention"}
    told, counted = told_and_counted(
        make(features, statistics, "moe", routing_unit="segment", expert_kinds=kinds), batch
    )
    assert told.total_flops == pytest.approx(counted, rel=0.1)


def told_and_counted(policy, batch):
    """What the policy says, and what torch counts in one pass on one observation."""
    one = {k: v[:1] for k, v in batch.items() if not k.startswith("action")} | {"task": [SENTENCE]}
    policy.predict_action_chunk(one)  # the sentence is encoded once and cached
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        MultimodalPolicy.predict_action_chunk.__wrapped__(policy, one)  # the counter knows no inference mode
    words = 0 if policy.network.text is None else int(policy.network.text.encoder([SENTENCE])[1].sum())
    return policy.cost(words), counter.get_total_flops()


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_wake(features, statistics):
    moe, dense = (make(features, statistics, preset).cost() for preset in ("moe", "dense-active"))
    gates = 3 * (8 * 128 + 4 * 8)
    assert moe.active_parameters == dense.total_parameters + gates
    assert moe.total_parameters == moe.active_parameters + 3 * 6 * 3 * 128 * 128
    assert dense.active_parameters == dense.total_parameters


def test_the_cost_is_the_same_however_experts_are_kept(features, statistics):
    policy = make(features, statistics, "moe")
    before = policy.cost()
    assert policy.stack_experts().cost() == before


def test_presets_wake_the_same_number_of_flops(features, statistics):
    experts = {preset: make(features, statistics, preset).cost().flops["experts"] for preset in PRESETS}
    assert experts["jacobs1991"] == experts["dense-total"] == 4 * experts["moe"]
    same = [experts[p] for p in ("moe", "switch", "glam", "shared", "typed", "random", "dense-active")]
    assert len(set(same)) == 1
