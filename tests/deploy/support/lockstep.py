"""A whole deployment in lockstep beside an evaluation in one process: a trained policy, the same seeds."""

import signal
from pathlib import Path

import numpy as np
from commands import INSTRUCTION
from rosbags.highlevel import AnyReader

from moe_robot.evaluation.episode import Actor, Cast, Job

CHECKPOINT = Path(__file__).parents[3] / "assets/checkpoints/pitstop-demo-moe"
TASK, SEED = "pick_red_cube", 100_000


def evaluated(episodes: int) -> tuple[np.ndarray, list[str]]:
    """All actions (T, A) that the policy gave in so many episodes, and how each ended."""
    jobs = [Job(TASK, SEED + i) for i in range(episodes)]
    cast = Cast(CHECKPOINT, "moe_robot/PitStop-v0", {}, "seen", "cpu", instruction=INSTRUCTION)
    actor, actions = Actor(cast, jobs[0]), []
    real = actor.policy.select_action

    def remembered(observation):
        actions.append(real(observation))
        return actions[-1]

    actor.policy.select_action = remembered
    try:
        verdicts = [actor.run(job).verdict for job in jobs]
        return np.array(actions), verdicts
    finally:
        actor.close()


def deployed(command, contract, recording, transport, episodes: int) -> tuple[np.ndarray, list[str]]:
    """The same through ``sim-node`` and ``deploy``, two processes; ``transport`` are options of both."""
    bridge = transport == "rosbridge"
    where = ["--address", "127.0.0.1:0"] if bridge else ["--transport", transport]
    node = command(
        "sim-node", "--contract", contract, "--task", TASK, "--seed", SEED, "--episodes", episodes, "--lockstep", *where
    )
    address = node.says(r"lives (?:at|on) (.*) \(Ctrl-C")[1]
    deploy = command(
        "deploy", CHECKPOINT, "--contract", contract, "--instruction", INSTRUCTION, "--live", "--enable-at-start",
        "--lockstep", "--json", "--record", recording, *(["--address", address] if bridge else where),
    )  # fmt: skip
    deploy.process.stdin.close()
    verdicts = [
        node.says(rf"episode {1 + i}/{episodes}: .*: (success|wrong|time out) after")[1] for i in range(episodes)
    ]
    assert node.wait() == 0
    assert deploy.end(signal.SIGINT) == 130
    assert deploy.summary()["recorded"]["complete"]
    with AnyReader([recording]) as bag:
        told = [bag.deserialize(raw, one.msgtype) for one, _, raw in bag.messages(bag.connections)
                if one.topic == "/moe_robot/action"]  # fmt: skip
    return np.array([message.position for message in told]), verdicts
