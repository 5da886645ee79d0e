"""The routing report: its numbers on hand-made routes, and what chance alone gives."""

import json
from io import StringIO

import cv2
import numpy as np
import pytest
from rich.console import Console

from moe_robot.evaluation.routing import Frame, fair_shares, routing_json
from moe_robot.evaluation.routing_picture import draw_routing
from moe_robot.evaluation.routing_regions import draw_regions
from moe_robot.evaluation.routing_table import print_routing
from moe_robot.evaluation.specialisation import between_blocks, holm, information, mutual_information, within_blocks
from moe_robot.types import Routing, TokenLabel, TokenRoutes

MODALITIES, ROLES = ("vision", "arm"), ("vision", "vision", "vision", "arm")
EXPERTS = ("vision.0", "vision.1", "vision.2", "arm.0")
LABELS = tuple(TokenLabel("vision", f"front patch {i // 2},{i % 2}", "front", (i // 2, i % 2, 2, 2)) for i in range(4))
LABELS += (TokenLabel("vision", "front glimpse 0", "front"), TokenLabel("arm", "arm state"))


def routing_of(*layers, tokens=None, entropy=None, dropped=None) -> Routing:
    counts = np.array(layers, dtype=np.int64)
    tokens = counts.sum(axis=2) // 2 if tokens is None else np.array(tokens)
    entropy = tokens * 0.5 if entropy is None else np.array(entropy, dtype=np.float64)
    dropped = np.zeros_like(counts) if dropped is None else np.array(dropped)
    return Routing(MODALITIES, EXPERTS, ROLES, counts, tokens, entropy, dropped)


def frames_of(choose, episodes: int = 16) -> list[Frame]:
    """Four frames per episode of two tasks; ``choose(task, phase, rng)`` gives the expert of each of four patches."""
    rng = np.random.default_rng(0)
    frames = []
    for episode in range(episodes):
        for phase in range(4):
            task = episode % 2
            first = np.array([*choose(task, phase, rng), 2, 3])
            ids = np.stack([first, (first + 1) % 3], axis=1)
            counts = np.zeros((1, 2, 4), np.int64)
            for n, label in enumerate(LABELS):
                np.add.at(counts[0, MODALITIES.index(label.modality)], ids[n], 1)
            tokens = (TokenRoutes(LABELS, ids[None], np.full((1, 6, 2), 0.5, np.float32)),)
            image = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            routing = Routing(MODALITIES, EXPERTS, ROLES, counts, np.array([[5, 1]]), np.array([[4.0, 0.5]]))
            name = ("press", "pick")[task]
            frames.append(Frame(name, phase, episode, 3 * phase, f"{name} it", routing, tokens, {"front": image}))
    return frames


def find(report, label: str, tokens: str):
    return next(row for row in report["information"] if (row["label"], row["tokens"]) == (label, tokens))


def test_routings_add_up_and_come_back_from_json():
    one = routing_of([[6, 2, 0, 0], [0, 0, 1, 1]], dropped=[[[1, 0, 0, 0], [0, 0, 0, 0]]])
    two = one + one
    assert two.counts_LME.tolist() == [[[12, 4, 0, 0], [0, 0, 2, 2]]]
    assert two.tokens_LM.tolist() == [[8, 2]]
    assert two.entropy_LM.tolist() == [[4.0, 1.0]]
    assert two.dropped_LME.sum() == 2
    again = Routing.from_json(json.loads(json.dumps(two.to_json())))
    assert again.to_json() == two.to_json()


def test_what_a_policy_does_not_tell_is_zeros_and_the_report_says_so_instead_of_calling_it_certain():
    bare = Routing(MODALITIES, EXPERTS, ROLES, np.array([[[8, 8, 8, 0], [0, 0, 0, 4]]]))
    assert bare.entropy_LM.tolist() == [[0.0, 0.0]]
    assert Routing.from_json({k: v for k, v in bare.to_json().items() if "entropy" not in k}).entropy_LM.shape == (1, 2)
    frame = Frame("press", 0, 0, 0, "press it", bare, (), {})
    report = routing_json([frame], None, [], {})
    assert report["layers"][0]["modalities"]["vision"]["entropy_nats"] is None
    assert report["layers"][0]["experts"]["vision.0"]["over_fair"] == 1.0
    with pytest.raises(ValueError, match=r"tokens_LM has shape \(1,\)"):
        Routing(MODALITIES, EXPERTS, ROLES, bare.counts_LME, np.zeros(1))


def test_fair_is_an_even_share_of_what_the_role_can_get():
    routing = routing_of([[10, 10, 0, 0], [0, 0, 2, 2]])  # ten camera tokens, two arm tokens, two routes each
    assert fair_shares(routing, 0) == [pytest.approx(20 / 3)] * 3 + [2.0]  # one arm expert gets at most one route each


def test_a_cold_expert_is_named_and_one_that_nothing_asks_for_is_idle():
    asked = routing_of([[30, 29, 1, 0], [0, 0, 0, 2]], [[0, 0, 0, 0], [0, 0, 2, 2]], tokens=[[30, 1], [0, 2]])
    report = routing_json([Frame("press", 0, 0, 0, "press it", asked, (), {})], None, [], {})
    first, second = report["layers"]
    assert (first["cold"], first["idle"]) == (["vision.2"], [])
    assert first["experts"]["vision.2"]["over_fair"] == pytest.approx(0.05, rel=0.05)
    assert second["cold"] == []
    assert second["idle"] == ["vision.0", "vision.1"]
    assert second["experts"]["vision.2"]["over_fair"] is None  # busy with the arm's token: neither cold nor idle


def test_entropy_and_drop_rates_are_per_token_and_per_route():
    dropped = [[[3, 0, 0, 0], [0, 0, 0, 0]]]
    routing = routing_of([[6, 2, 0, 0], [0, 0, 1, 1]], tokens=[[4, 1]], entropy=[[4.0, 0.25]], dropped=dropped)
    layer = routing_json([Frame("press", 0, 0, 0, "press it", routing, (), {})], None, [], {})["layers"][0]
    assert layer["modalities"]["vision"]["entropy_nats"] == 1.0
    assert layer["modalities"]["vision"]["entropy_of_log_experts"] == pytest.approx(1 / np.log(4))
    assert layer["experts"]["vision.0"]["drop_rate"] == 0.5
    assert layer["modalities"]["vision"]["drop_rate"] == 3 / 8
    assert layer["modalities"]["arm"]["drop_rate"] == 0.0
    assert layer["drop_rate"] == 0.3


def test_shares_are_conserved():
    report = routing_json(frames_of(lambda task, phase, rng: rng.integers(0, 3, 4)), None, [], {})
    layer = report["layers"][0]
    assert sum(row["share"] for row in layer["experts"].values()) == pytest.approx(1)
    assert sum(row["routes"] for row in layer["experts"].values()) == 64 * 12
    for rows in (layer["tasks"], layer["phases"], {m: of["experts"] for m, of in layer["modalities"].items()}):
        assert all(sum(row.values()) == pytest.approx(1) for row in rows.values())
    assert (report["frames"], report["episodes"], report["tasks"]) == (64, 16, ["press", "pick"])


def test_random_routes_are_not_called_specialisation():
    report = routing_json(frames_of(lambda task, phase, rng: rng.integers(0, 3, 4)), None, [], {})
    assert not any(row["significant"] for row in report["information"])
    row = find(report, "task", "vision")
    assert row["bits"] > 0  # the plug-in estimate alone would have said so
    assert abs(row["beyond_chance"]) < 0.01


@pytest.mark.parametrize(
    ("label", "tokens", "choose"),
    [
        ("task", "vision", lambda task, phase, rng: [task] * 4),
        ("phase", "vision", lambda task, phase, rng: [phase % 3] * 4),
        ("region", "front patches", lambda task, phase, rng: [0, 0, 1, 1]),
    ],
)
def test_what_sways_the_gate_is_found_and_nothing_else(label, tokens, choose):
    report = routing_json(frames_of(choose), None, [], {})
    found = {(row["label"], row["tokens"]) for row in report["information"] if row["significant"]}
    assert found == {(label, tokens)}
    assert find(report, label, tokens)["beyond_chance"] > 0.15


def test_frames_of_one_episode_do_not_count_as_many_samples_of_its_task():
    whims = np.array(
        [0, 1, 2, 0, 1, 1, 0, 2]
    )  # each episode has a whim of its own, that has nothing to do with its task
    episode = np.repeat(np.arange(8), 30)
    counts = np.eye(3)[whims[episode]][:, None]
    task = episode % 2
    assert information(counts, task, between_blocks(task, episode))[0].p > 0.05
    assert information(counts, task, lambda rng: rng.permutation(task))[0].p < 0.01  # frame by frame it would seem so


def test_mutual_information_of_known_tables():
    assert mutual_information(np.eye(4)) == pytest.approx(2.0)
    assert mutual_information(np.outer([1, 2], [3, 4])) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.zeros((2, 3))) == 0.0


def test_labels_are_shuffled_inside_their_block_only():
    label, block = np.array([0, 1, 2, 3, 4, 5]), np.array([7, 3, 7, 3, 7, 3])
    shuffled = [within_blocks(label, block)(np.random.default_rng(seed)) for seed in range(20)]
    assert all(set(labels[block == 7]) == {0, 2, 4} for labels in shuffled)
    assert len({tuple(labels) for labels in shuffled}) > 5


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_the_start_stands_beside_the_end_in_the_table():
    start = {"vision": {"vision": 0.87, "arm": 0.13}}
    report = routing_json(frames_of(lambda task, phase, rng: [0] * 4), start, [], {"data": "d", "split": "all"})
    out = StringIO()
    print_routing(report, Console(file=out, width=100))
    assert "100 % (87 %)" in out.getvalue()
    assert report["role_share_at_step0"] == start


def picture(path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def colours_of(image: np.ndarray) -> np.ndarray:
    """One number per pixel."""
    return image.astype(int) @ [1, 256, 65536]


@pytest.mark.parametrize("many", [False, True])
def test_the_heat_maps_show_something_for_few_and_many_experts(tmp_path, many):
    frames = frames_of(lambda task, phase, rng: [task] * 4)
    if many:
        roles = ("vision",) * 40 + ("arm",) * 8
        counts = np.random.default_rng(0).integers(0, 9, (1, 2, 48))
        routing = Routing(MODALITIES, tuple(f"e{i}" for i in range(48)), roles, counts, counts.sum(axis=2) // 2)
        frames = [Frame("press", 0, 0, 0, "press it", routing, (), {})]
    draw_routing(routing_json(frames, None, [], {"split": "all"}), tmp_path / "routing.png")
    image = picture(tmp_path / "routing.png")
    assert image.shape[1] > 500
    assert len(np.unique(colours_of(image))) > 200
    assert list(tmp_path.iterdir()) == [tmp_path / "routing.png"]


def test_the_patches_are_tinted_by_their_expert(tmp_path):
    def colours(choice: int) -> set[int]:
        draw_regions(frames_of(lambda task, phase, rng: [choice] * 4), tmp_path / "regions.png")
        found, times = np.unique(colours_of(picture(tmp_path / "regions.png")), return_counts=True)
        return set(found[times > 3000])

    assert colours(0) != colours(1)


def test_without_tokens_that_have_a_place_there_are_no_regions(tmp_path):
    frames = frames_of(lambda task, phase, rng: [0] * 4)
    asleep = TokenRoutes(LABELS, np.full((1, 6, 2), -1), np.zeros((1, 6, 2), np.float32))
    blank = [Frame(f.task, f.phase, f.episode, f.step, f.sentence, f.routing, (asleep,), f.images) for f in frames]
    assert draw_regions(blank, tmp_path / "regions.png") is False
    assert not (tmp_path / "regions.png").exists()
    assert not any(row["label"] == "region" for row in routing_json(blank, None, [], {})["information"])
