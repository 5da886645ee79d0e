import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_robot.cli import main

EVAL = [sys.executable, "-c", "import sys; from moe_robot.cli import main; sys.exit(main(sys.argv[1:]))", "eval"]


def living(group: int) -> list[str]:
    """The processes of a group that still run (a zombie only waits to be counted)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def test_eval_prints_a_table_with_intervals_and_writes_the_report(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    arguments = ["--tasks", "flat", "--episodes", "4", "--knockout", "language", "--out", str(out)]
    assert main(["eval", str(checkpoint.parent), *arguments]) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    low, high = report["tasks"]["go_left"]["ci95"]
    assert f"{100 * report['tasks']['go_left']['success_rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" in printed
    assert "with experts switched off" in printed
    assert str(out / "report.html") in printed.replace("\n", "")


def test_json_goes_to_standard_output_alone(checkpoint, tmp_path, capsys):
    arguments = ["--env", "signpost", "--tasks", "go_left", "--episodes", "2", "--env-options", "size=24", "slow-s=0"]
    assert main(["eval", str(checkpoint), *arguments[:-1], "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["env_options"] == {"size": 24}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "signpots"], "unknown environment"),
        (["--tasks", "go_lft"], "unknown task"),
        (["--instructions", "heldotu"], "unknown instruction set"),
        (["--knockout", "langauge"], "unknown expert role"),
        (["--knockout", "gate.content"], "unknown expert role 'gate.content'"),
        (["--instruction", " "], "--instruction is empty"),
        (["--instruction", "go right", "--instructions", "shuffled"], "leave one of the two away"),
        (["--instruction", "go right", "--instructions", "heldout"], "leave one of the two away"),
        (["--sensors-off", "wrist"], "sensors cannot be switched off: SignpostPolicy has no disable_sensors"),
        (["--env-options", "size"], "expected KEY=VALUE"),
    ],
)
def test_bad_input_is_one_line_and_status_1(checkpoint, tmp_path, capsys, arguments, message):
    assert main(["eval", str(checkpoint), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("moe-robot eval: ")
    assert message in error
    assert "\n" not in error


def test_an_output_folder_that_cannot_be_made_is_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["eval", str(checkpoint), "--episodes", "1", "--out", str(tmp_path / "file/out")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["episodes.partial.jsonl", "videos/go_left_100000.mp4", "report.html", "report.json"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_space(checkpoint, tmp_path, capsys, file):
    full = tmp_path / "out" / f"{file}.part"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")  # every write ends with "no space left on device"
    command = [
        "eval",
        str(checkpoint),
        "--tasks",
        "go_left",
        "--episodes",
        "1",
        "--video",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert "moe-robot eval: " in error
    assert f"cannot write {tmp_path / 'out' / file}: No space left on device" in error.splitlines()[-1]
    assert not (tmp_path / "out/report.json").exists()

    full.unlink(missing_ok=True)
    assert main(command) == 0
    assert (tmp_path / "out/report.json").is_file()
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_ctrl_c_keeps_finished_episodes_and_the_same_command_goes_on(checkpoint, tmp_path):
    out, journal = tmp_path / "out", tmp_path / "out/episodes.partial.jsonl"
    command = [*EVAL, str(checkpoint), "--tasks", "go_up", "--episodes", "8", "--workers", "2", "--out", str(out)]
    slow = [*command, "--env-options", "slow_s=0.02"]
    running = subprocess.Popen(slow, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (journal.exists() and len(journal.read_text().splitlines()) > 3):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the command and its workers
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in error
    assert "interrupted" in error
    deadline = time.monotonic() + 20
    while living(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(running.pid), "a worker is left"
    assert not (out / "report.json").exists()
    kept = journal.read_text().splitlines()
    assert 3 < len(kept) < 9

    again = [word if word != "2" else "1" for word in slow[3:]]
    assert main(again) == 0
    assert (out / "episodes.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert json.loads((out / "report.json").read_text())["overall"]["episodes"] == 8
