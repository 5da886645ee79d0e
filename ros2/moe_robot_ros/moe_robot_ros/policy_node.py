"""What ``ros2 run moe_robot_ros policy_node`` starts."""

from moe_robot.deploy.policy_node import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
