"""``moe-robot <verb>``: finds the verb's file, parses its options, turns errors into one line.

A verb is one file here with a frozen dataclass ``Options`` (a docstring under each field is its help) and
``run(options) -> int | None``. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import re
import select
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

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

DONE, FAILED, BAD_USAGE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141


class UsageError(UserError):
    """An unknown verb or option, or a value that its option does not take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    0 done, 1 failed with one line of explanation, 2 bad usage, 130 interrupted, 141 whoever read our output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("MOE_ROBOT_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    name = "moe-robot"
    try:
        if not arguments or arguments[0] in {"-h", "--help"}:
            print(_overview())
            return DONE
        if arguments[0] == "--version":
            print(_version())
            return DONE
        verb, *rest = arguments
        if verb not in VERBS:
            raise UsageError(str(unknown("option" if verb.startswith("-") else "verb", verb, VERBS)))
        name = f"moe-robot {verb}"
        module = importlib.import_module(f"moe_robot.cli.{verb}")
        options = parse(module.Options, rest, name, VERBS[verb])
        status = DONE if options is None else int(module.run(options) or DONE)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interrupt:
        _end_workers()
        print(f"\n{name}: interrupted; {str(interrupt) or 'what was finished is kept'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            _discard_output()
            return READER_GONE
        if debug:
            traceback.print_exc()
        print(f"{name}: {explain(error, debug)}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, UsageError) else FAILED


def parse(options_class: type, arguments: Sequence[str], name: str, description: str) -> Any:
    """An instance of ``options_class`` from the command line, or None after ``--help`` has been printed.

    Raises:
        UsageError: one line in place of tyro's box, with the nearest option where one is unknown.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options_class, args=list(arguments), prog=name, description=description)
    except SystemExit as stop:
        if not stop.code:
            return None
    for option in _unknown_options(options_class, arguments):
        raise UsageError(str(unknown("option", option, option_names(options_class))))
    raise UsageError(f"{_first_sentence(complaint.getvalue())} ({name} --help lists the options)")


def option_names(options_class: type) -> list[str]:
    """The long options of a verb, for example ``["--episodes", "--seed"]``."""
    import tyro

    parser = tyro.extras.get_parser(options_class)
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def explain(error: Exception, debug: bool = False) -> str:
    """One line for any error: a user's mistake as it was written, the system's refusals with what to do about them."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        remedy = {
            errno.ENOSPC: "free some space or choose another --out, then run again",
            errno.EDQUOT: "free some space or choose another --out, then run again",
            errno.EACCES: "choose a place that you may write to, or change its permissions",
            errno.EPERM: "choose a place that you may write to, or change its permissions",
            errno.EROFS: "choose a place that you may write to",
            errno.EMFILE: "raise the limit with 'ulimit -n 4096', or use fewer --workers",
            errno.ENOMEM: "use fewer --workers or a smaller batch",
        }.get(error.errno)
        return f"{(error.strerror or str(error)).lower()}{where}" + (f": {remedy}" if remedy else "")
    hint = "" if debug else "; this is a defect of moe-robot: --debug shows where it happened"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{hint}"


def _unknown_options(options_class: type, arguments: Iterable[str]) -> list[str]:
    known = {*option_names(options_class), "--help"}
    given = [argument.partition("=")[0] for argument in arguments if re.match(r"--[A-Za-z]", argument)]
    return [option for option in given if option.replace("_", "-") not in known]


def _first_sentence(box: str) -> str:
    """What tyro says inside its box, up to the rule that divides the error from the advice, as one line."""
    kept: list[str] = []
    for line in box.splitlines():
        text = line.strip("│| \t")
        if re.match(r"^[╭╰┌└+]", text):
            continue
        if kept and re.match(r"^[─━-]{4,}$", text):
            break
        if text and not re.match(r"^[─━-]{4,}$", text):
            kept.append(text)
    sentence = " ".join(kept).rstrip(".") or "these options could not be read"
    return sentence[0].lower() + sentence[1:]


def _end_workers() -> None:
    """Stop the processes that the verb had started, so that none outlives the command."""
    import multiprocessing

    for worker in multiprocessing.active_children():
        worker.terminate()
    for worker in multiprocessing.active_children():
        worker.join(timeout=5)


def _reader_has_gone() -> bool:
    """Whether our output goes into a pipe that nobody reads any more (``moe-robot ... | head``)."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _version() -> str:
    import moe_robot

    return f"moe-robot {moe_robot.__version__}"


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items()]
    usage = "usage: moe-robot VERB [options]   (moe-robot VERB --help for its options; --debug for tracebacks)"
    return "\n".join([usage, "", *lines])
