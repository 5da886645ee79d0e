"""The policy node, unconfigured: ``ros2 launch moe_robot_ros policy.launch.py params:=FILE``."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode


def generate_launch_description() -> LaunchDescription:
    """One lifecycle node. Remap topics here where the robot's differ from the contract's."""
    params = Path(get_package_share_directory("moe_robot_ros")) / "config/params.yaml"
    return LaunchDescription(
        [
            DeclareLaunchArgument("params", default_value=str(params), description="YAML of the node's parameters"),
            DeclareLaunchArgument("namespace", default_value="", description="of the node"),
            LifecycleNode(
                package="moe_robot_ros",
                executable="policy_node",
                name="moe_robot",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params")],
                output="screen",
            ),
        ]
    )
