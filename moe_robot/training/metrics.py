"""Numbers and events of a training run: ``metrics.jsonl``, one line each, and TensorBoard events beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Metrics:
    """Writes both; a resumed run goes on where the saved state was.

    Args:
        out: folder of the run.
        step: of the saved state that a resumed run goes on from, 0 for a new one.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._drop_after(out / "metrics.jsonl", step)
        self._file = (out / "metrics.jsonl").open("a")
        self._board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    @staticmethod
    def _drop_after(path: Path, step: int) -> None:
        """A resumed run writes the lines after the saved step again: drop the old ones."""
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if line and json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in lines))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
        self._board.close()

    def tell(self, step: int, event: dict[str, Any]) -> None:
        """One line about something that happened."""
        self._file.write(json.dumps({"step": step, "event": event}) + "\n")
        self._file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, one point per curve."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)
