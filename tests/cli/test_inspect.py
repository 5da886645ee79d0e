"""``moe-robot inspect``: what a checkpoint is, and what its gate does on real demonstrations of a tiny kind."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from moe_policies.policy import MultimodalPolicy
from moe_robot import cli
from moe_robot.data.loader import open_dataset
from moe_robot.data.record import EpisodeBuilder
from moe_robot.data.store import DatasetWriter
from moe_robot.types import Features

SIZE, TASKS = 16, ("press_red", "pick_cube")
STEP0 = {"vision": {"vision": 1.0, "arm": 0.0}}


def write_data(folder, camera: str = "front", places: tuple[str, ...] = ()) -> None:
    """Two tasks, three episodes each of twelve frames; where things are, when they have names."""
    features = Features({camera: (SIZE, SIZE)}, ("joint.pos", "gripper.opening"), ("dx", "gripper"), 10, places)
    writer = DatasetWriter(folder, features, {"environment": "nowhere/Patches-v0", "tasks": list(TASKS)})
    rng = np.random.default_rng(0)
    for episode in range(6):
        builder = EpisodeBuilder(features)
        for _ in range(12):
            image = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            told = rng.normal(size=len(places)).astype(np.float32) if places else None
            builder.add({camera: image}, rng.normal(size=2).astype(np.float32), np.zeros(2, np.float32), told)
        task = TASKS[episode % 2]
        writer.append(builder.finish(f"{task.replace('_', ' the ')} please", {"env_task": task, "seed": episode}))
    writer.commit()


def write_checkpoint(folder, data, record: dict | None = None, cold: bool = True, **overrides) -> None:
    """An untrained policy; when ``cold``, one in which nobody chooses the last vision expert."""
    torch.manual_seed(4)
    dataset = open_dataset(data, 8, split="train")
    shape = {"width": 16, "heads": 2, "hidden": 8, "patches": 2, "glimpses": 2, "stem_channels": 8}
    preset = overrides.pop("preset", "moe")
    policy = MultimodalPolicy.from_preset(
        preset, dataset.features, dataset.statistics, dataset.tasks, **{**shape, **overrides}
    )
    with torch.no_grad():
        for layer in [policy.network.entry, *(block.feed_forward for block in policy.network.blocks)]:
            if cold and hasattr(layer.layer, "router"):
                layer.layer.router.bias_ME[:, 2] = -50
    policy.save_pretrained(folder)
    if record is not None:
        (folder / "train.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    """A folder as ``moe-robot demo`` lays it out."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "demonstrations")
    record = {"preset": "moe", "steps": 3, "minutes": 0.1, "seed": 4, "complete": True, "routing": {"step0": STEP0}}
    record |= {"tasks": list(TASKS), "environment": "nowhere/Patches-v0", "moe_robot": "0.1.0"}
    write_checkpoint(folder / "policy" / "checkpoint", folder / "demonstrations", record)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory, laid_out):
    folder = tmp_path_factory.mktemp("dense")
    write_checkpoint(folder, laid_out / "demonstrations", preset="dense-active")
    return folder


@pytest.fixture(scope="module")
def reported(laid_out, tmp_path_factory):
    """The folder of a routing report."""
    out = tmp_path_factory.mktemp("report") / "routing"
    assert cli.main(["inspect", str(laid_out), "--routing", "--frames", "32", "--out", str(out)]) == 0
    return out


