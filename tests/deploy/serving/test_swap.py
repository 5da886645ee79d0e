"""A checkpoint that is written anew takes over between two batches; one that does not fit is refused."""

import signal

import pytest
from robots import seen_by, wait_until

from moe_robot.deploy.client import RemotePolicy


def _gain(robot) -> float:
    return robot.infer(seen_by(1))["actions"][0, 0]


@pytest.fixture
def served(serve, checkpoint):
    return serve(checkpoint)


@pytest.fixture
def robot(served):
    with RemotePolicy(served.address, answer_s=60) as policy:
        yield policy


def test_a_hangup_signal_lets_the_new_checkpoint_take_over_without_an_unanswered_observation(
    served, robot, checkpoint, write
):
    old = served.policy_pid()
    write(checkpoint, gain=5.0)
    served.command.process.send_signal(signal.SIGHUP)
    gains = [_gain(robot)]
    while gains[-1] == 1.0:
        gains.append(_gain(robot))
    assert sorted(set(gains)) == [1.0, 5.0]
    served.command.says("answers from now on, as generation 2")
    assert robot.infer(seen_by(1))["server_timing"]["generation"] == 2
    assert served.policy_pid() != old
    assert served.metric('swaps_total{outcome="done"}') == 1


MISFITS = [
    ({"fps": 10}, "control runs at 10 Hz, expected 20 Hz"),
    ({"chunk": 8}, "its plans have 8 steps, expected 4"),
    ({"gain": "much"}, "does not act"),
]


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line_and_the_old_one_goes_on(
    served, robot, checkpoint, write
):
    for change, said in MISFITS:
        write(checkpoint, **change)
        served.command.process.send_signal(signal.SIGHUP)
        assert said in served.command.says("refused the new checkpoint").string
        assert _gain(robot) == 1.0
    (checkpoint / "config.json").write_text('{"policy": "miror"}')
    served.command.process.send_signal(signal.SIGHUP)
    assert "did you mean mirror" in served.command.says("refused the new checkpoint").string
    assert _gain(robot) == 1.0
    assert served.metric('swaps_total{outcome="refused"}') == len(MISFITS) + 1
    assert served.is_well()


def test_a_watched_checkpoint_takes_over_by_itself(serve, checkpoint, write):
    served = serve(checkpoint, "--watch", "0.2")
    with RemotePolicy(served.address, answer_s=60) as robot:
        write(checkpoint, chunk=8)
        served.command.says("refused the new checkpoint")
        write(checkpoint, gain=2.0)
        wait_until(lambda: _gain(robot) == 2.0, "the new gain")


def test_a_policy_whose_process_dies_is_loaded_again_and_the_robots_that_wait_go_on(served, checkpoint):
    with RemotePolicy(served.address, answer_s=60, patience_s=60) as patient:
        with RemotePolicy(served.address, answer_s=60) as other, pytest.raises(Exception, match="its process ended"):
            other.infer(seen_by(1) | {"task": "die"})
        wait_until(served.is_well, "the new process")
        assert _gain(patient) == 1.0
    assert served.metric("policy_restarts_total") >= 1
