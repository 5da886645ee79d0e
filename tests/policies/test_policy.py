"""The policy: two experts per token from pixels, state and words to actions; strict at every edge."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from moe_policies.config import MODALITIES, PolicyConfig
from moe_policies.places import PlaceNames, Places, in_picture, picture_loss
from moe_policies.policy import MultimodalPolicy
from moe_policies.presets import PRESETS
from moe_policies.stems import SUMMARY_HEADS, CameraStem, Glimpse, StateStem
from moe_policies.trunk import Gating, Tokens
from moe_robot.registry import load_policy, presets
from moe_robot.types import Features, Observation, PlansAhead, Policy, UserError

SMALL = {"width": 32, "hidden": 32, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2}


SENTENCES = ["press the red button", "push the green button please", "pick up the blue cube"]


def make(features, statistics, preset="moe", **overrides) -> MultimodalPolicy:
    torch.manual_seed(0)
    return MultimodalPolicy.from_preset(preset, features, statistics, SENTENCES, **(SMALL | overrides)).eval()


def observation(batch, i=0, **changes) -> Observation:
    images = {key.removeprefix("observation.images."): batch[key][i] for key in batch if "images" in key}
    return Observation(
        **({"images": images, "state": batch["observation.state"][i], "task": batch["task"][i]} | changes)
    )


def without_actions(batch):
    return {key: value for key, value in batch.items() if not key.startswith("action")}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("head", ["l1", "flow"])
def test_alone_equals_batched(features, statistics, batch, preset, head):
    policy = make(features, statistics, preset, head=head)
    together = policy.predict_action_chunk(without_actions(batch))
    for i in range(6):
        one = {k: (v[i : i + 1]) for k, v in without_actions(batch).items()}
        assert_close(policy.predict_action_chunk(one)[0], together[i], rtol=1e-5, atol=1e-5)


def test_two_experts_per_token_in_every_layer_and_only_the_action_tokens_in_the_last(features, statistics, batch):
    policy = make(features, statistics, layers=3)
    policy.predict_action_chunk(without_actions(batch))
    routing = policy.routing()
    words = sum(len(sentence.split()) for sentence in batch["task"])
    patches, glimpses = 2 * 4, 2 * 2
    all_tokens = {"vision": 6 * (patches + glimpses), "arm": 6 * 2, "grasp": 6 * 2, "language": words}
    expected = [
        all_tokens,  # the entry layer: the glimpses come in later, but through the same experts
        all_tokens | {"vision": 6 * patches},
        all_tokens,
        {"vision": 0, "arm": 6, "grasp": 6, "language": 0},
    ]
    for layer in range(4):
        assert dict(zip(routing.modalities, routing.counts_LME[layer].sum(axis=1) / 2, strict=True)) == expected[layer]


def test_no_token_enters_the_trunk_except_through_its_experts(features, statistics, batch):
    policy = make(features, statistics)
    with torch.no_grad():
        for expert in policy.network.entry.layer.experts:
            expert.out.weight.zero_()
    same_length = ["press the red button", "push a blue cube", "lift the nut up"] * 2  # attention can count tokens
    actions = policy.predict_action_chunk(without_actions(batch) | {"task": same_length})
    assert_close(actions, actions[:1].expand_as(actions))  # nothing of the observation is left


def test_what_nobody_reads_changes_nothing(features, statistics):
    network = make(features, statistics).network
    tokens = Tokens.of(torch.randn(3, 9, 32), "arm")
    whole, _ = network.blocks[1](tokens, Gating())
    part, _ = network.blocks[1](tokens, Gating(), keep=2)
    assert_close(part.x_BND, whole.x_BND[:, :2])


def test_tokens_begin_at_the_experts_of_their_own_role_and_no_gate_is_masked(features, statistics, batch):
    policy = make(features, statistics)
    policy.predict_action_chunk(without_actions(batch))
    share = policy.routing().share()
    assert share["vision"]["vision"] > 0.9
    assert share["language"]["language"] > 0.9
    assert all(torch.isfinite(plan.logits_TE).all() for of_layer in policy.latest_plans for plan in of_layer)


def test_the_sentence_decides(features, statistics, batch):
    policy = make(features, statistics)
    a = policy.select_action(observation(batch, task="press the red button"))
    policy.reset()
    b = policy.select_action(observation(batch, task="pick up the blue cube"))
    assert np.abs(a - b).max() > 1e-6


@pytest.mark.parametrize("hears", [False, True])
def test_a_gate_that_hears_sends_the_same_token_elsewhere_for_another_task(features, statistics, batch, hears):
    """In the entry layer no token has met the sentence yet, so a gate that does not hear cannot tell tasks apart."""
    policy = make(features, statistics, gate_hears=hears, gate_prior=0.0)
    chosen = []
    for sentence in ("press the red button", "pick up the blue cube"):
        policy.predict_action_chunk(without_actions(batch) | {"task": [sentence] * 6})
        plan = policy.latest_plans[0][0]
        chosen.append(plan.weights_TK[plan.modality_T != MODALITIES.index("language")])
    assert torch.equal(*chosen) is not hears


def test_a_gate_that_hears_needs_a_sentence_and_tokens_that_choose(features, statistics):
    for overrides in ({"text": "none"}, {"routing_unit": "segment"}, {"gate": "typed"}):
        with pytest.raises(UserError, match="gate_hears needs"):
            PolicyConfig.from_json({"gate_hears": True, **overrides})


def test_ignored_state_is_not_read(features, statistics, batch):
    moved = without_actions(batch) | {"observation.state": batch["observation.state"].copy()}
    entry = features.state_names.index("j1.pos")
    moved["observation.state"][:, entry] += 1.0
    for patterns, read in (((), True), (("j1.*",), False)):
        policy = make(features, statistics, ignore_state=patterns)
        before, after = (policy.predict_action_chunk(x) for x in (without_actions(batch), moved))
        assert bool((before != after).any()) == read


@pytest.mark.parametrize("octaves", [0, 6])
def test_octaves_let_a_policy_change_its_mind_within_a_fraction_of_the_range(octaves):
    """Up where the hand is lower than a line, down where it is higher: who sees that line smeared hovers over it."""
    torch.manual_seed(0)
    stem, read = StateStem("arm", [0, 1, 2], 32, octaves), nn.Linear(32, 1)
    optimiser = torch.optim.Adam([*stem.parameters(), *read.parameters()], lr=3e-3)
    for _ in range(200):
        state_BS = torch.randn(256, 3)
        loss = (read(stem(state_BS).x_BND)[:, 0, 0] - (state_BS[:, 2] < 0.3).float()).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    below, above = (torch.tensor([[0.0, 0.0, 0.3 + offset]]) for offset in (-0.1, 0.1))
    with torch.no_grad():
        step = float(read(stem(below).x_BND) - read(stem(above).x_BND))
    assert step > 0.8 if octaves else step < 0.3


def test_places_are_labels_and_never_inputs(features, statistics, batch):
    named = dataclasses.replace(features, environment_names=("cube.x", "cube.y", "door"))
    told = statistics | {"environment_state": statistics["action"]}
    policy = make(named, told)
    place = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    loss, logs = policy(batch | {"environment_state": place})
    moved, _ = policy(batch | {"environment_state": place + 1.0})
    assert logs["places_loss"] > 0
    assert moved != loss
    actions = policy.predict_action_chunk(without_actions(batch))  # there is no such key when it acts
    assert_close(actions, policy.predict_action_chunk(without_actions(batch) | {"environment_state": place}))
    assert make(named, told, places_weight=0).network.places is None
    assert make(features, statistics).network.places is None


def test_places_are_learned_from_the_pictures_alone():
    """A bright square somewhere in the dark: told by name, found within a few hundred steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = PolicyConfig(width=16, stem_channels=8, patches=2, glimpses=1, places=("thing.x", "thing.y"))
    stem, glimpse = CameraStem(config), Glimpse(config, n_things=1)
    places = Places(config.places, Glimpse.read_width(config))
    optimiser = torch.optim.Adam([*stem.parameters(), *glimpse.parameters(), *places.parameters()], lr=3e-3)
    errors = []
    for _ in range(300):
        corner = rng.integers(0, 40, (32, 2))
        image = torch.zeros(32, 3, 48, 48)
        for i, (x, y) in enumerate(corner):
            image[i, :, y : y + 8, x : x + 8] = 1.0
        finds_BTR = glimpse(stem(image)[1], torch.zeros(32, SUMMARY_HEADS * 16)).finds_BTR
        error = (places(finds_BTR) - torch.tensor(corner / 20.0 - 1.0, dtype=torch.float32)).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert np.mean(errors[-20:]) < 0.1 < np.mean(errors[:5])  # in units of 20 pixels


