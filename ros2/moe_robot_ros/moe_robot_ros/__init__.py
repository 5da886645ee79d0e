"""A moe_robot policy as a ROS 2 lifecycle node."""
