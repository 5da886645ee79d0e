"""``moe-robot bench paired``: a deployed policy in real time beside its evaluation, on the same seeds, pair by pair.

``sim-node`` and ``deploy`` run as people run them, two processes with a wire between. What is finished stays in the
folder, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from moe_robot.types import UserError

SEEDS_FROM = 100_000
ME = [sys.executable, "-c", "import sys; from moe_robot.cli import main; sys.exit(main())"]
ENDING_S = 60.0
LIVES = re.compile(r"lives (?:at|on) (.*) \(Ctrl-C")
EPISODE = re.compile(
    r"episode \d+/\d+: \S+, seed (?P<seed>\d+), .*: (?P<result>success|wrong|time out) after (?P<seconds>\S+) s"
    r"(?: \((?P<behind>\S+) s of real time left out\))?$"
)


def measure(
    checkpoint: Path, out: Path, tasks: str, episodes: int, transport: str, contract: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Play what is not there yet, and compare: plain data.

    Args:
        checkpoint: a checkpoint folder or a training run.
        out: a folder, made if need be; an unfinished one of the same command is gone on with.
        tasks: names with commas between; of each the first ``episodes`` seeds from 100,000 on.
        episodes: of each task.
        transport: ``rclpy`` or ``rosbridge``.
        contract: a YAML file or a shipped one's name.
        say: shows a line.

    Raises:
        UserError: one of the programs failed, or ``out`` is of another command.
    """
    from moe_robot.evaluation.statistics import Rate, paired_difference

    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "command.json", {"checkpoint": str(checkpoint.resolve()), "contract": contract})
    deployed, evaluated, strata, behind = [], [], [], 0.0
    for task in tasks.split(","):
        sentence = _sentence(task)
        alone = _evaluated(checkpoint, out / f"{task}.evaluation", task, sentence, episodes)
        played = _deployed(
            checkpoint, out / f"{task}.{transport}.jsonl", task, sentence, episodes, transport, contract, say
        )
        deployed += [row["result"] == "success" for row in played]
        behind += sum(row["behind_s"] for row in played)
        evaluated += alone
        strata += [task] * episodes
        say(f"{task}: {Rate.of(deployed[-episodes:])} deployed, {Rate.of(alone)} in process")
    difference = paired_difference(deployed, evaluated, strata)
    low, high = difference.ci95
    return {
        "transport": transport,
        "tasks": tasks,
        "pairs": difference.n,
        "deployed": str(Rate.of(deployed)),
        "in_process": str(Rate.of(evaluated)),
        "difference_points": 100 * difference.difference,
        "ci95_points": [100 * low, 100 * high],
        "pairs_that_differ": sum(a != b for a, b in zip(deployed, evaluated, strict=True)),
        "mcnemar_p": difference.p_value,
        "real_time_left_out_s": behind,
        "load_average": os.getloadavg()[0],
    }


def _sentence(task: str) -> str:
    """What the environment asks for in the first episode, without drawing anything."""
    from moe_robot.registry import make_environment, select_tasks

    env = make_environment("pitstop", cameras=())
    try:
        (name,) = select_tasks(env, task)
        return str(env.reset(seed=SEEDS_FROM, options={"task": name})[1]["task"])
    finally:
        env.close()


def _evaluated(checkpoint: Path, folder: Path, task: str, sentence: str, episodes: int) -> list[bool]:
    """In this process, every control step waiting for the policy."""
    report = folder / "successes.json"
    if report.is_file() and len(done := json.loads(report.read_text(encoding="utf-8"))) >= episodes:
        return done[:episodes]
    from moe_robot.evaluation import evaluate

    results = evaluate(
        checkpoint, "pitstop", out=folder, tasks=task, episodes=episodes, seed=SEEDS_FROM, instruction=sentence
    )
    successes = [episode.success for episode in results.episodes]
    report.write_text(json.dumps(successes), encoding="utf-8")
    return successes


def _deployed(
    checkpoint: Path, journal: Path, task: str, sentence: str, episodes: int, transport: str, contract: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per seed. Those that the journal has are not played again."""
    rows = _rows(journal)
    if len(rows) < episodes:
        first = SEEDS_FROM + len(rows)
        with journal.open("a", encoding="utf-8") as file:
            log = journal.with_suffix(".log")
            for row in _play(checkpoint, task, sentence, first, episodes - len(rows), transport, contract, log):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                say(f"{task}, seed {row['seed']}: {row['result']} after {row['seconds']:.1f} s")
    return rows[:episodes]


def _rows(journal: Path) -> list[dict[str, Any]]:
    """What is whole in the journal: seeds without a gap from the first on."""
    rows: list[dict[str, Any]] = []
    text = journal.read_text(encoding="utf-8") if journal.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line that was being written
            break
        if row.get("seed") != SEEDS_FROM + len(rows):
            raise UserError(f"{journal} is not of this command: name another --out")
        rows.append(row)
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def _play(
    checkpoint: Path, task: str, sentence: str, first: int, episodes: int, transport: str, contract: str, log: Path
) -> Iterator[dict[str, Any]]:
    """Row by row; what ``deploy`` says, every hold with its reason, is added to ``log``."""
    where = ["--transport", transport] + (["--address", "127.0.0.1:0"] if transport == "rosbridge" else [])
    sim = [
        "sim-node",
        "--contract",
        contract,
        "--task",
        task,
        "--seed",
        str(first),
        "--episodes",
        str(episodes),
        *where,
    ]
    environment = os.environ | {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    with _program(sim, environment, subprocess.PIPE) as node:
        address = _expect(node, LIVES, "sim-node")[1]
        drive = ["deploy", str(checkpoint), "--contract", contract, "--instruction", sentence, "--live"]
        drive += ["--enable-at-start", "--transport", transport, *(["--address", address] if "//" in address else [])]
        with log.open("a", encoding="utf-8") as said, _program(drive, environment, said) as deploy:
            # Without it the robot would wait for ever: its end is the end of both.
            threading.Thread(target=lambda: (deploy.wait(), node.send_signal(signal.SIGINT)), daemon=True).start()
            for _ in range(episodes):
                told = _expect(node, EPISODE, "sim-node", deploy)
                print(f"-- seed {told['seed']}: {told['result']}", file=said, flush=True)
                yield {
                    "seed": int(told["seed"]),
                    "result": told["result"],
                    "seconds": float(told["seconds"]),
                    "behind_s": float(told["behind"] or 0.0),
                }


def _expect(node: subprocess.Popen, pattern: re.Pattern, who: str, other: subprocess.Popen | None = None) -> re.Match:
    assert node.stdout
    seen: list[str] = []
    for line in node.stdout:
        seen.append(line.rstrip())
        if found := pattern.search(seen[-1]):
            return found
    beside = f"; deploy ended with {other.poll()}" if other and other.poll() is not None else ""
    raise UserError(f"{who} ended: {seen[-1] if seen else 'it said nothing'}{beside}")


@contextmanager
def _program(arguments: Sequence[str], environment: dict[str, str], output: int | TextIO) -> Iterator[subprocess.Popen]:
    """``moe-robot`` with these arguments, told to end when the block does."""
    process = subprocess.Popen(
        [*ME, *arguments], stdin=subprocess.DEVNULL, stdout=output, env=environment, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check_same(path: Path, identity: dict[str, str]) -> None:
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != identity:
        raise UserError(f"{path.parent} holds the pairs of another checkpoint or contract: name another --out")
    path.write_text(json.dumps(identity), encoding="utf-8")
