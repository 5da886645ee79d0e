"""``moe-robot bench data``: writing, opening and reading demonstrations, in turn with lerobot where it is at hand.

Both sides write the same pictures and read what they wrote: shuffled batches with chunks of actions through a torch
data loader. Rounds alternate, so that what else runs on the machine disturbs both alike.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.cli.bench.lerobot_side import cpu
from moe_robot.types import Features, UserError

EPISODES, LENGTH, CHUNK, BATCH, WORKERS, FPS = 10, 200, 16, 32, 2, 20
MANY_EPISODES = 1000
PEER_SCRIPT = Path(__file__).with_name("lerobot_side.py")


@dataclass(frozen=True)
class Round:
    """One measurement: frames, wall and processor seconds."""

    frames: int
    wall: float
    cpu: float


def measure(size: int, rounds: int, lerobot: Path | None, batches: int = 100) -> dict[str, Any]:
    """Medians over ``rounds``: frames per second and CPU milliseconds per frame of every job.

    Args:
        size: height and width of the pictures.
        rounds: how often every job runs.
        lerobot: a Python interpreter that has lerobot, None to leave it out.
        batches: batches of a reading round.
    """
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        pictures = _pictures(size)
        np.save(folder / "pictures.npy", pictures)
        jobs: dict[str, Callable[[], Round]] = {
            "write png": lambda: _write(folder / "ours-png", pictures, "png"),
            "write h264": lambda: _write(folder / "ours-h264", pictures, "h264"),
            "read from cache": lambda: _read(folder / "ours-png", "cache", batches),
            "read png without cache": lambda: _read(folder / "ours-png", "stream", batches),
            "read h264 without cache": lambda: _read(folder / "ours-h264", "stream", batches),
        }
        peer = _Peer(lerobot, folder) if lerobot else None
        if peer:
            both = {"size": size, "episodes": EPISODES, "pictures": str(folder / "pictures.npy")}
            reading = {"batch": BATCH, "chunk": CHUNK, "workers": WORKERS, "batches": max(4, batches // 4)}
            for kind, video in (("video", True), ("image", False)):
                place = str(folder / f"theirs-{kind}")
                jobs[f"lerobot write {kind}"] = lambda p=place, v=video: peer.ask(do="write", to=p, video=v, **both)
                jobs[f"lerobot read {kind}"] = lambda p=place: peer.ask(do="read", **{"from": p}, **reading)
        try:
            seen: dict[str, list[Round]] = {name: [] for name in jobs}
            for _ in range(rounds):
                for name, job in jobs.items():
                    seen[name].append(job())
        finally:
            if peer:
                peer.close()
        result: dict[str, Any] = {
            "pixels": size,
            "what": f"{EPISODES} episodes of {LENGTH} frames, chunk {CHUNK}, batch {BATCH}, {WORKERS} workers",
        }
        for name, of in seen.items():
            result[f"{name}, frames/s"] = statistics.median(each.frames / each.wall for each in of)
            result[f"{name}, CPU ms/frame"] = statistics.median(1e3 * each.cpu / each.frames for each in of)
        opened = _open_many(folder / "many")
        result[f"open {MANY_EPISODES} episodes, s"] = opened.wall
        result[f"open {MANY_EPISODES} episodes, CPU s"] = opened.cpu
        result["lerobot"] = peer.version if peer else "left out: name a Python that has it with --peer"
        result["load_average"] = os.getloadavg()[0]
        return result


def _pictures(size: int) -> np.ndarray:
    """A blob that wanders over a coloured ground, uint8 (LENGTH, size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    ground = np.stack([100 * x, 80 * y, 90 + 60 * (x - y)], axis=-1)
    frames = []
    for step in range(LENGTH):
        at = 0.5 + 0.3 * np.array([np.sin(step / 15), np.cos(step / 20)])
        blob = 150 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.01)
        frames.append(np.clip(ground + blob[..., None], 0, 255).astype(np.uint8))
    return np.stack(frames)


def _write(folder: Path, pictures: np.ndarray, codec: str) -> Round:
    """Record and commit after every episode, as ``collect`` may do."""
    from moe_robot.data.record import EpisodeBuilder
    from moe_robot.data.store import DatasetWriter

    shutil.rmtree(folder, ignore_errors=True)
    names = tuple("abcd")
    features = Features({"front": pictures.shape[1:3]}, names, names, FPS)
    begun, spent = time.perf_counter(), cpu()
    writer = DatasetWriter(folder, features, {}, codec)
    for _ in range(EPISODES):
        builder = EpisodeBuilder(features, codec)
        for picture in pictures:
            values = picture[0, :4, 0].astype(np.float32)
            builder.add({"front": picture}, values, values)
        writer.append(builder.finish("bench"))
        writer.commit()
    return Round(EPISODES * len(pictures), time.perf_counter() - begun, cpu() - spent)


def _read(folder: Path, frames: Any, batches: int) -> Round:
    from torch.utils.data import DataLoader

    from moe_robot.data.loader import open_dataset

    dataset = open_dataset(folder, CHUNK, split="all", frames=frames, show_progress=False)
    dataset.batch([0])  # the cache is built, or the files are open, before the clock runs

    class Batches:
        """One item is one batch."""

        def __len__(self) -> int:
            return batches + 100  # workers are at work to the end

        def __getitem__(self, step: int) -> dict[str, Any]:
            return dataset.batch(dataset.draw(0, step, BATCH))

    loader: Any = DataLoader(Batches(), batch_size=None, num_workers=WORKERS)  # type: ignore[arg-type]
    begun, spent, seen, at = 0.0, 0.0, 0, iter(loader)
    for number in range(batches + 1):
        batch = next(at)
        if number == 0:  # workers have started
            begun, spent = time.perf_counter(), cpu()
        else:
            seen += len(batch["task"])
    measured = Round(seen, time.perf_counter() - begun, cpu() - spent)
    del at, loader
    return measured


def _open_many(folder: Path) -> Round:
    """Until a data set of many short episodes is open, its files in the page cache."""
    from moe_robot.data.loader import open_dataset
    from moe_robot.data.record import EpisodeBuilder
    from moe_robot.data.store import DatasetWriter

    names = tuple("abcd")
    features = Features({"front": (16, 16)}, names, names, FPS)
    writer = DatasetWriter(folder, features, {})
    builder = EpisodeBuilder(features)
    for step in range(50):
        builder.add({"front": np.zeros((16, 16, 3), np.uint8)}, np.full(4, step), np.full(4, step))
    record = builder.finish("bench")
    for _ in range(MANY_EPISODES):
        writer.append(record)
    writer.commit()
    open_dataset(folder, CHUNK)
    begun, spent = time.perf_counter(), cpu()
    opened = open_dataset(folder, CHUNK)
    return Round(len(opened), time.perf_counter() - begun, cpu() - spent)


class _Peer:
    """lerobot in a process of its own environment."""

    def __init__(self, python: Path, folder: Path) -> None:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        self._log = (folder / "lerobot.log").open("w+")
        try:
            self._process = subprocess.Popen(
                [python, "-I", PEER_SCRIPT],  # -I: modules of ours, such as moe.py, hide nothing of its environment
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=kept,
            )
        except OSError as error:
            raise UserError(f"{python} cannot be run ({error.strerror}): name a Python interpreter") from error
        self.version = self._answer()["lerobot"]

    def ask(self, **request: Any) -> Round:
        """One measurement of lerobot's."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Round(**self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            self.close()
            raise UserError(f"lerobot has stopped: {last}")
        return json.loads(line)
