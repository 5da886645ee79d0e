import json

import pytest

from moe_robot.evaluation import evaluate
from moe_robot.evaluation.episode import Actor, Cast, Job, named_task
from moe_robot.registry import load_policy
from moe_robot.types import UserError

ALL = ("go_left", "go_right", "go_up")


def test_episode_i_of_every_task_has_seed_s_plus_i(checkpoint, tmp_path):
    results = evaluate(checkpoint, out=tmp_path / "out", episodes=3, seed=500)
    assert [(e.job.task, e.job.seed) for e in results.episodes] == [(t, 500 + i) for t in ALL for i in range(3)]


def test_a_worker_that_dies_changes_nothing_and_neither_does_the_number_of_workers(checkpoint, tmp_path, signpost):
    alone = evaluate(checkpoint, out=tmp_path / "one", episodes=4, knockouts=["language"], video=1)
    marker = tmp_path / "died"
    options = {"crash_seed": 100_002, "crash_once": str(marker)}
    # The rehearsal is of seed 100000, so the first worker that is given seed 100002 dies in the middle of it.
    marker.touch()
    load = signpost.SignpostPolicy.from_pretrained  # without the entry points of other policies: workers start sooner
    crew = {
        "policy_factory": load,
        "out": tmp_path / "two",
        "episodes": 4,
        "knockouts": ["language"],
        "video": 1,
        "workers": 2,
    }

    def unlink_once(episode, done, total):
        if done == 1 and not episode.job.knockout:
            marker.unlink()

    several = evaluate(checkpoint, environment_options=options, progress=unlink_once, **crew)
    assert marker.exists(), "no worker died: the test shows nothing"
    assert several.episodes == alone.episodes
    assert several.knockouts == alone.knockouts
    counts = [[e.routing.counts_LME.tolist() for e in results.episodes] for results in (alone, several)]
    assert counts[0] == counts[1]
    assert several.videos.keys() == alone.videos.keys()
    assert {p.name for p in (tmp_path / "two/videos").iterdir()} == {
        p.name for p in (tmp_path / "one/videos").iterdir()
    }


def test_an_episode_that_kills_every_worker_is_named(checkpoint, tmp_path, signpost):
    with pytest.raises(
        UserError, match=r"task go_left seed 100001: 3 workers died over this episode \(last exit code 9\)"
    ):
        evaluate(
            checkpoint,
            out=tmp_path / "out",
            tasks="go_left",
            episodes=2,
            workers=2,
            environment_options={"crash_seed": 100_001},
            policy_factory=signpost.SignpostPolicy.from_pretrained,
        )


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(checkpoint, tmp_path):
    played = []

    def stop_after_four(episode, done, total):
        played.append(episode.job)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2, progress=stop_after_four)
    assert not (tmp_path / "out/report.json").exists()
    journal = tmp_path / "out/episodes.partial.jsonl"
    journal.write_text(journal.read_text() + '{"task": "go_le')  # as a power cut leaves it

    made_before = journal.read_text().splitlines()[1:5]
    resumed = evaluate(checkpoint, out=tmp_path / "out", episodes=2)
    assert (tmp_path / "out/episodes.jsonl").read_text().splitlines()[1:5] == made_before  # timings and all
    assert not journal.exists()
    assert resumed.episodes == evaluate(checkpoint, out=tmp_path / "whole", episodes=2).episodes


def test_episodes_of_another_evaluation_are_not_mixed_in(checkpoint, tmp_path):
    def stop(episode, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2, progress=stop)
    (checkpoint / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(UserError, match="unfinished evaluation with another checkpoint"):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2)


def test_a_finished_evaluation_is_run_afresh(checkpoint, tmp_path):
    seen = []
    for _ in range(2):
        evaluate(checkpoint, out=tmp_path / "out", tasks="go_left", episodes=2, progress=lambda e, *_: seen.append(e))
    assert len(seen) == 4
    assert seen[0].step_ms != seen[2].step_ms


def test_shuffled_names_another_chosen_task_and_judges_both(make_checkpoint, tmp_path):
    reader = make_checkpoint({"environment": "signpost"})
    results = evaluate(reader, out=tmp_path / "out", tasks="flat", episodes=10, instructions="shuffled")
    for episode in results.episodes:
        assert episode.job.named_task in {"go_left", "go_right"} - {episode.job.task}
        assert episode.sentence.endswith(episode.job.named_task.removeprefix("go_"))
        assert (episode.success, episode.named_success) == (False, True)


def test_the_named_task_is_drawn_from_all_others_by_seed_and_task():
    drawn = {named_task("go_up", seed, ALL) for seed in range(30)}
    assert drawn == {"go_left", "go_right"}
    assert [named_task("go_up", s, ALL) for s in range(30)] == [named_task("go_up", s, ALL) for s in range(30)]
    assert [named_task("go_up", s, ALL) for s in range(30)] != [named_task("go_left", s, ALL) for s in range(30)]


