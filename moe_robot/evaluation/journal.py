"""Keeps finished episodes on disk, one line each, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from moe_robot.evaluation.episode import Episode, Job
from moe_robot.types import Routing, UserError

PARTIAL_STEM = "episodes.partial"
PARTIAL = f"{PARTIAL_STEM}.jsonl"
COMPLETE = "episodes.jsonl"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one line that names the path and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; free some space or name another --out") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


class Journal:
    """The episodes finished so far in ``out/episodes.partial.jsonl``; :meth:`finish` renames it to ``episodes.jsonl``.

    The first line says which evaluation they belong to: everything that decides an episode except its job. A later
    run with the same first line goes on; another one is refused, because mixed episodes would be nobody's result.

    Processes that share an evaluation out write one file per share (``episodes.partial.0of2.jsonl``), each knowing what
    all had finished when it began. The journal of no share takes all files in, every job once.

    Args:
        share: k and n of the share that this process writes; None to write for all.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], share: tuple[int, int] | None = None) -> None:
        self.path = out / (PARTIAL if share is None else f"{PARTIAL_STEM}.{share[0]}of{share[1]}.jsonl")
        self.whole = share is None
        identity = json.loads(json.dumps(identity, sort_keys=True))  # as it will be read back
        self.episodes: dict[Job, Episode] = {}
        kept: list[str] = []
        with writing(self.path):
            out.mkdir(parents=True, exist_ok=True)
            for path in [self.path, *_others(self.path)]:
                finished = _read(path, identity) if path.exists() else {}
                if path == self.path or self.whole:
                    kept += [line for job, (line, _) in finished.items() if job not in self.episodes]
                self.episodes |= {job: episode for job, (_, episode) in finished.items() if job not in self.episodes}
            header = json.dumps({"evaluation": identity}, sort_keys=True)
            write_atomically(self.path, "".join(line + "\n" for line in [header, *kept]))
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def add(self, episode: Episode) -> None:
        """Keep a finished episode, on disk before this returns."""
        with writing(self.path):
            self._file.write(json.dumps(episode_to_json(episode)) + "\n")
            self._file.flush()
        self.episodes[episode.job] = episode

    def finish(self) -> None:
        """Mark the evaluation as complete: a later run starts afresh. Only for the journal that is of no share."""
        self._file.close()
        with writing(self.path):
            self.path.replace(self.path.with_name(COMPLETE))
            clear_shares(self.path.parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self.path):
            self._file.close()


def finished_episodes(out: Path, identity: Mapping[str, Any]) -> dict[Job, Episode] | None:
    """What a finished evaluation left in ``out``; None while there is none.

    Raises:
        UserError: it is another evaluation.
    """
    path = out / COMPLETE
    if not path.exists():
        return None
    with writing(path):
        found = _read(path, json.loads(json.dumps(identity, sort_keys=True)), "a finished")
    return {job: episode for job, (_, episode) in found.items()}


def clear_shares(out: Path) -> None:
    """Remove what ranks wrote, once a finished evaluation holds it."""
    for path in out.glob(f"{PARTIAL_STEM}.*of*.jsonl"):
        path.unlink(missing_ok=True)


def _others(path: Path) -> list[Path]:
    return [other for other in sorted(path.parent.glob(f"{PARTIAL_STEM}*.jsonl")) if other != path]


def _read(path: Path, identity: Mapping[str, Any], kind: str = "an unfinished") -> dict[Job, tuple[str, Episode]]:
    """The lines of a journal and what they say, up to the one that was being written when its writer stopped."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except FileNotFoundError:
        return {}  # another rank has just put all of it together
    try:
        theirs = json.loads(header)["evaluation"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is no journal of episodes: remove it or name another --out") from None
    if theirs != identity:
        differs = ", ".join(sorted(k for k in {*theirs, *identity} if theirs.get(k) != identity.get(k)))
        raise UserError(
            f"{path} holds {kind} evaluation with another {differs}: "
            "finish it with its own command, remove it, or name another --out"
        )
    found: dict[Job, tuple[str, Episode]] = {}
    for line in lines:
        try:
            episode = episode_from_json(json.loads(line))
        except json.JSONDecodeError:
            break
        found.setdefault(episode.job, (line, episode))
    return found


def episode_to_json(episode: Episode) -> dict[str, Any]:
    """A plain dict, one line of ``episodes.jsonl``."""
    routing = episode.routing
    plain = {name: getattr(episode, name) for name in Episode.__dataclass_fields__ if name not in {"job", "routing"}}
    return {
        **asdict(episode.job),
        **plain,
        "latency_ms": [round(t, 4) for t in episode.latency_ms],
        "step_ms": [round(t, 4) for t in episode.step_ms],
        "routing": routing and routing.to_json(),
    }


def episode_from_json(data: Mapping[str, Any]) -> Episode:
    """The inverse of :func:`episode_to_json`."""
    rest = dict(data)
    job = Job(**{name: rest.pop(name) for name in Job.__dataclass_fields__ if name in rest})
    routing = rest.pop("routing")
    routing = None if routing is None else Routing.from_json(routing)
    latency_ms, step_ms = tuple(rest.pop("latency_ms")), tuple(rest.pop("step_ms"))
    return Episode(job=job, routing=routing, latency_ms=latency_ms, step_ms=step_ms, **rest)