def say(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(["inspect", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_checkpoint_is_described_as_a_table_and_as_json(laid_out, capsys):
    status, out, _ = say(capsys, laid_out)
    assert status == 0
    for words in ("moe", "front 16x16", "joint.pos", "vision 3, arm 2", "seed 4", "nowhere/Patches-v0"):
        assert words in out
    status, out, _ = say(capsys, laid_out / "policy", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["policy"] == "multimodal"
    assert told["training"]["steps"] == 3
    assert told["features"]["cameras"] == {"front": [16, 16]}
    assert told["parameters"]["total"] > told["parameters"]["experts"] > told["parameters"]["gates"] > 0


def test_a_checkpoint_without_a_training_record_is_described_all_the_same(dense, capsys):
    status, out, _ = say(capsys, dense)
    assert status == 0
    assert "no train.json" in out
    assert "dense-active" in out


def test_the_report_has_its_schema_and_conserves_counts(reported):
    report = json.loads((reported / "routing.json").read_text())
    assert report["schema"] == 1
    assert (report["frames"], report["episodes"], report["split"]) == (32, 6, "all")
    assert report["tasks"] == list(TASKS)
    assert report["role_share_at_step0"] == STEP0
    tokens = {"vision": 4, "arm": 2, "grasp": 2, "language": 4}  # patches; state and action; words
    first, second, last = report["layers"]
    for layer, extra in ((first, 2), (second, 0)):  # the glimpses enter later and pass the entry layer only
        assert {m: of["tokens"] / 32 for m, of in layer["modalities"].items()} == tokens | {"vision": 4 + extra}
    assert {m: of["tokens"] / 32 for m, of in last["modalities"].items()} == {"arm": 1, "grasp": 1}
    for layer in report["layers"]:
        of_modalities = sum(of["tokens"] for of in layer["modalities"].values())
        assert sum(of["routes"] for of in layer["experts"].values()) == 2 * of_modalities
        assert sum(of["first_choices"] for of in layer["experts"].values()) == of_modalities
        assert layer["drop_rate"] == 0
        assert all(0 < of["entropy_of_log_experts"] <= 1 for of in layer["modalities"].values())
    assert {row["label"] for row in report["information"]} == {"task", "phase", "region"}


def test_the_cold_expert_is_named(reported, laid_out, capsys):
    report = json.loads((reported / "routing.json").read_text())
    assert [layer["cold"] for layer in report["layers"]][:2] == [["vision.2"]] * 2
    assert "vision.2" in report["layers"][2]["idle"]
    status, out, _ = say(capsys, laid_out, "--routing", "--no-start", "--frames", 8, "--out", reported.parent / "again")
    assert status == 0
    assert "layer 1, cold: vision.2" in out
    assert "cold: fewer routes than 10%" in out


def test_beside_the_gate_stands_what_it_was_before_training(reported, laid_out, tmp_path, capsys):
    report = json.loads((reported / "routing.json").read_text())
    assert report["untrained"]["layers"][0]["cold"] == []
    assert len(report["untrained"]["information"]) == len(report["information"])
    record = {"preset": "moe", "seed": 4, "steps": 0}
    write_checkpoint(tmp_path / "fresh", laid_out / "demonstrations", record, cold=False)
    data = ("--data", laid_out / "demonstrations", "--frames", 8, "--json")
    _, out, _ = say(capsys, tmp_path / "fresh", "--routing", *data)
    untouched = json.loads(out)
    assert untouched["untrained"]["layers"] == untouched["layers"]  # nothing was trained: the very same gate
    _, out, _ = say(capsys, tmp_path / "fresh", "--routing", "--no-start", *data)
    assert json.loads(out)["untrained"] is None


def test_the_data_may_tell_of_other_things_than_the_checkpoint_learned_from(tmp_path, capsys):
    write_data(tmp_path / "mine", places=("cube.x", "cube.y"))
    write_data(tmp_path / "theirs", places=("nut.x",))
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "mine")
    command = (tmp_path / "checkpoint", "--routing", "--frames", 4, "--json", "--data", tmp_path / "theirs")
    status, out, err = say(capsys, *command)
    assert status == 0, err
    assert json.loads(out)["untrained"] is not None


@pytest.mark.parametrize("name", ["routing.png", "regions.png"])
def test_the_pictures_are_not_blank(reported, name):
    picture = cv2.imread(str(reported / name))
    assert picture is not None
    assert len(np.unique(picture.astype(int) @ [1, 256, 65536])) > 300


def test_json_goes_to_standard_output_alone(laid_out, tmp_path, capsys):
    status, out, _ = say(capsys, laid_out, "--routing", "--no-start", "--frames", 8, "--json", "--out", tmp_path)
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "routing.json").read_text())


def test_the_same_frames_give_the_same_report(reported, laid_out, tmp_path, capsys):
    say(capsys, laid_out, "--routing", "--frames", 32, "--out", tmp_path)
    assert (tmp_path / "routing.json").read_text() == (reported / "routing.json").read_text()


def test_only_the_named_tasks_are_looked_at(laid_out, tmp_path, capsys):
    status, out, _ = say(
        capsys, laid_out, "--routing", "--no-start", "--frames", 8, "--tasks", "pick_cube", "--json", "--out", tmp_path
    )
    assert status == 0
    report = json.loads(out)
    assert report["tasks"] == ["pick_cube"]
    assert "task" not in {row["label"] for row in report["information"]}  # one task has nothing to tell apart


def test_a_mixture_and_data_of_other_names_are_looked_at_as_they_are_trained_on(laid_out, tmp_path, capsys):
    write_data(tmp_path / "second", camera="eye")
    mix = tmp_path / "mix.yaml"
    parts = f"- {{data: {laid_out / 'demonstrations'}}}\n- {{data: {tmp_path / 'second'}, rename: {{eye: front}}}}\n"
    mix.write_text(parts)
    few = ("--routing", "--frames", "16", "--out", tmp_path / "out", "--json")
    status, out, _ = say(capsys, laid_out, *few, "--data", mix)
    assert status == 0
    assert str(mix) in out
    status, _, err = say(capsys, laid_out, *few, "--data", tmp_path / "second")
    assert status == 1
    assert "camera 'front' is missing" in err
    status, out, _ = say(capsys, laid_out, *few, "--data", tmp_path / "second", "--rename", "eye=front")
    assert status == 0
    assert json.loads(out)["tasks"]


def test_a_policy_without_a_gate_says_so_in_one_line(dense, laid_out, tmp_path, capsys):
    status, _, err = say(
        capsys, dense, "--routing", "--data", laid_out / "demonstrations", "--frames", 4, "--out", tmp_path / "out"
    )
    assert status == 1
    assert "no gate" in err
    assert not (tmp_path / "out").exists()


def test_a_policy_that_does_not_tell_its_tokens_lacks_only_the_regions(laid_out, tmp_path, capsys, monkeypatch):
    class Reserved:
        """A stranger's policy: what the protocol asks for, and no more."""

        def __init__(self, folder, device):
            inner = MultimodalPolicy.from_pretrained(folder, device)
            self.features, self.reset, self.routing = inner.features, inner.reset, inner.routing
            self.select_action = inner.select_action

    monkeypatch.setattr("moe_robot.cli.inspect_routing.load_policy", Reserved)
    status, out, err = say(capsys, laid_out, "--routing", "--no-start", "--frames", 8, "--out", tmp_path)
    assert status == 0, err
    assert "no regions.png" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["routing.json", "routing.png"]


def test_a_placement_is_proposed_judged_and_drawn(laid_out, tmp_path, capsys):
    asked = ["--placement", 2, "--frames", 16, "--batch", 4, "--copies", 2, "--out", tmp_path]
    status, out, err = say(capsys, laid_out, *asked)
    assert status == 0, err
    report = json.loads((tmp_path / "placement.json").read_text())
    for name in ("contiguous", "proposed", "with copies"):
        assert f"{name}: experts take {report['whole'][name]['time']:.2f} times as long" in out.replace("\n", "")
    for layer in report["layers"]:
        assert sum(layer["load"]) == pytest.approx(1)
        for name, told in layer["placements"].items():
            assert sum(map(len, told["devices"])) == len(report["experts"]) + (2 if name == "with copies" else 0)
            assert {expert for held in told["devices"] for expert in held} == set(report["experts"])
            assert 1 <= told["skew_mean"] <= told["skew_max"] + 1e-9 <= 2 + 1e-9
            assert told["sends"] <= 2 * told["leaving"]
        assert layer["placements"]["proposed"]["skew_mean"] >= layer["lower_bound"] - 1e-9 >= 1 - 2e-9
    assert report["whole"]["with copies"]["leaving"] < report["whole"]["contiguous"]["leaving"]
    assert cv2.imread(str(tmp_path / "placement.png")).std() > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["placement.json", "placement.png"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "no checkpoint at nowhere"),
        (["RUN", "--tasks", "press_red"], "--tasks belongs to --routing"),
        (["RUN", "--routing", "--frames", "0"], "--frames is 0, expected at least 1"),
        (
            ["RUN", "--routing", "--tasks", "press_rad"],
            "unknown task of the data set 'press_rad': did you mean press_red",
        ),
        (["RUN", "--routing", "--placement", "2"], "--routing and --placement are two reports"),
        (["RUN", "--placement", "1"], "--placement is 1: expected at least 2"),
        (["RUN", "--placement", "9"], "--placement 9 is more devices than there are experts (8)"),
        (["RUN", "--placement", "2", "--copies", "9"], "--copies 9 is more than 8 experts on 2 devices can have"),
        (["RUN", "--copies", "2"], "--copies belongs to --placement"),
        (["RUN", "--routing", "--tasks", ","], "--tasks names none"),
        (["RUN", "--routing", "--data", "nowhere"], "no data set at nowhere"),
        (["RUN", "--routing", "--data", "OTHER"], "camera 'front' is missing (it has 'side')"),
        (["ALONE", "--routing"], "name the data set with --data"),
        (["RUN", "--routing", "--out", "FILE"], "cannot write"),
        (["BROKEN"], "train.json"),
    ],
)
def test_a_mistake_is_one_line(laid_out, tmp_path, capsys, arguments, line):
    write_data(tmp_path / "other", camera="side")
    alone, broken = tmp_path / "alone" / "checkpoint", tmp_path / "broken"
    for folder in (alone, broken):
        shutil.copytree(laid_out / "policy" / "checkpoint", folder)
    (broken / "train.json").write_text("{")
    (tmp_path / "file").touch()
    names = {"RUN": laid_out, "OTHER": tmp_path / "other", "ALONE": alone, "FILE": tmp_path / "file", "BROKEN": broken}
    status, out, err = say(capsys, *(names.get(argument, argument) for argument in arguments))
    assert status == 1
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_a_folder_that_cannot_be_read_is_one_line(laid_out, capsys, monkeypatch):
    """Run as root, nothing is unreadable: the system's refusal is put in its place."""

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "demonstrations")

    monkeypatch.setattr("moe_robot.data.selection.read_info", refuse)
    status, _, err = say(capsys, laid_out, "--routing")
    assert status == 1
    assert "cannot read the demonstrations in" in err
    assert len(err.strip().splitlines()) == 1
