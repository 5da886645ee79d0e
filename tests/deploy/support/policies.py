"""Policies for the process of their own: a good one, and some that do not behave."""

import ctypes
import time

import numpy as np


def pointing():
    """Moves the hand along x, 8 steps ahead, half a unit in all."""
    return lambda observation: np.tile([0.05, 0.0, 0.0, 0.0, 1.0], (8, 1))


def echoing():
    """Answers, after long enough to be found busy, with what it sees of the instruction and the state."""

    def act(observation):
        time.sleep(0.5)
        return np.array([[len(observation.task), *observation.state]])

    return act


def hanging():
    """Thinks for ever with the interpreter lock held: no other thread of its process runs again."""
    return lambda observation: ctypes.PyDLL(None).sleep(1000)


def failing():
    def act(observation):
        raise RuntimeError("no such\nexpert")

    return act


def unloadable():
    raise FileNotFoundError("no weights here")


def misshapen():
    return lambda observation: np.zeros(5)


def dying():
    import os

    return lambda observation: os._exit(3)


def slow():
    time.sleep(0.1)
    return pointing()
