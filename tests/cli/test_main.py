"""The command line: verbs, options, and one clear line for whatever goes wrong."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import pytest

from moe_robot import cli
from moe_robot.types import UserError

COMMAND = [sys.executable, "-c", "import sys; from moe_robot.cli import main; sys.exit(main())"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The environment of a person's shell, where Python writes its output late."""


@dataclass(frozen=True)
class Options:
    """Options of a verb made for these tests."""

    episodes: int = 3
    """How many."""
    eval_episodes: int = 3
    """How many in the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where."""


@pytest.fixture
def verb(monkeypatch):
    """Installs a verb named ``probe`` that does what the test says."""

    def install(action) -> None:
        module = types.ModuleType("moe_robot.cli.probe")
        module.Options, module.run = Options, action  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "moe_robot.cli.probe", module)
        monkeypatch.setitem(cli.VERBS, "probe", "stand in for a verb")

    return install


def _raise(error: BaseException):
    def run(options):
        raise error

    return run


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_advertised_verb_has_frozen_options_with_help_and_something_to_run(name):
    module = importlib.import_module(f"moe_robot.cli.{name.replace('-', '_')}")
    assert is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert callable(module.run)
    assert fields(module.Options)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_verb(arguments, capsys):
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.VERBS)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["colect"], "moe-robot: unknown verb 'colect': did you mean collect"),
        (["--verbose"], "moe-robot: unknown option '--verbose': choose from"),
        (["probe", "--episode", "4"], "moe-robot probe: unknown option '--episode': did you mean --episodes"),
        (
            ["probe", "--eval-episods=4"],
            "moe-robot probe: unknown option '--eval-episods': did you mean --eval-episodes",
        ),
        (["probe", "--device", "gpu"], "moe-robot probe: invalid choice 'gpu' for argument '--device'"),
        (["probe", "--episodes", "many"], "moe-robot probe: error parsing --episodes: invalid literal for int()"),
        (["probe", "--episodes"], "moe-robot probe: missing value for argument '--episodes'"),
        (["probe", "stray"], "moe-robot probe: unrecognized options: stray"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(verb, capsys, arguments, line):
    verb(lambda options: pytest.fail("the verb must not run"))
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    (said,) = captured.err.splitlines()
    assert said.startswith(line)
    assert captured.out == ""


def test_options_reach_the_verb_and_its_status_comes_back(verb):
    seen = []
    verb(lambda options: seen.append(options) or 7)
    assert cli.main(["probe", "--episodes", "5", "--eval_episodes", "6", "--device", "cpu"]) == 7
    assert seen == [Options(5, 6, "cpu")]


def test_a_bad_number_is_named_also_when_the_complaint_is_short(capsys):
    assert cli.main(["eval", "x", "--env", "pitstop", "--out", "y", "--episodes", "3.5"]) == 2
    assert capsys.readouterr().err.startswith("moe-robot eval: error parsing --episodes: invalid literal for int()")


def test_a_later_option_overrides_an_earlier_one_as_scripts_demo_needs(verb):
    seen = []
    verb(seen.append)
    assert cli.main(["probe", "--episodes", "5", "--episodes", "6"]) == 0
    assert seen == [Options(6)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such\n thing"), "no such thing"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"),
            "no space left on device (runs/a): free some space",
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), "permission denied (/x): choose a place"),
        (ValueError("bad\nshape"), "ValueError: bad shape; this is a defect of moe-robot: --debug shows where"),
    ],
)
def test_an_error_is_one_line_and_status_1(verb, capsys, error, said):
    verb(_raise(error))
    assert cli.main(["probe"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"moe-robot probe: {said}")


def test_debug_shows_the_traceback_and_then_the_line(verb, capsys):
    verb(_raise(UserError("no such thing")))
    assert cli.main(["probe", "--debug"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "moe-robot probe: no such thing"


def test_an_interrupt_is_one_line_and_status_130(verb, capsys):
    verb(_raise(KeyboardInterrupt("the same command goes on")))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err.strip() == "moe-robot probe: interrupted; the same command goes on"


def test_ctrl_c_ends_the_verb_and_its_worker_processes(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys, time, types\n"
        "from dataclasses import dataclass\n"
        "from moe_robot import cli\n"
        "@dataclass(frozen=True)\n"
        "class Options: ...\n"
        "def work(queue):\n"
        "    import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    queue.put('at work'); time.sleep(60)\n"
        "def run(options):\n"
        "    queue = multiprocessing.get_context('fork').Queue()\n"
        "    worker = multiprocessing.get_context('fork').Process(target=work, args=(queue,)); worker.start()\n"
        "    queue.get(); print(worker.pid, flush=True); time.sleep(60)\n"
        "module = types.ModuleType('probe'); module.Options, module.run = Options, run\n"
        "sys.modules['moe_robot.cli.probe'] = module; cli.VERBS['probe'] = ''\n"
        "sys.exit(cli.main(['probe']))\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, program], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert err.strip() == "moe-robot probe: interrupted; what was finished is kept"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=BUFFERED
    ) as run:
        assert run.stdout is not None
        run.stdout.close()
        assert run.stderr is not None
        assert run.stderr.read() == ""
    assert run.returncode == 141


def test_a_pipe_that_breaks_elsewhere_is_not_hidden(verb, capsys):
    verb(_raise(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))))
    assert cli.main(["probe"]) == 1
    assert "broken pipe" in capsys.readouterr().err


def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("moe-robot: no space left on device: free some space")
