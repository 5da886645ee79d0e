"""What an evaluation refuses before it plays: counts, instructions, experts and sensors that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_robot.evaluation.episode import SHUFFLED, sensor_names
from moe_robot.registry import unknown
from moe_robot.types import SensorSwitches, TellsKnockouts, UserError


def check_counts(**counts: int) -> None:
    """Refuse an option that counts something and is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}: expected at least 1")


def check_instructions(env: Any, env_id: str, instructions: str, tasks: Sequence[str]) -> None:
    """Refuse an instruction set that the environment lacks, and shuffled ones of a single task."""
    sets: Sequence[str] = getattr(env.unwrapped, "instruction_sets", ())
    choices = [*dict.fromkeys([*sets, SHUFFLED])] if sets else ["seen"]
    if instructions not in choices:
        raise unknown(f"instruction set of {env_id}", instructions, choices)
    if instructions == SHUFFLED and len(tasks) < 2:
        raise UserError("shuffled instructions need at least two tasks, so that the sentence can name another one")


def check_instruction(instruction: str | None, instructions: str) -> None:
    """Refuse an empty sentence, and one beside a choice of the environment's sentences that it would overrule."""
    if instruction is None:
        return
    if not instruction.strip():
        raise UserError("--instruction is empty: expected the sentence that every episode gets, or leave it away")
    if instructions != "seen":
        raise UserError(
            f"--instruction gives every episode the sentence {instruction!r}, and --instructions {instructions} asks "
            "for the environment's own: leave one of the two away"
        )


def check_knockouts(knockouts: Sequence[str], policy: Any, roles: Sequence[str] | None) -> None:
    """Refuse what ``policy`` cannot switch off, in its own words; all is on again afterwards.

    A policy that does not tell its knock-outs might take any name without a word: it is held to ``roles``, those that
    were seen in its routing, or None where it has no gate.
    """
    if isinstance(policy, TellsKnockouts):
        for name in knockouts:
            policy.disable_experts((name,))
            policy.disable_experts(())
        return
    if knockouts and roles is None:
        raise UserError("this policy has no gate, so there are no experts to knock out: leave --knockout away")
    for role in knockouts:
        if role not in (roles or ()):
            raise unknown("expert role", role, roles or ())


def check_sensors(combinations: Sequence[str], policy: Any) -> None:
    """Refuse sensors that ``policy`` cannot switch off, in its own words; all are on again afterwards."""
    if combinations and not isinstance(policy, SensorSwitches):
        raise UserError(
            f"sensors cannot be switched off: {type(policy).__name__} has no disable_sensors; leave --sensors-off away"
        )
    for names in combinations:
        policy.disable_sensors(sensor_names(names))
        policy.disable_sensors(())
