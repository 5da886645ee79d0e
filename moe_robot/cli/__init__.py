"""``moe-robot <verb>``: finds the verb's file, parses its options, turns errors into one line.

A verb is one file here with a frozen dataclass ``Options`` (a docstring under each field is its help) and
``run(options) -> int | None``. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
    "convert": "turn a robomimic file into a data set, or demonstrations into a robomimic file",
    "train": "train a policy on demonstrations",
    "eval": "roll a policy out and report success with intervals",
    "compare": "train or load several policies on the same data and seeds, and put them side by side",
    "inspect": "say what a checkpoint is, and what its gate does",
    "extract": "cut out of a mixture the small policy that one instruction needs",
    "export": "write a policy as one graph, for onnxruntime or torch.export, to run without its network",
    "bench": "measure speed and memory of rendering, environment and policy",
    "serve": "answer many robots' observations with one policy, over websockets",
    "deploy": "run a policy on a robot behind a rosbridge server, through the safety gate",
    "replay": "run a policy over demonstrations or a recording and compare its actions with what was done",
    "sim-node": "put PitStop behind the rosbridge protocol, as if it were a robot",
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
            print(_overview(), flush=True)
            return DONE
        if arguments[0] == "--version":
            print(_version(), flush=True)
            return DONE
        verb, *rest = arguments
        if verb not in VERBS:
            raise UsageError(str(unknown("option" if verb.startswith("-") else "verb", verb, VERBS)))
        name = f"moe-robot {verb}"
        module = importlib.import_module(f"moe_robot.cli.{verb.replace('-', '_')}")
        options = parse(module.Options, rest, name, VERBS[verb])
        status = DONE if options is None else int(module.run(options) or DONE)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interrupt:
        _end_workers()
        print(f"\n{name}: interrupted; {str(interrupt) or 'what was finished is kept'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        reader_gone = isinstance(error, BrokenPipeError) and _reader_has_gone()
        _drop_what_cannot_be_written()
        if reader_gone:
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
    said = _first_sentence(complaint.getvalue())
    if said.startswith("missing from"):  # tyro then quotes the whole help of each
        said = f"it cannot do without {' and '.join(_required(options_class))}"
    raise UsageError(f"{said} ({name} --help lists the options)")


def option_names(options_class: type) -> list[str]:
    """The long options of a verb, for example ``["--episodes", "--text", "--no-text"]``. Positional ones have none."""
    names: list[str] = []
    for field in dataclasses.fields(options_class):
        if not _is_positional(field):
            name = field.name.replace("_", "-")
            names += [f"--{name}", f"--no-{name}"] if field.type in {"bool", bool} else [f"--{name}"]
    return names


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


def _is_positional(field: dataclasses.Field[Any]) -> bool:
    return "Positional" in str(field.type)  # with `from __future__ import annotations` a string, otherwise the type


def _required(options_class: type) -> list[str]:
    """``["CHECKPOINT", "--out"]`` for a verb that cannot do without these."""
    absent = dataclasses.MISSING
    needed = [f for f in dataclasses.fields(options_class) if f.default is absent and f.default_factory is absent]
    return [f.name.upper() if _is_positional(f) else "--" + f.name.replace("_", "-") for f in needed]


def _unknown_options(options_class: type, arguments: Iterable[str]) -> list[str]:
    known = {*option_names(options_class), "--help"}
    given = [argument.partition("=")[0] for argument in arguments if re.match(r"--[A-Za-z]", argument)]
    return [option for option in given if option.replace("_", "-") not in known]


def _first_sentence(box: str) -> str:
    """What tyro says inside its box, between the title and the rule that divides the error from the advice."""
    lines = [line.strip("│| \t") for line in box.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰┌└"]
    is_rule = [bool(re.fullmatch("[─━-]{4,}", line)) for line in lines]
    if "╭" not in box and is_rule[1:2] == [True]:  # without box characters the title is a line, with a rule below it
        lines, is_rule = lines[2:], is_rule[2:]
    end = is_rule.index(True) if True in is_rule else len(lines)
    sentence = " ".join(lines[:end]).rstrip(".") or "these options could not be read"
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


def _drop_what_cannot_be_written() -> None:
    """If standard output takes no more, point it at nothing: the interpreter's last flush would complain once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _version() -> str:
    import moe_robot

    return f"moe-robot {moe_robot.__version__}"


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {help_line}" for verb, help_line in VERBS.items()]
    usage = "usage: moe-robot VERB [options]   (moe-robot VERB --help for its options; --debug for tracebacks)"
    return "\n".join([usage, "", *lines])
