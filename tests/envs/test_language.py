"""The sentences of PitStop name one task each, and what is held out is held out."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from moe_envs.pitstop.language import INSTRUCTION_SETS, MAX_WORDS, TASKS, sentence, sentences, vocabulary
from moe_robot.types import UserError

COLOURS = {"red": "red scarlet crimson", "blue": "blue navy azure", "green": "green emerald lime"}
COLOURS |= {"yellow": "yellow golden", "purple": "purple violet"}
THINGS = {"cube": "cube die", "block": "block brick", "wheel": "wheel tyre", "nut": "nut", "button": "button switch"}


@pytest.fixture(scope="module")
def every() -> dict[tuple[str, str], set[str]]:
    return {(task, kind): set(sentences(task, kind)) for task in TASKS for kind in INSTRUCTION_SETS}


@pytest.fixture(scope="module")
def words(every) -> dict[tuple[str, str], set[str]]:
    return {key: set("\n".join(texts).split()) for key, texts in every.items()}


def draws(task: str, kind: str, n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [sentence(task, kind, rng) for _ in range(n)]


def test_there_are_the_22_tasks_of_the_contract():
    objects = ("red_cube", "blue_cube", "green_block", "yellow_wheel", "purple_nut")
    expected = {f"pick_{o}" for o in objects} | {f"bin_{o}_{side}" for o in objects for side in ("left", "right")}
    expected |= {"stack_red_on_blue", "stack_blue_on_red", "nut_on_peg", "push_block"}
    expected |= {f"press_{colour}" for colour in ("red", "green", "blue")}
    assert set(TASKS) == expected
    assert len(TASKS) == 22


@pytest.mark.parametrize(
    ("task", "plain"),
    [
        ("pick_red_cube", "pick up the red cube"),
        ("press_blue", "press the blue button"),
        ("bin_yellow_wheel_left", "put the yellow wheel in the left bin"),
        ("stack_red_on_blue", "stack the red cube on the blue cube"),
        ("stack_blue_on_red", "please stack the blue cube on the red cube"),
        ("nut_on_peg", "put the nut on the peg"),
        ("push_block", "push the green block over the line"),
    ],
)
def test_the_plainest_wording_is_a_training_sentence(every, task, plain):
    assert plain in every[task, "seen"]


def test_every_task_has_many_sentences_of_each_set(every):
    floor = {"seen": 500, "heldout": 50, "newwords": 30}
    assert {key: len(texts) for key, texts in every.items() if len(texts) < floor[key[1]]} == {}


def test_no_sentence_belongs_to_two_tasks_or_two_sets(every):
    owners = Counter(chain.from_iterable(every.values()))
    assert sum(map(len, every.values())) > 100_000
    assert [text for text, count in owners.items() if count > 1] == []


def test_sentences_are_short_lower_case_and_without_doubled_words(every):
    texts = list(chain.from_iterable(every.values()))
    assert max(len(text.split()) for text in texts) <= MAX_WORDS
    assert set("".join(texts)) <= set("abcdefghijklmnopqrstuvwxyz'- ")
    assert not any("  " in text or text != text.strip() for text in texts)
    assert re.search(r"\b(\w+) \1\b", "\n".join(texts)) is None


def test_heldout_sentences_use_only_words_of_seen_ones(words):
    of = {kind: set().union(*(words[task, kind] for task in TASKS)) for kind in INSTRUCTION_SETS}
    assert of["heldout"] <= of["seen"]
    assert of == {kind: vocabulary(kind) for kind in INSTRUCTION_SETS}


def test_every_newwords_sentence_has_exactly_one_unknown_word_apart_from_repetition(every):
    known = vocabulary("seen") | vocabulary("heldout")
    counts = Counter(
        len(set(text.split()) - known) for (_, kind), texts in every.items() if kind == "newwords" for text in texts
    )
    assert set(counts) == {1}


def test_unknown_words_are_verbs_colours_things_and_places_in_turn():
    known = vocabulary("seen")
    counts = Counter(
        next(w for w in text.split() if w not in known) for text in draws("bin_red_cube_left", "newwords", 2000)
    )
    slots = [
        {"ruby", "vermilion"},
        {"dice"},
        {"crate", "basket", "tub"},
        set(counts) - {"ruby", "vermilion", "dice", "crate", "basket", "tub"},
    ]
    assert all(sum(counts[w] for w in slot) / 2000 == pytest.approx(0.25, abs=0.05) for slot in slots)


def test_a_heldout_verb_and_noun_phrase_never_meet_in_a_seen_sentence(every):
    """Read off the text, not off the grammar: command pairs that occur in held-out sentences with a seen word order."""
    seen = " . ".join(chain.from_iterable(every[task, "seen"] for task in TASKS))
    assert {"grab the azure cube", "lift the blue cube"} <= every["pick_blue_cube", "seen"]
    for verb, thing in [("lift", "azure cube"), ("raise", "red cube"), ("hit", "red button"), ("place", "nut")]:
        assert f"{verb} the {thing}" in " . ".join(chain.from_iterable(every[task, "heldout"] for task in TASKS))
        assert f"{verb} the {thing}" not in seen
        assert f" the {thing}" in seen
        assert f"{verb} the " in seen


@pytest.mark.parametrize(
    ("task", "order"),
    [
        ("pick_red_cube", r"(i want|i need|i'd like|i would like) the "),
        ("stack_red_on_blue", r"(i want|i need|i'd like|i would like) the "),
        ("press_red", r" to be | be "),
        ("nut_on_peg", r" to be | be "),
        ("bin_red_cube_left", r" for the | hold "),
        ("push_block", r" and (push|slide|shove|nudge|move) it "),
    ],
)
def test_each_family_has_a_word_order_kept_from_training_that_other_families_show(every, task, order):
    assert not any(re.search(order, text) for text in every[task, "seen"])
    share = np.mean([bool(re.search(order, text)) for text in draws(task, "heldout", 2000)])
    assert share == pytest.approx(0.5, abs=0.06)
    pattern = order if task != "push_block" else r" and \w+ it"
    assert any(re.search(pattern, text) for other in TASKS for text in every[other, "seen"])


def test_words_of_colours_things_and_sides_are_found_only_where_they_belong(words):
    allowed = {}
    for task in TASKS:
        pieces = set(task.split("_"))
        pieces |= {"press": {"button"}, "stack": {"cube"}, "push": {"green"}}.get(task.split("_")[0], set())
        pieces |= {"purple"} if task == "nut_on_peg" else set()
        allowed[task] = pieces
    for kinds, name in (
        (COLOURS, "colour"),
        (THINGS, "thing"),
        ({"left": "left left-hand", "right": "right right-hand"}, "side"),
    ):
        owner = {word: key for key, words in kinds.items() for word in words.split()}
        for (task, kind), used in words.items():
            present = {owner[word] for word in used if word in owner}
            assert present <= allowed[task], (name, task, kind)
            assert present or name == "side", (name, task, kind)


@pytest.mark.parametrize("kind", INSTRUCTION_SETS)
def test_a_stranger_s_reading_finds_the_task(kind):
    """A reader that knows only the dictionary below and English word order agrees with the grammar."""
    for task in TASKS:
        for text in draws(task, kind, 500, seed=1):
            assert read(text) == task, text


NEW = {"red": "ruby vermilion", "blue": "cobalt sapphire", "green": "jade olive", "yellow": "amber mustard"}
NEW |= {"purple": "lilac mauve", "cube": "dice", "block": "slab bar", "wheel": "tire disc", "nut": "fastener"}
NEW |= {"button": "buzzer key"}


DICTIONARY = {word: key for key, words in chain(COLOURS.items(), THINGS.items(), NEW.items()) for word in words.split()}


def read(text: str) -> str:
    """The task that a sentence asks for, by what it mentions and in which order."""
    named = [DICTIONARY[word] for word in text.split() if word in DICTIONARY]
    colours, things = [n for n in named if n in COLOURS], {n for n in named if n in THINGS}
    assert len(things) == 1, text
    (thing,) = things
    if thing == "button":
        return f"press_{colours[0]}"
    if side := re.search(r"\b(left|right)\b", text):
        return (
            f"bin_{ {'wheel': 'yellow', 'nut': 'purple', 'block': 'green'}.get(thing) or colours[0] }_{thing}_{side[1]}"
        )
    if re.search(r"\b(peg|post|rod|dowel|spindle)\b", text):
        return "nut_on_peg"
    if re.search(r"\b(line|stripe|boundary|border)\b", text):
        return "push_block"
    if len(colours) == 2:
        under_first = re.search(r"\b(under|hold)\b|\btop the\b", text)
        upper, lower = reversed(colours) if under_first else colours
        return f"stack_{upper}_on_{lower}"
    return f"pick_{ {'wheel': 'yellow', 'nut': 'purple', 'block': 'green'}.get(thing) or colours[0] }_{thing}"


def test_every_seen_word_is_met_in_a_set_of_demonstrations():
    """400 demonstrations a task: no word so rare that a text encoder could not learn it."""
    counts = Counter(word for task in TASKS for text in draws(task, "seen", 400) for word in set(text.split()))
    assert set(counts) == vocabulary("seen")
    assert {word: n for word, n in counts.items() if n < 15} == {}


def test_five_demo_tasks_alone_meet_their_words_too():
    tasks = ("press_red", "press_green", "press_blue", "pick_red_cube", "pick_blue_cube")
    counts = Counter(word for task in tasks for text in draws(task, "seen", 400) for word in set(text.split()))
    known = {word for task in tasks for text in sentences(task, "seen") for word in text.split()}
    heldout = {word for task in tasks for text in sentences(task, "heldout") for word in text.split()}
    assert set(counts) == known
    assert min(counts.values()) >= 15
    assert heldout <= known


def test_draws_are_sentences_of_the_set(every):
    for task in TASKS:
        for kind in INSTRUCTION_SETS:
            assert set(draws(task, kind, 200)) <= every[task, kind]


def test_draws_vary():
    assert all(len(set(draws(task, "seen", 400))) > 250 for task in TASKS)


def test_the_generator_decides_the_sentence_and_each_draw_takes_the_same_from_it():
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    assert sentence("push_block", "seen", first) == sentence("push_block", "seen", second)
    sentence("push_block", "newwords", first)
    sentence("bin_red_cube_left", "heldout", second)
    assert first.random() == second.random()


def test_another_process_draws_the_same_sentences():
    code = (
        "import numpy as np; from moe_envs.pitstop.language import *; rng = np.random.default_rng(5);"
        "print([sentence(t, k, rng) for t in TASKS for k in INSTRUCTION_SETS])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    rng = np.random.default_rng(5)
    assert printed.stdout.strip() == str([sentence(t, k, rng) for t in TASKS for k in INSTRUCTION_SETS])


def test_unknown_names_are_refused_with_the_nearest():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="unknown task 'press_redd': did you mean press_red"):
        sentence("press_redd", "seen", rng)
    with pytest.raises(UserError, match="unknown instruction set 'held_out': did you mean heldout"):
        sentence("press_red", "held_out", rng)
    with pytest.raises(UserError, match="unknown task"):
        sentences("", "seen")


def test_the_language_needs_no_simulator():
    code = "import sys, moe_envs.pitstop.language; print({'mujoco', 'gymnasium', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
