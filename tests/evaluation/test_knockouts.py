"""Knock-outs of a real gate, played: what is refused, what the rows are called, and that the policy is whole after."""

import json

import pytest
import torch

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import main
from moe_robot.evaluation import evaluate
from moe_robot.evaluation.episode import Actor, Cast, Job
from moe_robot.evaluation.knockouts import knockout_key, without
from moe_robot.evaluation.video import film
from moe_robot.types import UserError

GATES = "gate.modality,gate.content,gate.roles"


def test_the_rows_of_gates_stand_beside_those_of_experts_everywhere(save, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    arguments = ["--env", "signpost", "--tasks", "flat", "--episodes", "2", "--knockout", f"vision,{GATES}"]
    assert main(["eval", str(save()), *arguments, "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, (out / "report.html").read_text()
    report = json.loads((out / "report.json").read_text())
    assert list(report["knockouts"]) == ["vision", *GATES.split(",")]
    for row in report["knockouts"].values():
        assert row["episodes"] == 4
        assert row["difference_ci95"][0] <= row["difference"] <= row["difference_ci95"][1]
    for name in (
        "without vision experts",
        "gate without its modality term",
        "gate without the token",
        "gate with permuted roles",
    ):
        assert printed.count(name) >= 2, "its progress, and its row in the table"
        assert name in page
    assert "or the gate changed" in page


def test_every_episode_of_a_study_is_played_with_the_changed_gate(save, tmp_path):
    results = evaluate(
        save(gate_prior=8.0), "signpost", out=tmp_path / "out", tasks="go_up", episodes=2, knockouts=["gate.roles"]
    )
    for episode in results.episodes:
        assert episode.routing.share()["vision"] == {"vision": 1, "arm": 0, "grasp": 0, "language": 0}
    for episode in results.knockouts["gate.roles"]:
        assert episode.routing.share()["vision"]["arm"] == 1


def test_a_live_policy_has_its_exact_gate_after_the_evaluation(save, tmp_path):
    folder = save()
    live = MultimodalPolicy.from_pretrained(folder)
    before = {name: value.clone() for name, value in live.state_dict().items()}
    evaluate(
        folder,
        "signpost",
        out=tmp_path / "out",
        tasks="go_up",
        episodes=1,
        knockouts=["gate.content"],
        policy_factory=lambda folder, device: live,
    )
    after = live.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("preset", "knockout", "message"),
    [
        ("dense-active", "gate.content", "has no experts to switch off and no gate to change"),
        ("switch", "vision,gate.modality", "expected a gate with a term per modality"),
        ("moe", "gate.contnet", "unknown part of the gate 'gate.contnet': did you mean gate.content"),
        ("moe", "visoin", "unknown expert role 'visoin': did you mean vision"),
    ],
)
def test_what_a_policy_does_not_have_is_refused_in_its_own_words_before_any_episode(
    save, tmp_path, preset, knockout, message
):
    with pytest.raises(UserError, match=message) as refused:
        evaluate(save(preset), "signpost", out=tmp_path / "out", knockouts=knockout.split(","))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (Job("go_up", 1), ""),
        (Job("go_up", 1, knockout="vision"), "without vision experts"),
        (Job("go_up", 1, knockout="gate.content"), "gate without the token"),
        (Job("go_up", 1, sensors_off="front+arm"), "without front and arm"),
    ],
)
def test_a_job_says_what_is_off(job, name):
    assert without(job) == name


def test_stored_results_keep_their_keys():
    assert [knockout_key(name) for name in ("vision", "gate.modality", "gate.content", "gate.roles")] == [
        "experts vision",
        "gate modality",
        "gate content",
        "gate roles",
    ]


def test_a_film_says_what_is_off(save, tmp_path):
    import av

    actor = Actor(Cast(save(), "signpost", {}, "seen", "cpu"), Job("go_up", 1))
    pictures = []
    for job in (Job("go_up", 1), Job("go_up", 1, knockout="gate.content")):
        film(actor, job, tmp_path)
        with av.open(str(tmp_path / "go_up_1.mp4")) as container:
            pictures.append(next(container.decode(container.streams.video[0])).to_ndarray(format="rgb24"))
    actor.close()
    panel = [picture[64 + 224 :, 500:700] < 160 for picture in pictures]
    assert panel[1].sum() > panel[0].sum() + 300, "there is no more text than in the film of the whole policy"
