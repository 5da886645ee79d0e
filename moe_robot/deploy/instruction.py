"""An instruction is a stranger's text: it is shown, recorded and read by the policy. Only a printable line passes."""

from __future__ import annotations

from moe_robot.types import UserError

LONGEST_INSTRUCTION = 500
"""Characters."""


def instruction(text: str) -> str:
    """The text without the spaces around it.

    Raises:
        UserError: it is empty, longer than :data:`LONGEST_INSTRUCTION`, or holds what cannot be printed.
    """
    text = text.strip(" ")
    if text and len(text) <= LONGEST_INSTRUCTION and text.isprintable():
        return text
    fault = "is empty" if not text else f"has {len(text)} characters" if text.isprintable() else "cannot be printed"
    raise UserError(f"the instruction {fault}: expected one printable line of up to {LONGEST_INSTRUCTION} characters")
