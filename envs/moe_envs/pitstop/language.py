"""The sentences of PitStop: a grammar that names each of the 22 tasks in many ways, and what it holds out.

A sentence is a **core** in some word order, inside a **wrapper** (politeness or filler). Word orders:

=============  =====================================================================================
command        "lift the scarlet cube", "pick the scarlet cube up", "put the nut on the peg"
two_step       "find the red button and tap it", "take the red cube and drop it in the left bin"
want           "i'd like the red button pressed"
passive        "the red button has to be pressed"
state          "the violet nut belongs on the post", "hold the blue cube in the air", "give the red button a tap"
place_first    "use the peg for the purple nut", "the blue cube should hold the red one"
=============  =====================================================================================

Sentences are lower case, at most ``MAX_WORDS`` words, of the characters ``a-z``, apostrophe and hyphen; words are what
``str.split`` gives. A word for a colour or for a thing belongs to that colour or thing alone ("block" and "brick" are
never cubes; cubes and buttons always carry their colour; "left" and "right" are only sides). Verbs may be shared
where the rest tells the task ("put" with a bin, a cube or the peg).

**seen** is for training. **heldout** uses only words of seen sentences and comes, half and half, in two kinds:

1. *New pairs*: a quarter of all pairs of a verb (or predicate) with a noun phrase (colour word and noun) never occurs
   in a seen sentence, with any wrapper, place or order: "lift the azure cube" is unseen, although "grab the azure
   cube" and "lift the blue cube" are seen. The rule is ``_is_held_out``, a Latin square, so that no word is starved.
2. *New orders*: each family of tasks lacks one word order that the other families show (``unseen_order``): nobody ever
   says "i want the red cube lifted" in training, though "i want the red button pressed" is said. Stacking keeps its
   reversed order in training: there only the order of words tells which cube goes on top.

Holding out single sentences at random would be easier (a near copy is always seen); holding out words would need
knowledge from outside. That is what **newwords** is for: the two plainest orders (command, state) with exactly one
word, a verb, a colour, a thing or a place, exchanged for one that no seen or held-out sentence has (``Words.new`` and
``Family.new_verbs`` of the lexicon).
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np

from moe_envs.pitstop.lexicon import (
    COLOURS,
    COMMAND_WRAPPERS,
    FAMILIES,
    MUSTS,
    NOUNS,
    ORDER_WEIGHTS,
    PLACES,
    STATEMENT_WRAPPERS,
    TAILS,
    WANTS,
)
from moe_robot.registry import unknown

INSTRUCTION_SETS = ("seen", "heldout", "newwords")
MAX_WORDS = 14

# A verb has one number wherever it is used, with or without its particle: a held-out pair is held out of every task.
_VERBS = tuple(dict.fromkeys(verb.base for family in FAMILIES.values() for verb in family.verbs))


@dataclass(frozen=True)
class _Meaning:
    """What a task says: family, object, and where it goes (a bin's side, the lower cube's colour, peg, line)."""

    family: str
    colour: str
    noun: str
    place: str = ""


_OBJECTS = (("red", "cube"), ("blue", "cube"), ("green", "block"), ("yellow", "wheel"), ("purple", "nut"))
_MEANINGS: dict[str, _Meaning] = {
    **{f"pick_{colour}_{noun}": _Meaning("pick", colour, noun) for colour, noun in _OBJECTS},
    **{
        f"bin_{colour}_{noun}_{side}": _Meaning("bin", colour, noun, side)
        for colour, noun in _OBJECTS
        for side in ("left", "right")
    },
    "stack_red_on_blue": _Meaning("stack", "red", "cube", "blue"),
    "stack_blue_on_red": _Meaning("stack", "blue", "cube", "red"),
    "nut_on_peg": _Meaning("nut", "purple", "nut", "peg"),
    **{f"press_{colour}": _Meaning("press", colour, "button") for colour in ("red", "green", "blue")},
    "push_block": _Meaning("push", "green", "block", "line"),
}
TASKS = tuple(_MEANINGS)


@dataclass(frozen=True, slots=True)
class _Core:
    """A sentence without its wrapper. ``head`` is its verb or predicate; ``held_out``: the pair of head and noun phrase
    is kept from seen sentences."""

    order: str
    head: str
    text: str
    held_out: bool

    @property
    def wrappers(self) -> tuple[str, ...]:
        """The wrappers that go with this core and keep it short enough."""
        statement = self.text.startswith(("the ", "i ", "i'd "))
        room = MAX_WORDS + 1 - len(self.text.split())  # "{}" counts as a word
        wrappers = STATEMENT_WRAPPERS if statement else COMMAND_WRAPPERS
        # "use the peg for the nut for me" is clumsy.
        return tuple(w for w in wrappers if len(w.split()) <= room and not ("for me" in w and " for " in self.text))


def _is_held_out(head: int, colour: int, noun: int) -> bool:
    """Whether verb or predicate number ``head`` with this colour word and this noun is kept from the seen sentences."""
    return (head + colour + 2 * noun) % 4 == 3


def _is_held_out_verb(base: str, colour: int, noun: int) -> bool:
    """The same for a verb by name; a word that is no verb of the tasks ("find") has no held-out pairs."""
    return base in _VERBS and _is_held_out(_VERBS.index(base), colour, noun)


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))


def _phrases(meaning: _Meaning, new: str) -> Iterator[tuple[str, str, str, int, int]]:
    """(object, place, second mention of object, colour number, noun number) for every choice of words.

    ``new`` is the slot that takes its new words: "colour", "noun", "place", another slot, or "" for none.
    """
    colours, nouns = COLOURS[meaning.colour], NOUNS[meaning.noun]
    for c, colour in enumerate(colours.new if new == "colour" else colours.seen):
        for n, noun in enumerate(nouns.new if new == "noun" else nouns.seen):
            if new == "noun" and not colour:
                continue  # an unknown noun alone would not tell which thing is meant
            thing = _joined("the", colour, noun)
            if meaning.family == "stack":
                lower = COLOURS[meaning.place]
                for other in lower.new if new == "place" else lower.seen:
                    yield thing, f"the {other} {noun}", f"the {colour} one", c, n
                    yield thing, f"the {other} one", thing, c, n
            elif meaning.family == "bin":
                side = meaning.place
                for place in PLACES["bin"].new if new == "place" else PLACES["bin"].seen:
                    for where in (f"the {side} {place}", f"the {side}-hand {place}", f"the {place} on the {side}"):
                        yield thing, where, thing, c, n
            elif meaning.place:
                for place in PLACES[meaning.place].new if new == "place" else PLACES[meaning.place].seen:
                    yield thing, f"the {place}", thing, c, n
            else:
                for tail in TAILS[meaning.family]:
                    yield thing, tail, thing, c, n


def _cores(meaning: _Meaning, new: str) -> Iterator[_Core]:
    """Every core of a task in every word order, with the slot ``new`` ("verb", "colour", ...) from the new words."""
    family = FAMILIES[meaning.family]
    for thing, place, again, c, n in _phrases(meaning, new):
        for verb in family.new_verbs if new == "verb" else family.verbs:
            held, name = _is_held_out_verb(verb.base, c, n), _joined(verb.base, verb.particle)
            for link in verb.links:
                end = _joined(link, place)
                yield _Core("command", name, _joined(verb.base, verb.particle, thing, end), held)
                if verb.particle:
                    yield _Core("command", name, _joined(verb.base, thing, verb.particle, end), held)
                for first in family.approaches:
                    either = held or _is_held_out_verb(first.split()[0], c, n)
                    yield _Core(
                        "two_step", name, _joined(first, thing, "and", verb.base, "it", verb.particle, end), either
                    )
                for want in WANTS:
                    yield _Core("want", name, _joined(want, thing, verb.past, verb.particle, end), held)
                for must in MUSTS:
                    yield _Core("passive", name, _joined(thing, must, verb.past, verb.particle, end), held)
        if new == "verb":
            continue
        for i, predicate in enumerate(family.states):
            yield _Core("state", predicate, predicate.format(o=thing, p=place), _is_held_out(i, c, n))
        if meaning.family == "stack" and place.endswith(" one"):
            continue  # "top the blue one with the red cube": the first mention has to name the thing
        for i, predicate in enumerate(family.reversals):
            for mention in dict.fromkeys((thing, again)):
                yield _Core("place_first", predicate, predicate.format(o=mention, p=place), _is_held_out(i, c, n))


@dataclass(frozen=True)
class _Pool:
    """The cores of one task and set in groups (one word order and head each) with their probabilities, cumulated."""

    groups: tuple[tuple[_Core, ...], ...]
    cumulated: tuple[float, ...]


@cache
def _pool(task: str, instructions: str) -> _Pool:
    if task not in _MEANINGS:
        raise unknown("task", task, TASKS)
    if instructions not in INSTRUCTION_SETS:
        raise unknown("instruction set", instructions, INSTRUCTION_SETS)
    meaning = _MEANINGS[task]
    unseen_order = FAMILIES[meaning.family].unseen_order
    groups: dict[tuple[str, str, str], dict[_Core, None]] = {}  # by new slot, order, head
    for new in ("verb", "colour", "noun", "place") if instructions == "newwords" else ("",):
        if new == "place" and not meaning.place:
            continue
        for core in _cores(meaning, new):
            if len(core.text.split()) > MAX_WORDS:
                continue
            in_set = {
                "seen": core.order != unseen_order and not core.held_out,
                "heldout": core.order == unseen_order or core.held_out,
                "newwords": core.order in ("command", "state"),
            }[instructions]
            if in_set:
                groups.setdefault((new, core.order, core.head), {})[core] = None
    # Heads share the weight of their order evenly, however many sentences each of them makes.
    heads = Counter(key[:2] for key in groups)
    weights = {key: ORDER_WEIGHTS[key[1]] / heads[key[:2]] for key in groups}
    # The unseen order is half of the held-out draws; the slots with a new word come equally often.
    part = {key: key[1] == unseen_order if instructions == "heldout" else key[0] for key in groups}
    shares: dict[object, float] = {}
    for key, weight in weights.items():
        shares[part[key]] = shares.get(part[key], 0.0) + weight
    cumulated = accumulate(weight / shares[part[key]] / len(shares) for key, weight in weights.items())
    return _Pool(tuple(map(tuple, groups.values())), tuple(cumulated))


def sentence(task: str, instructions: str, rng: np.random.Generator) -> str:
    """A sentence of one of ``INSTRUCTION_SETS`` that asks for ``task``. Always three draws from ``rng``.

    Raises ``UserError`` for an unknown task or set.
    """
    pool = _pool(task, instructions)
    group_u, core_u, wrapper_u = rng.random(3)
    group = pool.groups[min(bisect(pool.cumulated, group_u), len(pool.groups) - 1)]
    core = group[int(core_u * len(group))]
    wrappers = core.wrappers
    return wrappers[int(wrapper_u * len(wrappers))].format(core.text)


def sentences(task: str, instructions: str) -> Iterator[str]:
    """All sentences that :func:`sentence` can draw, each once: from two thousand to some hundred thousand."""
    cores = (core for group in _pool(task, instructions).groups for core in group)
    return iter(dict.fromkeys(wrapper.format(core.text) for core in cores for wrapper in core.wrappers))


def vocabulary(instructions: str) -> frozenset[str]:
    """Every word of every sentence of one instruction set, over all tasks."""
    pools = (_pool(task, instructions) for task in TASKS)
    texts = {text for pool in pools for group in pool.groups for core in group for text in (core.text, *core.wrappers)}
    return frozenset(word for text in texts for word in text.split()) - {"{}"}
