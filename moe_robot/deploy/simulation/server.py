"""What a simulated robot speaks through: a bridge of this process, or ROS 2."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

RESET = "/moe_robot_sim_node/reset"
"""The service (``std_srvs/srv/Trigger``) that has the episode begin anew."""
RESET_ANSWER = "the episode begins anew; the connection will be a new one"


Heard = deque[tuple[str, Mapping[str, Any]]]
"""Topics and messages in the order they came; only so many of the newest wait to be taken."""
WAITING = 64


class Server(Protocol):
    """Tells and hears on the robot's topics."""

    def wanted(self, topic: str) -> bool:
        """Whether anybody listens to a topic."""
        ...

    def tell(self, topic: str, message: Mapping[str, Any], /) -> None:
        """Send a message to all who listen."""
        ...

    def take(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic -> the newest message that came since this was asked last."""
        ...

    def take_each(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Topic and message of all that came since this or :meth:`take` was asked last, in the order they came."""
        ...

    def restart(self) -> None:
        """Begin anew: nobody may take what comes for the same robot. A reset that was asked for is done with."""
        ...

    def wants_reset(self) -> bool:
        """Whether :data:`RESET` was called since the last restart."""
        ...
