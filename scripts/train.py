"""Train a policy through the library: the short version of ``moe-robot train``, to copy from.

python scripts/train.py DATA OUT [minutes]
"""

import sys
from pathlib import Path

from moe_robot.training.config import TrainConfig
from moe_robot.training.train import Progress, train


def show(progress: Progress) -> None:
    """A line every hundred steps."""
    if progress.step % 100 == 0:
        print(f"step {progress.step}  loss {progress.loss:.3f}  {progress.samples_per_second:.0f} samples/s")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    minutes = float(sys.argv[3]) if len(sys.argv) == 4 else 10.0
    record = train(TrainConfig(data=Path(sys.argv[1]), out=Path(sys.argv[2]), minutes=minutes), show)
    print(f"{record['samples']:,} samples in {record['minutes']:.1f} min -> {sys.argv[2]}/checkpoint")
