"""``moe-robot <verb>``: finds the verb's file, parses its options, turns errors into one line.

A verb is one file here with a frozen dataclass ``Options`` (a docstring under each field is its help) and
``run(options) -> int | None``. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from moe_robot.registry import unknown
from moe_robot.types import UserError

VERBS = {
    "doctor": "say what works on this machine and how to mend what does not",
    "demo": "collect, train and evaluate the five-task demo; write report and videos",
    "collect": "record demonstrations of scripted experts",
    "train": "train a policy on demonstrations",
    "eval": "roll a policy out and report success with intervals",
    "bench": "measure speed and memory of rendering, environment and policy",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 1 user error, 2 bad usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("MOE_ROBOT_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        module = importlib.import_module(f"moe_robot.cli.{verb}")
        import tyro

        options = tyro.cli(module.Options, args=rest, prog=f"moe-robot {verb}", description=VERBS[verb])
        return int(module.run(options) or 0)
    except KeyboardInterrupt:
        print(f"moe-robot {verb}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"moe-robot {verb}: {error}", file=sys.stderr)
        return 1


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items()]
    return "\n".join(["usage: moe-robot VERB [options]   (moe-robot VERB --help for its options; --debug for tracebacks)", "", *lines])
