"""A policy as one graph: the same actions, whatever its gate, its batch and the lengths of its sentences."""

import numpy as np
import pytest
import torch

from moe_policies.policy import MultimodalPolicy
from moe_policies.presets import PRESETS
from moe_robot.cli.export import export
from moe_robot.deploy.exported import ExportedPolicy
from moe_robot.types import Features, Observation, UserError
from moe_robot.words import number_words

SMALL = {"width": 32, "hidden": 24, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCES = ["stop", "pick up the red cube now please", "press the green button"]
ONE_CAMERA = Features({"front": (48, 48)}, ("j1.pos", "gripper.pos"), ("x", "gripper"), 10)


def policy_of(name: str, statistics_of, features: Features = ONE_CAMERA, **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    policy = MultimodalPolicy.from_preset(
        name, features, statistics_of(features), SENTENCES, **{"text": "none", **SMALL, **overrides}
    )
    for layer in policy.network.moe_layers:
        layer.router.weight_ED.data *= 5  # no near-ties
    return policy.stack_experts().eval()


def seen_by(policy: MultimodalPolicy, seed: int, task: str | None = None) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for name, size in policy.features.cameras.items()}
    return Observation(images, rng.normal(size=len(policy.features.state_names)).astype(np.float32), task)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_captured(name, statistics_of):
    policy = policy_of(name, statistics_of)
    captured = policy.captured(any_batch=False)
    graph = captured.program.module()
    for seed in range(3):
        seen = seen_by(policy, seed)
        images = {camera: torch.from_numpy(frame[None]) for camera, frame in seen.images.items()}
        actions = graph(images, torch.from_numpy(seen.state[None]))[0].detach().numpy()
        np.testing.assert_allclose(actions, policy.action_chunk(seen), atol=1e-5)
    assert captured.vocabulary is None
    assert (captured.chunk, captured.execute) == (policy.config.chunk, policy.config.execute)


KINDS = {
    "token": {}, "segment": {"routing_unit": "segment", "bias_rate": 0.001},
    "instruction": {"routing_unit": "instruction"}, "flow": {"head": "flow"},
    "hears": {"gate_hears": True, "state_octaves": 3},
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "token") for name in PRESETS), *(("moe", kind) for kind in KINDS if kind != "token")]
)
def test_every_preset_acts_the_same_in_onnxruntime(name, kind, statistics_of, tmp_path):
    policy = policy_of(name, statistics_of, text="scratch", **KINDS[kind])
    assert export(policy, tmp_path / "out", ("onnx", "torch"), True, {}) < 1e-5
    exported = ExportedPolicy(tmp_path / "out")
    for seed in range(5):
        seen = seen_by(policy, seed, SENTENCES[seed % 3])
        np.testing.assert_allclose(exported.action_chunk(seen), policy.action_chunk(seen), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_sentences_of_different_lengths_gives_what_each_gives_alone(kind, statistics_of):
    policy = policy_of("moe", statistics_of, text="scratch", **KINDS[kind])
    captured = policy.captured(any_batch=True)
    seen = [seen_by(policy, seed, sentence) for seed, sentence in enumerate(SENTENCES)]
    actions = captured.program.module()(
        {"front": torch.from_numpy(np.stack([o.images["front"] for o in seen]))},
        torch.from_numpy(np.stack([o.state for o in seen])),
        torch.from_numpy(number_words(SENTENCES, captured.vocabulary)),
    )
    for row, observation in zip(actions.detach().numpy(), seen, strict=True):
        np.testing.assert_allclose(row, policy.action_chunk(observation), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"gate_choice": "expert"}, "cannot act"),
        ({"expert_kinds": {"vision": "convolution"}, "routing_unit": "segment"}, "the vision experts are of kind"),
        ({"expert_kinds": {"language": "attention"}, "routing_unit": "segment"}, "the language experts are of kind"),
    ],
)
def test_what_no_graph_holds_is_refused(overrides, reason, statistics_of):
    with pytest.raises(UserError, match=reason):
        policy_of("moe", statistics_of, **overrides).captured()


def test_a_text_encoder_with_its_own_tokenizer_is_refused(statistics_of):
    policy = policy_of("moe", statistics_of, text="bundled:minilm")
    with pytest.raises(UserError, match="'bundled:minilm' cannot be exported, since its tokenizer"):
        policy.captured()


def test_a_captured_policy_learns_and_acts_on_as_before(statistics_of):
    policy, again = (policy_of("moe", statistics_of) for _ in range(2))
    policy.captured(any_batch=False)
    seen = seen_by(policy, 0)
    np.testing.assert_array_equal(policy.action_chunk(seen), again.action_chunk(seen))
    batch = {
        "observation.images.front": seen.images["front"][None], "observation.state": seen.state[None],
        "task": [""], "action": np.zeros((1, 8, 2), np.float32), "action_is_pad": np.zeros((1, 8), bool),
    }  # fmt: skip
    policy.train()(batch)[0].backward()


def test_the_graph_names_no_file_of_this_machine(statistics_of, tmp_path):
    policy = policy_of("dense-active", statistics_of)
    export(policy, tmp_path / "out", ("onnx", "torch"), False, {})
    for file in (tmp_path / "out").iterdir():
        assert b"moe_policies/" not in file.read_bytes()
