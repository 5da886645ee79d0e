"""Who is there, by ROS's graph: whether all that a contract needs is published and heard, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIMULATED = "moe_robot_sim_node"
"""The name of the simulated robot's node: what is all of this node can hurt nobody."""

UNKNOWN = "_NODE_NAME_UNKNOWN_"
"""What ROS calls a node whose name has not come yet."""


@dataclass(frozen=True)
class Graph:
    """What there is at one moment.

    Attributes:
        publishers: the identities of all that publish what the robot tells. One that is restarted has another.
        missing: what is not there yet, one line; None when messages can flow both ways.
        simulated: whether everything found is of the simulated robot's node; None while ROS cannot tell yet.
    """

    publishers: frozenset[bytes]
    missing: str | None
    simulated: bool | None


def look(node: Any, heard: Mapping[Any, tuple[str, str]], spoken: Mapping[Any, str]) -> Graph:
    """Ask the node's graph, some 30 µs per topic.

    Args:
        node: of rclpy.
        heard: subscription -> message type and reliability (``reliable`` or ``best_effort``) that it asks for.
        spoken: publisher -> message type.
    """
    found, publishers, missing = [], set(), []
    for subscription, (kind, reliability) in heard.items():
        topic = subscription.topic_name  # as remapped
        there = node.get_publishers_info_by_topic(topic)
        found += there
        publishers |= {bytes(one.endpoint_gid) for one in there}
        others = [one for one in there if one.topic_type != kind]
        shy = [one for one in there if one.qos_profile.reliability.name == "BEST_EFFORT"]
        if not there:
            missing.append(f"nothing publishes {topic}")
        elif others:
            missing.append(f"{topic} is published as {others[0].topic_type}, and not {kind}: correct the contract")
        elif reliability == "reliable" and shy:
            missing.append(f"{topic} is published best_effort: write that for its reliability in the contract")
    for publisher, kind in spoken.items():
        topic = publisher.topic_name
        there = node.get_subscriptions_info_by_topic(topic)
        found += there
        others = [one for one in there if one.topic_type != kind]
        if publisher.get_subscription_count():
            continue
        if others:
            missing.append(f"{topic} is heard as {others[0].topic_type}, and not {kind}: correct the contract")
        else:
            missing.append(f"nobody hears commands on {topic}: load the controller")
    nodes = {one.node_name for one in found}
    simulated = None if missing or UNKNOWN in nodes else nodes == {SIMULATED}
    return Graph(frozenset(publishers), missing[0] if missing else None, simulated)
