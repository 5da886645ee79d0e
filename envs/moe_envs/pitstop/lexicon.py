"""The words of PitStop's sentences: colours, things, places, verbs and predicates, and the politeness around them.

No word stands for two things: "block" and "brick" are never cubes, "left" and "right" are only sides. A word listed as
new occurs in ``newwords`` sentences alone. How the words make sentences is told in ``language``.
"""

from __future__ import annotations

from dataclasses import dataclass

# Shortest first: a long core takes only the wrappers that keep it within MAX_WORDS.
COMMAND_WRAPPERS = (
    *("{}", "please {}", "{} please", "now {}", "okay {}", "robot {}", "can you {}", "could you {}", "would you {}"),
    *("{} for me", "could you please {}", "go ahead and {}", "i want you to {}", "i need you to {}"),
)
STATEMENT_WRAPPERS = ("{}", "now {}", "okay {}", "robot {}", "this time {}")
WANTS = ("i want", "i need", "i'd like", "i would like")
MUSTS = ("needs to be", "has to be", "should be", "must be")
# A plain command is what people say most; participles occur in two orders only and would be rare without a little help.
ORDER_WEIGHTS = {"command": 2.0, "two_step": 1.0, "want": 1.5, "passive": 1.5, "state": 1.0, "place_first": 1.0}


@dataclass(frozen=True)
class Words:
    """Choices for one slot: those of seen (and held-out) sentences, and those of ``newwords`` alone."""

    seen: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """``base`` "pick", participle ``past`` "picked", ``particle`` "up", ``links`` to the place ("in", "into")."""

    base: str
    past: str
    particle: str = ""
    links: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Family:
    """Tasks that share verbs. ``approaches`` open a two-step sentence; ``states`` and ``reversals`` are predicates with
    {o} for the object and {p} for the place; ``unseen_order`` is the word order kept for held-out sentences."""

    verbs: tuple[Verb, ...]
    new_verbs: tuple[Verb, ...]
    approaches: tuple[str, ...]
    unseen_order: str
    states: tuple[str, ...]
    reversals: tuple[str, ...] = ()


COLOURS = {
    "red": Words(("red", "scarlet", "crimson"), ("ruby", "vermilion")),
    "blue": Words(("blue", "navy", "azure"), ("cobalt", "sapphire")),
    "green": Words(("green", "emerald", "lime"), ("jade", "olive")),
    # There is one wheel and one nut: these two may go without a colour.
    "yellow": Words(("", "yellow", "golden"), ("amber", "mustard")),
    "purple": Words(("", "purple", "violet"), ("lilac", "mauve")),
}
NOUNS = {
    "cube": Words(("cube", "die"), ("dice",)),
    "block": Words(("block", "brick"), ("slab", "bar")),
    "wheel": Words(("wheel", "tyre"), ("tire", "disc")),
    "nut": Words(("nut", "hex nut"), ("fastener",)),
    "button": Words(("button", "switch"), ("buzzer", "key")),
}
PLACES = {
    "bin": Words(("bin", "container", "tray"), ("crate", "basket", "tub")),
    "peg": Words(("peg", "post"), ("rod", "dowel", "spindle")),
    "line": Words(("line", "stripe"), ("boundary", "border")),
}

