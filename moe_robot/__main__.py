"""``python -m moe_robot``: the same as ``moe-robot``, for torchrun and where no script is installed."""

import sys

from moe_robot.cli import main

sys.exit(main())
