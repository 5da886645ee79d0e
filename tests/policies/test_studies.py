"""Knock-outs of the gate itself: what each study changes, and that the exact gate comes back."""

import copy

import numpy as np
import pytest
import torch

from moe_policies.config import MODALITIES
from moe_policies.policy import MultimodalPolicy
from moe_policies.presets import PRESETS
from moe_robot.types import GATE_PARTS, TellsKnockouts, UserError

SMALL = {"width": 32, "hidden": 32, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCES = ["press the red button", "push the green button please", "pick up the blue cube"]
ROLES = ("vision", "arm", "grasp", "language")


@pytest.fixture
def make(features, statistics):
    """A policy whose gates have moved away from their start, as training moves them."""

    def make(preset="moe", **overrides):
        torch.manual_seed(0)
        policy = MultimodalPolicy.from_preset(preset, features, statistics, SENTENCES, **(SMALL | overrides)).eval()
        with torch.no_grad():
            for layer in policy.network.moe_layers:
                for parameter in layer.router.parameters():
                    if parameter.requires_grad:
                        parameter += 0.1 * torch.randn_like(parameter)
        return policy

    return make


@pytest.fixture
def seen(batch):
    return {key: value for key, value in batch.items() if not key.startswith("action")}


def bits(policy) -> dict[str, bytes]:
    return {name: weight.detach().numpy().tobytes() for name, weight in policy.named_parameters()}


def choices(policy) -> list[dict[str, set[tuple[int, ...]]]]:
    """Per plan: modality -> the different sets of experts that its tokens went to."""
    found = []
    for plan in (plan for of_layer in policy.latest_plans for plan in of_layer):
        found.append({})
        for m, ids in zip(plan.modality_T.tolist(), plan.ids_TK.tolist(), strict=True):
            found[-1].setdefault(MODALITIES[m], set()).add(tuple(sorted(ids)))
    return found


@pytest.mark.parametrize("study", GATE_PARTS)
@pytest.mark.parametrize("unit", ["token", "segment"])
def test_a_study_changes_the_actions_and_the_exact_policy_comes_back(make, seen, study, unit):
    policy = make(routing_unit=unit)
    before, weights = policy.predict_action_chunk(seen), bits(policy)
    policy.disable_experts([study])
    changed = {name for name, weight in bits(policy).items() if weight != weights[name]}
    assert {name.rpartition(".")[2] for name in changed} == {"weight_ED" if study == "gate.content" else "bias_ME"}
    assert len(changed) == 3, "every layer has its gate"
    assert not torch.equal(policy.predict_action_chunk(seen), before)
    policy.disable_experts([])
    assert bits(policy) == weights
    assert torch.equal(policy.predict_action_chunk(seen), before)


def test_without_the_token_the_modality_alone_decides(make, seen):
    policy = make()
    policy.predict_action_chunk(seen)
    assert any(len(sets) > 1 for layer in choices(policy) for sets in layer.values())
    policy.disable_experts(["gate.content"])
    policy.predict_action_chunk(seen)
    for layer in choices(policy):
        assert all(len(sets) == 1 for sets in layer.values()), "a token's content still decides"


def test_without_the_modality_term_nothing_is_left_of_the_bonus(make, seen):
    policy = make(gate_prior=8.0)
    policy.predict_action_chunk(seen)
    with_bonus = policy.routing().share()
    assert with_bonus["vision"]["vision"] == 1
    policy.disable_experts(["gate.modality"])
    policy.predict_action_chunk(seen)
    assert policy.routing().share()["vision"]["vision"] < 0.9
    for plan in (plan for of_layer in policy.latest_plans for plan in of_layer):
        assert plan.logits_TE.abs().max() < 8, "a bonus is still in the logits"


@pytest.mark.parametrize(
    ("experts", "sent_to"),
    [
        ({"vision": 2, "arm": 2, "grasp": 2, "language": 2}, {"vision": "arm", "arm": "grasp", "language": "vision"}),
        ({"vision": 3, "language": 2}, {"vision": "language", "language": "vision", "arm": "language"}),
    ],
)
def test_permuted_roles_send_each_modality_to_the_next_ones_experts(make, seen, experts, sent_to):
    policy = make(experts=experts, gate_prior=8.0)
    policy.disable_experts(["gate.roles"])
    policy.predict_action_chunk(seen)
    share = policy.routing().share()
    for modality, role in sent_to.items():
        assert share[modality][role] == 1


def test_one_study_after_another_starts_from_the_original_gate(make, seen):
    alone = {}
    for study in GATE_PARTS:
        policy = make()
        policy.disable_experts([study])
        alone[study] = bits(policy)
    for study in (*GATE_PARTS, *reversed(GATE_PARTS)):
        policy.disable_experts([study])
        assert bits(policy) == alone[study]


def test_experts_and_the_gate_can_be_studied_together_and_apart(make, seen):
    policy = make()
    policy.disable_experts(["vision", "gate.content"])
    policy.predict_action_chunk(seen)
    assert policy.routing().share()["vision"]["vision"] == 0
    assert all(len(sets) == 1 for layer in choices(policy) for sets in layer.values())
    policy.disable_experts(["vision"])
    policy.predict_action_chunk(seen)
    assert policy.routing().share()["vision"]["vision"] == 0
    assert bits(policy) == bits(make())


def test_the_weights_on_the_noise_are_content_too(make):
    policy = make(gate_noise=True)
    policy.disable_experts(["gate.content"])
    assert all(not layer.router.noise_ED.any() for layer in policy.network.moe_layers)
    policy.disable_experts([])
    assert bits(policy) == bits(make(gate_noise=True))


KNOCKOUTS = {
    "moe": (*ROLES, *GATE_PARTS),
    "shared": (*ROLES, *GATE_PARTS),
    "jacobs1991": (*ROLES, "gate.content"),  # all experts run: without the token they are blended equally
    "switch": ROLES,
    "glam": ROLES,
    "typed": ROLES,
    "random": ROLES,
    "dense-active": (),
    "dense-total": (),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_tells_what_can_be_knocked_out_and_refuses_the_rest_in_one_line(make, preset):
    policy = make(preset)
    assert isinstance(policy, TellsKnockouts)
    assert policy.knockouts == KNOCKOUTS[preset]
    weights = bits(policy)
    for name in (*ROLES, *GATE_PARTS):
        if name in policy.knockouts:
            policy.disable_experts([name])
            policy.disable_experts([])
        else:
            with pytest.raises(UserError, match=r"has no experts|cannot be knocked out of this") as refused:
                policy.disable_experts([name])
            assert "\n" not in str(refused.value)
    assert bits(policy) == weights


@pytest.mark.parametrize(
    ("overrides", "names", "message"),
    [
        ({}, ["gate.modalty"], "unknown part of the gate 'gate.modalty': did you mean gate.modality"),
        ({}, ["visoin"], "unknown expert role 'visoin': did you mean vision"),
        ({"experts": {"vision": 2, "language": 2}}, ["arm"], "unknown expert role 'arm'"),
        ({}, ["gate.roles", "gate.content"], "one of them at a time"),
        ({"gate_bias": False}, ["gate.roles"], "expected a gate with a term per modality"),
        ({"routing_unit": "instruction"}, ["gate.modality"], "expected a gate with a term per modality"),
        ({"gate_bias": False}, ["gate.content"], "nothing would be left to decide by"),
        ({"experts": {"vision": 4}}, ["gate.roles"], "expected two roles or more"),
    ],
)
def test_a_refused_study_leaves_the_one_before_as_it_was(make, overrides, names, message):
    policy = make(**overrides)
    policy.disable_experts(["vision"])
    with pytest.raises(UserError, match=message):
        policy.disable_experts(names)
    assert policy.studies.available_E is not None
    assert bits(policy) == bits(make(**overrides))


def test_a_frozen_gate_with_a_bonus_has_all_its_parts(make):
    assert make("random", gate_prior=1.0).knockouts == (*ROLES, *GATE_PARTS)


def test_a_changed_gate_is_neither_saved_nor_trained_nor_filled(make, batch, tmp_path):
    policy, original = make(), make()
    policy.disable_experts(["gate.modality"])
    with pytest.raises(UserError, match=r"gate.modality is on.*disable_experts"):
        policy.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is on"):
        policy.load_state_dict(original.state_dict())
    with pytest.raises(UserError, match="is on"):
        policy.train()(batch)
    assert torch.isfinite(policy.eval()(batch)[0]), "a loss may be measured"
    policy.disable_experts([])
    policy.save_pretrained(tmp_path / "out")
    loaded = MultimodalPolicy.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in loaded.state_dict().items())
    loss, _ = policy.train()(batch)
    assert torch.isfinite(loss)


def test_nothing_is_cut_out_of_a_changed_gate(make):
    policy = make(routing_unit="instruction", experts_per_token=8)
    policy.disable_experts(["gate.content"])
    with pytest.raises(UserError, match="is on"):
        policy.extracted(SENTENCES[0])
    policy.disable_experts([])
    assert policy.extracted(SENTENCES[0]).config.only_instruction == SENTENCES[0]


def test_a_copy_made_during_a_study_has_its_own_originals(make, seen):
    policy = make()
    before = policy.predict_action_chunk(seen)
    policy.disable_experts(["gate.roles"])
    twin = copy.deepcopy(policy)
    twin.disable_experts([])
    assert np.array_equal(twin.predict_action_chunk(seen), before)
    assert not np.array_equal(policy.predict_action_chunk(seen), before)
    twin.state_dict()
    with pytest.raises(UserError, match="is on"):
        policy.state_dict()