_ON = ("on", "onto", "on top of")
_FAR = ("over", "across", "past")
FAMILIES = {
    "pick": Family(
        verbs=(
            Verb("pick", "picked", "up"),
            Verb("lift", "lifted"),
            Verb("grab", "grabbed"),
            Verb("raise", "raised"),
            Verb("take", "taken"),
        ),
        new_verbs=(Verb("hoist", "hoisted"), Verb("scoop", "scooped", "up"), Verb("elevate", "elevated")),
        approaches=("find", "go to", "reach for"),
        unseen_order="want",
        states=(
            *("hold {o} in the air", "get {o} into your gripper"),
            *("{o} belongs in your gripper", "{o} should end up in your gripper"),
        ),
    ),
    "press": Family(
        verbs=(
            Verb("press", "pressed"),
            Verb("press", "pressed", "down"),
            Verb("tap", "tapped"),
            Verb("hit", "hit"),
            Verb("activate", "activated"),
        ),
        new_verbs=(Verb("depress", "depressed"), Verb("punch", "punched"), Verb("poke", "poked")),
        approaches=("find", "go to", "reach for"),
        unseen_order="passive",
        states=("give {o} a press", "give {o} a tap", "{o} needs a press", "{o} needs a tap"),
    ),
    "bin": Family(
        verbs=(
            Verb("put", "put", links=("in", "into", "inside")),
            Verb("drop", "dropped", links=("in", "into")),
            Verb("place", "placed", links=("in", "into", "inside")),
            Verb("move", "moved", links=("into", "to")),
        ),
        new_verbs=(
            Verb("deposit", "deposited", links=("in", "into")),
            Verb("dump", "dumped", links=("in", "into")),
            Verb("toss", "tossed", links=("in", "into")),
            Verb("stow", "stowed", links=("in", "inside")),
        ),
        approaches=("pick up", "grab", "take"),
        unseen_order="place_first",
        states=("{o} belongs in {p}", "{o} goes into {p}", "{o} should end up in {p}", "{o} needs to go into {p}"),
        reversals=("use {p} for {o}", "{p} should hold {o}"),
    ),
    "stack": Family(
        verbs=(
            Verb("stack", "stacked", links=_ON),
            Verb("set", "set", links=("on", "on top of")),
            Verb("put", "put", links=_ON),
            Verb("place", "placed", links=_ON),
        ),
        new_verbs=(
            Verb("pile", "piled", links=("on", "on top of")),
            Verb("balance", "balanced", links=("on", "on top of")),
            Verb("perch", "perched", links=("on", "on top of")),
        ),
        approaches=("pick up", "grab", "take"),
        unseen_order="want",
        states=(
            *("{o} belongs on {p}", "{o} goes on top of {p}"),
            *("{o} should end up on {p}", "{o} needs to go on top of {p}"),
        ),
        reversals=("top {p} with {o}", "{p} goes under {o}", "{p} should hold {o}", "{p} should end up under {o}"),
    ),
    "nut": Family(
        verbs=(
            Verb("slip", "slipped", links=("onto", "over")),
            Verb("fit", "fitted", links=("onto", "over")),
            Verb("put", "put", links=("on", "onto", "over")),
            Verb("place", "placed", links=("on", "onto", "over")),
        ),
        new_verbs=(Verb("mount", "mounted", links=("on",)), Verb("hang", "hung", links=("on",))),
        approaches=("pick up", "grab", "take"),
        unseen_order="passive",
        states=("{o} belongs on {p}", "{o} goes onto {p}", "{o} should end up on {p}", "{o} needs to go onto {p}"),
        reversals=("use {p} for {o}", "{p} should hold {o}"),
    ),
    "push": Family(
        verbs=(
            Verb("slide", "slid", links=_FAR),
            Verb("push", "pushed", links=_FAR),
            Verb("shove", "shoved", links=_FAR),
            Verb("nudge", "nudged", links=_FAR),
            Verb("move", "moved", links=_FAR),
        ),
        new_verbs=(
            Verb("scoot", "scooted", links=_FAR),
            Verb("propel", "propelled", links=_FAR),
            Verb("bulldoze", "bulldozed", links=_FAR),
        ),
        approaches=("find", "go to", "reach for"),
        unseen_order="two_step",
        states=(
            "make {o} cross {p}",
            "{o} has to cross {p}",
            "{o} should end up past {p}",
        ),
    ),
}
# Where a picked or pressed thing is: no place to bring it to, only a tail that adds nothing.
TAILS = {"pick": ("", "from the table", "off the table"), "press": ("", "once", "with your hand")}
