"""Meta-World from one camera and one sentence: collect demonstrations, train, evaluate. See docs/metaworld.md.

python scripts/train_metaworld.py --out runs/mt10
python scripts/train_metaworld.py --out runs/mt50 --tasks mt50 --episodes 50 --minutes 480 --dagger-rounds 2

Stop it whenever you like; the same command goes on from there. More rounds may be asked for later.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import yaml

from moe_robot.cli import bench, collect, demo, train
from moe_robot.cli import eval as trial
from moe_robot.training.checkpoint import has_state
from moe_robot.types import UserError

TAIL = 20  # what to do at the goal
NOISE, KICK = 0.06, 0.6
"""The experts change their mind where the hand is 1 or 2 cm off. At the usual noise of 0.3 (6 mm in each control step
here) they do so all the time, and who learns from that hovers between two minds (docs/results/metaworld-log.md)."""
SHARE, TURN = 0.7, 30
"""In rounds of DAgger the learner drives so much of the time, in turns of so many control steps: long enough to close
the fingers on nothing and carry that away, which no demonstration shows."""
TRIAL_SEED, TRIAL_EPISODES = 10_000, 4
"""Each round plays so many episodes of each task on tuning seeds, and collects more of the tasks that fail in them."""
FREE = 400.0
"""Pictures per second of processor time from which on a picture costs next to nothing beside a step of the world."""


def main() -> int:
    """The three steps of ``moe-robot demo`` in another world, then the rounds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="mt10")
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations of each task (100)")
    parser.add_argument("--noise", type=float, default=NOISE, help=f"disturbance of the demonstrations ({NOISE})")
    parser.add_argument("--kick", type=float, default=KICK, help=f"and of their rare kicks ({KICK})")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of training (60)")
    parser.add_argument("--steps", type=int, help="steps of training in place of minutes")
    parser.add_argument("--preset", default="moe")
    parser.add_argument("--config", nargs="*", default=[], help="policy settings, as of moe-robot train")
    parser.add_argument("--image-size", type=int, default=128, help="height and width of the pictures (128)")
    parser.add_argument(
        "--render", choices=("auto", "fast", "full"), default="auto",
        help="Meta-World's own pictures (full) or quick ones; auto: full where a GPU draws them at no cost",
    )  # fmt: skip
    parser.add_argument("--eval-episodes", type=int, default=20, help="fresh episodes of each task (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dagger-rounds", type=int, default=0, help="rounds of DAgger after it (0)")
    parser.add_argument("--dagger-episodes", type=int, default=6, help="of each task and round (6)")
    parser.add_argument("--dagger-more", type=int, default=18, help="more of each task that fails in a trial (18)")
    parser.add_argument("--dagger-steps", type=int, default=5000, help="steps of training in each round (5000)")
    arguments = parser.parse_args()
    try:
        options = options_of(arguments)
        status = demo.run(options)
        for number in range(1, arguments.dagger_rounds + 1):
            if status:
                break
            status = dagger_round(number, options, arguments)
        return status
    except UserError as error:
        print(f"train_metaworld: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"train_metaworld: stopped; {stopped}", file=sys.stderr)
        return 130


def options_of(arguments: argparse.Namespace) -> demo.Options:
    """What ``moe-robot demo`` is asked for."""
    pictures = (f"image_size={arguments.image_size}", "cameras=close")
    return demo.Options(
        out=arguments.out,
        env="metaworld",
        env_options=("control_hz=40", *pictures, *render_option(arguments.render, arguments.out, pictures)),
        tasks=arguments.tasks,
        episodes_per_task=arguments.episodes,
        tail=TAIL,
        noise=arguments.noise,
        kick=arguments.kick,
        minutes=arguments.minutes,
        steps=arguments.steps,
        preset=arguments.preset,
        seed=arguments.seed,
        config=("shift=1", *arguments.config),  # a pixel is 7 mm here
        eval_episodes=arguments.eval_episodes,
        knockout="",
        video=1,
    )


def render_option(asked: str, out: Path, pictures: tuple[str, ...]) -> tuple[str, ...]:
    """The environment's option that says how pictures are drawn; none for the quick ones.

    ``auto`` measures, the first time; a run that goes on keeps what it began with.
    """
    if asked == "auto":
        begun = out / "demo.json"
        if begun.exists():
            return tuple(of for of in json.loads(begun.read_text())["env_options"] if of.startswith("render="))
        of = bench.Options(
            "render", env="metaworld", env_options=("task=reach-v3", "render=full", *pictures), seconds=0.5, repeats=1
        )
        rate = bench.bench_render(of)["frames_per_cpu_second"]
        asked = "full" if rate >= FREE else "fast"
        print(f"Meta-World's own pictures: {rate:.0f} per second of processor time; taking render={asked}", flush=True)
    return ("render=full",) if asked == "full" else ()


def failing(policy: Path, options: demo.Options, out: Path) -> tuple[int, str]:
    """Exit status, and the tasks that ``policy`` does not always do, with commas between: a trial on tuning seeds."""
    if not demo.is_reported(out, policy):
        status = trial.run(
            trial.Options(
                policy,
                out,
                env=options.env,
                tasks=options.tasks,
                episodes=TRIAL_EPISODES,
                seed=TRIAL_SEED,
                workers=options.workers,
            )
        )
        if status:
            return status, ""
    tasks = json.loads((out / "report.json").read_text())["tasks"]
    return 0, ",".join(name for name, of in tasks.items() if of["successes"] < of["episodes"])


def corrected(policy: Path, options: demo.Options, out: Path, tasks: str, episodes: int, seed: int) -> int:
    """Collect episodes that ``policy`` drives most of the time, each step labelled by the expert."""
    return collect.run(
        collect.Options(
            env=options.env,
            env_options=options.env_options,
            tasks=tasks,
            episodes=episodes,
            tail=TAIL,
            noise=options.noise,
            kick=options.kick,
            seed=seed,
            out=out,
            policy=policy,
            policy_share=SHARE,
            policy_turn=TURN,
        )
    )


def dagger_round(number: int, options: demo.Options, arguments: argparse.Namespace) -> int:
    """The latest policy drives most of the time and the expert labels it; train further on all there is; evaluate."""
    folder, before = (options.out if n == 0 else options.out / f"round-{n}" for n in (number, number - 1))
    driver, seed, steps = before / "policy", 1000 * number, arguments.dagger_steps  # not the demonstrations' layouts
    status, hard = failing(driver, options, folder / "trial")
    if status:
        return status
    wanted = [("demonstrations", options.tasks, arguments.dagger_episodes, seed)]
    if hard and arguments.dagger_more:
        wanted.append(("more", hard, arguments.dagger_more, seed + 500))
    for name, tasks, episodes, first in wanted:
        print(f"[round {number}] {episodes} episodes each that {driver} drives in part: {tasks}", flush=True)
        status = corrected(driver, options, folder / name, tasks, episodes, first)
        if status:
            return status
    rounds = [options.out, *(options.out / f"round-{n}" for n in range(1, number + 1))]
    parts = [of / name for of in rounds for name in ("demonstrations", "more") if (of / name).is_dir()]
    (folder / "mixture.yaml").write_text(yaml.safe_dump([{"data": os.path.relpath(of, folder)} for of in parts]))
    policy = folder / "policy"
    if not train.is_trained(policy):
        print(f"[round {number}] training for {steps} steps more", flush=True)
        status = train.run(
            train.Options(
                data=folder / "mixture.yaml",
                out=policy,
                finetune=before / "policy",
                learning_rate=5e-4,  # half of the peak from before: it is to learn, and not to forget
                steps=steps,
                seed=options.seed,
                resume=has_state(policy),
            )
        )
    return status or demo.evaluate(dataclasses.replace(options, out=folder))


if __name__ == "__main__":  # workers start by importing this file
    sys.exit(main())
