"""Keeps a policy in charge: loads it, swaps it for a new checkpoint, starts it again when its process ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_robot.deploy.checkpoint import policy_directory
from moe_robot.deploy.serving.batching import Batcher
from moe_robot.deploy.serving.metrics import Metrics
from moe_robot.deploy.serving.settings import Settings
from moe_robot.deploy.serving.worker import About, PolicyWorker
from moe_robot.types import UserError

RESTARTS, RESTART_PAUSE_S = 3, 0.5
"""A policy whose process ends is loaded again so often in a row, with a pause that doubles."""
LOOK_S = 0.2
"""Between two looks whether the policy's process runs."""


class PolicyKeeper:
    """The one policy that answers, and whoever takes its place."""

    def __init__(self, settings: Settings, batcher: Batcher, metrics: Metrics, say: Callable[[str], object]) -> None:
        """Nothing runs yet; :meth:`start` comes first, then :meth:`look_after` beside the batcher."""
        self._settings, self._batcher, self._metrics, self._say = settings, batcher, metrics, say
        self._changing = asyncio.Lock()
        self._ending = False
        batcher.lost = self._ended

    async def start(self) -> None:
        """Load the policy.

        Raises:
            UserError: it cannot be loaded, or does not go with the settings.
        """
        self._seen = _identity(self._settings.checkpoint)
        self.worker = self._new_worker()
        try:
            self.about: About = await self.worker.start()
        except BaseException:
            self.worker.stop()
            raise
        await self._in_charge(self.worker)

    async def swap(self) -> bool:
        """Load the checkpoint anew beside the present one and let it take over between two batches.

        Returns whether it did; one that cannot be loaded, or is not like the present one, is refused with a line.
        """
        async with self._changing:
            return await self._replace("the new checkpoint")

    async def look_after(self) -> None:
        """Start the policy's process again when it ended, and look whether the checkpoint changed. Ends only so:

        Raises:
            UserError: the process ended, and new ones did too.
        """
        watch_s = self._settings.watch_s
        next_look, last = time.monotonic(), self._seen
        while True:
            await asyncio.sleep(LOOK_S)
            if not self.worker.alive:
                await self._restart()
            if watch_s is not None and time.monotonic() >= next_look:
                next_look, now = time.monotonic() + watch_s, _identity(self._settings.checkpoint)
                if now != self._seen and now == last:  # it is no longer being written
                    self._seen = now  # a refused one is not tried again until it changes
                    await self.swap()
                last = now

    def stop(self) -> None:
        """End the policy's process."""
        self._ending = True
        self.worker.stop()

    def _new_worker(self) -> PolicyWorker:
        settings = self._settings
        return PolicyWorker(settings.checkpoint, settings.device, settings.threads, settings.largest)

    async def _in_charge(self, worker: PolicyWorker) -> None:
        await self._batcher.put_in_charge(worker)
        self._metrics.generation.set(self._batcher.generation)
        self._metrics.ready.set(1)

    async def _replace(self, what: str) -> bool:
        checkpoint, began = self._settings.checkpoint, time.monotonic()
        worker, seen = self._new_worker(), _identity(checkpoint)
        try:
            about = await worker.start()
            if fault := self.about.misfit(about):
                raise UserError(f"it does not fit the robots that are served: {fault}")
            if _identity(checkpoint) != seen:
                raise UserError("its files changed while they were read")
        except UserError as error:
            worker.stop()
            self._metrics.swaps.add(outcome="refused")
            self._say(f"refused {what} of {checkpoint}: {' '.join(str(error).split())}")
            return False
        except BaseException:  # the server ends while it loads
            worker.stop()
            raise
        before, self._seen = self.worker, seen
        await self._in_charge(worker)
        self.worker, self.about = worker, about
        before.stop()
        self._metrics.swaps.add(outcome="done")
        self._say(
            f"{what} of {checkpoint} ({about.sha256[:12]}) answers from now on, as generation "
            f"{self._batcher.generation}; loaded in {time.monotonic() - began:.1f} s"
        )
        return True

    def _ended(self, worker: PolicyWorker, why: str) -> None:
        if worker is self.worker and not self._ending:
            self._metrics.ready.set(0)
            self._say(f"the policy's process is lost ({why}); it is started again")
            worker.stop()

    async def _restart(self) -> None:
        async with self._changing:
            if self._metrics.ready.value():
                self._ended(self.worker, "its process ended")
            for attempt in range(RESTARTS):
                await asyncio.sleep(RESTART_PAUSE_S * 2**attempt)
                self._metrics.restarts.add()
                if await self._replace("the policy"):
                    return
        raise UserError(f"the policy's process ended, and {RESTARTS} times there was none to take its place")


def _identity(checkpoint: Path) -> tuple[Any, ...]:
    """Of the files of a checkpoint; another one where any of them was written anew."""
    try:
        folder = policy_directory(checkpoint).resolve()
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        stats = [(file.name, file.stat()) for file in files]
    except (OSError, UserError):
        return ()
    return (str(folder), *((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats))
