"""The 50 tasks of Meta-World, what is said to the robot in each, and the groups that papers report.

Names are Meta-World's own (McLean et al. 2025, "Meta-World+"). The four tiers of difficulty are those of Seo et al.
2022 ("Masked World Models for Visual Control", appendix F), over which language-conditioned policies are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

EASY = {
    "button-press-topdown-v3": "push the red button down from above",
    "button-press-topdown-wall-v3": "reach over the wall and push the red button down from above",
    "button-press-v3": "press the red button on the side of the box",
    "button-press-wall-v3": "go around the wall and press the red button on the box",
    "coffee-button-v3": "press the button of the coffee machine",
    "dial-turn-v3": "turn the dial half a turn",
    "door-close-v3": "swing the open door shut",
    "door-lock-v3": "turn the knob of the door to lock it",
    "door-open-v3": "pull the door open by its handle",
    "door-unlock-v3": "turn the knob of the door to unlock it",
    "drawer-close-v3": "push the drawer in",
    "drawer-open-v3": "pull the drawer out",
    "faucet-close-v3": "turn the faucet clockwise to shut it",
    "faucet-open-v3": "turn the faucet counter-clockwise to open it",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "lift the lever by a quarter turn",
    "peg-unplug-side-v3": "pull the peg out of the box sideways",
    "plate-slide-back-side-v3": "slide the plate out of the cabinet to the side",
    "plate-slide-back-v3": "slide the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate forward into the cabinet",
    "reach-v3": "move the hand to the red ball",
    "reach-wall-v3": "move the hand around the wall to the red ball",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
}
MEDIUM = {
    "basketball-v3": "drop the basketball through the hoop",
    "bin-picking-v3": "move the cube from its bin into the other bin",
    "box-close-v3": "put the lid on the box",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "hammer-v3": "drive the nail in with the hammer",
    "peg-insert-side-v3": "push the peg into the hole in the side of the box",
    "push-wall-v3": "push the puck around the wall to the goal",
    "soccer-v3": "kick the ball into the net",
    "sweep-into-v3": "sweep the cube into the hole",
    "sweep-v3": "sweep the cube off the table",
}
HARD = {
    "assembly-v3": "pick up the wrench by its handle and put its ring over the peg",
    "hand-insert-v3": "reach into the hole with the hand",
    "pick-out-of-hole-v3": "lift the puck out of the hole to the goal",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
}
VERY_HARD = {
    "disassemble-v3": "lift the ring of the wrench off the peg",
    "pick-place-wall-v3": "carry the puck over the wall to the goal",
    "shelf-place-v3": "put the cube on the shelf",
    "stick-pull-v3": "pull the thermos with the stick through its handle",
    "stick-push-v3": "push the thermos to the goal with the stick",
}
TIERS: Mapping[str, Mapping[str, str]] = {"easy": EASY, "medium": MEDIUM, "hard": HARD, "very_hard": VERY_HARD}

SENTENCES: Mapping[str, str] = {name: tier[name] for tier in TIERS.values() for name in tier}
"""Task -> the one sentence of it. One scene holds one task, so the sentence mostly repeats what the picture shows."""

MT50 = tuple(sorted(SENTENCES))
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
TASK_GROUPS: Mapping[str, tuple[str, ...]] = {
    "mt10": MT10,
    "mt50": MT50,
    **{tier: tuple(sentences) for tier, sentences in TIERS.items()},
}
