"""Installs the node where ``ros2 run`` and ``ros2 launch`` look for it."""

from setuptools import setup

NAME = "moe_robot_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py"]),
        (f"share/{NAME}/config", ["config/params.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="The moe_robot authors",
    maintainer_email="moe-robot@example.com",
    description="A moe_robot policy as a ROS 2 lifecycle node",
    license="Apache-2.0",
    entry_points={"console_scripts": ["policy_node = moe_robot_ros.policy_node:main"]},
)
