"""Robots behind the protocol ``RobotIO``: over a ROS bridge, and a fake one with faults for tests."""
