"""``moe-robot deploy``: runs a policy on a robot, over ROS 2 or rosbridge, with the safety gate between them."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.deploy.loop import Step
    from moe_robot.deploy.transport import Robot


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot deploy``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, a training run that holds one, or a folder that `moe-robot export` wrote."""
    contract: str
    """The robot's contract: a YAML file, or a shipped one by its name (pitstop)."""
    instruction: str
    """What the robot is to do, in one sentence."""
    live: bool = False
    """Let commands reach the robot once it is enabled. Without it they are judged and counted, and nothing moves."""
    enable_at_start: bool = False
    """Enable it without being asked, on every new connection. Only for a simulated robot on this machine."""
    lockstep: bool = False
    """Answer each moment of `moe-robot sim-node --lockstep`, which waits for it: the very actions of `moe-robot eval`,
    however slow the machine is. With --enable-at-start, which then enables it again after a hold."""
    seconds: float | None = None
    """End after so many. Left out: until q or Ctrl-C."""
    transport: Literal["auto", "rclpy", "rosbridge", "sim"] = "auto"
    """rclpy: native ROS 2. auto: that where this Python has rclpy and no address is given, else rosbridge. sim: PitStop
    in this process in real time, without any of them."""
    task: str = "pick_red_cube"
    """For --transport sim: what is judged."""
    seed: int = 100_000
    """For --transport sim: of the first episode's layout; each later one has the next."""
    address: str | None = None
    """Of the rosbridge server, in place of the contract's: ws:// on this machine, else wss://."""
    ca_file: Path | None = None
    """Certificates to trust for wss://, in place of the system's."""
    record: Path | None = None
    """Record what is sensed, done and decided to this new file, FILE.mcap, which the tools of ROS 2 read."""
    blend: float | None = None
    """Average overlapping action chunks, each newer one weighted down by exp(-RATE), in place of playing the newest.
    Smoother; worse for policies whose actions count from where the robot is measured to be, as PitStop's do."""
    join: int | None = None
    """Go over from one action chunk to the next within so many control steps, in place of jumping to the newest."""
    json: bool = False
    """Print a summary as JSON to standard output in the end; the status lines then go to standard error."""


def run(options: Options) -> int:
    """Load and check, connect, run until it is to end; hold, and say what happened."""
    from moe_robot.deploy.checkpoint import load_act, policy_directory
    from moe_robot.deploy.chunks import JoinedChunks
    from moe_robot.deploy.contract import load_contract
    from moe_robot.deploy.guard import GuardedRobot
    from moe_robot.deploy.inference import PolicyProcess
    from moe_robot.deploy.instruction import instruction
    from moe_robot.deploy.lockstep import LockstepLoop
    from moe_robot.deploy.loop import ControlLoop
    from moe_robot.deploy.operator import KEYS, Operator
    from moe_robot.deploy.recording import Recorder
    from moe_robot.deploy.report import Report
    from moe_robot.deploy.transport import robot as find
    from moe_robot.deploy.transport import simulated_here
    from moe_robot.processes import endings_wait, workers_are_born

    if options.seconds is not None and not options.seconds > 0:
        raise UserError(f"--seconds {options.seconds:g}: expected more than 0")
    if options.join is not None and (options.join < 1 or options.blend is not None):
        raise UserError(f"--join {options.join}: expected 1 or more control steps, and no --blend")
    if options.lockstep and (not options.enable_at_start or options.join is not None or options.blend is not None):
        raise UserError("--lockstep is for a simulated robot: add --enable-at-start, and leave --blend and --join out")
    task = instruction(options.instruction)
    contract, folder = load_contract(options.contract), policy_directory(options.checkpoint)
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.transport == "sim":
        if options.address or options.lockstep:
            raise UserError("--transport sim is a world in this process: leave --address and --lockstep out")
        io, where = simulated_here(contract, options.task, options.seed, say)
    else:
        io, where = find(contract, options.transport, options.address, options.ca_file, options.enable_at_start)
    about = {"robot": contract.robot, "contract": options.contract, "checkpoint": str(folder)}
    recorder = Recorder(options.record, contract, about, partial(print, file=sys.stderr)) if options.record else None
    robot = GuardedRobot(io, contract, recorder.decided if recorder else None)
    policy = PolicyProcess(partial(load_act, folder, contract, task, options.lockstep))
    plan = JoinedChunks(contract.period_s, contract.max_command_age_s, options.join) if options.join else None
    if options.lockstep:
        loop = LockstepLoop(robot, contract, policy, task)
    else:
        loop = ControlLoop(robot, contract, policy, task, options.blend, plan)
    simulation = io if options.enable_at_start else None
    beat_every_s = min(contract.heartbeat_s / 5, 0.05 if options.lockstep else math.inf)
    operator = Operator(robot, options.live, beat_every_s, say, simulation, persistent=options.lockstep)
    report = Report(robot, io, loop.timings, say)
    with endings_wait() as interrupted:
        try:
            with workers_are_born():
                policy.start()
                if recorder:
                    recorder.start(io.now, task)
            if not policy.wait_until_ready(interrupted):
                raise KeyboardInterrupt("nothing had moved")
            say(f"{folder} fits {contract.robot}; connecting to {where} ({KEYS})")
            end = time.monotonic() + (options.seconds or math.inf)

            def on_step(step: Step) -> None:
                report.step(step)
                if recorder:
                    recorder.step(step)

            def is_over() -> bool:
                if simulation:
                    _check_simulated(simulation, where)
                gone = operator.wants_to_quit or policy.failure is not None or interrupted()
                return gone or time.monotonic() >= end

            try:
                robot.start()
                operator.start()
                loop.run(is_over, on_step)
            finally:
                report.end()
                operator.stop()
                robot.stop()
        finally:
            policy.stop()
            recorded = recorder.stop() if recorder else None
        summary = {"robot": contract.robot, "live": options.live} | report.summary()
        _show(summary | ({"recorded": recorded.to_json()} if recorded else {}), options.json)
        if recorded:
            say(f"recorded {recorded}")
            if not recorded.complete:
                print(f"moe-robot deploy: THE RECORDING IS NOT COMPLETE: {recorded}", file=sys.stderr)
        if interrupted():
            raise KeyboardInterrupt("the robot was told to hold" if robot.enablings else "nothing had moved")
    if policy.failure is not None:
        raise UserError(f"the policy ended: {policy.failure}")
    if not io.epoch:
        raise UserError(f"there was no connection to {where}: {io.status().trouble}; start the robot's side first")
    return 0


def _show(summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2, allow_nan=False), flush=True)
        return
    commands, holds = summary["commands"], summary["holds"]
    print(
        f"{summary['steps']} steps; {commands['passed']} commands kept the rules, {commands['sent']} were sent; "
        f"{len(holds)} holds"
    )
    for hold in holds:
        print(f"  {hold['at']:.1f} s  {hold['message']}")
    sys.stdout.flush()


def _check_simulated(io: Robot, where: str) -> None:
    if io.simulated is False:
        raise UserError(
            f"--enable-at-start is for a simulated robot, and what answers at {where} is not moe-robot sim-node: "
            "leave it out, and enable the robot by hand"
        )
