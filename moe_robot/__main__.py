"""``python -m moe_robot``: the same as ``moe-robot``, for ``torchrun -m moe_robot train ...``."""

import sys

from moe_robot.cli import main

if __name__ == "__main__":
    sys.exit(main())
