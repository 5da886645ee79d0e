"""Meta-World from one camera and one sentence: collect demonstrations, train, evaluate. See docs/metaworld.md.

python scripts/train_metaworld.py --out runs/mt10
python scripts/train_metaworld.py --out runs/mt50 --tasks mt50 --episodes 50 --minutes 480

Stop it whenever you like; the same command goes on from there.
"""

import argparse
import sys
from pathlib import Path

from moe_robot.cli import demo
from moe_robot.types import UserError


def main() -> int:
    """The three steps of ``moe-robot demo`` in another world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="mt10")
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations of each task (100)")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of training (60)")
    parser.add_argument("--steps", type=int, help="steps of training in place of minutes")
    parser.add_argument("--preset", default="moe")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = demo.Options(
        out=arguments.out,
        env="metaworld",
        env_options=("control_hz=40", "image_size=128", "cameras=close"),
        tasks=arguments.tasks,
        episodes_per_task=arguments.episodes,
        tail=20,  # what to do at the goal
        minutes=arguments.minutes,
        steps=arguments.steps,
        preset=arguments.preset,
        seed=arguments.seed,
        config=("shift=1",),  # a pixel is 7 mm here
        eval_episodes=20,
        knockout="",
        video=1,
    )
    try:
        return demo.run(options)
    except UserError as error:
        print(f"train_metaworld: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"train_metaworld: stopped; {stopped}", file=sys.stderr)
        return 130


if __name__ == "__main__":  # workers start by importing this file
    sys.exit(main())
