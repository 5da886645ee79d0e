"""``moe-robot doctor``: what works here and how to mend what does not."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from moe_robot import cli
from moe_robot.cli import doctor, drawing_speed


def test_a_machine_that_runs_these_tests_is_found_fit(capsys, tmp_path):
    assert cli.main(["doctor", "--json", "--out", str(tmp_path / "runs")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    found = {finding["subject"]: finding for finding in report["findings"]}
    assert platform.python_version() in found["Python"]["observed"]
    assert "frames of 96 pixels per CPU-second" in found["drawing"]["observed"]
    assert version("torch").partition("+")[0] in found["torch"]["observed"]
    assert "moe_robot/PitStop-v0" in found["worlds and policies"]["observed"]
    assert all(finding["remedy"] for finding in report["findings"] if finding["verdict"] != "ok")


def test_a_broken_finding_makes_the_doctor_fail_and_the_table_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda out: iter([doctor.Finding("drawing", "broken", "no GL", "do this")]))
    assert doctor.run(doctor.Options()) == 1
    out = capsys.readouterr().out
    assert "do this" in out
    assert "1 of 1 must be mended first" in out


def test_missing_gl_is_found_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    found = doctor.drawing(drawing_speed.measure_in_a_process())
    assert found.verdict == "broken"
    assert "apt-get install -y libegl1" in found.remedy


def test_drawing_is_measured_in_frames_per_processor_second():
    measured = drawing_speed.measure(pixels=64, seconds=0.05)
    assert measured.frames_per_cpu_second > 0
    assert measured.pixels == 64
    assert not measured.error


def test_an_output_folder_that_cannot_be_written_is_broken():
    assert doctor.output_folder(Path("/proc/runs")).verdict == "broken"


def test_an_output_folder_need_not_exist_yet_and_is_not_made(tmp_path):
    assert doctor.output_folder(tmp_path / "a" / "b").verdict == "ok"
    assert not (tmp_path / "a").exists()


def test_a_package_of_another_version_than_locked_is_noted(monkeypatch, tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={version('numpy')} \\\n    --hash=sha256:0\nrich==0.1 \\\nno-such-package==1.0\n")
    monkeypatch.setattr(doctor, "LOCK", lock)
    found = doctor.lock()
    assert found.verdict == "note"
    assert "1 of 3 packages as locked" in found.observed
    assert f"rich {version('rich')} (locked 0.1)" in found.observed
    assert "not installed: no-such-package" in found.observed


@pytest.mark.parametrize(
    ("line", "pins"),
    [
        ("numpy==2.4.6 ; sys_platform == 'linux' \\", {"numpy": "2.4.6"}),
        ("numpy==2.4.6 ; sys_platform == 'win32' \\", {}),
        ("    --hash=sha256:00", {}),
        ("    # via numpy==1", {}),
    ],
)
def test_a_lock_is_read_for_this_machine(line, pins):
    assert doctor.locked_versions(line) == pins


def test_a_check_that_dies_is_itself_a_finding(monkeypatch, tmp_path):
    def die():
        raise RuntimeError("driver\nmismatch")

    monkeypatch.setattr(doctor, "torch_and_gpu", die)
    (found,) = (finding for finding in doctor.examine(tmp_path) if finding.subject == "torch")
    assert found.verdict == "broken"
    assert found.observed == "RuntimeError: driver mismatch"
