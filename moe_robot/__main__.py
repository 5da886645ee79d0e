"""``python -m moe_robot``: the same as ``moe-robot``, for ``torchrun -m moe_robot train ...``."""

import os
import sys

from moe_robot.cli import main

if __name__ == "__main__":
    if "RANK" in os.environ:  # before torch is imported: else each process logs that no expert was left without tokens
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(main())
