"""``moe-robot bench render`` and ``bench env`` measure something real and refuse what they cannot measure."""

import json

import pytest

from moe_robot.cli import main

QUICK = ["--seconds", "0.1", "--repeats", "1"]


def test_render_counts_pictures_of_every_camera(capsys):
    assert main(["bench", "render", *QUICK, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames_per_cpu_second"] == pytest.approx(1e3 / result["milliseconds_per_frame"])
    assert result["frames_per_cpu_second"] > 0
    assert (result["cameras"], result["pixels"]) == ("front, wrist", "96x96")
    assert result["renderer"].startswith("fast, ")


def test_env_plays_every_task_of_the_scene(capsys):
    assert main(["bench", "env", *QUICK, "--json", "--env-options", "image_size=16", "control_hz=20"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] % 5 == 0
    assert result["control_hz"] == 20
    assert result["real_time_factor"] == pytest.approx(result["steps_per_cpu_second"] / 20)


def test_the_table_is_for_people(capsys):
    assert main(["bench", "render", *QUICK]) == 0
    assert "frames_per_cpu_second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "--env", "CartPole-v1"], "has no pictures()"),
        (["env", "--env", "CartPole-v1"], "has no scripted expert"),
        (["render", "--seconds", "0"], "expected positive numbers"),
        (["env", "--env-options", "objects=everything"], "choose from all, demo"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(capsys, arguments, said):
    assert main(["bench", *arguments]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
