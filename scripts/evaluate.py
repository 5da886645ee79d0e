"""Evaluates a checkpoint through the library: the same as `moe-robot eval`, short enough to copy and change.

python scripts/evaluate.py runs/demo/checkpoint runs/demo/evaluation
"""

import argparse

from rich.console import Console

from moe_robot.evaluation import evaluate
from moe_robot.evaluation.table import print_report


def main() -> None:
    """Thirty fresh episodes of each task, two of them filmed, and the same again without the language experts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--env", default="pitstop")
    parser.add_argument("--tasks", default="demo")
    arguments = parser.parse_args()

    results = evaluate(
        arguments.checkpoint,
        arguments.env,
        out=arguments.out,
        tasks=arguments.tasks,
        episodes=30,
        seed=100_000,  # never trained on: collection and training stay below 10,000
        instructions="seen",
        knockouts=["language"],
        video=2,
        progress=lambda episode, done, total: print(f"\r{done}/{total}", end="", flush=True),
    )
    print()
    print_report((results.out / "report.json").read_text(), Console())
    print(results.out / "report.html")


if __name__ == "__main__":  # workers start by importing this file
    main()