def test_heldout_sentences_reach_the_policy(checkpoint, tmp_path):
    results = evaluate(checkpoint, out=tmp_path / "out", tasks="go_left", episodes=1, instructions="heldout")
    assert results.episodes[0].sentence == "would you head left?"


def test_one_instruction_stands_in_for_every_sentence_and_the_task_is_judged_as_ever(make_checkpoint, tmp_path):
    reader = make_checkpoint({"environment": "signpost"})
    told = {"tasks": "flat", "episodes": 3, "instruction": "please go right"}
    results = evaluate(reader, out=tmp_path / "out", **told)
    assert {episode.sentence for episode in results.episodes} == {"please go right"}
    assert [episode.success for episode in results.episodes] == [e.job.task == "go_right" for e in results.episodes]
    usual = evaluate(reader, out=tmp_path / "usual", tasks="go_right", episodes=3)
    assert usual.episodes == results.episodes[3:], "the sentence changed more than the sentence"
    crew = evaluate(reader, out=tmp_path / "crew", workers=2, **told)
    assert crew.episodes == results.episodes


def test_episodes_that_were_told_something_else_are_not_mixed_in(checkpoint, tmp_path):
    def stop(episode, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2, instruction="please go up", progress=stop)
    with pytest.raises(UserError, match="unfinished evaluation with another instruction:"):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2)
    assert evaluate(checkpoint, out=tmp_path / "out", episodes=2, instruction="please go up").setup.instruction


def test_knocked_out_experts_are_off_on_the_same_seeds_only(make_checkpoint, tmp_path):
    reader = make_checkpoint({"environment": "signpost"})
    results = evaluate(reader, out=tmp_path / "out", tasks="flat", episodes=5, knockouts=["language", "vision"])
    assert all(e.success for e in results.episodes)
    blind = results.knockouts["language"]
    assert [(e.job.task, e.job.seed) for e in blind] == [(e.job.task, e.job.seed) for e in results.episodes]
    assert [e.success for e in blind] == [e.job.task == "go_left" for e in blind]
    assert all(e.success for e in results.knockouts["vision"])


def test_missing_sensors_are_off_on_the_same_seeds_only(make_checkpoint, tmp_path, signpost):
    results = evaluate(
        make_checkpoint({"environment": "signpost"}),
        out=tmp_path / "out",
        tasks="flat",
        episodes=4,
        sensors_off=["front+language", "wrist"],
        knockout_episodes=3,
        policy_factory=signpost.SensingSignpostPolicy.from_pretrained,
    )
    assert all(e.success for e in results.episodes)
    deaf = results.sensors_off["front+language"]
    assert [(e.job.task, e.job.seed, e.success) for e in deaf] == [
        (task, seed, task == "go_left") for task in ("go_left", "go_right") for seed in (100_000, 100_001, 100_002)
    ]
    assert all(e.success for e in results.sensors_off["wrist"])


def test_an_interrupted_pass_without_sensors_goes_on(make_checkpoint, tmp_path, signpost):
    sensing = {
        "checkpoint": make_checkpoint({"environment": "signpost"}),
        "out": tmp_path / "out",
        "tasks": "go_right",
        "episodes": 2,
        "sensors_off": ["wrist", "arm"],
        "policy_factory": signpost.SensingSignpostPolicy.from_pretrained,
    }

    def stop_within_the_last_pass(episode, done, total):
        if episode.job.sensors_off == "arm":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(**sensing, progress=stop_within_the_last_pass)
    kept = (tmp_path / "out/episodes.partial.jsonl").read_text().splitlines()
    resumed = evaluate(**sensing)
    assert (tmp_path / "out/episodes.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert {off: [e.success for e in played] for off, played in resumed.sensors_off.items()} == {
        "wrist": [True, True],
        "arm": [False, False],
    }


@pytest.mark.parametrize(
    ("sensors", "message"),
    [
        ("wirst", "unknown sensor 'wirst': did you mean wrist"),
        ("front+wrist+arm+language", "nothing is left to sense with"),
    ],
)
def test_sensors_that_cannot_be_switched_off_are_refused_before_any_episode(
    checkpoint, tmp_path, signpost, sensors, message
):
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        evaluate(
            checkpoint,
            out=tmp_path / "out",
            sensors_off=[sensors],
            policy_factory=signpost.SensingSignpostPolicy.from_pretrained,
        )
    assert not (tmp_path / "out").exists()


