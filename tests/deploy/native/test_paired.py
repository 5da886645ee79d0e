"""Free running: fifty episodes over real DDS in real time, beside the same fifty in one process."""

import lockstep
import pytest

from moe_robot.cli.bench import Options
from moe_robot.cli.bench.paired import measure

pytestmark = pytest.mark.full


def test_in_real_time_a_policy_succeeds_as_often_as_in_its_evaluation(tmp_path, patient_file):
    result = measure(lockstep.CHECKPOINT, tmp_path / "pairs", Options.tasks, 10, "rclpy", str(patient_file), print)
    low, high = result["ci95_points"]
    assert result["pairs"] == 50
    assert -10 <= low <= high <= 10, result
