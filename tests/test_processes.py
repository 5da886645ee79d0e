"""Ctrl-C and worker processes."""

import signal

import pytest

from moe_robot.processes import endings_wait, interrupts_wait


def test_an_interrupt_waits_for_the_check():
    before, steps = signal.getsignal(signal.SIGINT), []

    def work():
        with interrupts_wait() as check:
            for step in range(5):
                if step == 2:
                    signal.raise_signal(signal.SIGINT)
                steps.append(step)
                check()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == [0, 1, 2]  # the third was finished, the fourth not begun
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_does_not_wait():
    reached = []

    def work():
        with interrupts_wait():
            for time in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                reached.append(time)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["first"]


def test_who_ignores_interrupts_goes_on_ignoring_them():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ending_is_only_noted_and_what_was_there_before_comes_back(number):
    before = signal.signal(number, fallen := lambda *_: heard.append("before"))
    heard = []
    try:
        with endings_wait() as told:
            assert not told()
            signal.raise_signal(number)
            assert told()
            assert heard == []
            signal.raise_signal(number)  # a second one does not wait
            assert heard == ["before"]
        assert signal.getsignal(number) is fallen
    finally:
        signal.signal(number, before)


def test_an_ending_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with endings_wait() as told:
            signal.raise_signal(signal.SIGHUP)
            assert not told()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
