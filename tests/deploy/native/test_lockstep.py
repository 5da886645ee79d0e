"""In lockstep a deployed policy does what it does in an evaluation, action by action: here over real DDS."""

import lockstep
import numpy as np
import pytest

pytestmark = pytest.mark.full


def test_a_trained_policy_gives_the_same_actions_in_two_processes_over_ros_2(command, patient_file, tmp_path):
    actions, verdicts = lockstep.deployed(command, patient_file, tmp_path / "run.mcap", "rclpy", episodes=3)
    expected, ends = lockstep.evaluated(3)
    assert verdicts == ends
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