def test_latency_is_counted_where_the_network_ran(checkpoint, tmp_path):
    for episode in evaluate(checkpoint, out=tmp_path / "out", tasks="go_left", episodes=4).episodes:
        assert len(episode.latency_ms) == -(-episode.steps // 3)  # a chunk is three actions
        assert len(episode.step_ms) == episode.steps


def test_failures_are_filmed_first(make_checkpoint, tmp_path):
    clumsy = make_checkpoint({"environment": "signpost"}, blunder=0.45)
    results = evaluate(clumsy, out=tmp_path / "out", tasks="go_up", episodes=6, video=3)
    failed = [e for e in results.episodes if not e.success]
    assert 0 < len(failed) < 6
    assert list(results.videos.values())[: len(failed)] == failed[:3]
    assert len(results.videos) == 3
    assert {p.name for p in (tmp_path / "out/videos").iterdir()} == {
        n + end for n in results.videos for end in (".mp4", ".png")
    }


def test_the_tasks_of_training_are_evaluated_when_none_are_named(make_checkpoint, tmp_path):
    folder = make_checkpoint({"environment": "signpost", "tasks": ["go_right"]})
    assert set(evaluate(folder, out=tmp_path / "out", episodes=1).setup.tasks) == {"go_right"}


def test_the_environment_is_made_with_the_options_of_training(make_checkpoint, tmp_path):
    folder = make_checkpoint({"environment": "signpost", "environment_options": {"size": 32}})
    with pytest.raises(UserError, match="camera 'front' is 32x32 pixels, expected 24x24"):
        evaluate(folder, out=tmp_path / "out", episodes=1)
    results = evaluate(folder, out=tmp_path / "out", episodes=1, environment_options={"size": 24})
    assert results.setup.environment_options == {"size": 24}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "go_lef"}, "unknown task 'go_lef': did you mean go_left"),
        ({"instructions": "sene"}, "unknown instruction set of signpost/Signpost-v0 'sene': did you mean seen"),
        ({"tasks": "go_up", "instructions": "shuffled"}, "at least two tasks"),
        ({"knockouts": ["visoin"]}, "unknown expert role 'visoin': did you mean vision"),
        ({"environment": "singpost"}, "unknown environment 'singpost': did you mean signpost"),
        ({"environment": "signpost/Silent-v0"}, r"expected info\['success'\]"),
        ({"environment_options": {"sise": 3}}, "refused its options"),
        ({"episodes": 0}, "--episodes is 0: expected at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(checkpoint, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(checkpoint, out=tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/report.json").exists()


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"gate": False}, {"knockouts": ["vision"]}, "no gate"),
        (
            {"scale": float("nan")},
            {"episodes": 1},
            "task go_left seed 100000: the policy gave a non-finite action at step 0",
        ),
    ],
)
def test_a_policy_that_cannot_be_evaluated_is_said_in_one_line(make_checkpoint, tmp_path, config, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(make_checkpoint({"environment": "signpost"}, **config), out=tmp_path / "out", **arguments)


def test_a_checkpoint_without_weights_or_an_environment_is_refused(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    with pytest.raises(UserError, match="give --env"):
        evaluate(folder, out=tmp_path / "out")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected model\.safetensors"):
        evaluate(folder, "signpost", out=tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoint at"):
        evaluate(tmp_path / "nowhere", "signpost", out=tmp_path / "out")


def test_a_defect_in_an_episode_names_task_and_seed(make_checkpoint, tmp_path):
    folder = make_checkpoint({"environment": "signpost"}, scale="fast")  # a text where the policy needs a number
    with pytest.raises(RuntimeError, match="task go_left seed 100000 failed: "):
        evaluate(folder, out=tmp_path / "out", episodes=1, policy_factory=_lazy_config)


def _lazy_config(folder, device):
    """The plug-in's policy, whose defect waits until the first warm-up is over."""
    policy = load_policy(folder, device)
    scale, policy.config = policy.config["scale"], {**policy.config, "scale": 1.0}
    rehearsed = policy.disable_experts

    def arm(roles):
        policy.config["scale"] = scale
        rehearsed(roles)

    policy.disable_experts = arm
    return policy


def test_an_actor_gives_torch_its_threads_back(checkpoint):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        actor = Actor(Cast(checkpoint, "signpost", {}, "seen", "cpu"), Job("go_left", 0))
        assert torch.get_num_threads() == 1
        actor.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_journal_tells_what_every_episode_was(checkpoint, tmp_path):
    evaluate(checkpoint, out=tmp_path / "out", tasks="go_left", episodes=2, seed=7)
    header, *rows = map(json.loads, (tmp_path / "out/episodes.jsonl").read_text().splitlines())
    assert header["evaluation"]["environment"] == "signpost/Signpost-v0"
    assert [row["seed"] for row in rows] == [7, 8]
    assert rows[0]["sentence"] == "please go left"