@pytest.mark.parametrize(("search", "found"), [("sentence", True), ("things", False)])
def test_one_query_finds_what_each_sentence_calls_its_object_only_when_the_sentence_makes_it(search, found):
    """A red and a blue square in the dark; one sentence means the red one, another the blue one."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = PolicyConfig(
        width=16, stem_channels=8, patches=2, glimpses=1, places=("object.x", "object.y"), search=search
    )
    stem, glimpse = CameraStem(config), Glimpse(config, n_things=1)
    places = Places(config.places, Glimpse.read_width(config))
    sentences = torch.randn(2, SUMMARY_HEADS * 16)
    optimiser = torch.optim.Adam([*stem.parameters(), *glimpse.parameters(), *places.parameters()], lr=3e-3)
    errors = []
    for _ in range(300):
        corner, meant = rng.integers(0, 40, (32, 2, 2)), rng.integers(0, 2, 32)
        image = torch.zeros(32, 3, 48, 48)
        for i, squares in enumerate(corner):
            for colour, (x, y) in zip((0, 2), squares, strict=True):
                image[i, colour, y : y + 8, x : x + 8] = 1.0
        finds_BTR = glimpse(stem(image)[1], sentences[meant]).finds_BTR
        told = torch.tensor(corner[np.arange(32), meant] / 20.0 - 1.0, dtype=torch.float32)
        error = (places(finds_BTR) - told).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert (np.mean(errors[-20:]) < 0.15) == found  # in units of 20 pixels
    assert np.mean(errors[:5]) > 0.3


def test_what_is_told_of_pictures_is_told_apart_from_the_world():
    names = ("cube.x", "cube.y", "front.x", "cube.front.u", "cube.front.v", "door", "door.wrist.u", "door.wrist.v")
    told = PlaceNames.of(names, ("front", "wrist"))
    assert told.things == ("cube", "front", "door")
    assert told.world == (0, 1, 2, 5)
    assert told.pictures == {"front": ((3, 4), (-1, -1), (-1, -1)), "wrist": ((-1, -1), (-1, -1), (6, 7))}
    assert PlaceNames.of(names[:3], ("front",)).pictures == {}
    without_wrist = PlaceNames.of(names, ("front",))
    assert (without_wrist.world, set(without_wrist.pictures)) == (told.world, {"front"})


def test_the_picture_loss_is_least_where_the_thing_appears():
    """A map of 8 x 12 places of a picture of 32 x 48 pixels; the thing is at pixel (20, 12), place (5, 3)."""
    told = torch.tensor([[2 * 20.5 / 48 - 1, 2 * 12.5 / 32 - 1]])
    losses = torch.zeros(8, 12)
    for y in range(8):
        for x in range(12):
            scores = torch.zeros(1, 1, 8, 12)
            scores[0, 0, y, x] = 8.0
            losses[y, x] = picture_loss(scores, told, [(0, 1)], in_picture(told, [(0, 1)]))
    assert divmod(int(losses.argmin()), 12) == (3, 5)
    assert losses[3, 5] < 0.1 < 7 < losses[4, 5]


def test_a_thing_outside_the_picture_or_untold_costs_nothing_and_one_at_its_edge_something():
    scores = torch.randn(2, 2, 8, 12, requires_grad=True)
    pairs = [(0, 1), (-1, -1)]
    outside = torch.tensor([[0.3, 1.2], [2.0, 2.0]])
    assert in_picture(outside, pairs).tolist() == [[False], [False]]
    assert picture_loss(scores, outside, pairs, in_picture(outside, pairs)) == 0
    at_edge = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert in_picture(at_edge, pairs).tolist() == [[True], [True]]
    edge = picture_loss(scores, at_edge, pairs, in_picture(at_edge, pairs) / 2)
    edge.backward()
    assert edge > 0
    assert bool((scores.grad[:, 0] != 0).any())
    assert bool((scores.grad[:, 1] == 0).all())


def test_a_policy_goes_on_learning_on_other_demonstrations(features, statistics, batch):
    place = np.random.default_rng(1).uniform(-1, 1, (6, 3)).astype(np.float32)
    named = dataclasses.replace(features, environment_names=("cube.x", "cube.y", "cube.z"))
    sentences = sorted(set(batch["task"]))
    first = make(named, statistics | {"environment_state": statistics["action"]}, task_names=("push", "pick")).eval()

    same = first.continued(named, sentences, ("pick",)).eval()
    seen = without_actions(batch)
    assert_close(same.predict_action_chunk(seen), first.predict_action_chunk(seen))
    assert_close(same.state_dict(), first.state_dict())

    elsewhere = first.continued(features, sentences, ("stack",))  # another task, and nobody tells where the cube is
    assert_close(elsewhere.eval().predict_action_chunk(seen), first.predict_action_chunk(seen))
    loss, logs = elsewhere.train()(batch | {"task_name": ["stack"] * 6})
    assert torch.isfinite(loss)
    assert {"places_loss", "task_loss"} & set(logs) == {"task_loss"}
    assert "places_loss" in same.train()(batch | {"environment_state": place, "task_name": ["pick"] * 6})[1]

    with pytest.raises(UserError, match="cannot read dance: train a fresh policy"):
        first.continued(named, ("dance",))
    other = dataclasses.replace(features, environment_names=("door.x",))
    with pytest.raises(UserError, match=r"tell of door\.x; this policy was told of cube\.x, cube\.y"):
        first.continued(other, sentences)


def test_a_policy_learns_of_pictures_only_where_they_are_told(features, statistics, batch):
    camera = next(iter(features.cameras))
    named = dataclasses.replace(features, environment_names=("cube.x", f"cube.{camera}.u", f"cube.{camera}.v"))
    told = statistics | {"environment_state": statistics["action"]}
    place = np.random.default_rng(1).uniform(-1, 1, (6, 3)).astype(np.float32)
    _, logs = make(named, told)(batch | {"environment_state": place})
    assert logs["picture_loss"] > 0
    assert logs["places_loss"] > 0
    assert "picture_loss" not in make(features, statistics)(batch)[1]


def test_a_policy_without_text_does_not_hear(features, statistics, batch):
    policy = make(features, statistics, text="none")
    a = policy.select_action(observation(batch, task="press the red button"))
    policy.reset()
    b = policy.select_action(observation(batch, task="pick up the blue cube"))
    assert (a == b).all()


@pytest.mark.parametrize("overrides", [{}, {"text": "none"}, {"head": "flow"}, {"text": "bundled:minilm"}])
def test_a_checkpoint_loads_to_the_same_actions(features, statistics, batch, tmp_path, overrides):
    policy = make(features, statistics, **overrides)
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, Policy)
    assert loaded.features == features
    # Exactly equal, except for words that MiniLM encodes in another batch.
    assert_close(
        loaded.predict_action_chunk(without_actions(batch)), policy.predict_action_chunk(without_actions(batch))
    )
    assert "parameters" in (tmp_path / "README.md").read_text()


def test_loading_is_strict(features, statistics, tmp_path):
    make(features, statistics).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["layerz"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unknown policy config key 'layerz': did you mean layers"):
        load_policy(tmp_path)
    del config["config"]["layerz"]
    config["config"]["layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not fit"):
        load_policy(tmp_path)


def test_a_feature_without_statistics_is_refused_by_name(features, statistics):
    del statistics["observation.images.wrist"]
    with pytest.raises(UserError, match=r"no statistics for 'observation.images.wrist'"):
        make(features, statistics)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {}}, "lacks camera 'front'"),
        ({"state": np.zeros(4, np.float32)}, r"expected \(3,\)"),
        ({"state": None}, "None"),
        ({"task": None}, "no instruction"),
    ],
)
def test_an_observation_that_lacks_something_is_refused_in_one_line(features, statistics, batch, changes, words):
    with pytest.raises(UserError, match=words) as error:
        make(features, statistics).select_action(observation(batch, **changes))
    assert "\n" not in str(error.value)


def test_a_frame_of_another_size_or_type_is_refused(features, statistics, batch):
    policy = make(features, statistics)
    small = observation(batch).images | {"wrist": np.zeros((32, 32, 3), np.uint8)}
    with pytest.raises(UserError, match="camera 'wrist' gives"):
        policy.select_action(observation(batch, images=small))


def test_a_chunk_serves_several_steps_and_reset_drops_it(features, statistics, batch):
    policy = make(features, statistics, execute=3)
    for _ in range(7):
        policy.select_action(observation(batch))
    assert policy.inference_count == 3
    policy.reset()
    policy.select_action(observation(batch))
    assert policy.inference_count == 4


def test_knocked_out_roles_never_run(features, statistics, batch):
    policy = make(features, statistics)
    before = policy.predict_action_chunk(without_actions(batch))
    policy.disable_experts(["vision"])
    after = policy.predict_action_chunk(without_actions(batch))
    routing = policy.routing()
    vision = [e for e, role in enumerate(routing.roles) if role == "vision"]
    assert routing.counts_LME[:, :, vision].sum() == 0
    assert not torch.allclose(before, after)
    policy.disable_experts([])
    assert_close(policy.predict_action_chunk(without_actions(batch)), before)
    with pytest.raises(UserError, match="no experts"):
        make(features, statistics, "dense-active").disable_experts(["vision"])


def test_dense_active_costs_the_flops_of_two_experts(features, statistics):
    moe, dense = (
        make(features, statistics, name).network.blocks[0].feed_forward.layer for name in ("moe", "dense-active")
    )
    two_experts = 2 * sum(p.numel() for p in moe.experts[0].parameters())
    assert sum(p.numel() for p in dense.parameters()) == two_experts  # one multiply-add per weight and token


def test_task_names_teach_the_words_and_are_not_needed_to_act(features, statistics, batch, tmp_path):
    torch.manual_seed(0)
    names = ("press_red", "press_green", "pick_blue_cube")
    policy = MultimodalPolicy.from_preset("moe", features, statistics, SENTENCES, names, **SMALL)
    named = batch | {"task_name": [names[i % 3] for i in range(6)]}
    optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
    first = policy(named)[1]["task_loss"]
    for _ in range(20):
        loss, logs = policy(named)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert logs["task_loss"] < 0.2 * first
    policy.eval().save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.config.task_names == names
    assert_close(
        loaded.predict_action_chunk(without_actions(batch)), policy.predict_action_chunk(without_actions(batch))
    )


def test_without_names_or_text_there_is_no_task_loss(features, statistics, batch):
    assert "task_loss" not in make(features, statistics)(batch)[1]
    blind = MultimodalPolicy.from_preset("moe", features, statistics, SENTENCES, ("a", "b"), **SMALL, text="none")
    assert "task_loss" not in blind(batch)[1]


def test_padded_actions_do_not_count(features, statistics, batch):
    policy = make(features, statistics)
    loss, _ = policy(batch)
    changed = batch | {"action": np.where(batch["action_is_pad"][..., None], 99.0, batch["action"])}
    assert_close(policy(changed)[0], loss)


def test_normalisation_goes_and_comes_back(features, statistics):
    policy = make(features, statistics)
    x = torch.randn(4, 8, 3)
    assert_close(policy.processor.unnormalise("action", policy.processor.normalise("action", x)), x)


def test_pictures_of_many_heights_are_for_training_only(features, statistics, batch):
    plain, scaled = make(features, statistics), make(features, statistics, picture_heights=(16, 48))
    assert_close(
        scaled.predict_action_chunk(without_actions(batch)), plain.predict_action_chunk(without_actions(batch))
    )
    camera, (h, w) = next(iter(features.cameras.items()))
    frames = torch.from_numpy(batch[f"observation.images.{camera}"])
    torch.manual_seed(0)
    shapes = {tuple(scaled.processor.train().image(camera, frames).shape[2:]) for _ in range(20)}
    assert shapes == {(height, 4 * round(w * height / h / 4)) for height in (16, 48)}
    loss, _ = scaled.train()(batch)
    loss.backward()
    assert torch.isfinite(loss)
    for heights in ((18,), (12,)):
        with pytest.raises(UserError, match="expected multiples of 4 from 16 up"):
            make(features, statistics, picture_heights=heights)


def test_augmentation_is_for_training_only(features, statistics, batch):
    processor = make(features, statistics).processor
    frames = torch.as_tensor(batch["observation.images.front"])
    assert (processor.image("front", frames) == processor.image("front", frames)).all()
    processor.train()
    assert not torch.equal(processor.image("front", frames), processor.image("front", frames))


def test_presets_are_found_by_name():
    assert {"moe", "dense-active", "random"} <= set(presets())


def test_other_cameras_and_sizes_work(statistics_of):
    features = Features({"top": (64, 80)}, ("a", "b"), ("x",), 20)
    policy = make(features, statistics_of(features))
    frame = np.zeros((64, 80, 3), np.uint8)
    action = policy.select_action(Observation({"top": frame}, np.zeros(2, np.float32), "go"))
    assert action.shape == (1,)
    assert action.dtype == np.float32


def test_a_chunk_begins_with_the_actions_that_are_played(features, statistics, batch):
    policy = make(features, statistics)
    chunk = policy.action_chunk(observation(batch))
    assert isinstance(policy, PlansAhead)
    assert chunk.shape == (policy.config.chunk, 3)
    assert chunk.dtype == np.float32
    played = [policy.select_action(observation(batch)) for _ in range(policy.config.execute)]
    np.testing.assert_array_equal(played, chunk[: policy.config.execute])
    assert policy.inference_count == 2
